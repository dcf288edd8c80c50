//! How the pool reaches a peer.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use futures::future::BoxFuture;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

use super::Request;
use crate::base::{Error, Result, code};
use crate::identity::{Certificate, SpiffeId};

/// What makes two connections share a tunnel: all of it has to be equal.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    /// Whose certificate is presented.
    pub source: SpiffeId,
    /// Any of them may answer.
    pub destinations: Vec<SpiffeId>,
    /// Where the peer listens.
    pub addr: SocketAddr,
    /// The address to connect from, if that matters.
    pub source_ip: Option<IpAddr>,
    /// Who listens there ends tunnels itself, as a waypoint does: it is not the proxy of a node.
    pub gateway: bool,
}

/// What is asked of a peer for an application.
pub struct Wanted {
    /// What the tunnel must be.
    pub key: Key,
    /// What is said on it.
    pub request: Request,
}

/// A connection to a peer.
pub enum Io {
    /// What a tunnel is made of.
    Tcp(TcpStream),
    /// Anything else that carries bytes: for the `h2` engine only.
    Other(Box<dyn Duplex>),
}

/// Carries bytes both ways.
pub trait Duplex: AsyncRead + AsyncWrite + Send + Unpin + 'static {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin + 'static> Duplex for T {}

impl Io {
    pub(super) fn boxed(self) -> Box<dyn Duplex> {
        match self {
            Self::Tcp(socket) => Box::new(socket),
            Self::Other(io) => io,
        }
    }
}

/// What the pool needs from outside.
pub trait Dialer: Send + Sync + 'static {
    /// A TCP connection to `key.addr`. The pool sets the deadline.
    fn dial<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, io::Result<Io>>;

    /// The certificate to present.
    fn certificate<'a>(&'a self, source: &'a SpiffeId) -> BoxFuture<'a, Result<Arc<Certificate>>>;
}

/// A connect that failed, told so that an operator can act on it.
pub(super) fn unreachable(what: &str, error: io::Error) -> Error {
    let code = match error.kind() {
        io::ErrorKind::ConnectionRefused => &code::TUNNEL_REFUSED,
        io::ErrorKind::TimedOut => &code::TUNNEL_TIMEOUT,
        _ => &code::DESTINATION_UNREACHABLE,
    };
    Error::caused(code, what, error)
}
