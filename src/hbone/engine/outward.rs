//! From the applications to the tunnel.

use std::io::{self, IoSliceMut};
use std::task::{Context, Poll};

use super::super::core::Slot;
use super::buffer::{FRONT, PAYLOAD, RECORD, RECORDS};
use super::inward::lost;
use super::place::{Reading, State};
use super::{Engine, Over, Owner};
use crate::base::Error;
use crate::net::socket;
use crate::tls::record::{HEADER as RECORD_HEADER, MAX_PLAINTEXT, TRAILER};

/// Full records of one stream in a batch while others have bytes too.
const SHARE: usize = 4;

/// Bytes that follow a request before it is answered: they are kept until then.
const EARLY: usize = 16 * 1024;

impl<O: Owner> Engine<O> {
    /// Writes a batch if there is something to write and the tunnel takes it; whether there may be more.
    pub(super) fn write(&mut self, cx: &mut Context<'_>) -> Result<bool, Over> {
        // Nothing is read for a tunnel that takes nothing: what is read last goes out last.
        match self.socket.poll_write_ready(cx) {
            Poll::Pending => return Ok(false),
            Poll::Ready(Err(error)) => return Err(Some(lost(&error))),
            Poll::Ready(Ok(())) => {}
        }
        if self.output.is_empty() {
            self.fill().map_err(Some)?;
        }
        if self.output.is_empty() {
            return Ok(false);
        }
        match socket::write(&self.socket, &[io::IoSlice::new(self.output.filled())]) {
            Ok(length) => self.output.consume(length),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(Some(lost(&error))),
        }
        Ok(true)
    }

    /// Seals what there is to say, what the connection itself says first.
    fn fill(&mut self) -> Result<(), Error> {
        self.seal_control()?;
        self.readable.begin();
        while self.output.left() >= RECORD {
            let Some(slot) = self.readable.next() else { break };
            self.fill_from(slot)?;
        }
        // The end of a stream, or a reset, found just now.
        self.seal_control()
    }

    /// Frames of the connection, and what the TLS session wants to say, as far as they fit.
    pub(super) fn seal_control(&mut self) -> Result<(), Error> {
        if self.session.has_pending() {
            let mut pending = Vec::new();
            self.session.pending(&mut pending)?;
            let length = pending.len();
            let room = self.output.room().get_mut(..length).ok_or_else(|| Error::internal("no room for what TLS has to say"))?;
            room.copy_from_slice(&pending);
            self.output.fill(length);
        }
        while !self.connection.control().is_empty() {
            let fits = self.output.left().saturating_sub(RECORD_HEADER + TRAILER).min(MAX_PLAINTEXT);
            let control = self.connection.control();
            let length = control.len().min(fits);
            if length == 0 {
                break;
            }
            let record = self.output.room().get_mut(..RECORD_HEADER + length + TRAILER).unwrap_or_default();
            if let Some(plaintext) = record.get_mut(RECORD_HEADER..RECORD_HEADER + length) {
                plaintext.iter_mut().zip(control.drain(..length)).for_each(|(to, from)| *to = from);
            }
            self.session.seal(record)?;
            self.output.fill(RECORD_HEADER + length + TRAILER);
        }
        Ok(())
    }

