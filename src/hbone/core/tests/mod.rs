//! Two ends joined in memory, with virtual time; every byte crosses in pieces of a random size.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use http::HeaderMap;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::*;

mod conformance;
mod h2_peer;
mod hostile;
mod ledger;
mod property;
mod rows;
mod rules;

fn local(stream_window: u32) -> Local {
    Local {
        stream_window,
        connection_window: 1 << 20,
        whole_window: false,
        frame_size: 1 << 20,
        header_list: 16 * 1024,
        max_streams: 200,
        ping_interval: Duration::from_secs(10),
        ping_limit: Duration::from_secs(20),
    }
}

/// One end, what is on its way to the other, and what its applications have got.
struct End {
    connection: Connection,
    wire: VecDeque<u8>,
    got: HashMap<Slot, Vec<u8>>,
    events: Vec<Event>,
    /// Bytes of a stream are taken at once.
    greedy: bool,
}

impl End {
    fn new(role: Role, local: Local) -> Self {
        Self { connection: Connection::new(role, local), wire: VecDeque::new(), got: HashMap::new(), events: Vec::new(), greedy: true }
    }

    fn send(&mut self, slot: Slot, bytes: &[u8]) -> usize {
        let control = std::mem::take(self.connection.control());
        self.wire.extend(control);
        let length = self.connection.room(slot).min(self.connection.frame_size()).min(bytes.len());
        if length > 0 {
            self.wire.extend(self.connection.data(slot, length).unwrap());
            self.wire.extend(&bytes[..length]);
        }
        length
    }

    /// Takes up to `length` bytes that the other end has sent.
    fn take(&mut self, wire: &mut VecDeque<u8>, length: usize) -> Result<(), Violation> {
        let bytes: Vec<u8> = wire.drain(..length.min(wire.len())).collect();
        let mut at = 0;
        loop {
            let (used, event) = self.connection.receive(&bytes[at..])?;
            at += used;
            match event {
                None => return Ok(()),
                Some(Event::Data(slot, length)) => {
                    self.got.entry(slot).or_default().extend(&bytes[at - length..at]);
                    if self.greedy {
                        self.connection.credit(slot, length);
                    }
                }
                Some(event) => self.events.push(event),
            }
        }
    }

    fn requests(&mut self) -> Vec<(Slot, Head)> {
        let events = std::mem::take(&mut self.events);
        let (requests, others): (Vec<_>, Vec<_>) = events.into_iter().partition(|event| matches!(event, Event::Request(..)));
        self.events = others;
        requests.into_iter().filter_map(|event| if let Event::Request(slot, head) = event { Some((slot, head)) } else { None }).collect()
    }

    fn saw(&self, wanted: impl Fn(&Event) -> bool) -> bool {
        self.events.iter().any(wanted)
    }
}

struct Pair {
    client: End,
    server: End,
    random: StdRng,
}

fn pair(client: Local, server: Local) -> Pair {
    Pair { client: End::new(Role::Client, client), server: End::new(Role::Server, server), random: StdRng::seed_from_u64(7) }
}

impl Pair {
    /// Lets everything that waits arrive.
    fn settle(&mut self) {
        loop {
            let control = std::mem::take(self.client.connection.control());
            self.client.wire.extend(control);
            let control = std::mem::take(self.server.connection.control());
            self.server.wire.extend(control);
            if self.client.wire.is_empty() && self.server.wire.is_empty() {
                return;
            }
            let length = self.random.random_range(1..5000);
            self.server.take(&mut self.client.wire, length).unwrap();
            let length = self.random.random_range(1..5000);
            self.client.take(&mut self.server.wire, length).unwrap();
        }
    }

    /// A stream that both ends have.
    fn stream(&mut self) -> (Slot, Slot) {
        let near = self.client.connection.open("10.0.0.1:80", &HeaderMap::new()).unwrap();
        self.settle();
        let (far, head) = self.server.requests().pop().unwrap();
        assert_eq!((head.method.as_str(), head.authority.as_str()), ("CONNECT", "10.0.0.1:80"));
        self.server.connection.answer(far, &HeaderMap::new());
        self.settle();
        assert!(self.client.saw(|event| matches!(event, Event::Answer(slot, 200, _) if *slot == near)));
        (near, far)
    }

    /// Sends all of `bytes`, each way, with both ends reading.
    fn transfer(&mut self, (near, far): (Slot, Slot), bytes: &[u8]) {
        let (mut up, mut down) = (0, 0);
        while up < bytes.len() || down < bytes.len() {
            let before = (up, down);
            let most = self.random.random_range(1..40_000);
            up += self.client.send(near, &bytes[up..(up + most).min(bytes.len())]);
            down += self.server.send(far, &bytes[down..(down + most).min(bytes.len())]);
            self.settle();
            assert!(before != (up, down), "stalled at {before:?} of {}", bytes.len());
        }
        assert!(self.server.got[&far] == bytes && self.client.got[&near] == bytes);
    }
}

