//! An accepted tunnel, whatever engine frames its bytes.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use http::{HeaderMap, Method, StatusCode};
use tokio::net::TcpStream;

use super::engine::{self, App, Arrival, Host, Outcome};
use super::{Engine, Incoming, Server, Settings, Stream};
use crate::base::{Error, Result};
use crate::identity::{Certificate, SpiffeId};
use crate::tls;

/// An accepted tunnel. Dropped, it ends with all its streams.
pub struct Accepted(Tunnel);

enum Tunnel {
    Own(Host),
    H2(Server),
}

/// A request for a stream. Dropped without an answer, it is reset.
pub struct Asked {
    /// Anything but CONNECT is to be refused.
    pub method: Method,
    answer: Answer,
}

enum Answer {
    Own(Arrival),
    H2(Box<Incoming>),
}

impl Accepted {
    /// Makes an accepted connection a tunnel from a peer of the same trust domain; says who it is.
    ///
    /// # Errors
    /// The peer is silent for `limit`, speaks something else, has no certificate, is not trusted, or is of another domain.
    pub async fn accept(
        socket: TcpStream,
        cert: &Certificate,
        limit: std::time::Duration,
        settings: &Settings,
    ) -> Result<(Self, SpiffeId)> {
        match settings.engine {
            Engine::Own => {
                let (secured, peer) = tls::secured::accept(socket, cert, limit).await?;
                Ok((Self(Tunnel::Own(Host::start(secured, settings))), peer))
            }
            Engine::H2(versions) => {
                let (stream, peer) = tls::accept(socket, cert, versions, limit).await?;
                Ok((Self(Tunnel::H2(Server::handshake(stream, settings).await?)), peer))
            }
        }
    }

    /// The next request; `None` when the tunnel has ended, after a drain: when its last stream has.
    pub async fn next(&mut self) -> Option<Asked> {
        match &mut self.0 {
            Tunnel::Own(host) => {
                let arrival = host.next().await?;
                // A method that is none is refused like any other that is not CONNECT.
                let method = Method::from_bytes(arrival.head.method.as_bytes()).unwrap_or_default();
                Some(Asked { method, answer: Answer::Own(arrival) })
            }
            Tunnel::H2(server) => {
                let incoming = server.next().await?;
                Some(Asked { method: incoming.method.clone(), answer: Answer::H2(Box::new(incoming)) })
            }
        }
    }

    /// Why it ended, if not in good order.
    pub fn reason(&self) -> Option<Error> {
        match &self.0 {
            Tunnel::Own(host) => host.reason(),
            Tunnel::H2(server) => server.reason(),
        }
    }

    /// Whether this side ended it because the peer broke the rules: a flood, or frames that make no sense.
    pub fn is_abused(&self) -> bool {
        match &self.0 {
            Tunnel::Own(host) => host.is_abused(),
            Tunnel::H2(server) => server.is_abused(),
        }
    }

    /// Tells the peer to open no more streams (GOAWAY). Those that are open go on: keep calling [`next`](Accepted::next).
    pub fn graceful_shutdown(&self) {
        match &self.0 {
            Tunnel::Own(host) => host.graceful_shutdown(),
            Tunnel::H2(server) => server.graceful_shutdown(),
        }
    }
}

/// A connection that a tunnel carries: ready at its end, an error if it broke. Dropped before, it is reset on both sides.
pub struct Carrying(engine::Carrying);

impl Future for Carrying {
    type Output = Result<()>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.0).poll(cx).map(|outcome| match outcome {
            Outcome::Done(result) => result,
            Outcome::Again(app, _, error) => {
                app.reset();
                Err(error)
            }
        })
    }
}

/// What an accepted request has become.
pub enum Answered {
    /// It is carried by the tunnel.
    Carried(Carrying),
    /// It is to be carried (`h2` engine).
    Open(Box<App>, Box<Stream>),
}

impl Asked {
    /// `:authority` as sent; empty if there was none.
    pub fn authority(&self) -> &str {
        match &self.answer {
            Answer::Own(arrival) => &arrival.head.authority,
            Answer::H2(incoming) => &incoming.authority,
        }
    }

    /// As sent.
    pub fn headers(&self) -> &HeaderMap {
        match &self.answer {
            Answer::Own(arrival) => &arrival.head.headers,
            Answer::H2(incoming) => &incoming.headers,
        }
    }

    /// Answers 200 with `headers`, and has the connection carried to `app`.
    ///
    /// # Errors
    /// The peer has given up or the tunnel is lost.
    pub fn carry(self, headers: HeaderMap, app: App) -> Result<Answered> {
        match self.answer {
            Answer::Own(arrival) => Ok(Answered::Carried(Carrying(arrival.carry(headers, app)?))),
            Answer::H2(incoming) => Ok(Answered::Open(Box::new(app), Box::new(incoming.accept(headers)?))),
        }
    }

    /// Answers `status` and ends the stream.
    pub fn refuse(self, status: StatusCode) {
        match self.answer {
            Answer::Own(arrival) => arrival.refuse(status.as_u16()),
            Answer::H2(incoming) => incoming.refuse(status),
        }
    }

    /// Waits until the peer gives up: ends the work for a client that left.
    pub async fn abandoned(&mut self) -> Error {
        match &mut self.answer {
            Answer::Own(arrival) => arrival.abandoned().await,
            Answer::H2(incoming) => incoming.abandoned().await,
        }
    }
}
