//! Reads the rows of `tests/data/http2-conformance.tsv`, whose head says what they mean.

use super::super::frame::Header;
use super::*;

pub(super) struct Row {
    pub(super) role: Role,
    pub(super) case: String,
    /// From the first byte on.
    pub(super) raw: bool,
    /// Bytes of the peer; after each element the answer is read.
    pub(super) send: Vec<Vec<u8>>,
    /// One of these, all of it.
    pub(super) expect: Vec<Vec<Said>>,
    pub(super) app: App,
}

/// What the peer hears.
#[derive(Debug)]
pub(super) enum Said {
    Violation(Reason),
    Reset(u32, Reason),
    Answer(u32, u16),
    Block(u32, Vec<u8>),
    Data(u32, usize),
    Acknowledged(usize),
    Pong(Vec<u8>),
    Lives,
    Waits,
}

/// What applications do, and what they must see.
#[derive(Default)]
pub(super) struct App {
    pub(super) mute: bool,
    /// So many bytes after each element of [`Row::send`].
    pub(super) sends: Vec<usize>,
    pub(super) ends: bool,
    pub(super) ends_at_the_end: bool,
    pub(super) opens: Option<usize>,
    pub(super) sees: Vec<(u32, Sight)>,
}

#[derive(Debug)]
pub(super) enum Sight {
    Bytes(usize),
    End,
    Status(u16),
    Reset(Reason),
    Untouched(Reason),
}

pub(super) fn rows() -> Vec<Row> {
    let text = include_str!("../../../../tests/data/http2-conformance.tsv");
    text.lines().filter(|line| !line.starts_with('#')).skip(1).map(row).collect()
}

fn row(line: &str) -> Row {
    let mut columns = line.split('\t');
    let mut next = || columns.next().unwrap_or_default();
    let (end, case, what, send, expect, app) = (next(), next(), next(), next(), next(), next());
    let role = if end == "server" { Role::Server } else { Role::Client };
    let raw = send.strip_prefix("RAW ");
    Row {
        role,
        case: format!("{end} {case}: {what}"),
        raw: raw.is_some(),
        send: raw.unwrap_or(send).split(" | ").map(group).collect(),
        expect: expect.split(" or ").map(|all| all.split(" and ").map(said).collect()).collect(),
        app: self::app(app),
    }
}

fn group(text: &str) -> Vec<u8> {
    let (times, frames) = text.split_once(" times: ").unwrap_or(("1", text));
    let times: u32 = times.parse().unwrap();
    (0..times).flat_map(|time| frames.split(" ; ").flat_map(move |one| self::frame(one, 2 * time + 1))).collect()
}

fn frame(text: &str, number: u32) -> Vec<u8> {
    if let Some(literal) = text.strip_prefix('\'') {
        return unescaped(literal.trim_end_matches('\''));
    }
    let (text, length) = match text.split_once(" (length ") {
        Some((text, length)) => (text, Some(length.trim_end_matches(')').parse().unwrap())),
        None => (text, None),
    };
    let mut words = text.split(' ');
    let (kind, flags) = kind_and_flags(words.next().unwrap());
    let stream = words.next().unwrap();
    let (stream, reserved) = stream.strip_suffix("+R").map_or((stream, 0), |stream| (stream, 1 << 31));
    let stream = if stream == "n" { number } else { stream.parse().unwrap() };
    let payload: Vec<u8> = words.flat_map(hex).collect();
    let header = Header::new(length.unwrap_or(payload.len()), kind, flags, stream | reserved);
    [&header.encode(), &payload[..]].concat()
}