fn noise(length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    StdRng::seed_from_u64(length as u64).fill(bytes.as_mut_slice());
    bytes
}

#[test]
fn bytes_cross_both_ways_whatever_the_windows() {
    for window in [1, 2, 100, 65_535, 4 << 20] {
        let mut pair = pair(local(window), local(window));
        let stream = pair.stream();
        pair.transfer(stream, &noise(if window < 100 { 3_000 } else { 700_000 }));
        let (near, far) = stream;
        pair.client.connection.finish(near);
        pair.settle();
        assert!(pair.server.saw(|event| matches!(event, Event::End(slot) if *slot == far)));
        assert!(!pair.client.saw(|event| matches!(event, Event::End(_))), "the other direction goes on");
        pair.server.connection.finish(far);
        pair.settle();
        assert!(pair.client.saw(|event| matches!(event, Event::End(slot) if *slot == near)));
        pair.client.connection.release(near);
        pair.server.connection.release(far);
        assert!(pair.client.connection.control().is_empty() && pair.server.connection.control().is_empty(), "nothing is left to say");
    }
}

#[test]
fn bytes_may_follow_the_request_at_once() {
    let mut pair = pair(local(1), local(1));
    let near = pair.client.connection.open("10.0.0.1:80", &HeaderMap::new()).unwrap();
    // Before the server's SETTINGS the default window holds (RFC 9113 §6.9.2).
    assert_eq!(pair.client.send(near, &noise(70_000)), 16_384);
    pair.settle();
    let (far, _) = pair.server.requests().pop().unwrap();
    assert_eq!(pair.server.got[&far], noise(70_000)[..16_384]);
}

#[test]
fn an_application_that_does_not_read_stops_its_own_stream_only() {
    let mut pair = pair(local(50_000), Local { connection_window: 100_000, ..local(50_000) });
    let (stalled, other) = (pair.stream(), pair.stream());
    pair.server.greedy = false;
    let mut sent = 0;
    while pair.client.connection.room(stalled.0) > 0 {
        sent += pair.client.send(stalled.0, &noise(10_000));
        pair.settle();
    }
    assert_eq!(sent, 50_000);
    pair.server.greedy = true;
    pair.transfer(other, &noise(300_000));
    pair.server.connection.credit(stalled.1, 50_000);
    pair.settle();
    assert_eq!(pair.client.connection.room(stalled.0), 50_000);
}

#[test]
fn a_reset_is_told_once_and_what_crosses_it_is_dropped() {
    let mut pair = pair(local(65_535), local(65_535));
    let (near, far) = pair.stream();
    pair.client.send(near, b"on its way");
    pair.server.connection.release(far);
    pair.client.send(near, b"this too");
    pair.client.connection.finish(near);
    pair.settle();
    assert!(pair.client.saw(|event| matches!(event, Event::Reset(slot, Torn::ByPeer(Reason::CANCEL)) if *slot == near)));
    assert_eq!(pair.client.connection.room(near), 0);
    pair.client.connection.release(near);
    let again = pair.stream();
    pair.transfer(again, &noise(100_000));
}

#[test]
fn streams_above_the_limit_can_be_repeated_elsewhere() {
    let mut pair = pair(local(65_535), Local { max_streams: 2, ..local(65_535) });
    // Before the limit is known.
    let [first, _, third] = [(); 3].map(|()| pair.client.connection.open("10.0.0.1:80", &HeaderMap::new()).unwrap());
    pair.settle();
    assert_eq!((pair.client.connection.peer_limit(), pair.server.requests().len()), (2, 2));
    assert!(pair.client.saw(|event| matches!(event, Event::Reset(slot, Torn::Untouched(Reason::REFUSED_STREAM)) if *slot == third)));
    // And after it is.
    assert!(pair.client.connection.open("10.0.0.1:80", &HeaderMap::new()).is_none());
    pair.client.connection.release(first);
    assert!(pair.client.connection.open("10.0.0.1:80", &HeaderMap::new()).is_some());
}

#[test]
fn a_farewell_lets_open_streams_end() {
    let mut pair = pair(local(65_535), local(65_535));
    let (near, far) = pair.stream();
    pair.server.connection.go_away();
    // Sent before the client has heard of it: still served (RFC 9113 §6.8).
    let late = pair.client.connection.open("10.0.0.2:80", &HeaderMap::new()).unwrap();
    pair.settle();
    assert!(!pair.client.connection.is_usable() && pair.client.connection.open("10.0.0.3:80", &HeaderMap::new()).is_none());
    let (served, _) = pair.server.requests().pop().unwrap();
    pair.transfer((near, far), &noise(10_000));
    for slot in [far, served] {
        pair.server.connection.release(slot);
    }
    pair.settle();
    for slot in [near, late] {
        pair.client.connection.release(slot);
    }
    assert!(pair.client.connection.is_over() && pair.server.connection.is_over());
}

