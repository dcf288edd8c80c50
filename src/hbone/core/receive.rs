//! What the peer says.

use super::frame::{DEFAULT_WINDOW, Header, MAX_FRAME, MAX_WINDOW, MIN_FRAME, Reason, flag, kind, number, put, setting};
use super::parse::Piece;
use super::stream::Half;
use super::{Connection, Event, Farewell, Later, Role, Slot, Torn, Violation};

/// Answers that wait to be sent, in bytes: a peer that makes them pile up does not read.
const MAX_ANSWERS: usize = 256 * 1024;

pub(super) type Outcome = Result<Option<Event>, Violation>;

impl Connection {
    /// Takes bytes from the front of `input`: says how many, and what happened. To be called until it takes all and says
    /// nothing. The bytes of an [`Event::Data`] are at the end of those that it took.
    ///
    /// # Errors
    /// The peer broke the rules. `control` holds the farewell; nothing more is to be received.
    pub(in crate::hbone) fn receive(&mut self, input: &[u8]) -> Result<(usize, Option<Event>), Violation> {
        self.take(input).inspect_err(|violation| self.abort(violation.reason))
    }

    fn take(&mut self, input: &[u8]) -> Result<(usize, Option<Event>), Violation> {
        match self.later.pop_front() {
            Some(Later::End(slot)) => return Ok((0, Some(Event::End(slot)))),
            Some(Later::Untouched(slot, reason)) => return Ok((0, Some(Event::Reset(slot, Torn::Untouched(reason))))),
            None => {}
        }
        let mut used = 0;
        loop {
            let rest = input.get(used..).unwrap_or_default();
            let (length, piece) = self.parser.next(rest)?;
            let waiting = self.control.len();
            used += length;
            let event = match piece {
                Piece::Nothing => return Ok((used, None)),
                Piece::DataBegins { header, padding } => self.data_begins(header, padding)?,
                Piece::Data { stream, length, last } => self.data_came(stream, length, last)?,
                Piece::Frame { header, whole } if whole.is_empty() => {
                    let from = length.saturating_sub(header.length as usize);
                    let payload = rest.get(from..length).unwrap_or_default();
                    self.frame(header, payload)?
                }
                Piece::Frame { header, whole } => self.frame(header, &whole)?,
            };
            self.answers = if waiting == 0 { 0 } else { self.answers } + self.control.len() - waiting;
            if self.answers > MAX_ANSWERS {
                return Err(Violation::new(Reason::ENHANCE_YOUR_CALM, "the peer asks and does not read the answers"));
            }
            if event.is_some() {
                return Ok((used, event));
            }
        }
    }

    /// A DATA frame counts for both windows as a whole (§6.9.1).
    fn data_begins(&mut self, header: Header, padding: u32) -> Outcome {
        let Header { stream: id, length, .. } = header;
        self.outside_of_block(kind::DATA, id)?;
        self.after_settings(kind::DATA, 0)?;
        if self.is_idle(id) {
            return Err(protocol("DATA on a stream that was not opened"));
        }
        if length == 0 && !header.has(flag::END_STREAM) {
            self.spend()?;
        }
        self.receive_window -= i64::from(length);
        if self.receive_window < 0 {
            return Err(Violation::new(Reason::FLOW_CONTROL_ERROR, "more DATA than the connection's window"));
        }
        self.owe(length);
        let Some((slot, stream)) = self.streams.find(id) else { return self.late(id) };
        if stream.receive != Half::Open {
            // §5.1: half-closed (remote); §8.1: an answer begins with headers.
            let reason = if stream.receive == Half::Head { Reason::PROTOCOL_ERROR } else { Reason::STREAM_CLOSED };
            return self.torn(slot, reason, "DATA where none was allowed");
        }
        stream.receive_window -= i64::from(length);
        // §6.9.1: an empty frame needs no window, which may be below zero since ours was made smaller.
        if stream.receive_window < 0 && length > 0 {
            return self.torn(slot, Reason::FLOW_CONTROL_ERROR, "more DATA than the stream's window");
        }
        if padding > 0 {
            self.credit(slot, padding as usize);
        }
        Ok(None)
    }

