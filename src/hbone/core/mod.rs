//! HTTP/2 with CONNECT as its only purpose, without sockets and without a clock.
//!
//! A [`Connection`] is one end of a tunnel. Bytes of the peer go in by [`receive`](Connection::receive), which gives an
//! [`Event`] at a time; what is to be sent comes out in two ways: [`control`](Connection::control) holds whole frames,
//! and before bytes of an application [`data`](Connection::data) gives the header of a DATA frame, so that the bytes
//! need not be copied. Its methods are of four kinds:
//!
//! - The wire: `receive`, `control`, `data`. Whatever is in `control` goes out before the next DATA frame.
//! - Streams: `open` (client), `answer` and `refuse` (server), `finish`, `reset`, `release`; `room` says how much a
//!   stream may send, `credit` gives back what an application has taken.
//! - The whole: `go_away`, `is_usable`, `is_over`.
//! - Time: `advance` and `deadline`. Keepalive and all limits by rate are in there.
//!
//! Each event of a stream carries its [`Slot`]; the caller keeps its own things under the same number and calls `release`
//! when it is done with the stream, not before: until then the slot is not used again. All state is plain data: it can be
//! serialised in the middle of anything.

mod clock;
mod frame;
mod head;
mod headers;
mod parse;
mod receive;
mod send;
mod stream;
#[cfg(test)]
mod tests;
mod window;

use std::collections::VecDeque;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use self::clock::Clock;
pub(super) use self::frame::{HEADER, Reason};
pub(super) use self::head::Head;
use self::parse::Parser;
use self::stream::Table;
use self::window::Window;
use super::hpack::{Decoder, Encoder};

/// The number of a stream for as long as it is known here; small, and used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) struct Slot(pub(super) u32);

/// Which end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Role {
    /// Opens streams.
    Client,
    /// Accepts them.
    Server,
}

/// What this side announces.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Local {
    /// Bytes of a stream that may wait here.
    pub(super) stream_window: u32,
    /// Bytes of all streams that may be on their way.
    pub(super) connection_window: u32,
    /// That much from the start, whatever the network needs.
    pub(super) whole_window: bool,
    /// Largest frame.
    pub(super) frame_size: u32,
    /// Bytes of headers.
    pub(super) header_list: u32,
    /// Streams that the peer may have open; 0 for a client.
    pub(super) max_streams: u32,
    /// Between the answer to a PING and the next one.
    pub(super) ping_interval: Duration,
    /// Silence that ends the connection.
    pub(super) ping_limit: Duration,
}

/// What the peer announced (RFC 9113 §6.5.2).
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Remote {
    initial_window: u32,
    frame_size: u32,
    /// `None` until it says.
    max_streams: Option<u32>,
    /// Its first SETTINGS have come.
    known: bool,
}

/// Something that happened.
#[derive(Debug)]
pub(super) enum Event {
    /// A peer asks for a stream.
    Request(Slot, Head),
    /// A peer answers with this status.
    Answer(Slot, u16, http::HeaderMap),
    /// The last so many of the bytes that were consumed belong to a stream, which may be none that is known any more.
    Data(Slot, usize),
    /// No more bytes come on a stream.
    End(Slot),
    /// A stream is torn: no more comes and no more may be sent.
    Reset(Slot, Torn),
    /// A stream that had no room, or the connection, may have room now.
    Room(Option<Slot>),
    /// The peer has told its limits, for the first time or anew.
    Settled,
    /// The peer takes no new streams.
    GoingAway(Reason),
}

/// An event that comes after another one of the same bytes.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
enum Later {
    End(Slot),
    Untouched(Slot, Reason),
}

impl Later {
    fn slot(&self) -> Slot {
        match self {
            Self::End(slot) | Self::Untouched(slot, _) => *slot,
        }
    }
}

/// How a stream was torn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Torn {
    /// The peer reset it.
    ByPeer(Reason),
    /// The peer did nothing with it (§8.7): it can be repeated elsewhere.
    Untouched(Reason),
    /// The peer broke a rule of this stream.
    ByUs(Reason, &'static str),
}

