//! What a peer writes into a tunnel, with the core itself as the other opinion: it must not matter how its bytes come.

use http::HeaderMap;

use super::super::core::{Connection, Event, Local, Role, Slot};

/// Everything that is announced is small, so that a few bytes go beyond it.
const LOCAL: Local = Local {
    stream_window: 300,
    connection_window: 70_000,
    whole_window: false,
    frame_size: 20_000,
    header_list: 500,
    max_streams: 3,
    ping_interval: std::time::Duration::from_secs(10),
    ping_limit: std::time::Duration::from_secs(20),
};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const SETTINGS: &[u8] = b"\0\0\0\x04\0\0\0\0\0\0\0\0\x04\x01\0\0\0\0";

/// What came of it.
#[derive(Debug, Default, PartialEq)]
struct Outcome {
    events: Vec<String>,
    violation: Option<String>,
    said: Vec<u8>,
    /// Bytes of the last event, if it was DATA.
    data: Option<(Slot, Vec<u8>)>,
}

/// Hears `data` in one piece, in pieces, and with the state written and read between them: the events and the answers are the
/// same, the answers are whole frames and bounded, and the last one to a broken rule is GOAWAY.
///
/// The first byte says which end hears and whether the peer has introduced itself, the second how the rest is cut. Returns
/// how many events there were.
pub fn frames(data: &[u8]) -> usize {
    let [end, cut, bytes @ ..] = data else { return 0 };
    let role = if end & 1 == 0 { Role::Server } else { Role::Client };
    let mut all = Vec::new();
    if end & 2 == 0 {
        all.extend_from_slice(if role == Role::Server { PREFACE } else { b"" });
        all.extend_from_slice(SETTINGS);
    }
    all.extend_from_slice(bytes);
    let whole = hear(role, &all, None, false);
    check(&whole);
    assert_eq!(hear(role, &all, Some(*cut), false), whole, "in pieces");
    assert_eq!(hear(role, &all, Some(*cut), true), whole, "written and read in between");
    whole.events.len()
}

fn hear(role: Role, bytes: &[u8], cut: Option<u8>, restored: bool) -> Outcome {
    let mut connection = Connection::new(role, LOCAL);
    let mut outcome = Outcome::default();
    if role == Role::Client {
        for _ in 0..3 {
            connection.open("a:1", &HeaderMap::new());
        }
    }
    let mut random = u32::from(cut.unwrap_or_default());
    let mut rest = bytes;
    while !rest.is_empty() && outcome.violation.is_none() {
        // Numerical Recipes' generator: the cuts are a function of the input.
        random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let length = if cut.is_some() { (random >> 16) as usize % 40 + 1 } else { rest.len() };
        let (piece, behind) = rest.split_at(length.min(rest.len()));
        rest = behind;
        outcome.hear(&mut connection, piece);
        outcome.said.append(connection.control());
        if restored && random >> 30 == 0 {
            let state = serde_json::to_value(&connection).and_then(serde_json::from_value);
            match state {
                Ok(state) => connection = state,
                Err(error) => panic!("the state cannot be read again: {error}"),
            }
        }
    }
    outcome.close();
    outcome
}

impl Outcome {
    fn hear(&mut self, connection: &mut Connection, bytes: &[u8]) {
        let mut at = 0;
        loop {
            let (used, event) = match connection.receive(bytes.get(at..).unwrap_or_default()) {
                Ok(heard) => heard,
                Err(violation) => return self.violation = Some(violation.to_string()),
            };
            at += used;
            match event {
                None => {
                    assert_eq!(at, bytes.len(), "all is taken");
                    return;
                }
                Some(Event::Data(slot, length)) => {
                    let new = bytes.get(at - length..at).unwrap_or_default();
                    match &mut self.data {
                        Some((of, data)) if *of == slot => data.extend_from_slice(new),
                        _ => {
                            self.close();
                            self.data = Some((slot, new.to_vec()));
                        }
                    }
                }
                Some(event) => {
                    self.close();
                    self.events.push(format!("{event:?}"));
                    react(connection, &event);
                }
            }
        }
    }

    fn close(&mut self) {
        if let Some(data) = self.data.take() {
            self.events.push(format!("{data:?}"));
        }
    }
}

/// What applications do: answer, send a little, follow the end of the other, let go.
fn react(connection: &mut Connection, event: &Event) {
    match event {
        Event::Request(slot, head) if head.method != "CONNECT" => {
            connection.refuse(*slot, 405);
            connection.release(*slot);
        }
        Event::Request(slot, _) => connection.answer(*slot, &HeaderMap::new()),
        Event::End(slot) => {
            connection.finish(*slot);
            connection.release(*slot);
        }
        Event::Answer(slot, ..) => connection.credit(*slot, 100),
        Event::Reset(slot, _) => connection.release(*slot),
        Event::GoingAway(_) => connection.go_away(),
        Event::Data(..) | Event::Room(_) | Event::Settled => {}
    }
}

fn check(outcome: &Outcome) {
    assert!(outcome.said.len() < (300 << 10), "{} bytes of answers", outcome.said.len());
    let mut rest = outcome.said.strip_prefix(PREFACE).unwrap_or(&outcome.said);
    let mut last = None;
    while let [a, b, c, kind, behind @ ..] = rest {
        let length = 5 + u32::from_be_bytes([0, *a, *b, *c]) as usize;
        assert!(length <= behind.len(), "answers are whole frames");
        rest = behind.get(length..).unwrap_or_default();
        last = Some(*kind);
    }
    assert!(rest.is_empty() && (outcome.violation.is_none() || last == Some(7)), "GOAWAY comes last: {outcome:?}");
}