    /// Reads one application's socket into records, as much as its turn allows.
    fn fill_from(&mut self, slot: u32) -> Result<(), Error> {
        let room = self.connection.room(Slot(slot));
        let Some(place) = self.places.get_mut(slot as usize).and_then(Option::as_mut) else { return Ok(()) };
        let State::Carried(carried) = &mut place.state else { return Ok(()) };
        if carried.reading != Reading::Listed {
            return Ok(());
        }
        let early = if carried.answered { usize::MAX } else { EARLY - (carried.early.len() - carried.resend).min(EARLY) };
        let share = if self.readable.is_empty() { RECORDS } else { SHARE };
        let fits = (self.output.left() / RECORD).min(carried.records).min(share);
        let want = room.min(early).min(fits * PAYLOAD);
        if want == 0 {
            carried.reading = Reading::Blocked;
            return Ok(());
        }
        let area = self.output.room();
        let again = carried.resend > 0;
        let read = if again {
            Ok(put(carried.early.get(carried.early.len() - carried.resend..).unwrap_or_default(), area, want))
        } else {
            let cx = &mut Context::from_waker(&place.wake.waker);
            match carried.socket.poll_read_ready(cx) {
                Poll::Pending => {
                    carried.reading = Reading::Waiting;
                    return Ok(());
                }
                Poll::Ready(Ok(())) => read_into_records(&carried.socket, area, want),
                Poll::Ready(Err(error)) => Err(error),
            }
        };
        let length = match read {
            Ok(0) => {
                carried.reading = Reading::Done;
                carried.watch();
                place.wake.waker.wake_by_ref();
                self.connection.finish(Slot(slot));
                self.touched.push(slot);
                return Ok(());
            }
            Ok(length) => length,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.readable.go_on(slot);
                return Ok(());
            }
            Err(error) => {
                self.app_broke(slot, error);
                return Ok(());
            }
        };
        carried.count_from(length);
        // Much is followed by more: larger reads. Little costs no more than it must.
        carried.records = match length {
            full if full == want => (carried.records * 2).min(RECORDS),
            short if short <= PAYLOAD => 1,
            _ => carried.records,
        };
        if again {
            carried.resend -= length;
        } else if !carried.answered {
            keep(&mut carried.early, area, length);
        }
        if carried.answered && carried.resend == 0 {
            carried.early = Vec::new();
        }
        self.readable.go_on(slot);
        let mut left = length;
        while left > 0 {
            let payload = left.min(PAYLOAD);
            let header = self.connection.data(Slot(slot), payload).ok_or_else(|| Error::internal("bytes for a stream that has ended"))?;
            let record = self.output.room().get_mut(..FRONT + payload + TRAILER).unwrap_or_default();
            if let Some(front) = record.get_mut(RECORD_HEADER..FRONT) {
                front.copy_from_slice(&header);
            }
            self.session.seal(record)?;
            self.output.fill(FRONT + payload + TRAILER);
            left -= payload;
        }
        Ok(())
    }
}

/// Reads up to `want` bytes to where the payloads of full records lie in `area`.
fn read_into_records(socket: &tokio::net::TcpStream, area: &mut [u8], want: usize) -> io::Result<usize> {
    let mut left = want;
    let mut records = area.chunks_mut(RECORD);
    let mut count = 0;
    let mut slots: [IoSliceMut<'_>; RECORDS] = std::array::from_fn(|_| {
        let payload = left.min(PAYLOAD);
        left -= payload;
        count += usize::from(payload > 0);
        let slot = records.next().and_then(|record| record.get_mut(FRONT..FRONT + payload));
        IoSliceMut::new(slot.unwrap_or_default())
    });
    socket::read_vectored(socket, slots.get_mut(..count).unwrap_or_default(), want)
}

/// Puts bytes where the payloads of full records lie in `area`, as if they were read now; how many.
fn put(bytes: &[u8], area: &mut [u8], want: usize) -> usize {
    let bytes = bytes.get(..want).unwrap_or(bytes);
    for (record, payload) in area.chunks_mut(RECORD).zip(bytes.chunks(PAYLOAD)) {
        if let Some(slot) = record.get_mut(FRONT..FRONT + payload.len()) {
            slot.copy_from_slice(payload);
        }
    }
    bytes.len()
}

/// Keeps `length` bytes of payloads that lie in `area`.
fn keep(early: &mut Vec<u8>, area: &[u8], length: usize) {
    let mut left = length;
    for record in area.chunks(RECORD) {
        let payload = left.min(PAYLOAD);
        early.extend_from_slice(record.get(FRONT..FRONT + payload).unwrap_or_default());
        left -= payload;
    }
}
