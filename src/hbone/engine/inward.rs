//! From the tunnel to the applications.

use std::io::{self, IoSlice};
use std::sync::Arc;
use std::task::{Context, Poll};

use super::super::core::{Event, Head, Slot, Torn};
use super::place::{Place, Reading, State, of_app};
use super::{Engine, Of, Over, Owner};
use crate::base::{Error, code};
use crate::net::socket;
use crate::tls::record::{MAX_RECORD, Opened};
use tokio::sync::oneshot;

/// Pieces that go into one call of writev.
const SLICES: usize = 64;

impl<O: Owner> Engine<O> {
    /// One large read, opened in place and handed on; whether there was anything.
    pub(super) fn read(&mut self, cx: &mut Context<'_>) -> Result<bool, Over> {
        match self.socket.poll_read_ready(cx) {
            Poll::Pending => return Ok(false),
            Poll::Ready(Err(error)) => return Err(Some(lost(&error))),
            Poll::Ready(Ok(())) => {}
        }
        if self.input.left() < MAX_RECORD {
            self.input.compact();
        }
        let read = socket::read(&self.socket, self.input.room());
        match read {
            Ok(0) => {
                self.input.clear();
                Err(self.session.end().err())
            }
            Ok(length) => {
                self.input.fill(length);
                self.process().map(|()| true)
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.input.clear();
                Ok(true)
            }
            Err(error) => Err(Some(lost(&error))),
        }
    }

    /// Looks at all whole records of the input.
    pub(super) fn process(&mut self) -> Result<(), Over> {
        let mut at = 0;
        let result = loop {
            let rest = self.input.filled_mut().get_mut(at..).unwrap_or_default();
            match self.session.open(rest) {
                Ok(Opened::Incomplete { .. }) => break Ok(()),
                Ok(Opened::Data { plaintext, consumed }) => {
                    let begun = at;
                    at += consumed;
                    if let Err(over) = self.frames(begun + plaintext.start, begun + plaintext.end) {
                        break Err(over);
                    }
                }
                Ok(Opened::Nothing { consumed }) => at += consumed,
                // What is still on its way to the peer may be lost, what came from it is not.
                Ok(Opened::Closed { .. }) => break Err(None),
                Err(error) => break Err(Some(error)),
            }
        };
        self.deliver();
        self.input.consume(at);
        self.conclude();
        result
    }

    /// The frames in a stretch of opened input.
    fn frames(&mut self, mut at: usize, end: usize) -> Result<(), Over> {
        loop {
            let bytes = self.input.filled().get(at..end).unwrap_or_default();
            let (used, event) = self.connection.receive(bytes).map_err(|violation| {
                self.shared.link.abused();
                let what = format!("the tunnel: ended because the peer broke the rules of HTTP/2: {violation}");
                Some(Error::new(&code::TUNNEL_BROKEN, what))
            })?;
            at += used;
            match event {
                None if at == end => return Ok(()),
                None => {}
                Some(Event::Data(slot, length)) => self.pieces.push((slot.0, at - length, length)),
                Some(event) => self.happened(event),
            }
        }
    }

    fn happened(&mut self, event: Event) {
        match event {
            Event::Data(..) => {}
            Event::Request(slot, head) => self.asked(slot, head),
            Event::Answer(slot, status, _headers) => self.answered(slot, status),
            Event::End(slot) => {
                if let Some(place) = self.place(slot.0) {
                    place.ended = true;
                    self.touched.push(slot.0);
                }
            }
            Event::Reset(slot, torn) => self.note_torn(slot, torn),
            Event::Room(Some(slot)) => self.unblock(slot.0),
            Event::Room(None) => self.unblock_all(),
            Event::Settled => {
                self.silent_until = None;
                self.shared.limits.lock().streams = self.connection.peer_limit();
                self.owner.settled();
                self.unblock_all();
            }
            Event::GoingAway(reason) => {
                self.shared.limits.lock().usable = false;
                if reason != super::Reason::NO_ERROR {
                    let what = format!("the tunnel: the peer ended the tunnel: {reason}");
                    self.shared.link.blame(&Error::new(&code::TUNNEL_BROKEN, what));
                }
            }
        }
    }

    fn asked(&mut self, slot: Slot, head: Head) {
        let (head, (gone, receiver)) = (Arc::new(head), oneshot::channel());
        let number = self.settle_in(slot, State::Asked { head: head.clone(), gone });
        self.owner.asked(Of { slot, number }, head, receiver, &self.shared);
    }

    fn answered(&mut self, slot: Slot, status: u16) {
        let Some(carried) = self.carried(slot.0) else { return };
        // RFC 9113 §8.5: any of them.
        if !(200..300).contains(&status) {
            let error = Error::new(&code::CONNECT_REJECTED, format!("the peer answered {status}"));
            return self.finish(slot.0, Err(error), true);
        }
        carried.accepted();
        self.unblock(slot.0);
    }

