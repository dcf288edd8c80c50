//! Rules that take more than one exchange of frames. What the end of the transport means is the driver's.

use super::super::frame::{Header, PREFACE, flag, kind, put};
use super::*;

/// Type, flags, stream and payload.
type Frame = (u8, u8, u32, Vec<u8>);

/// A connection whose peer writes raw frames.
struct Lone {
    core: Connection,
    events: Vec<Event>,
}

fn lone(role: Role, local: Local) -> Lone {
    let mut lone = Lone { core: Connection::new(role, local), events: Vec::new() };
    if role == Role::Server {
        lone.hear_bytes(PREFACE);
    }
    lone.hear(kind::SETTINGS, 0, 0, &[]);
    lone.said();
    lone
}

impl Lone {
    fn hear(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        let mut bytes = Vec::new();
        put(&mut bytes, kind, flags, stream, payload);
        self.hear_bytes(&bytes);
    }

    fn hear_bytes(&mut self, bytes: &[u8]) {
        let mut at = 0;
        loop {
            let (used, event) = self.core.receive(&bytes[at..]).unwrap();
            at += used;
            match event {
                None => return,
                Some(event) => self.events.push(event),
            }
        }
    }

    /// A request with `fields` behind those that it needs.
    fn asks(&mut self, stream: u32, fields: &[u8]) -> Slot {
        let mut block = super::super::head::request(&mut Encoder::new(), "10.0.0.1:80", &HeaderMap::new());
        block.extend_from_slice(fields);
        self.hear(kind::HEADERS, flag::END_HEADERS, stream, &block);
        let found = self.events.iter().rev().find_map(|event| if let Event::Request(slot, _) = event { Some(*slot) } else { None });
        found.unwrap()
    }

    fn said(&mut self) -> Vec<Frame> {
        let bytes = std::mem::take(self.core.control());
        let mut rest = bytes.strip_prefix(PREFACE.as_slice()).unwrap_or(&bytes);
        let mut frames = Vec::new();
        while let Some((header, behind)) = rest.split_first_chunk() {
            let header = Header::decode(*header);
            let (payload, behind) = behind.split_at(header.length as usize);
            frames.push((header.kind, header.flags, header.stream, payload.to_vec()));
            rest = behind;
        }
        frames
    }
}

fn goaway(last: u32) -> Frame {
    (kind::GOAWAY, 0, 0, [last.to_be_bytes(), [0; 4]].concat())
}

/// §6.5.3: the peer may use what was announced at once, and need not have it acknowledged.
#[test]
fn what_is_announced_holds_from_then_on_whether_it_is_acknowledged_or_not() {
    let mut server = lone(Role::Server, local(4 << 20));
    server.asks(1, &[]);
    server.hear(kind::DATA, 0, 1, &[0; 16_385]);
    assert!(matches!(server.events.last(), Some(Event::Data(_, 16_385))));
    for second in 0..100 {
        server.core.advance(Duration::from_secs(second)).unwrap();
        for (kind, flags, _, payload) in server.said() {
            if (kind, flags) == (kind::PING, 0) {
                server.hear(kind::PING, flag::ACK, 0, &payload);
            }
        }
    }
}

/// §6.5.3: values are in force when their acknowledgement is sent, §6.9.2: also for streams that are open.
#[test]
fn an_acknowledgement_comes_before_what_relies_on_it() {
    let mut client = lone(Role::Client, local(65_535));
    let slot = client.core.open("10.0.0.1:80", &HeaderMap::new()).unwrap();
    client.said();
    let frame_size = |size: u32| [&[0, 5][..], &size.to_be_bytes()].concat();
    let window = |size: u32| [&[0, 4][..], &size.to_be_bytes()].concat();
    let mut headers = HeaderMap::new();
    headers.insert("baggage", "b".repeat(20_000).parse().unwrap());
    client.core.open("10.0.0.1:80", &headers).unwrap();
    client.hear(kind::SETTINGS, 0, 0, &[frame_size(20_000), window(100)].concat());
    headers.insert("baggage", "b".repeat(19_000).parse().unwrap());
    client.core.open("10.0.0.1:80", &headers).unwrap();
    let said = client.said();
    let kinds: Vec<_> = said.iter().map(|(kind, flags, stream, _)| (*kind, *flags, *stream)).collect();
    assert_eq!(kinds, [(1, 0, 3), (9, 4, 3), (4, 1, 0), (1, 4, 5)]);
    assert!(said[0].3.len() == 16_384 && said[3].3.len() > 19_000, "the frame size changes with the acknowledgement");

    assert_eq!(client.core.room(slot), 100);
    client.core.data(slot, 60).unwrap();
    client.hear(kind::SETTINGS, 0, 0, &window(0));
    assert_eq!(client.core.room(slot), 0, "60 below zero");
    client.hear(kind::WINDOW_UPDATE, 0, 1, &60_u32.to_be_bytes());
    assert_eq!(client.core.room(slot), 0);
    client.hear(kind::SETTINGS, 0, 0, &window(7));
    assert_eq!(client.core.room(slot), 7);
}

