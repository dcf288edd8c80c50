//! Frames, read and written by the core.

use std::hint::black_box;
use std::time::Duration;

use http::{HeaderMap, HeaderValue};

use super::{AUTHORITY, BAGGAGE, FORWARDED, TRACEPARENT};
use crate::hbone::core::{Connection, Event, HEADER, Local, Role, Slot};

const LOCAL: Local = Local {
    // Just so small that 16 KiB are a quarter of it: each frame is answered.
    stream_window: 65_536,
    connection_window: 16 << 20,
    whole_window: false,
    frame_size: 1 << 20,
    header_list: 64 << 10,
    max_streams: 100,
    ping_interval: Duration::from_secs(10),
    ping_limit: Duration::from_secs(20),
};

const PAYLOAD: usize = 16_384;

/// Both ends of a tunnel, which know each other's settings.
struct Ends {
    client: Connection,
    server: Connection,
    wire: Vec<u8>,
}

impl Ends {
    fn new() -> Self {
        let mut ends =
            Self { client: Connection::new(Role::Client, LOCAL), server: Connection::new(Role::Server, LOCAL), wire: Vec::new() };
        while !(ends.client.control().is_empty() && ends.server.control().is_empty()) {
            ends.at_server(|_| {});
            ends.at_client(|_| {});
        }
        ends
    }

    /// A stream that is open on both ends.
    fn stream(&mut self, headers: &HeaderMap) -> (Slot, Slot) {
        let near = self.client.open(AUTHORITY, headers).expect("the tunnel takes streams");
        let mut far = None;
        self.at_server(|event| {
            if let Event::Request(slot, head) = event {
                assert_eq!(head.authority, AUTHORITY);
                far = Some(slot);
            }
        });
        let far = far.expect("the request arrives");
        self.server.answer(far, &HeaderMap::new());
        let mut answered = false;
        self.at_client(|event| answered |= matches!(event, Event::Answer(_, 200, _)));
        assert!(answered, "the answer arrives");
        (near, far)
    }

    fn at_server(&mut self, each: impl FnMut(Event)) {
        carry(&mut self.client, &mut self.server, &mut self.wire, each);
    }

    fn at_client(&mut self, each: impl FnMut(Event)) {
        carry(&mut self.server, &mut self.client, &mut self.wire, each);
    }
}

fn carry(from: &mut Connection, to: &mut Connection, wire: &mut Vec<u8>, mut each: impl FnMut(Event)) {
    wire.clear();
    wire.append(from.control());
    hear(to, wire, &mut each);
}

fn hear(connection: &mut Connection, bytes: &[u8], mut each: impl FnMut(Event)) {
    let mut rest = bytes;
    loop {
        let (used, event) = connection.receive(rest).expect("a peer of ours keeps the rules");
        (_, rest) = rest.split_at(used);
        let Some(event) = event else { return };
        each(event);
    }
}

/// A frame of 4 bytes that says how much more may be sent (RFC 9113 §6.9).
fn window_update(stream: u32, more: u32) -> Vec<u8> {
    [&[0, 0, 4, 8, 0], &stream.to_be_bytes()[..], &more.to_be_bytes()].concat()
}

pub(super) fn write_data(times: u32) {
    let mut ends = Ends::new();
    let (slot, _) = ends.stream(&HeaderMap::new());
    for stream in [0, 1] {
        hear(&mut ends.client, &window_update(stream, 1 << 30), |_| {});
    }
    for _ in 0..times {
        let length = ends.client.room(black_box(slot)).min(ends.client.frame_size()).min(PAYLOAD);
        black_box(ends.client.data(slot, length)).expect("there is room");
    }
}

pub(super) fn read_data(times: u32) {
    let mut ends = Ends::new();
    let (near, far) = ends.stream(&HeaderMap::new());
    let header: [u8; HEADER] = ends.client.data(near, PAYLOAD).expect("there is room");
    let frame = [&header[..], &[7; PAYLOAD]].concat();
    for _ in 0..times {
        let mut came = 0;
        hear(&mut ends.server, black_box(&frame), |event| {
            if let Event::Data(_, length) = event {
                came += length;
            }
        });
        ends.server.credit(far, came);
        assert!(came == PAYLOAD && black_box(ends.server.control()).len() >= HEADER + 4, "a WINDOW_UPDATE for each");
        ends.server.control().clear();
    }
}

pub(super) fn read_window_update(times: u32) {
    let mut ends = Ends::new();
    ends.stream(&HeaderMap::new());
    let frame = window_update(1, 16_384);
    for _ in 0..times {
        hear(&mut ends.client, black_box(&frame), |event| assert!(matches!(event, Event::Room(Some(_)))));
    }
}

pub(super) fn stream(times: u32) {
    let mut ends = Ends::new();
    let mut headers = HeaderMap::new();
    for (name, value) in [("baggage", BAGGAGE), ("forwarded", FORWARDED), ("traceparent", TRACEPARENT)] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    for _ in 0..times {
        let (near, far) = ends.stream(black_box(&headers));
        ends.client.finish(near);
        ends.at_server(|event| assert!(matches!(event, Event::End(_))));
        ends.server.finish(far);
        ends.at_client(|event| assert!(matches!(event, Event::End(_))));
        ends.client.release(near);
        ends.server.release(far);
    }
}
