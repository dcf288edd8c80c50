//! What this side says.

use http::HeaderMap;

use super::frame::{HEADER, Header, MAX_WINDOW, PREFACE, Reason, flag, kind, put, setting};
use super::stream::{Half, Stream};
use super::{Connection, Farewell, Role, Slot, head};

/// Streams that were reset here and whose late frames are dropped in silence.
const FORGOTTEN: usize = 256;

impl Connection {
    /// Asks for a stream; bytes may follow at once. `None` when the connection takes no more, or no more at once: the limit
    /// of the peer, as soon as it is known, is kept (§5.1.2).
    pub(in crate::hbone) fn open(&mut self, authority: &str, headers: &HeaderMap) -> Option<Slot> {
        let full = self.remote.max_streams.is_some_and(|limit| self.streams.are_full(limit));
        if self.role != Role::Client || full || !self.is_usable() {
            return None;
        }
        let id = self.next_id;
        self.next_id += 2;
        let block = head::request(&mut self.encoder, authority, headers);
        self.say_headers(id, &block, false);
        Some(self.insert(id, Half::Open, Half::Head))
    }

    /// Answers a request with 200.
    pub(in crate::hbone) fn answer(&mut self, slot: Slot, headers: &HeaderMap) {
        self.respond(slot, 200, headers, false);
    }

    /// Answers a request with `status` and ends the stream.
    pub(in crate::hbone) fn refuse(&mut self, slot: Slot, status: u16) {
        self.respond(slot, status, &HeaderMap::new(), true);
        // RFC 9113 §8.1: nothing more is needed of the request.
        self.reset(slot, Reason::NO_ERROR);
    }

    fn respond(&mut self, slot: Slot, status: u16, headers: &HeaderMap, end: bool) {
        let Some(stream) = self.streams.get_mut(slot).filter(|stream| stream.send == Half::Head) else { return };
        stream.send = if end { Half::Done } else { Half::Open };
        let id = stream.id;
        let block = head::response(&mut self.encoder, status, headers);
        self.say_headers(id, &block, end);
    }

    /// Bytes of a DATA frame that the peer takes now on a stream.
    pub(in crate::hbone) fn room(&self, slot: Slot) -> usize {
        let Some(stream) = self.streams.get(slot).filter(|stream| stream.send == Half::Open) else { return 0 };
        let window = stream.send_window.min(self.send_window);
        usize::try_from(window).unwrap_or(0)
    }

    /// Largest payload of one frame that the peer takes.
    pub(in crate::hbone) fn frame_size(&self) -> usize {
        self.remote.frame_size as usize
    }

    /// The header of a DATA frame with `length` bytes, which is at most `room` and `frame_size`. `None`: the stream takes
    /// no more.
    pub(in crate::hbone) fn data(&mut self, slot: Slot, length: usize) -> Option<[u8; HEADER]> {
        let stream = self.streams.get_mut(slot).filter(|stream| stream.send == Half::Open)?;
        let size = i64::try_from(length).ok()?;
        stream.send_window -= size;
        self.send_window -= size;
        Some(Header::new(length, kind::DATA, 0, stream.id).encode())
    }

    /// No more bytes come from here (END_STREAM).
    pub(in crate::hbone) fn finish(&mut self, slot: Slot) {
        if let Some(stream) = self.streams.get_mut(slot).filter(|stream| stream.send == Half::Open) {
            stream.send = Half::Done;
            put(&mut self.control, kind::DATA, flag::END_STREAM, stream.id, &[]);
        }
    }

    /// Ends a stream at once. One that is over already stays as it is.
    pub(in crate::hbone) fn reset(&mut self, slot: Slot, reason: Reason) {
        let Some(stream) = self.streams.get_mut(slot).filter(|stream| !stream.is_over()) else { return };
        (stream.send, stream.receive, stream.reset) = (Half::Done, Half::Done, true);
        let id = stream.id;
        self.forget(id, reason);
    }

    /// The caller has let go of a stream; one that is not over is reset.
    pub(in crate::hbone) fn release(&mut self, slot: Slot) {
        self.reset(slot, Reason::CANCEL);
        self.streams.remove(slot);
        self.later.retain(|later| later.slot() != slot);
    }

    /// An application has taken so many bytes of a stream.
    pub(in crate::hbone) fn credit(&mut self, slot: Slot, length: usize) {
        let Some(stream) = self.streams.get_mut(slot) else { return };
        stream.owed = stream.owed.saturating_add(u32::try_from(length).unwrap_or(u32::MAX));
        // In good time, before the peer runs dry; but not for each byte.
        if stream.receive == Half::Open && stream.owed >= (self.local.stream_window / 4).max(1) {
            let owed = std::mem::take(&mut stream.owed);
            stream.receive_window += i64::from(owed);
            let id = stream.id;
            put(&mut self.control, kind::WINDOW_UPDATE, 0, id, &owed.to_be_bytes());
        }
    }

