//! Requests, answers and trailers that the peer sends.

use super::frame::{Header, Reason, flag};
use super::head::{Block, Fields};
use super::receive::{Outcome, protocol, size};
use super::stream::Half;
use super::{Connection, Event, Later, Role, Slot, Violation};

/// Frames of one header block: a peer cuts it at 16 KiB, or is up to something (CVE-2024-27316).
const MAX_PIECES: u32 = 32;

impl Connection {
    pub(super) fn headers(&mut self, header: Header, payload: &[u8]) -> Outcome {
        if header.stream == 0 {
            return Err(protocol("HEADERS on stream 0"));
        }
        let mut block = payload;
        if header.has(flag::PADDED) {
            let (padding, rest) = block.split_first().ok_or_else(|| size("padded HEADERS without a length of padding"))?;
            let length = rest.len().checked_sub(usize::from(*padding)).ok_or_else(|| protocol("more padding than payload"))?;
            block = rest.get(..length).unwrap_or_default();
        }
        if header.has(flag::PRIORITY) {
            // §5.3.2: obsolete, and read over.
            (_, block) = block.split_at_checked(5).ok_or_else(|| size("HEADERS too short for their priority"))?;
        }
        let block = Block { stream: header.stream, end: header.has(flag::END_STREAM), bytes: block.to_vec(), pieces: 1 };
        self.piece_of_block(block, header)
    }

    pub(super) fn continuation(&mut self, header: Header, payload: &[u8]) -> Outcome {
        self.outside_of_block(header.kind, header.stream)?;
        let mut block = self.block.take().ok_or_else(|| protocol("CONTINUATION without HEADERS"))?;
        block.bytes.extend_from_slice(payload);
        block.pieces += 1;
        self.piece_of_block(block, header)
    }

    fn piece_of_block(&mut self, block: Block, header: Header) -> Outcome {
        // What is compressed is not longer than what it stands for, but for a few bytes a field.
        if block.pieces > MAX_PIECES || block.bytes.len() > 2 * self.local.header_list as usize {
            return Err(Violation::new(Reason::ENHANCE_YOUR_CALM, "a header block beyond all measure"));
        }
        if !header.has(flag::END_HEADERS) {
            self.block = Some(block);
            return Ok(None);
        }
        // Also of a stream that nobody wants: the table of the connection must see it (§4.3).
        let fields = Fields::decode(&mut self.decoder, &block.bytes)?;
        match self.role {
            Role::Server => self.request(&block, fields),
            Role::Client => self.response(&block, fields),
        }
    }

    fn request(&mut self, block: &Block, fields: Fields) -> Outcome {
        let id = block.stream;
        if let Some((slot, stream)) = self.streams.find(id).filter(|(_, stream)| !stream.reset) {
            return match stream.receive {
                Half::Open => self.trailers(slot, block.end, fields),
                // §5.1: half-closed (remote).
                Half::Head | Half::Done => self.torn(slot, Reason::STREAM_CLOSED, "HEADERS after the end of a stream"),
            };
        }
        if id.is_multiple_of(2) {
            return Err(protocol("a client's stream with an even number"));
        }
        if id <= self.last_peer_id && !self.is_dropped(id) {
            return Err(Violation::new(Reason::STREAM_CLOSED, "HEADERS on a closed stream"));
        }
        self.last_peer_id = id.max(self.last_peer_id);
        if self.is_dropped(id) {
            return Ok(None);
        }
        // §5.1.2; told so that the peer may try again (§8.7).
        if self.streams.are_full(self.local.max_streams) {
            self.spend()?;
            self.forget(id, Reason::REFUSED_STREAM);
            return Ok(None);
        }
        let head = match fields.request() {
            Ok(head) => head,
            // §8.1.1: malformed, an error of the stream.
            Err(what) => {
                tracing::debug!(what, "request reset: it is malformed");
                self.spend()?;
                self.forget(id, Reason::PROTOCOL_ERROR);
                return Ok(None);
            }
        };
        let slot = self.insert(id, Half::Head, if block.end { Half::Done } else { Half::Open });
        if block.end {
            self.later.push_back(Later::End(slot));
        }
        Ok(Some(Event::Request(slot, head)))
    }

    fn response(&mut self, block: &Block, fields: Fields) -> Outcome {
        let id = block.stream;
        if self.is_idle(id) {
            return Err(protocol("HEADERS on a stream that was not opened"));
        }
        let Some((slot, stream)) = self.streams.find(id) else { return self.late(id) };
        if stream.reset {
            return Ok(None);
        }
        match stream.receive {
            Half::Open => self.trailers(slot, block.end, fields),
            Half::Done => self.torn(slot, Reason::STREAM_CLOSED, "HEADERS after the end of a stream"),
            Half::Head => match fields.response() {
                // §8.6: there is nothing to switch to.
                Ok((101, _)) => self.torn(slot, Reason::PROTOCOL_ERROR, "101 Switching Protocols"),
                // §8.1: not the answer yet.
                Ok((100..=199, _)) if !block.end => self.spend().map(|()| None),
                Ok((100..=199, _)) => self.torn(slot, Reason::PROTOCOL_ERROR, "an interim answer that ends the stream"),
                Ok((status, headers)) => {
                    stream.receive = if block.end { Half::Done } else { Half::Open };
                    if block.end {
                        self.later.push_back(Later::End(slot));
                    }
                    Ok(Some(Event::Answer(slot, status, headers)))
                }
                Err(what) => self.torn(slot, Reason::PROTOCOL_ERROR, what),
            },
        }
    }

    fn trailers(&mut self, slot: Slot, end: bool, fields: Fields) -> Outcome {
        match fields.trailers() {
            Ok(()) if end => {
                if let Some(stream) = self.streams.get_mut(slot) {
                    stream.receive = Half::Done;
                }
                Ok(Some(Event::End(slot)))
            }
            Ok(()) => self.torn(slot, Reason::PROTOCOL_ERROR, "trailers that do not end the stream"),
            Err(what) => self.torn(slot, Reason::PROTOCOL_ERROR, what),
        }
    }
}
