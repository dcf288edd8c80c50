//! The end that opens streams.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use h2::client::SendRequest;
use http::uri::Authority;
use http::{HeaderMap, Method, StatusCode, Uri, Version};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::failure::{is_untouched, of_connection, of_stream};
use super::link::{Lingering, Link};
use super::stream::Guard;
use super::{Request, Settings, Stream, ping};
use crate::base::{Error, Result, code, deadline};

/// A tunnel as the client sees it. It ends by itself when this and all its streams are gone.
pub(super) struct Connection {
    sender: SendRequest<Bytes>,
    link: Arc<Link>,
    settled: watch::Receiver<bool>,
    answer_limit: std::time::Duration,
}

/// Why a stream was not opened.
pub(super) enum OpenError {
    /// The tunnel takes no more requests; nothing was sent.
    Spent(Error),
    /// The peer did nothing with the request: another tunnel may do better.
    Untouched(Error),
    /// It is the answer.
    Final(Error),
}

/// Streams that may be open before the peer has said how many it takes (RFC 9113 §6.5.2 recommends no fewer).
const ASSUMED_STREAMS: usize = 100;

impl Connection {
    /// Starts HTTP/2 on `io`. The peer's SETTINGS are not waited for: see [`settled`](Connection::settled).
    /// `cut` ends the tunnel and all its streams.
    pub(super) async fn handshake<IO>(io: IO, settings: &Settings, cut: CancellationToken) -> Result<Self>
    where
        IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let mut builder = h2::client::Builder::new();
        builder
            .enable_push(false)
            .initial_window_size(settings.stream_window)
            .initial_connection_window_size(settings.connection_window)
            .max_frame_size(settings.frame_size)
            .max_header_list_size(settings.header_list)
            .max_send_buffer_size(settings.send_buffer)
            .data_frame_budget(settings.frame_overhead())
            .initial_max_send_streams(ASSUMED_STREAMS);
        let handshake = builder.handshake::<_, Bytes>(Lingering::new(io));
        let (sender, mut connection) = deadline(settings.preface_limit, &code::TUNNEL_TIMEOUT, "HTTP/2 preface", handshake)
            .await?
            .map_err(|error| of_connection("HTTP/2 preface", error))?;
        let link = Arc::new(Link::default());
        let (settled_now, settled) = watch::channel(false);
        let pings = connection.ping_pong().ok_or_else(|| Error::internal("the engine gave no PING"))?;
        let (interval, limit) = (settings.ping_interval, settings.ping_limit);
        // The first PING is answered after the peer's SETTINGS (RFC 9113 §3.4): its pong settles the limits.
        let keepalive = ping::keep(pings, interval, limit, true, move || {
            settled_now.send_replace(true);
        });
        tokio::spawn(drive(connection, keepalive, link.clone(), cut));
        Ok(Self { sender, link, settled, answer_limit: settings.answer_limit })
    }

    /// Waits until the peer's limits are known. An error if the tunnel ends first.
    pub(super) async fn settled(&self) -> Result<()> {
        let mut settled = self.settled.clone();
        let known = tokio::select! {
            known = settled.wait_for(|known| *known) => known.is_ok(),
            () = self.link.closed() => false,
        };
        if known {
            return Ok(());
        }
        // The keepalive ends a moment before the reason is known.
        self.link.closed().await;
        Err(self.reason())
    }

    /// Streams that the peer allows to be open.
    pub(super) fn peer_limit(&self) -> usize {
        self.sender.current_max_send_streams()
    }

    /// Whether new streams can be opened: not lost, not told to go away.
    pub(super) fn is_usable(&self) -> bool {
        let mut sender = self.sender.clone();
        let ready = sender.poll_ready(&mut Context::from_waker(Waker::noop()));
        !self.link.is_closed() && !matches!(ready, Poll::Ready(Err(_)))
    }

    pub(super) async fn closed(&self) {
        self.link.closed().await;
    }

    /// Asks for a stream. `guard` lives as long as the stream.
    pub(super) async fn open(&self, request: &Request, guard: Guard) -> std::result::Result<(HeaderMap, Stream), OpenError> {
        let head = head(request).map_err(OpenError::Final)?;
        let mut sender = self.sender.clone();
        let limit = self.answer_limit;
        let ready = deadline(limit, &code::CONNECT_SILENT, "a free stream", poll_fn(|cx| sender.poll_ready(cx)));
        ready.await.map_err(OpenError::Final)?.map_err(|error| OpenError::Spent(self.explain("CONNECT", error)))?;
        // It fails, for one, when the 2^30 stream ids of a tunnel are used up.
        let (answer, send) = sender.send_request(head, false).map_err(|error| OpenError::Spent(self.explain("CONNECT", error)))?;
        let what = format!("answer to CONNECT {}", request.authority);
        let answer = match deadline(limit, &code::CONNECT_SILENT, what, answer).await.map_err(OpenError::Final)? {
            Ok(answer) => answer,
            Err(error) if is_untouched(&error) => return Err(OpenError::Untouched(of_stream("CONNECT", error))),
            Err(error) => return Err(OpenError::Final(self.explain("CONNECT", error))),
        };
        let (parts, receive) = answer.into_parts();
        // From here on a drop resets the stream.
        let stream = Stream::new(receive, send, self.link.clone(), Some(guard));
        if parts.status != StatusCode::OK {
            return Err(OpenError::Final(Error::new(&code::CONNECT_REJECTED, format!("the peer answered {}", parts.status))));
        }
        Ok((parts.headers, stream))
    }

    fn reason(&self) -> Error {
        self.link.reason().unwrap_or_else(|| Error::new(&code::PEER_CLOSED, "the peer closed the tunnel"))
    }

    fn explain(&self, doing: &str, error: h2::Error) -> Error {
        match self.link.reason() {
            Some(reason) if !error.is_reset() => reason,
            _ => of_stream(doing, error),
        }
    }
}

async fn drive<IO>(
    connection: h2::client::Connection<Lingering<IO>, Bytes>,
    keepalive: impl Future<Output = Error>,
    link: Arc<Link>,
    cut: CancellationToken,
) where
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    // Pinned here and not dropped by the select: the streams learn of the end after its reason is known.
    tokio::pin!(connection);
    let reason = tokio::select! {
        biased;
        ended = &mut connection => ended.err().map(|error| of_connection("the tunnel", error)),
        failed = keepalive => {
            tracing::warn!(error = %failed, "tunnel ended: the peer does not answer");
            Some(failed)
        }
        () = cut.cancelled() => Some(Error::new(&code::DRAINED, "the pod is being removed or the proxy stops")),
    };
    link.end(reason);
}

/// Only `:method` and `:authority` (RFC 9113 §8.5).
fn head(request: &Request) -> Result<http::Request<()>> {
    let bad = |error: http::Error| Error::caused(&code::BAD_AUTHORITY, format!("CONNECT {:?}", request.authority), error);
    let authority = Authority::try_from(request.authority.as_str()).map_err(|error| bad(error.into()))?;
    let mut uri = http::uri::Parts::default();
    uri.authority = Some(authority);
    let uri = Uri::from_parts(uri).map_err(|error| bad(error.into()))?;
    let mut head = http::Request::builder().method(Method::CONNECT).version(Version::HTTP_2).uri(uri).body(()).map_err(bad)?;
    *head.headers_mut() = request.headers.clone();
    Ok(head)
}
