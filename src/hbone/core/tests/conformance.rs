//! RFC 9113 case by case: a peer that writes raw frames, and applications. Each case runs with its bytes in one piece, one
//! by one, in random pieces, and with the state serialised and restored between random pieces: it ends the same each time.

use std::collections::{BTreeMap, BTreeSet};

use super::super::frame::{Header, PREFACE, flag, kind, put};
use super::rows::{Row, Said, Sight, rows};
use super::*;

const PING: &[u8; 8] = b"the last";

/// How the bytes of the peer come.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Cut {
    Whole,
    Single,
    Random,
    Restored,
}

/// A stream as its application sees it.
#[derive(Debug, Default, PartialEq)]
struct Seen {
    bytes: usize,
    ended: bool,
    status: Option<u16>,
    torn: Option<Torn>,
}

/// What came of a case.
#[derive(Debug, PartialEq)]
struct Outcome {
    violation: Option<Reason>,
    /// All that the peer has heard.
    frames: Vec<(Header, Vec<u8>)>,
    seen: BTreeMap<u32, Seen>,
    /// How many streams could be opened in the end.
    opened: usize,
}

struct Bench<'a> {
    row: &'a Row,
    core: Connection,
    said: Vec<u8>,
    seen: BTreeMap<u32, Seen>,
    /// Streams that the applications still have.
    live: BTreeMap<u32, Slot>,
    unsent: usize,
}

#[test]
fn every_row_ends_as_the_rfc_says() {
    let rows = rows();
    assert!(rows.len() > 250, "only {} rows were read", rows.len());
    let failed: Vec<String> = rows.iter().filter_map(|row| row.check().err().map(|why| format!("{}\n    {why}", row.case))).collect();
    assert!(failed.is_empty(), "{} of {} rows fail:\n{}", failed.len(), rows.len(), failed.join("\n"));
}

impl Row {
    fn check(&self) -> Result<(), String> {
        let outcome = Bench::new(self).run(Cut::Whole)?;
        let fits = self.expect.iter().any(|all| outcome.fits(all));
        let heard: Vec<String> = outcome.frames.iter().rev().take(8).map(|(header, payload)| short(header, payload)).collect();
        if !fits {
            let seen: Vec<_> = outcome.seen.iter().rev().take(8).collect();
            return Err(format!("expected {:?}, heard (the last first) {heard:?}, seen {seen:?}", self.expect));
        }
        if let Some((stream, sight)) = self.app.sees.iter().find(|(stream, sight)| !outcome.sees(*stream, sight)) {
            return Err(format!("stream {stream} did not see {sight:?}: {:?}", outcome.seen));
        }
        if self.app.opens.is_some_and(|wanted| wanted != outcome.opened) {
            return Err(format!("{} streams could be opened", outcome.opened));
        }
        for cut in [Cut::Single, Cut::Random, Cut::Restored] {
            // To write and read the state takes its time.
            if cut == Cut::Restored && self.send.iter().map(Vec::len).sum::<usize>() > 4_000 {
                continue;
            }
            if Bench::new(self).run(cut)? != outcome {
                return Err(format!("ends in another way with {cut:?} bytes"));
            }
        }
        Ok(())
    }
}

impl<'a> Bench<'a> {
    fn new(row: &'a Row) -> Self {
        let local = Local { connection_window: 1 << 20, frame_size: 16_384, max_streams: 4, ..local(65_535) };
        let core = Connection::new(row.role, local);
        Self { row, core, said: Vec::new(), seen: BTreeMap::new(), live: BTreeMap::new(), unsent: 0 }
    }

    fn run(mut self, cut: Cut) -> Result<Outcome, String> {
        let mut random = StdRng::seed_from_u64(1);
        if !self.row.raw {
            let mut start = if self.row.role == Role::Server { PREFACE.to_vec() } else { Vec::new() };
            put(&mut start, kind::SETTINGS, 0, 0, &[]);
            put(&mut start, kind::SETTINGS, flag::ACK, 0, &[]);
            if self.row.role == Role::Client {
                self.open();
            }
            self.feed(&start, Cut::Whole, &mut random).map_err(|violation| violation.to_string())?;
        }
        self.core.control().clear();
        let mut violation = None;
        for (number, bytes) in self.row.send.iter().enumerate() {
            if let Err(found) = self.feed(bytes, cut, &mut random) {
                violation = Some(found.reason);
            }
            self.collect();
            if violation.is_some() {
                break;
            }
            self.unsent += self.row.app.sends.get(number).copied().unwrap_or(0);
            self.send();
            if self.row.app.ends && number + 1 == self.row.send.len() {
                self.live.values().for_each(|slot| self.core.finish(*slot));
                self.collect();
            }
        }
        let waits = self.row.expect.iter().flatten().any(|said| matches!(said, Said::Waits));
        let mut opened = 0;
        if violation.is_none() && !waits {
            while opened < self.row.app.opens.unwrap_or(0).max(usize::from(self.row.app.opens.is_some())) && self.open() {
                opened += 1;
            }
            self.collect();
            let mut ping = Vec::new();
            put(&mut ping, kind::PING, 0, 0, PING);
            self.feed(&ping, Cut::Whole, &mut random).map_err(|violation| format!("the last PING: {violation}"))?;
            self.collect();
            self.live.values().for_each(|slot| self.core.release(*slot));
            if !self.core.streams.is_empty() || !self.core.later.is_empty() {
                return Err(format!("left behind: {:?}", self.core.streams));
            }
        }
        Ok(Outcome { violation, frames: frames(&self.said)?, seen: self.seen, opened })
    }