/// §6.8: a GOAWAY that stops nobody, a round trip, and one that says which streams were taken. Those above it are dropped,
/// but their headers change the table of the connection (§4.3), and their bytes count (§6.9).
#[test]
fn a_server_parts_in_three_steps_and_drops_what_comes_too_late() {
    let mut server = lone(Role::Server, local(65_535));
    let first = server.asks(1, &[]);
    server.core.go_away();
    let said = server.said();
    assert_eq!(said[0], goaway(0x7fff_ffff));
    let second = server.asks(3, &[]);
    assert!(server.said().is_empty() && matches!(server.events.last(), Some(Event::Request(..))), "it may have been under way");
    server.hear(kind::PING, flag::ACK, 0, &said[1].3);
    assert_eq!(server.said(), [goaway(3)]);

    let (events, whole) = (server.events.len(), server.core.receive_window + server.core.window.owed());
    // It adds "x: A" to the table.
    server.hear(kind::HEADERS, flag::END_HEADERS, 5, b"\x02\x07CONNECT\x01\x0410:1\x40\x01x\x01A");
    server.hear(kind::DATA, 0, 5, &[0; 1000]);
    server.hear(kind::WINDOW_UPDATE, 0, 5, &[0, 0, 0, 1]);
    server.hear(kind::DATA, flag::END_STREAM, 5, &[0; 1000]);
    server.hear(kind::RST_STREAM, 0, 5, &[0, 0, 0, 8]);
    assert!(server.events.len() == events && server.said().is_empty(), "it is dropped in silence");
    assert_eq!(server.core.receive_window + server.core.window.owed(), whole);
    // Trailers of the first stream, out of the table.
    server.hear(kind::HEADERS, flag::END_HEADERS | flag::END_STREAM, 1, b"\xbe");
    assert!(matches!(server.events.last(), Some(Event::End(slot)) if *slot == first));

    server.core.release(first);
    assert!(!server.core.is_over());
    server.core.release(second);
    assert!(server.core.is_over());
    server.said();
    server.core.abort(Reason::PROTOCOL_ERROR);
    assert_eq!(server.said()[0].3[..4], [0, 0, 0, 3], "the last stream does not grow any more");
}

/// §5.1: the end of a half comes with the last bytes or after them, and a stream is over when both halves are.
#[test]
fn both_halves_end_in_every_order_and_leave_nothing() {
    for (server_first, with_bytes) in [(false, false), (false, true), (true, false), (true, true)] {
        let mut server = lone(Role::Server, Local { max_streams: 1, ..local(65_535) });
        let slot = server.asks(1, &[]);
        server.core.answer(slot, &HeaderMap::new());
        if server_first {
            server.core.finish(slot);
        }
        if !with_bytes {
            server.hear(kind::DATA, 0, 1, b"all");
        }
        server.hear(kind::DATA, flag::END_STREAM, 1, if with_bytes { b"all" } else { b"" });
        assert!(matches!(server.events[..], [.., Event::Data(_, 3), Event::End(end)] if end == slot));
        server.core.finish(slot);
        // The next one fits although this one is not let go of yet, and that says nothing.
        let next = server.asks(3, &[]);
        server.core.release(slot);
        let said = server.said();
        let ends = said.iter().filter(|frame| frame.0 == kind::DATA && frame.1 == flag::END_STREAM).count();
        assert!(ends == 1 && said.iter().all(|frame| frame.0 != kind::RST_STREAM), "{said:?}");
        server.core.release(next);
        assert!(server.core.streams.is_empty());
    }
}

/// §6.7: what was not asked is no answer.
#[test]
fn only_the_answer_to_our_ping_shows_that_the_peer_lives() {
    let mut client = lone(Role::Client, local(65_535));
    client.core.advance(Duration::from_secs(1)).unwrap();
    let ping = client.said().pop().unwrap();
    client.hear(kind::PING, flag::ACK, 0, b"whatever");
    client.core.advance(Duration::from_secs(20)).unwrap();
    client.core.advance(Duration::from_secs(21)).unwrap_err();
    client.hear(kind::PING, flag::ACK, 0, &ping.3);
    client.core.advance(Duration::from_secs(30)).unwrap();
}

