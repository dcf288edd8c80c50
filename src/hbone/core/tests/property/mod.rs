//! Two ends and their applications do anything that they may, in any order, with every byte on its way for any time; then all
//! that was begun comes to its end.

mod ending;

use std::collections::BTreeMap;

use super::super::frame::{kind, put, setting};
use super::ledger::Ledger;
use super::*;

const RUNS: u64 = 10_000;
const OPERATIONS: usize = 60;

/// One direction of a stream.
#[derive(Debug, Default)]
struct Way {
    /// What the application has to send, and has sent.
    planned: usize,
    sent: usize,
    finished: bool,
    /// What the other has got, of which so many are not taken yet.
    got: usize,
    queued: usize,
    ended: bool,
}

/// A stream, by what its applications know. Index 0 is the client, and the way from it.
#[derive(Debug, Default)]
struct Flow {
    slots: [Option<Slot>; 2],
    ways: [Way; 2],
    /// The server's application: has been asked, has answered.
    asked: bool,
    answered: bool,
    /// One of the two has given up, or been told so.
    torn: bool,
}

struct Side {
    core: Connection,
    /// Said, and not heard by the other.
    wire: VecDeque<u8>,
    ledger: Ledger,
    /// Largest number of streams that it had at once.
    peak: usize,
    /// It has announced another window: what was sent before the peer heard of it is no violation, the ledger holds.
    lenient: bool,
}

struct World {
    sides: [Side; 2],
    flows: BTreeMap<u32, Flow>,
    random: StdRng,
    now: Duration,
}

#[test]
fn anything_may_happen_and_all_comes_to_its_end() {
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(4) as u64;
    std::thread::scope(|scope| {
        for thread in 0..threads {
            scope.spawn(move || (thread..RUNS).step_by(threads as usize).for_each(run));
        }
    });
}

fn run(seed: u64) {
    // Names the run that fails.
    struct Named(u64);
    impl Drop for Named {
        fn drop(&mut self) {
            if std::thread::panicking() {
                eprintln!("run {}", self.0);
            }
        }
    }
    let _named = Named(seed);
    let mut world = World::new(seed);
    for _ in 0..OPERATIONS {
        world.operate();
        world.check();
    }
    world.complete();
    world.part();
}

/// A byte of a stream: no two places look the same for long.
fn byte(id: u32, way: usize, at: usize) -> u8 {
    (id as usize * 31 + way * 101 + at * 7 + (at >> 8)) as u8
}

impl World {
    fn new(seed: u64) -> Self {
        let mut random = StdRng::seed_from_u64(seed);
        let mut side = |role| {
            let pick = |random: &mut StdRng, of: &[u32]| of[random.random_range(0..of.len())];
            let local = Local {
                stream_window: pick(&mut random, &[1, 2, 7, 100, 5_000, 65_535, 200_000]),
                connection_window: pick(&mut random, &[1, 100, 65_535, 70_000, 1 << 20]),
                whole_window: random.random(),
                frame_size: pick(&mut random, &[16_384, 17_000, 1 << 20]),
                max_streams: pick(&mut random, &[1, 2, 5, 100]),
                ping_interval: Duration::from_secs(1),
                ping_limit: Duration::from_secs(1 << 20),
                header_list: 64 * 1024,
            };
            Side { core: Connection::new(role, local), wire: VecDeque::new(), ledger: Ledger::new(), peak: 0, lenient: false }
        };
        let sides = [side(Role::Client), side(Role::Server)];
        Self { sides, flows: BTreeMap::new(), random, now: Duration::ZERO }
    }

    fn operate(&mut self) {
        let end = self.random.random_range(0..2);
        match self.random.random_range(0..100) {
            0..12 => self.open(),
            12..22 => self.serve(),
            22..45 => self.send(end),
            45..50 => self.finish(end),
            50..53 => self.give_up(end),
            53..65 => self.take(end),
            65..67 => self.restore(end),
            67..70 => self.announce(end),
            70..72 => self.advance(),
            72 => self.sides[end].core.go_away(),
            73..80 => {
                self.flush(end);
            }
            _ => {
                let some = self.random.random_range(1..200);
                let most = if self.random.random() { some } else { some * some };
                self.deliver(end, most);
            }
        }
    }

    fn check(&self) {
        for side in &self.sides {
            assert_eq!(side.core.send_window, side.ledger.connection);
            assert!(side.core.control.len() < 300 * 1024, "what waits is bounded");
        }
    }

