//! Strangers: connections that have not called with a valid token yet. Each has little time, and each source few.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv6Addr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Sleep;
use tonic::transport::server::Connected;

/// From the end of the handshake to the first call with a valid token. Proxies connect in order to call.
const FIRST_CALL_LIMIT: Duration = Duration::from_secs(10);

/// Strangers at once from one source, those in handshake included.
pub(super) const MAX_STRANGERS: usize = 64;

/// All strangers by source; sources without any are not in it.
#[derive(Clone, Debug, Default)]
pub(super) struct Strangers(Arc<Mutex<HashMap<IpAddr, usize>>>);

impl Strangers {
    /// One more from there; `None`: there are too many already.
    pub(super) fn admit(&self, from: IpAddr) -> Option<Gate> {
        let source = source(from);
        let mut counts = self.0.lock();
        let count = counts.entry(source).or_default();
        if *count >= MAX_STRANGERS {
            return None;
        }
        *count += 1;
        drop(counts);
        Some(Gate(Arc::new(Mutex::new(Some(Stranger { source, all: self.clone() })))))
    }
}

/// Who has an IPv6 address has its whole /64.
fn source(ip: IpAddr) -> IpAddr {
    match ip.to_canonical() {
        IpAddr::V6(ip) => Ipv6Addr::from_bits(ip.to_bits() & (u128::MAX << 64)).into(),
        ip => ip,
    }
}

/// Counts as one for as long as it lives.
#[derive(Debug)]
struct Stranger {
    source: IpAddr,
    all: Strangers,
}

impl Drop for Stranger {
    fn drop(&mut self) {
        let mut counts = self.all.0.lock();
        if let Some(count) = counts.get_mut(&self.source) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.source);
            }
        }
    }
}

/// Of one connection: closed until its caller has shown a valid token. Found among the extensions of each request.
#[derive(Clone, Debug)]
pub(super) struct Gate(Arc<Mutex<Option<Stranger>>>);

impl Gate {
    /// The caller is known from now on.
    pub(super) fn open(&self) {
        self.0.lock().take();
    }

    fn is_open(&self) -> bool {
        self.0.lock().is_none()
    }
}

/// A connection that fails when its gate is not opened in time, and gives its slot back when it ends.
pub(super) struct Connection<S> {
    stream: S,
    gate: Gate,
    /// `None`: the gate has been open.
    limit: Option<Pin<Box<Sleep>>>,
    _slot: OwnedSemaphorePermit,
}

impl<S> Connection<S> {
    /// The limit runs from now on.
    pub(super) fn new(stream: S, gate: Gate, slot: OwnedSemaphorePermit) -> Self {
        Self { stream, gate, limit: Some(Box::pin(tokio::time::sleep(FIRST_CALL_LIMIT))), _slot: slot }
    }

    fn in_time(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        if self.limit.is_some() && self.gate.is_open() {
            self.limit = None;
        }
        if self.limit.as_mut().is_some_and(|limit| limit.as_mut().poll(cx).is_ready()) {
            return Err(io::Error::new(io::ErrorKind::TimedOut, format!("no call with a valid token within {FIRST_CALL_LIMIT:?}")));
        }
        Ok(())
    }
}

impl<S> Connected for Connection<S> {
    type ConnectInfo = Gate;

    fn connect_info(&self) -> Gate {
        self.gate.clone()
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Connection<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.in_time(cx)?;
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Connection<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.in_time(cx)?;
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bufs: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        self.in_time(cx)?;
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.in_time(cx)?;
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.in_time(cx)?;
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::sync::Semaphore;

    use super::*;

    #[test]
    fn each_source_may_have_some_strangers() {
        let strangers = Strangers::default();
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let mut gates: Vec<Gate> = (0..MAX_STRANGERS).filter_map(|_| strangers.admit(ip("10.0.0.1"))).collect();
        assert_eq!(gates.len(), MAX_STRANGERS);
        assert!(strangers.admit(ip("10.0.0.1")).is_none() && strangers.admit(ip("::ffff:10.0.0.1")).is_none());
        assert!(strangers.admit(ip("10.0.0.2")).is_some());
        gates[0].open();
        gates.push(strangers.admit(ip("10.0.0.1")).expect("one has become known"));
        assert!(strangers.admit(ip("10.0.0.1")).is_none());
        gates.pop();
        gates.push(strangers.admit(ip("10.0.0.1")).expect("one has gone"));

        gates.extend((0..MAX_STRANGERS).filter_map(|last| strangers.admit(ip(&format!("2001:db8::{last:x}")))));
        assert!(strangers.admit(ip("2001:db8::ffff:1")).is_none(), "the same /64");
        assert!(strangers.admit(ip("2001:db8:0:1::1")).is_some());
        gates.clear();
        assert!(strangers.0.lock().is_empty(), "nothing is remembered");
    }

    #[tokio::test(start_paused = true)]
    async fn a_stranger_has_until_the_limit_and_a_known_caller_for_ever() {
        let strangers = Strangers::default();
        let slots = Arc::new(Semaphore::new(1));
        let connect = || {
            let (near, far) = tokio::io::duplex(64);
            let gate = strangers.admit(IpAddr::V4([10, 0, 0, 1].into())).unwrap();
            (Connection::new(near, gate.clone(), Arc::clone(&slots).try_acquire_owned().unwrap()), far, gate)
        };
        let (mut idle, far, _gate) = connect();
        let begun = tokio::time::Instant::now();
        assert_eq!(idle.read_u8().await.unwrap_err().kind(), io::ErrorKind::TimedOut);
        assert!((FIRST_CALL_LIMIT..FIRST_CALL_LIMIT * 2).contains(&begun.elapsed()));
        drop((idle, far));

        // One that takes nothing is found when writing.
        let (mut stuck, far, _gate) = connect();
        assert_eq!(stuck.write_all(&[0; 1000]).await.unwrap_err().kind(), io::ErrorKind::TimedOut);
        drop((stuck, far));

        let (mut known, mut far, gate) = connect();
        gate.open();
        let later = async {
            tokio::time::advance(FIRST_CALL_LIMIT * 100).await;
            far.write_u8(7).await
        };
        let (read, written) = tokio::join!(known.read_u8(), later);
        assert_eq!((read.unwrap(), written.unwrap()), (7, ()));
    }
}
