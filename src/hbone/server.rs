//! The end that accepts streams.

use std::sync::Arc;

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Reason, RecvStream};
use http::{HeaderMap, Method, Response, StatusCode};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::failure::{of_connection, of_stream};
use super::link::{Lingering, Link};
use super::{Settings, Stream, ping};
use crate::base::{Error, Result, code, deadline};

/// Streams that a peer may open and reset in quick succession before the tunnel is ended (CVE-2023-44487).
const MAX_RESETS: usize = 200;

/// Frames that break the rules before the tunnel is ended.
const MAX_ERRORS: usize = 256;

/// For telling the peer why, before a tunnel is dropped.
const FAREWELL: std::time::Duration = std::time::Duration::from_secs(1);

/// An accepted tunnel. Dropped, it ends with all its streams.
pub struct Server {
    incoming: mpsc::Receiver<Incoming>,
    drain: CancellationToken,
    link: Arc<Link>,
    _driver: AbortOnDropHandle<()>,
}

/// A request for a stream. Dropped without an answer, it is reset.
pub struct Incoming {
    /// Anything but CONNECT is to be refused.
    pub method: Method,
    /// `:authority` as sent; empty if there was none.
    pub authority: String,
    /// As sent.
    pub headers: HeaderMap,
    respond: SendResponse<Bytes>,
    receive: RecvStream,
    link: Arc<Link>,
}

impl Server {
    /// Speaks HTTP/2 on `io`: the preface and SETTINGS of both sides.
    ///
    /// # Errors
    /// The peer is silent or speaks something else.
    pub async fn handshake<IO>(io: IO, settings: &Settings) -> Result<Self>
    where
        IO: AsyncRead + AsyncWrite + Unpin + std::marker::Send + 'static,
    {
        let mut builder = h2::server::Builder::new();
        builder
            .initial_window_size(settings.stream_window)
            .initial_connection_window_size(settings.connection_window)
            .max_frame_size(settings.frame_size)
            .max_header_list_size(settings.header_list)
            .max_send_buffer_size(settings.send_buffer)
            .data_frame_budget(settings.frame_overhead())
            .max_concurrent_streams(settings.max_streams)
            .max_concurrent_reset_streams(MAX_RESETS)
            .max_pending_accept_reset_streams(MAX_RESETS)
            .max_local_error_reset_streams(Some(MAX_ERRORS));
        let handshake = builder.handshake::<_, Bytes>(Lingering::new(io));
        let mut connection = deadline(settings.preface_limit, &code::TUNNEL_BROKEN, "HTTP/2 preface", handshake)
            .await?
            .map_err(|error| of_connection("HTTP/2 preface", error))?;
        let pings = connection.ping_pong().ok_or_else(|| Error::internal("the engine gave no PING"))?;
        let keepalive = ping::keep(pings, settings.ping_interval, settings.ping_limit, false, || {});
        let (sender, incoming) = mpsc::channel(settings.max_streams as usize);
        let (link, drain) = (Arc::new(Link::default()), CancellationToken::new());
        let driver = tokio::spawn(drive(connection, keepalive, link.clone(), drain.clone(), sender));
        Ok(Self { incoming, drain, link, _driver: AbortOnDropHandle::new(driver) })
    }

    /// The next request; `None` when the tunnel has ended, after a drain: when its last stream has.
    pub async fn next(&mut self) -> Option<Incoming> {
        self.incoming.recv().await
    }

    /// Why it ended, if not in good order.
    pub fn reason(&self) -> Option<Error> {
        self.link.reason()
    }

    /// Tells the peer to open no more streams (GOAWAY). Those that are open go on: keep calling [`next`](Server::next).
    pub fn graceful_shutdown(&self) {
        self.drain.cancel();
    }
}

impl Incoming {
    /// Answers 200 with `headers`.
    ///
    /// # Errors
    /// The peer has given up or the tunnel is lost.
    pub fn accept(mut self, headers: HeaderMap) -> Result<Stream> {
        let mut response = Response::new(());
        *response.headers_mut() = headers;
        let send = self.respond.send_response(response, false).map_err(|error| of_stream("accepting", error))?;
        Ok(Stream::new(self.receive, send, self.link, None))
    }

    /// Answers `status` and ends the stream.
    pub fn refuse(mut self, status: StatusCode) {
        let mut response = Response::new(());
        *response.status_mut() = status;
        // If it fails the peer has given up already. Dropping the rest resets the stream with NO_ERROR (RFC 9113 §8.1).
        let _ = self.respond.send_response(response, true);
    }

    /// Says that nothing was done with the request: the peer may repeat it elsewhere (REFUSED_STREAM, RFC 9113 §8.7).
    pub fn reject(mut self) {
        self.respond.send_reset(Reason::REFUSED_STREAM);
    }

    /// Waits until the peer gives up: ends the work for a client that left.
    pub async fn abandoned(&mut self) -> Error {
        let reset = std::future::poll_fn(|cx| self.respond.poll_reset(cx)).await;
        match reset {
            Ok(reason) => Error::new(&code::PEER_CLOSED, format!("the peer gave up before the answer: {reason:?}")),
            Err(error) => self.link.reason().unwrap_or_else(|| of_stream("waiting", error)),
        }
    }
}

async fn drive<IO>(
    mut connection: h2::server::Connection<Lingering<IO>, Bytes>,
    keepalive: impl Future<Output = Error>,
    link: Arc<Link>,
    drain: CancellationToken,
    sender: mpsc::Sender<Incoming>,
) where
    IO: AsyncRead + AsyncWrite + Unpin + std::marker::Send + 'static,
{
    tokio::pin!(keepalive);
    let mut draining = false;
    let reason = loop {
        tokio::select! {
            accepted = connection.accept() => match accepted {
                Some(Ok((request, respond))) => offer(&sender, request, respond, &link),
                Some(Err(error)) => break Some(of_connection("the tunnel", error)),
                None => break None,
            },
            () = drain.cancelled(), if !draining => {
                draining = true;
                connection.graceful_shutdown();
            }
            silent = &mut keepalive => {
                link.blame(&silent);
                connection.abrupt_shutdown(Reason::NO_ERROR);
                let farewell = std::future::poll_fn(|cx| connection.poll_closed(cx));
                // The peer is silent already: whether it hears this makes no difference.
                let _ = tokio::time::timeout(FAREWELL, farewell).await;
                break Some(silent);
            }
        }
    };
    link.end(reason);
}

/// The queue holds as many as the peer may have open; one that still overflows it has opened and reset streams.
fn offer(sender: &mpsc::Sender<Incoming>, request: http::Request<RecvStream>, respond: SendResponse<Bytes>, link: &Arc<Link>) {
    let (head, receive) = request.into_parts();
    let authority = head.uri.authority().map(ToString::to_string).unwrap_or_default();
    let incoming = Incoming { method: head.method, authority, headers: head.headers, respond, receive, link: link.clone() };
    if let Err(mpsc::error::TrySendError::Full(mut incoming) | mpsc::error::TrySendError::Closed(mut incoming)) = sender.try_send(incoming)
    {
        incoming.respond.send_reset(Reason::REFUSED_STREAM);
    }
}