    fn data_came(&mut self, id: u32, length: usize, last: bool) -> Outcome {
        let Some((slot, stream)) = self.streams.find(id).filter(|(_, stream)| stream.receive == Half::Open) else { return Ok(None) };
        if last && length == 0 {
            stream.receive = Half::Done;
            return Ok(Some(Event::End(slot)));
        }
        if last {
            // The end is told by the next call, after the bytes.
            stream.receive = Half::Done;
            self.later.push_back(Later::End(slot));
        }
        Ok((length > 0).then_some(Event::Data(slot, length)))
    }

    fn frame(&mut self, header: Header, payload: &[u8]) -> Outcome {
        if header.kind != kind::CONTINUATION {
            self.outside_of_block(header.kind, header.stream)?;
        }
        self.after_settings(header.kind, header.flags)?;
        match header.kind {
            kind::HEADERS => self.headers(header, payload),
            kind::CONTINUATION => self.continuation(header, payload),
            kind::PRIORITY => self.priority(header, payload),
            kind::RST_STREAM => self.reset_came(header, payload),
            kind::SETTINGS => self.settings(header, payload),
            // §8.4: a server must not get any, and this client has said that it wants none.
            kind::PUSH_PROMISE => Err(protocol("PUSH_PROMISE")),
            kind::PING => {
                on_connection(header)?;
                if payload.len() != 8 {
                    return Err(Violation::new(Reason::FRAME_SIZE_ERROR, "a PING that is not of 8 bytes"));
                }
                self.pinged(payload, header.has(flag::ACK)).map(|()| None)
            }
            kind::GOAWAY => self.goaway_came(header, payload),
            kind::WINDOW_UPDATE => self.window_update(header, payload),
            _ => self.spend().map(|()| None),
        }
    }

    /// §6.10: nothing comes between the pieces of a header block.
    pub(super) fn outside_of_block(&self, kind: u8, id: u32) -> Result<(), Violation> {
        match &self.block {
            Some(block) if kind != kind::CONTINUATION || id != block.stream => Err(protocol("a frame inside of a header block")),
            _ => Ok(()),
        }
    }

    /// §3.4: SETTINGS come first.
    fn after_settings(&self, kind: u8, flags: u8) -> Result<(), Violation> {
        if self.remote.known || (kind == kind::SETTINGS && flags & flag::ACK == 0) {
            return Ok(());
        }
        Err(protocol("no SETTINGS at first"))
    }

    /// §5.3.2: priorities are obsolete; only their form is checked (§6.3).
    fn priority(&mut self, header: Header, payload: &[u8]) -> Outcome {
        if header.stream == 0 {
            return Err(protocol("PRIORITY on stream 0"));
        }
        self.spend()?;
        const WHAT: &str = "PRIORITY that is not of 5 bytes";
        match self.streams.find(header.stream) {
            _ if payload.len() == 5 => Ok(None),
            Some((slot, _)) => self.torn(slot, Reason::FRAME_SIZE_ERROR, WHAT),
            // §6.4: nothing is said about a stream that is idle.
            None => Err(size(WHAT)),
        }
    }

    fn reset_came(&mut self, header: Header, payload: &[u8]) -> Outcome {
        if payload.len() != 4 {
            return Err(size("RST_STREAM that is not of 4 bytes"));
        }
        if header.stream == 0 || self.is_idle(header.stream) {
            return Err(protocol("RST_STREAM on a stream that was not opened"));
        }
        let reason = Reason(number(payload));
        let Some((slot, stream)) = self.streams.find(header.stream).filter(|(_, stream)| !stream.reset) else {
            // One for each stream that is torn here may be under way.
            return if self.is_dropped(header.stream) { Ok(None) } else { self.spend().map(|()| None) };
        };
        let (unanswered, complete) = (stream.send == Half::Head, stream.is_over());
        (stream.send, stream.receive, stream.reset) = (Half::Done, Half::Done, true);
        if self.role == Role::Server && unanswered {
            self.abandoned()?;
        }
        if complete {
            return Ok(None);
        }
        let untouched = self.role == Role::Client && reason == Reason::REFUSED_STREAM;
        Ok(Some(Event::Reset(slot, if untouched { Torn::Untouched(reason) } else { Torn::ByPeer(reason) })))
    }