    fn open(&mut self) {
        let mut headers = HeaderMap::new();
        if self.random.random_range(0..20) == 0 {
            // More than fits in a frame.
            headers.insert("baggage", "b".repeat(20_000).parse().unwrap());
        }
        let Some(slot) = self.sides[0].core.open("10.0.0.1:80", &headers) else { return };
        self.count(0);
        let id = self.sides[0].core.streams.get(slot).unwrap().id;
        let mut flow = Flow { slots: [Some(slot), None], ..Flow::default() };
        for way in &mut flow.ways {
            let most = if self.random.random_range(0..6) == 0 { 30_000 } else { 200 };
            way.planned = self.random.random_range(0..most);
        }
        self.flows.insert(id, flow);
    }

    /// The server's application does something with a request.
    fn serve(&mut self) {
        let Some(id) = self.any(|flow| flow.asked && !flow.answered && flow.slots[1].is_some()) else { return };
        let core = &mut self.sides[1].core;
        let flow = self.flows.get_mut(&id).unwrap();
        let slot = flow.slots[1].unwrap();
        match self.random.random_range(0..8) {
            0 => {
                core.refuse(slot, 503);
                self.part_with(id, 1);
            }
            1 => {
                core.reset(slot, Reason::REFUSED_STREAM);
                self.part_with(id, 1);
            }
            _ => {
                core.answer(slot, &HeaderMap::new());
                flow.answered = true;
            }
        }
    }

    fn send(&mut self, end: usize) {
        let Some(id) = self.any(|flow| flow.can_send(end)) else { return };
        let most = self.random.random_range(1..5_000);
        self.send_on(id, end, most);
    }

    fn send_on(&mut self, id: u32, end: usize, most: usize) -> usize {
        self.flush(end);
        let flow = self.flows.get_mut(&id).unwrap();
        let (way, slot, side) = (&mut flow.ways[end], flow.slots[end].unwrap(), &mut self.sides[end]);
        let length = side.core.room(slot).min(side.core.frame_size()).min(most).min(way.planned - way.sent);
        if length == 0 {
            return 0;
        }
        let mut frame = side.core.data(slot, length).unwrap().to_vec();
        frame.extend((way.sent..way.sent + length).map(|at| byte(id, end, at)));
        way.sent += length;
        side.ledger.says(&frame);
        side.wire.extend(frame);
        length
    }

    fn finish(&mut self, end: usize) {
        let Some(id) = self.any(|flow| flow.can_send(end)) else { return };
        let flow = self.flows.get_mut(&id).unwrap();
        let way = &mut flow.ways[end];
        (way.finished, way.planned) = (true, way.sent);
        self.sides[end].core.finish(flow.slots[end].unwrap());
    }

    fn give_up(&mut self, end: usize) {
        let Some(id) = self.any(|flow| flow.slots[end].is_some()) else { return };
        let slot = self.flows[&id].slots[end].unwrap();
        if self.random.random() {
            self.sides[end].core.reset(slot, Reason::CANCEL);
        }
        self.part_with(id, end);
    }

    /// An application takes some of what has come.
    fn take(&mut self, end: usize) {
        let Some(id) = self.any(|flow| flow.slots[end].is_some() && flow.ways[1 - end].queued > 0) else { return };
        let queued = self.flows[&id].ways[1 - end].queued;
        let length = self.random.random_range(1..=queued);
        self.take_of(id, end, length);
    }

    fn take_of(&mut self, id: u32, end: usize, length: usize) {
        let flow = self.flows.get_mut(&id).unwrap();
        flow.ways[1 - end].queued -= length;
        self.sides[end].core.credit(flow.slots[end].unwrap(), length);
    }

    fn restore(&mut self, end: usize) {
        let core = &mut self.sides[end].core;
        *core = serde_json::from_str(&serde_json::to_string(core).unwrap()).unwrap();
    }

    /// Other limits, told in the middle of everything.
    fn announce(&mut self, end: usize) {
        let window = [0, 1, 50, 65_535, 100_000][self.random.random_range(0..5)];
        let most = self.sides[end].core.local.frame_size;
        let (frame, table, streams) =
            (self.random.random_range(16_384..=most), self.random.random_range(0..5_000), self.random.random_range(0..4));
        self.announce_all(
            end,
            window,
            &[(setting::MAX_FRAME_SIZE, frame), (setting::HEADER_TABLE_SIZE, table), (setting::MAX_CONCURRENT_STREAMS, streams)],
        );
    }

    fn announce_all(&mut self, end: usize, window: u32, others: &[(u16, u32)]) {
        self.flush(end);
        let side = &mut self.sides[end];
        // The acknowledgement would be taken for that of the first ones.
        if side.core.unacknowledged {
            return;
        }
        side.core.local.stream_window = window;
        side.lenient = true;
        let mut payload = Vec::new();
        for (name, value) in [(setting::INITIAL_WINDOW_SIZE, window)].iter().chain(others) {
            payload.extend(name.to_be_bytes());
            payload.extend(value.to_be_bytes());
        }
        let mut frame = Vec::new();
        put(&mut frame, kind::SETTINGS, 0, 0, &payload);
        side.ledger.says(&frame);
        side.wire.extend(frame);
        let slots: Vec<Slot> = side.core.streams.iter_mut().map(|(slot, _)| slot).collect();
        for slot in slots {
            side.core.credit(slot, 0);
        }
        self.count(end);
    }

