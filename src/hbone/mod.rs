//! The tunnel: TCP connections as streams of HTTP/2 CONNECT over mutual TLS.
//!
//! A client asks the [`Pool`] to [`open`](Pool::open) a [`Stream`]; the pool dials, shares and retires tunnels. A server
//! makes each accepted connection a [`Server`] and calls [`next`](Server::next) until it ends, also while it drains.
//! Both get a [`Stream`], split it, and copy: [`Receive::data`] until `None`, [`Send::data`] and then [`Send::finish`].
//! What frames the bytes is hidden behind these types.

mod accepted;
mod client;
mod core;
#[cfg(any(test, feature = "counts"))]
pub mod counts;
mod dial;
mod engine;
mod failure;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
mod hpack;
mod link;
mod ping;
mod pool;
mod server;
mod settings;
mod stream;
#[cfg(test)]
pub(crate) mod tests;
mod tunnel;

pub use accepted::{Accepted, Answered, Asked, Carrying};
pub use dial::{Dialer, Duplex, Io, Key, Wanted};
pub use engine::{App, Count, Side};
pub use pool::{Counters, Opened, Pool, PoolSettings, TunnelFacts};
pub use server::{Incoming, Server};
pub use settings::{Engine, Settings};
pub use stream::{Receive, Send, Stream};

/// What a CONNECT asks for.
#[derive(Clone, Debug)]
pub struct Request {
    /// `ip:port` or `host:port`, IPv6 in brackets.
    pub authority: String,
    /// `baggage`, `forwarded`, `traceparent` and the like.
    pub headers: http::HeaderMap,
}
