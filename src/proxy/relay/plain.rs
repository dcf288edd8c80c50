//! One direction between two sockets: copied while it is small talk, spliced while it is bulk.

use std::cell::RefCell;
use std::io;

use bytes::Bytes;
use tokio::net::TcpStream;
use tokio::task::yield_now;

use super::{Broken, Moved, shutdown, write};
use crate::net::splice::Pipe;

/// Bytes that a direction moves before it counts as bulk.
const BULK: usize = 256 * 1024;
/// A source that says less than this before it pauses is not bulk: to copy this much costs no more than to splice it.
const LITTLE: usize = 16 * 1024;
/// Most that is copied at once.
const SCRATCH: usize = 64 * 1024;
/// Bytes after which other tasks of the thread have their turn, even if there are always more.
const TURN: usize = 1024 * 1024;

/// A direction: moves what one socket has to say to another.
pub(super) struct Half<'a, C> {
    pub(super) from: &'a TcpStream,
    pub(super) to: &'a TcpStream,
    /// What the two sides are called in errors.
    pub(super) names: [&'static str; 2],
    /// Is told of bytes that `to` has taken.
    pub(super) count: C,
}

impl<C: Fn(usize)> Half<'_, C> {
    /// Runs until the source's end, and tells `to` of that.
    pub(super) async fn run(self) -> Moved {
        let (mut pace, mut turn, mut pipe) = (Pace::default(), 0, None);
        loop {
            let moved = match &mut pipe {
                Some(pipe) => self.splice(pipe).await?,
                None => self.copy().await?,
            };
            match moved {
                Some(0) => break,
                Some(length) => {
                    pace.moved(length);
                    turn += length.max(LITTLE);
                }
                None => {
                    pace.pause();
                    // A pipe is for the time in which there are bytes to move.
                    pipe = None;
                    self.from.readable().await.map_err(|error| self.source_broke(error))?;
                }
            }
            if turn >= TURN {
                turn = 0;
                yield_now().await;
            }
            if pipe.is_none() && pace.is_bulk() {
                pipe = Pipe::take();
                if pipe.is_none() {
                    // Not asked for again before as much has been copied.
                    pace = Pace::default();
                }
            }
        }
        shutdown(self.to);
        Ok(())
    }

    /// Moves what there is through the kernel; how many bytes, 0 at the end, `None` if there are none now.
    async fn splice(&self, pipe: &mut Pipe) -> Result<Option<usize>, Broken> {
        let Some(length) = now(pipe.fill(self.from)).map_err(|error| self.source_broke(error))? else { return Ok(None) };
        while pipe.held() > 0 {
            match now(pipe.drain(self.to)).map_err(|error| self.destination_broke(error))? {
                Some(length) => (self.count)(length),
                None => self.to.writable().await.map_err(|error| self.destination_broke(error))?,
            }
        }
        Ok(Some(length))
    }

    /// Moves what there is through a buffer of the thread; returns as [`Self::splice`].
    ///
    /// Only what the destination does not take at once is kept, in its own size: ten thousand connections to slow
    /// readers hold ten thousand small messages, not as many large buffers.
    async fn copy(&self) -> Result<Option<usize>, Broken> {
        thread_local! {
            static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
        }
        let copied = BUFFER.with_borrow_mut(|buffer| {
            buffer.resize(SCRATCH, 0);
            self.copy_through(buffer)
        })?;
        let Some((length, rest)) = copied else { return Ok(None) };
        if !rest.is_empty() {
            let late = rest.len();
            write(self.to, rest).await.map_err(|error| self.destination_broke(error))?;
            (self.count)(late);
        }
        Ok(Some(length))
    }

    /// Bytes read, and those of them that the destination did not take.
    fn copy_through(&self, buffer: &mut [u8]) -> Result<Option<(usize, Bytes)>, Broken> {
        let Some(length) = now(self.from.try_read(buffer)).map_err(|error| self.source_broke(error))? else { return Ok(None) };
        let data = buffer.get(..length).unwrap_or_default();
        let taken = now(self.to.try_write(data)).map_err(|error| self.destination_broke(error))?.unwrap_or(0);
        (self.count)(taken);
        Ok(Some((length, Bytes::copy_from_slice(data.get(taken..).unwrap_or_default()))))
    }

    fn source_broke(&self, error: io::Error) -> Broken {
        Broken::tcp(self.names[0], error)
    }

    fn destination_broke(&self, error: io::Error) -> Broken {
        Broken::tcp(self.names[1], error)
    }
}

/// How a source talks.
#[derive(Default)]
struct Pace {
    /// Bytes since it last said only a little.
    total: usize,
    /// Bytes since its last pause.
    since_pause: usize,
}

impl Pace {
    fn moved(&mut self, bytes: usize) {
        self.total = self.total.saturating_add(bytes);
        self.since_pause = self.since_pause.saturating_add(bytes);
    }

    fn pause(&mut self) {
        // A wake-up can be for bytes that are gone already: that says nothing.
        if (1..LITTLE).contains(&self.since_pause) {
            self.total = 0;
        }
        self.since_pause = 0;
    }

    fn is_bulk(&self) -> bool {
        self.total >= BULK
    }
}

/// `None` for what cannot be done now.
fn now<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests;
