//! Sizes and times of one tunnel.

use std::time::Duration;

use super::core::Local;
use crate::tls::Versions;

/// What frames the bytes of a tunnel (HBONE_ENGINE).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Engine {
    /// Warren's own.
    #[default]
    Own,
    /// The `h2` crate over `tokio-rustls`, which has TLS 1.2 as well.
    H2(Versions),
}

impl Engine {
    pub(super) fn versions(self) -> Versions {
        match self {
            Self::Own => Versions::Tls13,
            Self::H2(versions) => versions,
        }
    }
}

/// What one end of a tunnel advertises and how long it waits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// What frames the bytes.
    pub engine: Engine,
    /// Bytes that a peer may send on a stream before the application has taken them (HTTP2_STREAM_WINDOW_SIZE).
    pub stream_window: u32,
    /// The same for all streams of a tunnel together (HTTP2_CONNECTION_WINDOW_SIZE).
    pub connection_window: u32,
    /// All of that from the start, not only what the network needs: what is urgent may have to wait behind it.
    pub whole_window: bool,
    /// Largest frame that a peer may send (HTTP2_FRAME_SIZE).
    pub frame_size: u32,
    /// Bytes of headers that a peer may send.
    pub header_list: u32,
    /// Bytes of a stream that wait here for the network.
    pub send_buffer: usize,
    /// Streams that a peer may have open (server).
    pub max_streams: u32,
    /// Between a pong and the next PING.
    pub ping_interval: Duration,
    /// A PING without pong for this long ends the tunnel.
    pub ping_limit: Duration,
    /// For the HTTP/2 preface and the first SETTINGS.
    pub preface_limit: Duration,
    /// For the answer to a CONNECT (client).
    pub answer_limit: Duration,
}

impl Settings {
    /// The end that opens streams.
    pub fn client() -> Self {
        Self { header_list: 16 * 1024, send_buffer: 4 << 20, ..Self::server() }
    }

    /// The end that accepts them.
    pub fn server() -> Self {
        Self {
            engine: Engine::H2(Versions::Tls13),
            stream_window: 4 << 20,
            connection_window: 16 << 20,
            whole_window: false,
            frame_size: 1 << 20,
            header_list: 64 * 1024,
            send_buffer: 400 * 1024,
            max_streams: 200,
            ping_interval: Duration::from_secs(10),
            ping_limit: Duration::from_secs(20),
            preface_limit: Duration::from_secs(10),
            answer_limit: Duration::from_secs(20),
        }
    }

    /// What the core is told.
    pub(super) fn local(&self) -> Local {
        Local {
            stream_window: self.stream_window,
            connection_window: self.connection_window,
            whole_window: self.whole_window,
            frame_size: self.frame_size,
            header_list: self.header_list,
            max_streams: self.max_streams,
            ping_interval: self.ping_interval,
            ping_limit: self.ping_limit,
        }
    }

    /// Memory that frames may cost beyond their bytes. A stalled application whose peer writes byte by byte must not
    /// end the tunnel of all others early.
    pub(super) fn frame_overhead(&self) -> usize {
        self.connection_window as usize * 2
    }
}