    /// Says that no more streams are taken; those that are under way come to their end.
    pub(in crate::hbone) fn go_away(&mut self) {
        if self.farewell != Farewell::Unsaid {
            return;
        }
        self.farewell = Farewell::Announced;
        if self.role == Role::Server {
            // §6.8: requests that were sent before the peer hears of it are still served.
            self.goaway(MAX_WINDOW as u32, Reason::NO_ERROR);
            self.ping_for_farewell();
        } else {
            self.say_farewell();
        }
    }

    pub(super) fn say_farewell(&mut self) {
        self.farewell = Farewell::Said(self.last_peer_id);
        self.goaway(self.last_peer_id, Reason::NO_ERROR);
    }

    /// The last frame of a connection that ends for `reason`.
    pub(in crate::hbone) fn abort(&mut self, reason: Reason) {
        // §6.8: never more than was said before.
        let last = if let Farewell::Said(last) = self.farewell { last } else { self.last_peer_id };
        self.goaway(last, reason);
    }

    fn goaway(&mut self, last: u32, reason: Reason) {
        let mut payload = last.to_be_bytes().to_vec();
        payload.extend_from_slice(&reason.0.to_be_bytes());
        put(&mut self.control, kind::GOAWAY, 0, 0, &payload);
    }

    /// Tells the peer and remembers it: late frames for this stream are no violation (§5.1).
    pub(super) fn forget(&mut self, id: u32, reason: Reason) {
        put(&mut self.control, kind::RST_STREAM, 0, id, &reason.0.to_be_bytes());
        if self.forgotten.len() == FORGOTTEN {
            self.forgotten.pop_front();
        }
        self.forgotten.push_back(id);
    }

    pub(super) fn insert(&mut self, id: u32, send: Half, receive: Half) -> Slot {
        // The peer may not have seen our SETTINGS yet (§6.9.2).
        let window =
            if self.unacknowledged { self.local.stream_window.max(super::frame::DEFAULT_WINDOW) } else { self.local.stream_window };
        self.streams.insert(Stream {
            id,
            send,
            receive,
            send_window: i64::from(self.remote.initial_window),
            receive_window: i64::from(window),
            owed: 0,
            reset: false,
        })
    }

    /// Bytes of the connection's window come back as soon as they are here: a stream that nobody reads stops itself only.
    pub(super) fn owe(&mut self, length: u32) {
        if self.holding {
            self.held = self.held.saturating_add(length);
            return;
        }
        if let Some(owed) = self.window.came(length, self.clock.now()) {
            self.receive_window += i64::from(owed);
            put(&mut self.control, kind::WINDOW_UPDATE, 0, 0, &owed.to_be_bytes());
        }
    }

    /// While it is held, nothing of the connection's window is given back: for when too much waits here in all.
    pub(in crate::hbone) fn hold(&mut self, hold: bool) {
        self.holding = hold;
        if !hold && self.held > 0 {
            let held = std::mem::take(&mut self.held);
            self.owe(held);
        }
    }

    /// Whether it is held.
    pub(in crate::hbone) fn is_holding(&self) -> bool {
        self.holding
    }

    pub(super) fn introduce(&mut self) {
        let local = &self.local;
        let mut settings = vec![
            (setting::INITIAL_WINDOW_SIZE, local.stream_window),
            (setting::MAX_FRAME_SIZE, local.frame_size),
            (setting::MAX_HEADER_LIST_SIZE, local.header_list),
        ];
        match self.role {
            Role::Client => {
                settings.push((setting::ENABLE_PUSH, 0));
                self.control.extend_from_slice(PREFACE);
            }
            Role::Server => settings.push((setting::MAX_CONCURRENT_STREAMS, local.max_streams)),
        }
        let payload: Vec<u8> = settings
            .into_iter()
            .flat_map(|(name, value)| {
                let ([a, b], [c, d, e, f]) = (name.to_be_bytes(), value.to_be_bytes());
                [a, b, c, d, e, f]
            })
            .collect();
        put(&mut self.control, kind::SETTINGS, 0, 0, &payload);
        // The connection's window is only changed by WINDOW_UPDATE, and never made smaller (§6.9.2).
        let more = self.window.size().saturating_sub(super::frame::DEFAULT_WINDOW);
        if more > 0 {
            self.receive_window += i64::from(more);
            put(&mut self.control, kind::WINDOW_UPDATE, 0, 0, &more.to_be_bytes());
        }
    }

    fn say_headers(&mut self, id: u32, block: &[u8], end: bool) {
        let mut pieces = block.chunks(self.frame_size()).peekable();
        let (mut kind, mut flags) = (kind::HEADERS, if end { flag::END_STREAM } else { 0 });
        while let Some(piece) = pieces.next() {
            if pieces.peek().is_none() {
                flags |= flag::END_HEADERS;
            }
            put(&mut self.control, kind, flags, id, piece);
            (kind, flags) = (kind::CONTINUATION, 0);
        }
    }
}
