//! Our end: a driver in memory, which reads and writes in pieces of any size.

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;

pub(super) struct Ours {
    core: Connection,
    scene: Arc<Scene>,
    client: bool,
    /// Streams that are not begun yet (client).
    waiting: Vec<usize>,
    streams: HashMap<Slot, Stream>,
    seen: Vec<Seen>,
    /// Bytes may be sent: `h2` gives no credit any more for what was taken before its smaller window was acknowledged.
    sends: bool,
    random: StdRng,
}

/// A stream that is not over.
struct Stream {
    number: usize,
    content: Vec<u8>,
    sent: usize,
    finished: bool,
    /// What was got and is not credited.
    owed: usize,
}

impl Ours {
    pub(super) fn new(role: Role, scene: &Arc<Scene>) -> Self {
        let client = role == Role::Client;
        let limits = if client { scene.client } else { scene.server };
        let Limits { stream_window, connection_window, frame_size, max_streams } = limits;
        Self {
            core: Connection::new(role, Local { stream_window, connection_window, frame_size, max_streams, ..local(0) }),
            scene: scene.clone(),
            client,
            waiting: if client { (0..scene.plans.len()).rev().collect() } else { Vec::new() },
            streams: HashMap::new(),
            seen: vec![Seen::default(); scene.plans.len()],
            sends: !client || scene.server.stream_window >= 65_535,
            random: StdRng::seed_from_u64(scene.seed),
        }
    }

    pub(super) async fn run(mut self, io: DuplexStream) -> Vec<Seen> {
        let (mut read, mut write) = tokio::io::split(io);
        let (mut out, mut buffer) = (Vec::new(), vec![0; 40_000]);
        loop {
            self.open();
            self.work(&mut out);
            if self.client && self.waiting.is_empty() && self.streams.is_empty() {
                self.core.go_away();
                out.append(self.core.control());
                write.write_all(&out).await.unwrap();
                write.shutdown().await.unwrap();
                assert!(self.core.is_over());
                // The other may still be saying that it has taken the last bytes.
                tokio::io::copy(&mut read, &mut tokio::io::sink()).await.unwrap();
                return self.seen;
            }
            let most = [1, 9, 100, buffer.len()][self.random.random_range(0..4)];
            let owes = self.streams.values().any(|stream| stream.owed > 0);
            tokio::select! {
                length = read.read(&mut buffer[..most]) => match length.unwrap() {
                    0 => return self.seen,
                    length => self.hear(&buffer[..length]),
                },
                length = write.write(&out), if !out.is_empty() => {
                    // A client that has got all does not wait for the last updates of its windows; what it sent is still read.
                    out.drain(..length.unwrap_or(out.len()));
                }
                () = tokio::task::yield_now(), if owes => {}
            }
            if self.random.random_range(0..50) == 0 {
                self.core = serde_json::from_value(serde_json::to_value(&self.core).unwrap()).unwrap();
            }
        }
    }

    fn open(&mut self) {
        while let Some(number) = self.waiting.last().copied() {
            let Some(slot) = self.core.open(&format!("{number}:80"), &HeaderMap::new()) else { return };
            self.waiting.pop();
            self.begin(slot, number);
        }
    }

    fn begin(&mut self, slot: Slot, number: usize) {
        let plan = &self.scene.plans[number];
        let content = content(number, self.client, if self.client { plan.up } else { plan.down });
        self.streams.insert(slot, Stream { number, content, sent: 0, finished: false, owed: 0 });
    }

    /// What there is to be said, as far as there is room.
    fn work(&mut self, out: &mut Vec<u8>) {
        let mut slots: Vec<Slot> = self.streams.keys().copied().collect();
        slots.sort();
        for slot in slots {
            let stream = self.streams.get_mut(&slot).unwrap();
            if stream.owed > 0 && self.random.random() {
                self.core.credit(slot, std::mem::take(&mut stream.owed));
            }
            let seen = &self.seen[stream.number];
            let last = match self.scene.plans[stream.number].fate {
                Fate::TornByClient(at) if self.client => at,
                Fate::TornByServer(at) if !self.client => at,
                _ => usize::MAX,
            };
            while self.sends && out.len() < 100_000 {
                let most = self.core.room(slot).min(self.core.frame_size()).min(last.min(stream.content.len()) - stream.sent);
                if most == 0 {
                    break;
                }
                let length = self.random.random_range(1..=most);
                out.append(self.core.control());
                out.extend(self.core.data(slot, length).unwrap());
                out.extend(&stream.content[stream.sent..stream.sent + length]);
                stream.sent += length;
            }
            // `h2` hides requests that are reset before it has looked at them.
            if stream.sent == last && (seen.status.is_some() || !self.client) {
                self.core.reset(slot, Reason::CANCEL);
                self.part(slot);
            } else if stream.sent == stream.content.len() && !stream.finished {
                stream.finished = true;
                self.core.finish(slot);
            }
            self.part_if_over(slot);
        }
        out.append(self.core.control());
    }

    fn part(&mut self, slot: Slot) {
        self.streams.remove(&slot);
        self.core.release(slot);
    }

    fn part_if_over(&mut self, slot: Slot) {
        if self.streams.get(&slot).is_some_and(|stream| stream.finished && self.seen[stream.number].ended) {
            self.part(slot);
        }
    }

    fn hear(&mut self, bytes: &[u8]) {
        let mut at = 0;
        loop {
            let (used, event) = self.core.receive(&bytes[at..]).unwrap();
            at += used;
            match event {
                None => return,
                Some(event) => self.happened(event, &bytes[..at]),
            }
        }
    }

    fn happened(&mut self, event: Event, bytes: &[u8]) {
        match event {
            Event::Request(slot, head) => {
                let number: usize = head.authority.strip_suffix(":80").unwrap().parse().unwrap();
                if self.scene.plans[number].fate == Fate::Refused {
                    self.core.refuse(slot, 503);
                    return self.core.release(slot);
                }
                self.begin(slot, number);
                self.core.answer(slot, &HeaderMap::new());
            }
            Event::Answer(slot, status, _) => {
                self.seen_of(slot).status = Some(status);
                if status != 200 {
                    self.part(slot);
                }
            }
            Event::Data(slot, length) => {
                self.seen_of(slot).got.extend(&bytes[bytes.len() - length..]);
                self.streams.get_mut(&slot).unwrap().owed += length;
            }
            Event::End(slot) => {
                self.seen_of(slot).ended = true;
                self.part_if_over(slot);
            }
            Event::Reset(slot, torn) => {
                let number = self.streams[&slot].number;
                match torn {
                    Torn::Untouched(_) => self.waiting.push(number),
                    Torn::ByPeer(_) => self.seen[number].torn = true,
                    Torn::ByUs(reason, what) => panic!("h2 breaks no rule: {what} ({reason})"),
                }
                self.part(slot);
            }
            Event::Settled => self.sends = true,
            Event::Room(_) | Event::GoingAway(_) => {}
        }
    }

    fn seen_of(&mut self, slot: Slot) -> &mut Seen {
        &mut self.seen[self.streams[&slot].number]
    }
}