/// The peer broke the rules: the connection is over as soon as `control` is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what} ({reason})")]
pub(super) struct Violation {
    pub(super) reason: Reason,
    pub(super) what: &'static str,
}

impl Violation {
    fn new(reason: Reason, what: &'static str) -> Self {
        Self { reason, what }
    }
}

/// One end of a tunnel.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Connection {
    role: Role,
    local: Local,
    remote: Remote,
    parser: Parser,
    decoder: Decoder,
    encoder: Encoder,
    /// A header block that goes on in CONTINUATION frames (§6.10).
    block: Option<head::Block>,
    streams: Table,
    /// What the peer takes in all.
    send_window: i64,
    /// What the peer may still send in all.
    receive_window: i64,
    window: Window,
    /// Nothing of it is given back for now; so much would be.
    holding: bool,
    held: u32,
    /// Of the next stream that is opened here.
    next_id: u32,
    /// Largest that the peer has opened.
    last_peer_id: u32,
    /// Whole frames that wait to be sent.
    control: Vec<u8>,
    /// Bytes of answers to the peer since nothing waited.
    answers: usize,
    /// SETTINGS of this side that the peer has not acknowledged.
    unacknowledged: bool,
    /// How far the farewell of this side is.
    farewell: Farewell,
    /// The peer's GOAWAY: the last stream that it looks at.
    gone_away: Option<u32>,
    /// Streams that this side reset lately: what is still on its way for them is dropped in silence (§5.1).
    forgotten: VecDeque<u32>,
    /// What follows from bytes that were consumed already.
    later: VecDeque<Later>,
    clock: Clock,
}

/// The end of a connection in good order (§6.8): first a GOAWAY that stops nobody, then, when all that was on its way has
/// come, one that says which streams were taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Farewell {
    Unsaid,
    /// The PING after the first GOAWAY has not been answered.
    Announced,
    /// Streams above this are not taken.
    Said(u32),
}

impl Connection {
    /// The preface and SETTINGS are in `control` at once (§3.4).
    pub(super) fn new(role: Role, local: Local) -> Self {
        let mut connection = Self {
            role,
            remote: Remote { initial_window: frame::DEFAULT_WINDOW, frame_size: frame::MIN_FRAME, max_streams: None, known: false },
            parser: Parser::new(role == Role::Server, local.frame_size),
            decoder: Decoder::new(head::TABLE_SIZE, local.header_list as usize),
            encoder: Encoder::new(),
            block: None,
            streams: Table::default(),
            send_window: i64::from(frame::DEFAULT_WINDOW),
            receive_window: i64::from(frame::DEFAULT_WINDOW),
            window: Window::new(local.connection_window, local.whole_window),
            holding: false,
            held: 0,
            next_id: 1,
            last_peer_id: 0,
            control: Vec::new(),
            answers: 0,
            unacknowledged: true,
            farewell: Farewell::Unsaid,
            gone_away: None,
            forgotten: VecDeque::new(),
            later: VecDeque::new(),
            clock: Clock::new(&local, role == Role::Client),
            local,
        };
        connection.introduce();
        connection
    }

    /// Frames to be sent before anything else; the caller takes them out.
    pub(super) fn control(&mut self) -> &mut Vec<u8> {
        &mut self.control
    }

    /// Streams that the peer allows to be open, as far as known (§6.5.2 recommends no fewer than 100).
    pub(super) fn peer_limit(&self) -> usize {
        self.remote.max_streams.unwrap_or(100) as usize
    }

    /// Which end this is.
    pub(super) fn role(&self) -> Role {
        self.role
    }

    /// Streams that the peer may have open.
    pub(super) fn own_limit(&self) -> usize {
        self.local.max_streams as usize
    }

    /// Whether streams can be opened: neither side has said farewell, and ids are left.
    pub(super) fn is_usable(&self) -> bool {
        self.gone_away.is_none() && self.farewell == Farewell::Unsaid && self.next_id <= frame::MAX_WINDOW as u32
    }

    /// Whether there is nothing left to do after a farewell of either side.
    pub(super) fn is_over(&self) -> bool {
        let leaving = self.gone_away.is_some() || matches!(self.farewell, Farewell::Said(_));
        leaving && self.streams.is_empty()
    }
}