    fn open(&mut self) -> bool {
        let Some(slot) = self.core.open("10.0.0.1:80", &HeaderMap::new()) else { return false };
        let id = self.core.streams.get(slot).unwrap().id;
        self.live.insert(id, slot);
        self.seen.insert(id, Seen::default());
        true
    }

    fn collect(&mut self) {
        self.said.append(self.core.control());
    }

    /// Sends what the applications have, as far as there is room.
    fn send(&mut self) {
        for slot in self.live.values() {
            loop {
                let length = self.core.room(*slot).min(self.core.frame_size()).min(self.unsent);
                let Some(header) = (length > 0).then(|| self.core.data(*slot, length)).flatten() else { break };
                self.said.extend(header);
                self.said.resize(self.said.len() + length, 0);
                self.unsent -= length;
            }
        }
    }

    fn feed(&mut self, bytes: &[u8], cut: Cut, random: &mut StdRng) -> Result<(), Violation> {
        let mut rest = bytes;
        while !rest.is_empty() {
            let length = match cut {
                Cut::Whole => rest.len(),
                Cut::Single => 1,
                Cut::Random | Cut::Restored => random.random_range(1..=rest.len().min(40)),
            };
            let (piece, behind) = rest.split_at(length);
            rest = behind;
            self.receive(piece)?;
            if cut == Cut::Restored {
                self.core = serde_json::from_value(serde_json::to_value(&self.core).unwrap()).unwrap();
            }
        }
        Ok(())
    }

    fn receive(&mut self, bytes: &[u8]) -> Result<(), Violation> {
        let mut at = 0;
        loop {
            let (used, event) = self.core.receive(&bytes[at..])?;
            at += used;
            match event {
                None => return Ok(()),
                Some(event) => self.happened(event),
            }
        }
    }

    fn happened(&mut self, event: Event) {
        match event {
            Event::Request(slot, head) => {
                let id = self.core.streams.get(slot).unwrap().id;
                self.seen.insert(id, Seen::default());
                self.live.insert(id, slot);
                match refusal(&head) {
                    Some(status) => {
                        self.core.refuse(slot, status);
                        self.part(id);
                    }
                    None if self.row.app.mute => {}
                    None => self.core.answer(slot, &HeaderMap::new()),
                }
            }
            Event::Answer(slot, status, _) => {
                let id = self.see(slot, |seen| seen.status = Some(status));
                if status / 100 != 2 {
                    self.part(id);
                }
            }
            Event::Data(slot, length) => {
                self.see(slot, |seen| seen.bytes += length);
            }
            Event::End(slot) => {
                let id = self.see(slot, |seen| seen.ended = true);
                if self.row.app.ends_at_the_end {
                    self.core.finish(slot);
                    self.part(id);
                }
            }
            Event::Reset(slot, torn) => {
                let id = self.see(slot, |seen| seen.torn = Some(torn));
                self.part(id);
            }
            Event::Room(_) | Event::Settled | Event::GoingAway(_) => {}
        }
    }

    /// Notes something of a stream, which must be one that an application has; its number.
    fn see(&mut self, slot: Slot, note: impl FnOnce(&mut Seen)) -> u32 {
        let id = *self.live.iter().find(|(_, live)| **live == slot).expect("an event of a stream that nobody has").0;
        note(self.seen.get_mut(&id).unwrap());
        id
    }

    fn part(&mut self, id: u32) {
        if let Some(slot) = self.live.remove(&id) {
            self.core.release(slot);
        }
    }
}

