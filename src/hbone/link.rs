//! What all streams of one tunnel share: why it ended, and an end that loses nothing.

use std::pin::Pin;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::io::{self, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::base::Error;

/// The state of a connection that outlives it.
#[derive(Default)]
pub(super) struct Link {
    reason: OnceLock<Error>,
    closed: CancellationToken,
    abandoned: Mutex<Option<(Instant, u32)>>,
    abused: AtomicBool,
}

/// Requests that a peer may open and reset unanswered within [`ABANDON_WINDOW`] (CVE-2023-44487): clients that give up
/// by themselves stay far below.
const MAX_ABANDONED: u32 = 1000;

const ABANDON_WINDOW: Duration = Duration::from_secs(10);

impl Link {
    /// Marks the end; the first reason stays.
    pub(super) fn end(&self, reason: Option<Error>) {
        if let Some(reason) = reason {
            let _ = self.reason.set(reason);
        }
        self.closed.cancel();
    }

    /// Keeps the reason for streams that end before the connection is gone.
    pub(super) fn blame(&self, reason: &Error) {
        let _ = self.reason.set(reason.clone());
    }

    pub(super) fn reason(&self) -> Option<Error> {
        self.reason.get().cloned()
    }

    /// Counts a request that the peer reset before it was answered.
    pub(super) fn abandon(&self) {
        let now = Instant::now();
        let mut abandoned = self.abandoned.lock();
        match &mut *abandoned {
            Some((since, count)) if now < *since + ABANDON_WINDOW => *count += 1,
            _ => *abandoned = Some((now, 1)),
        }
    }

    /// Whether the peer floods this side with requests that it does not want answered.
    pub(super) fn is_flooded(&self) -> bool {
        self.abandoned.lock().is_some_and(|(_, count)| count > MAX_ABANDONED)
    }

    /// Marks the peer as one that broke the rules.
    pub(super) fn abused(&self) {
        self.abused.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_abused(&self) -> bool {
        self.abused.load(Ordering::Relaxed)
    }

    pub(super) async fn closed(&self) {
        self.closed.cancelled().await;
    }

    pub(super) fn is_closed(&self) -> bool {
        self.closed.is_cancelled()
    }
}

/// How long a closed connection is read on.
const LINGER: Duration = Duration::from_secs(5);

/// A connection that is not simply dropped: closing a socket with unread bytes makes the kernel send a reset, and that
/// destroys what the peer has not read yet. It says that it is done and reads until the peer says so too.
pub(super) struct Lingering<IO: AsyncRead + AsyncWrite + Unpin + Send + 'static>(Option<IO>);

impl<IO: AsyncRead + AsyncWrite + Unpin + Send + 'static> Lingering<IO> {
    pub(super) fn new(io: IO) -> Self {
        Self(Some(io))
    }

    fn inner(&mut self) -> io::Result<Pin<&mut IO>> {
        self.0.as_mut().map(Pin::new).ok_or_else(|| io::ErrorKind::NotConnected.into())
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin + Send + 'static> Drop for Lingering<IO> {
    fn drop(&mut self) {
        let (Some(mut io), Ok(runtime)) = (self.0.take(), tokio::runtime::Handle::try_current()) else { return };
        runtime.spawn(async move {
            let finish = async {
                io.shutdown().await?;
                let mut sink = [0; 4096];
                while io.read(&mut sink).await? > 0 {}
                io::Result::Ok(())
            };
            // Whether the peer answers or not, the connection is over.
            let _ = tokio::time::timeout(LINGER, finish).await;
        });
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin + Send + 'static> AsyncRead for Lingering<IO> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.inner()?.poll_read(cx, buf)
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin + Send + 'static> AsyncWrite for Lingering<IO> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.inner()?.poll_write(cx, buf)
    }

    fn poll_write_vectored(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bufs: &[std::io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        self.inner()?.poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.0.as_ref().is_some_and(AsyncWrite::is_write_vectored)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.inner()?.poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.inner()?.poll_shutdown(cx)
    }
}