fn kind_and_flags(word: &str) -> (u8, u8) {
    const KINDS: [&str; 10] =
        ["DATA", "HEADERS", "PRIORITY", "RST_STREAM", "SETTINGS", "PUSH_PROMISE", "PING", "GOAWAY", "WINDOW_UPDATE", "CONTINUATION"];
    let (kind, flags) = word.trim_end_matches(']').split_once('[').unwrap_or((word, ""));
    let number = match kind.strip_prefix("type") {
        Some(kind) => u8::from_str_radix(kind, 16).unwrap(),
        None => KINDS.iter().position(|name| *name == kind).unwrap() as u8,
    };
    let flag = |name: &str| match name {
        "ES" | "ACK" => 1,
        "EH" => 4,
        "PAD" => 8,
        "PRI" => 32,
        other => u8::from_str_radix(other, 16).unwrap(),
    };
    (number, flags.split(',').filter(|name| !name.is_empty()).map(flag).sum())
}

fn unescaped(text: &str) -> Vec<u8> {
    let mut parts = text.split('\\');
    let mut bytes = parts.next().unwrap().as_bytes().to_vec();
    for part in parts {
        let (escaped, rest) = match part.split_at(1) {
            ("r", rest) => (b'\r', rest),
            ("n", rest) => (b'\n', rest),
            (_, rest) => (u8::from_str_radix(&rest[..2], 16).unwrap(), &rest[2..]),
        };
        bytes.push(escaped);
        bytes.extend_from_slice(rest.as_bytes());
    }
    bytes
}

fn hex(word: &str) -> Vec<u8> {
    let word = word.replace("{connect}", "0207434f4e4e454354010b31302e302e302e313a3830");
    let (digits, times) = word.split_once('*').unwrap_or((&word, "1"));
    let bytes: Vec<u8> = (0..digits.len()).step_by(2).map(|at| u8::from_str_radix(&digits[at..at + 2], 16).unwrap()).collect();
    bytes.repeat(times.parse().unwrap())
}

fn reason(name: &str) -> Reason {
    let known = (0..14).map(Reason).find(|reason| reason.to_string() == name);
    known.unwrap_or_else(|| Reason(name.parse().unwrap()))
}

fn said(text: &str) -> Said {
    let words: Vec<&str> = text.split(' ').collect();
    match words[..] {
        ["conn", name] => Said::Violation(reason(name)),
        ["stream", stream, name] => Said::Reset(stream.parse().unwrap(), reason(name)),
        ["answer", stream, status] => Said::Answer(stream.parse().unwrap(), status.parse().unwrap()),
        ["block", stream, bytes] => Said::Block(stream.parse().unwrap(), hex(bytes)),
        ["data", stream, length] => Said::Data(stream.parse().unwrap(), length.parse().unwrap()),
        ["ack", times] => Said::Acknowledged(times.parse().unwrap()),
        ["pong", payload] => Said::Pong(hex(payload)),
        ["ok"] => Said::Lives,
        ["waits"] => Said::Waits,
        _ => panic!("no expectation: {text}"),
    }
}

fn app(text: &str) -> App {
    let mut app = App::default();
    for part in text.split(", ").filter(|part| !part.is_empty()) {
        let words: Vec<&str> = part.split(' ').collect();
        match words[..] {
            ["answers", "nothing"] => app.mute = true,
            ["sends", length] | ["then", length] if length != "ends" => app.sends.push(length.parse().unwrap()),
            ["then", "ends"] => app.ends = true,
            ["ends", "at", "the", "end"] => app.ends_at_the_end = true,
            ["opens", "none"] => app.opens = Some(0),
            ["opens", times] => app.opens = Some(times.parse().unwrap()),
            [stream, ref sight @ ..] => app.sees.push((stream.parse().unwrap(), self::sight(sight))),
            [] => {}
        }
    }
    app
}

fn sight(words: &[&str]) -> Sight {
    match words {
        ["reads", length] => Sight::Bytes(length.parse().unwrap()),
        ["ends"] => Sight::End,
        ["status", status] => Sight::Status(status.parse().unwrap()),
        ["reset", name] => Sight::Reset(reason(name)),
        ["untouched", name] => Sight::Untouched(reason(name)),
        _ => panic!("no sight: {words:?}"),
    }
}
