//! One TCP connection inside a tunnel.

use std::any::Any;
use std::future::poll_fn;
use std::sync::Arc;

use bytes::Bytes;
use futures::FutureExt;
use h2::{Reason, RecvStream, SendStream};

use super::failure::{of_reset, of_stream};
use super::link::Link;
use crate::base::{Error, Result, code};

/// Whatever must live as long as a stream does: its place in a tunnel.
pub(super) type Guard = Arc<dyn Any + std::marker::Send + Sync>;

/// Both directions of one connection. Dropped before its end, it is reset.
pub struct Stream {
    receive: Receive,
    send: Send,
}

/// What comes from the peer.
pub struct Receive {
    inner: RecvStream,
    /// Bytes given out whose credit the peer does not have back yet.
    held: usize,
    ended: bool,
    link: Arc<Link>,
    _guard: Option<Guard>,
}

/// What goes to the peer. Dropped before [`finish`](Send::finish), it resets the stream: a truncated transfer must not
/// look complete.
pub struct Send {
    inner: SendStream<Bytes>,
    ended: bool,
    link: Arc<Link>,
    _guard: Option<Guard>,
}

impl Stream {
    pub(super) fn new(receive: RecvStream, send: SendStream<Bytes>, link: Arc<Link>, guard: Option<Guard>) -> Self {
        Self {
            receive: Receive { inner: receive, held: 0, ended: false, link: link.clone(), _guard: guard.clone() },
            send: Send { inner: send, ended: false, link, _guard: guard },
        }
    }

    /// The two directions, which end independently.
    pub fn into_split(self) -> (Receive, Send) {
        (self.receive, self.send)
    }
}

impl Receive {
    /// The next bytes; `None` when the peer has finished (END_STREAM). An error if the stream was reset or the tunnel
    /// lost before that: what was received is then not all.
    ///
    /// The bytes given by the previous call count as delivered now and their credit goes back to the peer, so write
    /// them before calling again. A slow application thereby holds at most its own stream window, never more.
    /// May be dropped while it waits without losing bytes.
    pub async fn data(&mut self) -> Option<Result<Bytes>> {
        self.release();
        while !self.ended {
            match self.inner.data().await {
                Some(Ok(bytes)) if bytes.is_empty() => {}
                Some(Ok(bytes)) => {
                    self.held = bytes.len();
                    return Some(Ok(bytes));
                }
                Some(Err(error)) => {
                    self.ended = true;
                    return Some(Err(explain(&self.link, "receiving", error)));
                }
                None => self.ended = true,
            }
        }
        None
    }

    /// Gives the credit of the last bytes back before the next call of [`data`](Receive::data).
    pub fn release(&mut self) {
        let held = std::mem::take(&mut self.held);
        if held > 0 {
            // It fails only for a stream that has ended, whose credit is back already.
            let _ = self.inner.flow_control().release_capacity(held);
        }
    }
}

impl Send {
    /// Hands over `bytes`, waiting while the peer's window or the buffer of this side is full.
    ///
    /// Dropped while it waits, a part may have been sent: run it to its end.
    ///
    /// # Errors
    /// The peer reset the stream, or the tunnel is lost.
    pub async fn data(&mut self, mut bytes: Bytes) -> Result<()> {
        while !bytes.is_empty() {
            self.inner.reserve_capacity(bytes.len());
            while self.inner.capacity() == 0 {
                match poll_fn(|cx| self.inner.poll_capacity(cx)).await {
                    Some(Ok(_)) => {}
                    Some(Err(error)) => return Err(explain(&self.link, "sending", error)),
                    None => return Err(self.why_closed().await),
                }
            }
            let chunk = bytes.split_to(bytes.len().min(self.inner.capacity()));
            self.inner.send_data(chunk, false).map_err(|error| self.refused("sending", error))?;
        }
        Ok(())
    }

    /// Says that nothing more comes (END_STREAM); the other direction goes on.
    ///
    /// # Errors
    /// The stream or the tunnel has ended already.
    pub fn finish(&mut self) -> Result<()> {
        if std::mem::replace(&mut self.ended, true) {
            return Ok(());
        }
        self.inner.send_data(Bytes::new(), true).map_err(|error| self.refused("finishing", error))
    }

    /// Ends both directions at once and tells the peer that the transfer is incomplete.
    pub fn reset(&mut self) {
        self.ended = true;
        self.inner.send_reset(Reason::CANCEL);
    }

    /// Waits until the peer resets the stream or the tunnel is lost: how an idle sender learns of it.
    pub async fn closed(&mut self) -> Error {
        let closed = poll_fn(|cx| self.inner.poll_reset(cx)).await;
        match closed {
            Ok(reason) => of_reset("sending", reason),
            Err(error) => explain(&self.link, "sending", error),
        }
    }

    /// Why the engine takes no more for this stream: if it was closed meanwhile, what closed it says more than that.
    fn refused(&mut self, doing: &str, error: h2::Error) -> Error {
        match poll_fn(|cx| self.inner.poll_reset(cx)).now_or_never() {
            Some(Ok(reason)) => of_reset(doing, reason),
            Some(Err(cause)) if self.link.reason().is_none() && cause.is_io() => of_stream(doing, cause),
            _ => self.link.reason().unwrap_or_else(|| {
                tracing::debug!(%error, doing, "stream taken no more");
                Error::new(&code::PEER_CLOSED, format!("{doing}: the tunnel ended with the connection open"))
            }),
        }
    }

    /// For a stream that is known to be closed for sending.
    async fn why_closed(&mut self) -> Error {
        if self.ended {
            return Error::internal("bytes after the end of a stream");
        }
        self.closed().await
    }
}

impl Drop for Send {
    fn drop(&mut self) {
        if !self.ended {
            self.inner.send_reset(Reason::CANCEL);
        }
    }
}

/// A lost tunnel is explained by what the tunnel knows, a reset by the stream.
fn explain(link: &Link, doing: &str, error: h2::Error) -> Error {
    match link.reason() {
        Some(reason) if !error.is_reset() => reason,
        _ => of_stream(doing, error),
    }
}