#[test]
fn what_comes_after_the_last_stream_of_a_farewell_was_not_touched() {
    let mut pair = pair(local(65_535), local(65_535));
    let _first = pair.stream();
    let late = pair.client.connection.open("10.0.0.2:80", &HeaderMap::new()).unwrap();
    pair.client.connection.control().clear();
    pair.server.connection.say_farewell();
    pair.settle();
    assert!(pair.client.saw(|event| matches!(event, Event::Reset(slot, Torn::Untouched(_)) if *slot == late)));
}

#[test]
fn a_silent_peer_is_found_out_and_one_that_answers_is_not() {
    let mut pair = pair(local(65_535), local(65_535));
    for second in 0..100 {
        pair.client.connection.advance(Duration::from_secs(second)).unwrap();
        pair.server.connection.advance(Duration::from_secs(second)).unwrap();
        pair.settle();
    }
    assert_eq!(pair.client.connection.deadline(), Duration::from_secs(100));
    pair.client.connection.advance(Duration::from_secs(100)).unwrap();
    pair.client.connection.advance(Duration::from_secs(119)).unwrap();
    pair.client.connection.advance(Duration::from_secs(120)).unwrap_err();
}

#[test]
fn a_connection_goes_on_from_its_serialised_state() {
    let mut pair = pair(local(65_535), local(65_535));
    let (near, far) = pair.stream();
    let bytes = noise(500_000);
    let (mut sent, mut rounds) = (0, 0);
    while sent < bytes.len() {
        sent += pair.client.send(near, &bytes[sent..(sent + 9_000).min(bytes.len())]);
        // In the middle of whatever has arrived, a frame's header included.
        let length = pair.random.random_range(1..20_000);
        pair.server.take(&mut pair.client.wire, length).unwrap();
        for end in [&mut pair.client, &mut pair.server] {
            let state = serde_json::to_string(&end.connection).unwrap();
            end.connection = serde_json::from_str(&state).unwrap();
        }
        if pair.client.connection.room(near) == 0 {
            pair.settle();
        }
        rounds += 1;
    }
    pair.settle();
    assert!(pair.server.got[&far] == bytes && rounds > 50);
}

#[test]
fn two_hundred_streams_share_a_connection() {
    let mut pair = pair(local(20_000), local(20_000));
    let streams: Vec<_> = (0..200).map(|_| pair.stream()).collect();
    let texts: Vec<_> = (0..200).map(|number| noise(20_000 + number)).collect();
    let mut sent = vec![0; streams.len()];
    while sent.iter().zip(&texts).any(|(sent, text)| *sent < text.len()) {
        for ((sent, text), (near, _)) in sent.iter_mut().zip(&texts).zip(&streams) {
            let most = pair.random.random_range(1..9_000);
            *sent += pair.client.send(*near, &text[*sent..(*sent + most).min(text.len())]);
        }
        pair.settle();
    }
    for ((_, far), text) in streams.iter().zip(&texts) {
        assert!(pair.server.got[far] == *text);
    }
}

#[test]
fn headers_cross_as_they_are() {
    let mut pair = pair(local(65_535), local(65_535));
    let mut headers = HeaderMap::new();
    headers.insert("baggage", "k8s.pod.name=a,k8s.namespace.name=b".parse().unwrap());
    headers.insert("traceparent", format!("00-{}", "a".repeat(9_000)).parse().unwrap());
    let near = pair.client.connection.open("[fd00::1]:80", &headers).unwrap();
    pair.settle();
    let (far, head) = pair.server.requests().pop().unwrap();
    assert_eq!((head.authority.as_str(), &head.headers), ("[fd00::1]:80", &headers));
    pair.server.connection.refuse(far, 503);
    pair.settle();
    assert!(pair.client.saw(|event| matches!(event, Event::Answer(slot, 503, _) if *slot == near)));
    assert!(pair.client.saw(|event| matches!(event, Event::End(slot) if *slot == near)));
}

#[test]
fn while_too_much_waits_the_peer_gets_no_more_in_all() {
    let mut pair = pair(local(65_535), Local { connection_window: 100_000, ..local(65_535) });
    let (near, _) = pair.stream();
    pair.server.connection.hold(true);
    let mut sent = 0;
    while pair.client.connection.room(near) > 0 {
        sent += pair.client.send(near, &noise(10_000));
        pair.settle();
    }
    assert_eq!(sent, 100_000);
    pair.server.connection.hold(false);
    pair.settle();
    assert!(pair.client.connection.room(near) > 40_000);
}