    fn note_torn(&mut self, slot: Slot, torn: Torn) {
        if let Some(place) = self.place(slot.0) {
            place.torn = Some(torn);
            self.touched.push(slot.0);
        }
    }

    /// Gives what came to the applications, a stream at a time.
    fn deliver(&mut self) {
        let mut pieces = std::mem::take(&mut self.pieces);
        // Stable: the bytes of a stream stay in their order.
        if pieces.windows(2).any(|pair| matches!(pair, [a, b] if a.0 != b.0)) {
            pieces.sort_by_key(|(slot, _, _)| *slot);
        }
        for of_one in pieces.chunk_by(|a, b| a.0 == b.0) {
            for some in of_one.chunks(SLICES) {
                self.hand_over(some);
            }
        }
        pieces.clear();
        self.pieces = pieces;
        self.mind_what_waits();
    }

    /// Lets the peer send no more while applications leave too much lying here.
    pub(super) fn mind_what_waits(&mut self) {
        let waiting = self.places.iter().flatten().map(|place| place.queue.len()).sum();
        self.connection.hold(super::queue::is_too_much(waiting));
    }

    /// Pieces of one stream, no more than [`SLICES`].
    fn hand_over(&mut self, pieces: &[(u32, usize, usize)]) {
        let Some((slot, _, _)) = pieces.first().copied() else { return };
        let Some(place) = self.places.get_mut(slot as usize).and_then(Option::as_mut) else { return };
        let input = self.input.filled();
        let mut from = pieces.iter().map(|(_, at, length)| input.get(*at..at + length).unwrap_or_default());
        let mut slices = [IoSlice::new(&[]); SLICES];
        slices.iter_mut().zip(&mut from).for_each(|(slice, bytes)| *slice = IoSlice::new(bytes));
        let slices = slices.get(..pieces.len()).unwrap_or_default();
        let written = match &place.state {
            State::Carried(carried) if place.queue.is_empty() => carried.write(slices),
            _ => Ok(0),
        };
        let mut taken = match written {
            Ok(length) => length,
            Err(error) => return self.app_broke(slot, error),
        };
        if taken > 0 {
            if let State::Carried(carried) = &place.state {
                carried.count_to(taken);
            }
            self.connection.credit(Slot(slot), taken);
        }
        let begun = place.queue.is_empty();
        for slice in slices {
            let rest = slice.get(taken.min(slice.len())..).unwrap_or_default();
            taken = taken.saturating_sub(slice.len());
            place.queue.push(rest);
        }
        if begun && !place.queue.is_empty() {
            self.drain_queue(slot);
        }
    }

    /// Gives an application what waits for it, until it takes no more.
    pub(super) fn drain_queue(&mut self, slot: u32) {
        let Some(place) = self.places.get_mut(slot as usize).and_then(Option::as_mut) else { return };
        let Place { queue, wake, state: State::Carried(carried), .. } = place else { return };
        let cx = &mut Context::from_waker(&wake.waker);
        let mut taken = 0;
        let broken = loop {
            if queue.is_empty() {
                break None;
            }
            match carried.socket.poll_write_ready(cx) {
                Poll::Pending => break None,
                Poll::Ready(Err(error)) => break Some(error),
                Poll::Ready(Ok(())) => {}
            }
            match carried.write(&queue.slices()) {
                Ok(length) => {
                    queue.taken(length);
                    taken += length;
                }
                Err(error) => break Some(error),
            }
        };
        if taken > 0 {
            carried.count_to(taken);
            self.connection.credit(Slot(slot), taken);
        }
        match broken {
            Some(error) => self.app_broke(slot, error),
            None => self.touched.push(slot),
        }
    }

    /// An application's socket failed: the peer is told that the connection is torn.
    pub(super) fn app_broke(&mut self, slot: u32, error: io::Error) {
        let Some(carried) = self.carried(slot) else { return };
        let outcome = of_app(carried.side, error);
        self.finish(slot, outcome, true);
    }

    fn unblock(&mut self, slot: u32) {
        if let Some(carried) = self.carried(slot)
            && carried.reading == Reading::Blocked
        {
            carried.reading = Reading::Listed;
            let sparse = carried.records == 1;
            self.readable.come(slot, sparse);
        }
    }

    fn unblock_all(&mut self) {
        for slot in 0..u32::try_from(self.places.len()).unwrap_or(u32::MAX) {
            self.unblock(slot);
        }
    }
}

pub(super) fn lost(error: &io::Error) -> Error {
    Error::new(&code::TUNNEL_BROKEN, format!("the tunnel: the connection was lost: {error}"))
}