/// §6.9: bytes on streams that are gone count for the connection, and come back.
#[test]
fn the_window_of_a_connection_is_whole_after_a_thousand_resets() {
    let mut server = lone(Role::Server, local(65_535));
    let mut sent = server.core.receive_window;
    for stream in (1..2000).step_by(2) {
        let slot = server.asks(stream, &[]);
        server.hear(kind::DATA, 0, stream, &[0; 100]);
        server.core.reset(slot, Reason::CANCEL);
        server.hear(kind::DATA, flag::PADDED, stream, &[9; 100]);
        server.core.release(slot);
        server.hear(kind::DATA, 0, stream, &[0; 10_000]);
        sent -= 10_200;
        assert_eq!(server.said().iter().filter(|(kind, ..)| *kind == kind::RST_STREAM).count(), 1, "it is told once");
    }
    let core = &server.core;
    assert_eq!(core.receive_window + core.window.owed(), i64::from(core.window.size()));
    assert!(core.streams.is_empty() && core.forgotten.len() <= 256 && sent < 0);
}

/// §5.1: RST_STREAM is the last frame of a stream.
#[test]
fn nothing_is_sent_on_a_stream_that_was_reset() {
    for by_peer in [false, true] {
        let mut server = lone(Role::Server, local(1000));
        let slot = server.asks(1, &[]);
        server.core.answer(slot, &HeaderMap::new());
        server.hear(kind::DATA, 0, 1, &[0; 900]);
        server.said();
        if by_peer {
            server.hear(kind::RST_STREAM, 0, 1, &[0, 0, 0, 8]);
        } else {
            server.core.reset(slot, Reason::CANCEL);
            assert_eq!(server.said().len(), 1);
        }
        assert_eq!((server.core.room(slot), server.core.data(slot, 0)), (0, None));
        server.core.credit(slot, 900);
        server.core.finish(slot);
        server.core.refuse(slot, 503);
        server.core.release(slot);
        assert!(server.said().is_empty());
    }
}

/// §6.9: an increment of 0 is an error, also where windows are as small as can be.
#[test]
fn no_window_update_is_empty() {
    for (stream_window, connection_window) in [(1, 1 << 20), (65_535, 1), (1, 1)] {
        let mut server = lone(Role::Server, Local { connection_window, ..local(stream_window) });
        server.hear(kind::SETTINGS, flag::ACK, 0, &[]);
        let slot = server.asks(1, &[]);
        for payload in [&b"a"[..], b"", b"b"] {
            server.hear(kind::DATA, 0, 1, payload);
            server.core.credit(slot, payload.len());
        }
        let said = server.said();
        assert!(!said.is_empty() && said.iter().all(|frame| frame.0 == kind::WINDOW_UPDATE && frame.3 == [0, 0, 0, 1]), "{said:?}");
    }
}

/// An event that waits behind others is not told for a stream that was let go of meanwhile.
#[test]
fn a_stream_that_was_let_go_of_is_not_heard_of_again() {
    let mut server = lone(Role::Server, local(65_535));
    let slot = server.asks(1, &[]);
    let mut bytes = Vec::new();
    put(&mut bytes, kind::DATA, flag::END_STREAM, 1, b"all");
    let (used, event) = server.core.receive(&bytes).unwrap();
    assert!(used == bytes.len() && matches!(event, Some(Event::Data(_, 3))));
    server.core.release(slot);
    assert!(matches!(server.core.receive(&[]), Ok((0, None))));
}

/// Requests and credit of this side are no answers: only those show a peer that does not read.
#[test]
fn what_waits_to_be_sent_is_held_against_nobody_but_for_answers() {
    let mut client = lone(Role::Client, local(65_535));
    let mut headers = HeaderMap::new();
    headers.insert("baggage", "b".repeat(4000).parse().unwrap());
    for _ in 0..100 {
        client.core.open("10.0.0.1:80", &headers).unwrap();
    }
    client.hear(kind::PING, 0, 0, &[0; 8]);
    assert!(client.core.control().len() > 400_000);

    // Nor are those that are sent in time.
    let mut server = lone(Role::Server, Local { ping_limit: Duration::from_secs(1 << 40), ..local(65_535) });
    for second in 0..20_000 {
        server.core.advance(Duration::from_secs(second)).unwrap();
        server.hear(kind::PING, 0, 0, &[0; 8]);
        server.said();
    }

    let mut server = lone(Role::Server, Local { max_streams: 0, ping_limit: Duration::from_secs(1 << 40), ..local(65_535) });
    let block = super::super::head::request(&mut Encoder::new(), "10.0.0.1:80", &HeaderMap::new());
    let refused = (1..).step_by(2).take(30_000).find_map(|stream| {
        server.core.advance(Duration::from_secs(stream.into())).unwrap();
        let mut bytes = Vec::new();
        put(&mut bytes, kind::HEADERS, flag::END_HEADERS, stream, &block);
        server.core.receive(&bytes).err()
    });
    assert_eq!(refused.unwrap().reason, Reason::ENHANCE_YOUR_CALM);
    assert!(server.core.control().len() < 260 * 1024, "what waits for a peer that does not read is bounded");
}