    fn settings(&mut self, header: Header, payload: &[u8]) -> Outcome {
        on_connection(header)?;
        if header.has(flag::ACK) {
            if !payload.is_empty() {
                return Err(size("an acknowledgement of SETTINGS with a payload"));
            }
            self.acknowledged();
            return Ok(None);
        }
        if !payload.len().is_multiple_of(6) {
            return Err(size("SETTINGS that are not a multiple of 6 bytes"));
        }
        self.spend()?;
        for entry in payload.chunks_exact(6) {
            let [a, b, rest @ ..] = entry else { continue };
            self.setting(u16::from_be_bytes([*a, *b]), number(rest))?;
        }
        put(&mut self.control, kind::SETTINGS, flag::ACK, 0, &[]);
        self.remote.known = true;
        Ok(Some(Event::Settled))
    }

    fn setting(&mut self, name: u16, value: u32) -> Result<(), Violation> {
        match name {
            setting::ENABLE_PUSH if value > 1 || (value == 1 && self.role == Role::Client) => {
                return Err(protocol("ENABLE_PUSH out of range"));
            }
            setting::MAX_CONCURRENT_STREAMS => self.remote.max_streams = Some(value),
            setting::INITIAL_WINDOW_SIZE => {
                if i64::from(value) > MAX_WINDOW {
                    return Err(Violation::new(Reason::FLOW_CONTROL_ERROR, "INITIAL_WINDOW_SIZE out of range"));
                }
                // §6.9.2: it changes the windows of all streams, which may become negative.
                let change = i64::from(value) - i64::from(self.remote.initial_window);
                self.remote.initial_window = value;
                for (_, stream) in self.streams.iter_mut() {
                    stream.send_window += change;
                    if stream.send_window > MAX_WINDOW {
                        return Err(Violation::new(Reason::FLOW_CONTROL_ERROR, "a window beyond 2^31-1"));
                    }
                }
            }
            setting::MAX_FRAME_SIZE => {
                if !(MIN_FRAME..=MAX_FRAME).contains(&value) {
                    return Err(protocol("MAX_FRAME_SIZE out of range"));
                }
                self.remote.frame_size = value;
            }
            setting::HEADER_TABLE_SIZE => self.encoder.announced(value as usize),
            // §6.5.2: unknown ones are ignored. Limits of header lists are advisory, and ours are short.
            _ => {}
        }
        Ok(())
    }

    /// Until now the peer may have used the default window where ours is smaller (§6.9.2).
    fn acknowledged(&mut self) {
        if !std::mem::replace(&mut self.unacknowledged, false) {
            return;
        }
        self.decoder.acknowledged();
        let excess = i64::from(DEFAULT_WINDOW.saturating_sub(self.local.stream_window));
        for (_, stream) in self.streams.iter_mut() {
            stream.receive_window -= excess;
        }
    }

    fn goaway_came(&mut self, header: Header, payload: &[u8]) -> Outcome {
        on_connection(header)?;
        let (last, reason) = payload.split_at_checked(4).filter(|(_, rest)| rest.len() >= 4).ok_or_else(|| size("a GOAWAY too short"))?;
        let (last, reason) = (number(last) & 0x7fff_ffff, Reason(number(reason)));
        self.spend()?;
        // §6.8: it may only become smaller.
        if self.gone_away.is_some_and(|before| last > before) {
            return Err(protocol("a GOAWAY that takes back another"));
        }
        self.gone_away = Some(last);
        if self.role == Role::Client {
            for (slot, stream) in self.streams.iter_mut().filter(|(_, stream)| stream.id > last && !stream.is_over()) {
                (stream.send, stream.receive, stream.reset) = (Half::Done, Half::Done, true);
                self.later.push_back(Later::Untouched(slot, reason));
            }
        }
        Ok(Some(Event::GoingAway(reason)))
    }

