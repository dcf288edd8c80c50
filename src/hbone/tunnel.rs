//! One tunnel of the pool and the places on it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::client;
use super::engine::Client;
use crate::base::Result;
use crate::identity::SpiffeId;

/// How much is there, for the admin interface.
pub(super) struct Gauges {
    pub(super) tunnels: watch::Sender<usize>,
    pub(super) streams: AtomicUsize,
    pub(super) dials: AtomicU64,
    pub(super) failed_dials: AtomicU64,
}

impl Default for Gauges {
    fn default() -> Self {
        let (tunnels, _) = watch::channel(0);
        Self { tunnels, streams: AtomicUsize::default(), dials: AtomicU64::default(), failed_dials: AtomicU64::default() }
    }
}

/// What frames the bytes of a tunnel.
pub(super) enum Connection {
    Own(Client),
    H2(client::Connection),
}

impl Connection {
    /// Waits until the peer's limits are known. An error if the tunnel ends first.
    pub(super) async fn settled(&self) -> Result<()> {
        match self {
            Self::Own(client) => client.settled().await,
            Self::H2(connection) => connection.settled().await,
        }
    }

    /// Streams that the peer allows to be open.
    pub(super) fn peer_limit(&self) -> usize {
        match self {
            Self::Own(client) => client.peer_limit(),
            Self::H2(connection) => connection.peer_limit(),
        }
    }

    /// Whether new streams can be opened: not lost, not told to go away.
    pub(super) fn is_usable(&self) -> bool {
        match self {
            Self::Own(client) => client.is_usable(),
            Self::H2(connection) => connection.is_usable(),
        }
    }

    pub(super) async fn closed(&self) {
        match self {
            Self::Own(client) => client.closed().await,
            Self::H2(connection) => connection.closed().await,
        }
    }
}

/// An established tunnel. It ends when the pool and all its streams have let go of it.
pub(super) struct Tunnel {
    pub(super) id: u64,
    pub(super) peer: SpiffeId,
    pub(super) connection: Connection,
    /// The pool offers it no more.
    pub(super) retired: CancellationToken,
    load: Mutex<Load>,
    gauges: Arc<Gauges>,
}

struct Load {
    streams: usize,
    idle_since: Option<Instant>,
}

impl Tunnel {
    pub(super) fn new(id: u64, peer: SpiffeId, connection: Connection, gauges: Arc<Gauges>) -> Self {
        gauges.tunnels.send_modify(|tunnels| *tunnels += 1);
        let load = Mutex::new(Load { streams: 0, idle_since: Some(Instant::now()) });
        Self { id, peer, connection, retired: CancellationToken::new(), load, gauges }
    }

    /// A place for a stream, if fewer than `limit` are taken.
    pub(super) fn reserve(self: &Arc<Self>, limit: usize) -> Option<Lease> {
        let mut load = self.load.lock();
        if load.streams >= limit.min(self.connection.peer_limit()) {
            return None;
        }
        load.streams += 1;
        load.idle_since = None;
        self.gauges.streams.fetch_add(1, Ordering::Relaxed);
        Some(Lease { tunnel: self.clone() })
    }

    /// Since when it has had no stream.
    pub(super) fn idle_since(&self) -> Option<Instant> {
        self.load.lock().idle_since
    }
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        self.gauges.tunnels.send_modify(|tunnels| *tunnels = tunnels.saturating_sub(1));
    }
}

/// A place on a tunnel; given back when dropped.
pub(super) struct Lease {
    pub(super) tunnel: Arc<Tunnel>,
}

impl Drop for Lease {
    fn drop(&mut self) {
        let mut load = self.tunnel.load.lock();
        load.streams -= 1;
        if load.streams == 0 {
            load.idle_since = Some(Instant::now());
        }
        self.tunnel.gauges.streams.fetch_sub(1, Ordering::Relaxed);
    }
}