    fn advance(&mut self) {
        self.now += Duration::from_millis(self.random.random_range(0..5_000));
        for side in &mut self.sides {
            side.core.advance(self.now).unwrap();
            assert!(side.core.deadline() > self.now);
        }
    }

    fn flush(&mut self, end: usize) -> usize {
        let side = &mut self.sides[end];
        let control = std::mem::take(side.core.control());
        side.ledger.says(&control);
        side.wire.extend(&control);
        control.len()
    }

    /// Lets `end` hear so many bytes at most.
    fn deliver(&mut self, end: usize, most: usize) -> usize {
        let wire = &mut self.sides[1 - end].wire;
        let bytes: Vec<u8> = wire.drain(..most.min(wire.len())).collect();
        self.sides[end].ledger.hears(&bytes);
        let mut at = 0;
        loop {
            let (used, event) = self.sides[end].core.receive(&bytes[at..]).expect("nobody breaks a rule");
            at += used;
            self.count(end);
            match event {
                Some(event) => self.happened(end, event, &bytes[..at]),
                None => break,
            }
        }
        assert_eq!(at, bytes.len());
        bytes.len()
    }

    fn count(&mut self, end: usize) {
        let side = &mut self.sides[end];
        side.peak = side.peak.max(side.core.streams.iter_mut().count());
        if side.lenient {
            side.core.streams.iter_mut().for_each(|(_, stream)| stream.receive_window = 1 << 31);
        }
    }

    fn happened(&mut self, end: usize, event: Event, bytes: &[u8]) {
        match event {
            Event::Request(slot, _) => {
                let id = self.sides[1].core.streams.get(slot).unwrap().id;
                let flow = self.flows.get_mut(&id).unwrap();
                assert!(end == 1 && !flow.asked);
                (flow.asked, flow.slots[1]) = (true, Some(slot));
            }
            Event::Answer(slot, status, _) => {
                let (id, flow) = self.of(end, slot);
                assert_eq!(flow.answered, status == 200);
                if status != 200 {
                    self.part_with(id, end);
                }
            }
            Event::Data(slot, length) => {
                let (id, flow) = self.of(end, slot);
                let way = &mut flow.ways[1 - end];
                let new = &bytes[bytes.len() - length..];
                assert!(new.iter().zip(way.got..).all(|(new, at)| *new == byte(id, 1 - end, at)), "bytes of another place");
                way.got += length;
                way.queued += length;
                assert!(way.got <= way.sent && !way.ended);
            }
            Event::End(slot) => {
                let (_, flow) = self.of(end, slot);
                let way = &mut flow.ways[1 - end];
                assert!(!way.ended && way.finished && way.got == way.sent || !flow.answered, "an end that is none: {flow:?}");
                way.ended = true;
            }
            Event::Reset(slot, torn) => {
                let (id, flow) = self.of(end, slot);
                match torn {
                    Torn::Untouched(Reason::REFUSED_STREAM) => assert!(!flow.answered),
                    Torn::Untouched(_) => assert!(!flow.asked),
                    Torn::ByPeer(_) => assert!(flow.torn),
                    Torn::ByUs(reason, what) => panic!("nobody breaks a rule: {what} ({reason})"),
                }
                self.part_with(id, end);
            }
            Event::Room(_) | Event::Settled | Event::GoingAway(_) => {}
        }
    }

    /// The stream in a slot, which its application must have.
    fn of(&mut self, end: usize, slot: Slot) -> (u32, &mut Flow) {
        let found = self.flows.iter_mut().find(|(_, flow)| flow.slots[end] == Some(slot));
        let (id, flow) = found.expect("an event of a stream that was let go of");
        (*id, flow)
    }

    fn part_with(&mut self, id: u32, end: usize) {
        let flow = self.flows.get_mut(&id).unwrap();
        flow.torn = true;
        if let Some(slot) = flow.slots[end].take() {
            self.sides[end].core.release(slot);
        }
    }

    fn any(&mut self, wanted: impl Fn(&Flow) -> bool) -> Option<u32> {
        let ids: Vec<u32> = self.flows.iter().filter(|(_, flow)| wanted(flow)).map(|(id, _)| *id).collect();
        (!ids.is_empty()).then(|| ids[self.random.random_range(0..ids.len())])
    }
}

impl Flow {
    fn can_send(&self, end: usize) -> bool {
        let way = &self.ways[end];
        self.slots[end].is_some() && !way.finished && way.sent < way.planned && (end == 0 || self.answered)
    }
}