    fn window_update(&mut self, header: Header, payload: &[u8]) -> Outcome {
        if payload.len() != 4 {
            return Err(size("WINDOW_UPDATE that is not of 4 bytes"));
        }
        let increment = i64::from(number(payload) & 0x7fff_ffff);
        if header.stream == 0 {
            // §6.9: zero is an error, of the connection here.
            if increment == 0 {
                return Err(protocol("WINDOW_UPDATE by nothing"));
            }
            self.send_window += increment;
            if self.send_window > MAX_WINDOW {
                return Err(Violation::new(Reason::FLOW_CONTROL_ERROR, "the connection's window beyond 2^31-1"));
            }
            return Ok(Some(Event::Room(None)));
        }
        if self.is_idle(header.stream) {
            return Err(protocol("WINDOW_UPDATE on a stream that was not opened"));
        }
        let Some((slot, stream)) = self.streams.find(header.stream) else { return Ok(None) };
        if stream.reset {
            return Ok(None);
        }
        if increment == 0 {
            return self.torn(slot, Reason::PROTOCOL_ERROR, "WINDOW_UPDATE by nothing");
        }
        stream.send_window += increment;
        if stream.send_window > MAX_WINDOW {
            return self.torn(slot, Reason::FLOW_CONTROL_ERROR, "a stream's window beyond 2^31-1");
        }
        Ok(Some(Event::Room(Some(slot))))
    }

    /// Whether nobody has opened that stream yet (§5.1.1).
    pub(super) fn is_idle(&self, id: u32) -> bool {
        match self.role {
            Role::Client => id.is_multiple_of(2) || id >= self.next_id,
            Role::Server => id.is_multiple_of(2) || id > self.last_peer_id,
        }
    }

    /// Whether frames of that closed stream are dropped: they may have crossed our reset (§5.1), or our farewell (§6.8).
    pub(super) fn is_dropped(&self, id: u32) -> bool {
        self.forgotten.contains(&id) || (self.role == Role::Server && matches!(self.farewell, Farewell::Said(last) if id > last))
    }

    /// A frame on a stream that is closed.
    pub(super) fn late(&mut self, id: u32) -> Outcome {
        if !self.is_dropped(id) {
            self.spend()?;
            self.forget(id, Reason::STREAM_CLOSED);
        }
        Ok(None)
    }

    /// An error of one stream (§5.4.2).
    pub(super) fn torn(&mut self, slot: Slot, reason: Reason, what: &'static str) -> Outcome {
        match self.role {
            Role::Client => self.spend()?,
            Role::Server => self.abandoned()?,
        }
        let Some(stream) = self.streams.get_mut(slot).filter(|stream| !stream.reset) else { return Ok(None) };
        let (id, told) = (stream.id, stream.is_over());
        (stream.send, stream.receive, stream.reset) = (Half::Done, Half::Done, true);
        self.forget(id, reason);
        Ok((!told).then_some(Event::Reset(slot, Torn::ByUs(reason, what))))
    }
}

fn on_connection(header: Header) -> Result<(), Violation> {
    if header.stream == 0 { Ok(()) } else { Err(protocol("a frame of the connection on a stream")) }
}

pub(super) fn protocol(what: &'static str) -> Violation {
    Violation::new(Reason::PROTOCOL_ERROR, what)
}

pub(super) fn size(what: &'static str) -> Violation {
    Violation::new(Reason::FRAME_SIZE_ERROR, what)
}