/// As the proxy does.
fn refusal(head: &Head) -> Option<u16> {
    let port = head.authority.rsplit_once(':').filter(|(host, _)| !host.contains('@')).and_then(|(_, port)| port.parse::<u16>().ok());
    match (head.method.as_str(), port) {
        ("CONNECT", Some(_)) => None,
        ("CONNECT", None) => Some(400),
        _ => Some(405),
    }
}

impl Outcome {
    fn fits(&self, all: &[Said]) -> bool {
        let lives =
            self.violation.is_none() && self.frames.last().is_some_and(|(header, payload)| header.kind == kind::PING && payload == PING);
        let expected: Vec<_> =
            all.iter().filter_map(|said| if let Said::Reset(id, reason) = said { Some((*id, *reason)) } else { None }).collect();
        all.iter().all(|said| match said {
            Said::Violation(reason) => self.violation == Some(*reason),
            Said::Waits => self.violation.is_none() && self.frames.is_empty() && self.seen.is_empty(),
            other => lives && self.resets() == expected && self.heard(other),
        })
    }

    fn heard(&self, said: &Said) -> bool {
        let of = |wanted: u8, id: u32| self.frames.iter().filter(move |(header, _)| header.kind == wanted && header.stream == id);
        match said {
            // What tears a stream is told to its application, but for one that has let go of it: the reset is its own.
            Said::Reset(id, reason) => self.seen.get(id).is_none_or(|seen| {
                let own = matches!(*reason, Reason::NO_ERROR | Reason::CANCEL);
                own || matches!(seen.torn, Some(Torn::ByPeer(_))) || matches!(seen.torn, Some(Torn::ByUs(torn, _)) if torn == *reason)
            }),
            Said::Answer(id, status) => of(kind::HEADERS, *id).any(|(_, block)| self::status(block) == Some(*status)),
            Said::Block(id, bytes) => of(kind::HEADERS, *id).any(|(_, block)| block == bytes),
            Said::Data(id, length) => of(kind::DATA, *id).map(|(_, payload)| payload.len()).sum::<usize>() == *length,
            Said::Acknowledged(times) => of(kind::SETTINGS, 0).filter(|(header, _)| header.has(flag::ACK)).count() == *times,
            Said::Pong(payload) => of(kind::PING, 0).any(|(header, pong)| header.has(flag::ACK) && pong == payload),
            Said::Lives | Said::Violation(_) | Said::Waits => true,
        }
    }

    fn resets(&self) -> Vec<(u32, Reason)> {
        let resets = self.frames.iter().filter(|(header, _)| header.kind == kind::RST_STREAM);
        resets.map(|(header, payload)| (header.stream, Reason(super::super::frame::number(payload)))).collect()
    }

    fn sees(&self, id: u32, sight: &Sight) -> bool {
        let Some(seen) = self.seen.get(&id) else { return false };
        match sight {
            Sight::Bytes(length) => seen.bytes == *length,
            Sight::End => seen.ended,
            Sight::Status(status) => seen.status == Some(*status),
            Sight::Reset(reason) => seen.torn == Some(Torn::ByPeer(*reason)),
            Sight::Untouched(reason) => seen.torn == Some(Torn::Untouched(*reason)),
        }
    }
}

/// The frames in what was said; an error if they break a rule themselves.
fn frames(said: &[u8]) -> Result<Vec<(Header, Vec<u8>)>, String> {
    let mut rest = said.strip_prefix(PREFACE.as_slice()).unwrap_or(said);
    let (mut frames, mut reset, mut over) = (Vec::new(), BTreeSet::new(), false);
    while let Some((header, behind)) = rest.split_first_chunk() {
        let header = Header::decode(*header);
        let (payload, behind) = behind.split_at_checked(header.length as usize).ok_or("a frame that is cut short")?;
        rest = behind;
        if over || reset.contains(&header.stream) {
            return Err(format!("a frame behind RST_STREAM or GOAWAY: {header:?}"));
        }
        over = header.kind == kind::GOAWAY;
        if header.kind == kind::RST_STREAM {
            reset.insert(header.stream);
        }
        frames.push((header, payload.to_vec()));
    }
    if rest.is_empty() { Ok(frames) } else { Err(format!("{} bytes behind the last frame", rest.len())) }
}

/// Of the blocks of this side, which use no dynamic table.
fn status(block: &[u8]) -> Option<u16> {
    let mut status = None;
    let add = |name: &[u8], value: &[u8]| {
        if name == b":status" {
            status = std::str::from_utf8(value).unwrap().parse().ok();
        }
    };
    Decoder::new(4096, 16_384).decode(block, add).ok()?;
    status
}

fn short(header: &Header, payload: &[u8]) -> String {
    format!("type {} flags {} stream {} {:02x?}", header.kind, header.flags, header.stream, &payload[..payload.len().min(12)])
}
