//! The end that accepts streams.

use std::sync::Arc;
use std::task::{Context, Poll, Waker};

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
    answer: Answer,
    receive: RecvStream,
}

/// What is owed to the peer, unless it gives up first.
struct Answer {
    respond: SendResponse<Bytes>,
    link: Arc<Link>,
    /// Reset by this side.
    rejected: bool,
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

    /// Whether this side ended it because the peer broke the rules: a flood, or frames that make no sense.
    pub fn is_abused(&self) -> bool {
        self.link.is_abused()
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
        let send = self.answer.respond.send_response(response, false).map_err(|error| of_stream("accepting", error))?;
        Ok(Stream::new(self.receive, send, self.answer.link.clone(), None))
    }

    /// Answers `status` and ends the stream.
    pub fn refuse(mut self, status: StatusCode) {
        let mut response = Response::new(());
        *response.status_mut() = status;
        // If it fails the peer has given up already. Dropping the rest resets the stream with NO_ERROR (RFC 9113 §8.1).
        let _ = self.answer.respond.send_response(response, true);
    }

    /// Says that nothing was done with the request: the peer may repeat it elsewhere (REFUSED_STREAM, RFC 9113 §8.7).
    pub fn reject(mut self) {
        self.answer.rejected = true;
        self.answer.respond.send_reset(Reason::REFUSED_STREAM);
    }

    /// Waits until the peer gives up: ends the work for a client that left.
    pub async fn abandoned(&mut self) -> Error {
        let reset = std::future::poll_fn(|cx| self.answer.respond.poll_reset(cx)).await;
        match reset {
            Ok(reason) => Error::new(&code::PEER_CLOSED, format!("the peer gave up before the answer: {reason:?}")),
            Err(error) => self.answer.link.reason().unwrap_or_else(|| of_stream("waiting", error)),
        }
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        let reset = self.respond.poll_reset(&mut Context::from_waker(Waker::noop()));
        // After an answer it is an error to ask: a stream that was accepted may end as it likes.
        if !self.rejected && matches!(reset, Poll::Ready(Ok(_))) {
            self.link.abandon();
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
                Some(Ok(_)) if link.is_flooded() => {
                    let flood = Error::new(&code::TUNNEL_BROKEN, "the peer opens and resets requests too fast");
                    link.abused();
                    break Some(farewell(&mut connection, &link, flood, Reason::ENHANCE_YOUR_CALM).await);
                }
                Some(Ok((request, respond))) => offer(&sender, request, respond, &link),
                Some(Err(error)) => {
                    if error.is_go_away() && error.is_library() {
                        link.abused();
                    }
                    break Some(of_connection("the tunnel", error));
                }
                None => break None,
            },
            () = drain.cancelled(), if !draining => {
                draining = true;
                connection.graceful_shutdown();
            }
            silent = &mut keepalive => break Some(farewell(&mut connection, &link, silent, Reason::NO_ERROR).await),
        }
    };
    link.end(reason);
}

/// Ends the tunnel for `error` and tells the peer, if it still listens.
async fn farewell<IO>(connection: &mut h2::server::Connection<Lingering<IO>, Bytes>, link: &Link, error: Error, reason: Reason) -> Error
where
    IO: AsyncRead + AsyncWrite + Unpin + std::marker::Send + 'static,
{
    link.blame(&error);
    connection.abrupt_shutdown(reason);
    let closed = std::future::poll_fn(|cx| connection.poll_closed(cx));
    // Whether it hears this makes no difference.
    let _ = tokio::time::timeout(FAREWELL, closed).await;
    error
}

/// The queue holds as many as the peer may have open; one that still overflows it has opened and reset streams.
fn offer(sender: &mpsc::Sender<Incoming>, request: http::Request<RecvStream>, respond: SendResponse<Bytes>, link: &Arc<Link>) {
    let (head, receive) = request.into_parts();
    let authority = head.uri.authority().map(ToString::to_string).unwrap_or_default();
    let incoming = Incoming {
        method: head.method,
        authority,
        headers: head.headers,
        answer: Answer { respond, link: link.clone(), rejected: false },
        receive,
    };
    if let Err(mpsc::error::TrySendError::Full(mut incoming) | mpsc::error::TrySendError::Closed(mut incoming)) = sender.try_send(incoming)
    {
        incoming.answer.respond.send_reset(Reason::REFUSED_STREAM);
    }
}
