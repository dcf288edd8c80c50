//! Shares tunnels between connections that have the same two ends.
//!
//! A dial is a task of its own: everybody who needs its tunnel waits for it and gets its error, and it goes on when
//! they leave. When all places are taken another tunnel is dialled; nobody waits for a place.

#[cfg(any(test, feature = "counts"))]
pub(super) mod counts;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use http::HeaderMap;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::client::{self, OpenError};
use super::dial::{Dialer, Key, Wanted, unreachable};
use super::engine::{App, Carrying, Client, Outcome};
use super::tunnel::{Connection, Gauges, Lease, Tunnel};
use super::{Engine, Io, Request, Settings, Stream};
use crate::base::{Error, Result, code, deadline};
use crate::identity::SpiffeId;
use crate::tls;

/// Limits of a pool.
#[derive(Clone, Debug)]
pub struct PoolSettings {
    /// Of each tunnel.
    pub tunnel: Settings,
    /// Streams on one tunnel, if the peer allows as many (POOL_MAX_STREAMS_PER_CONNECTION).
    pub max_streams: usize,
    /// A tunnel without streams is closed after this (POOL_UNUSED_RELEASE_TIMEOUT).
    pub idle: Duration,
    /// Tunnels of the pool; at the limit the one that is idle longest goes.
    pub max_tunnels: usize,
    /// For the TCP connect.
    pub connect_limit: Duration,
    /// For the TLS handshake.
    pub handshake_limit: Duration,
}

impl Default for PoolSettings {
    fn default() -> Self {
        Self {
            tunnel: Settings::client(),
            max_streams: 100,
            idle: Duration::from_secs(300),
            max_tunnels: 500,
            connect_limit: Duration::from_secs(10),
            handshake_limit: tls::HANDSHAKE_LIMIT,
        }
    }
}

/// A stream that the peer has accepted.
pub struct Opened {
    /// Of the peer's answer.
    pub headers: HeaderMap,
    /// The bytes.
    pub stream: Stream,
    /// Who the peer has proved to be.
    pub peer: SpiffeId,
    /// What carries it.
    pub tunnel: TunnelFacts,
}

/// About the tunnel of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TunnelFacts {
    /// Unique within the pool.
    pub id: u64,
    /// Whether it was there already.
    pub reused: bool,
}

/// How much is there now and has been done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Counters {
    /// Tunnels that are up.
    pub tunnels: usize,
    /// Streams on them, those asked for included.
    pub streams: usize,
    /// Dials since the start.
    pub dials: u64,
    /// Those that failed.
    pub failed_dials: u64,
}

/// The tunnels of one pod, or of whoever has one way to dial. Clones share everything. With the last clone the pool
/// lets go of its tunnels; open streams go on.
#[derive(Clone)]
pub struct Pool {
    shared: Arc<Shared>,
    _drain_on_drop: Arc<DropGuard>,
}

struct Shared {
    settings: PoolSettings,
    dialer: Arc<dyn Dialer>,
    slots: Mutex<HashMap<Key, Slot>>,
    gauges: Arc<Gauges>,
    tunnel_ids: AtomicU64,
    /// Nothing new.
    drain: CancellationToken,
    /// Everything ends.
    cut: CancellationToken,
}

/// What there is for one key.
struct Slot {
    tunnels: Vec<Arc<Tunnel>>,
    dials: Vec<Dial>,
    /// Streams that the peer took on its last tunnel.
    places: usize,
}

struct Dial {
    id: u64,
    progress: watch::Receiver<Progress>,
    waiters: usize,
}

#[derive(Clone)]
enum Progress {
    Dialling,
    /// It is up; the first waiter may use it before the peer's limits are known.
    Open(Arc<Tunnel>),
    /// It is up and in the pool.
    Settled(Arc<Tunnel>),
    Failed(Error),
}

/// How often a waiter that found its tunnel full tries the next.
const ROUNDS: usize = 4;

enum Found {
    Place(Lease),
    Wait { progress: watch::Receiver<Progress>, first: bool },
}

impl Pool {
    /// Nothing is dialled yet.
    pub fn new(settings: PoolSettings, dialer: Arc<dyn Dialer>) -> Self {
        let drain = CancellationToken::new();
        let shared = Shared {
            settings,
            dialer,
            slots: Mutex::default(),
            gauges: Arc::default(),
            tunnel_ids: AtomicU64::default(),
            drain: drain.clone(),
            cut: CancellationToken::new(),
        };
        Self { shared: Arc::new(shared), _drain_on_drop: Arc::new(drain.drop_guard()) }
    }

    /// Carries an application's connection on a tunnel that is there, or on a new one, to its end. Its first bytes go
    /// out with the request. Dropped before the end, the connection is reset on both sides; so it is with an error.
    ///
    /// # Errors
    /// The peer cannot be reached, is not who it should be, refuses the request or does not answer it; or the connection
    /// broke. A request that the peer did not touch is repeated once on another tunnel before.
    pub async fn carry(&self, mut wanted: Box<Wanted>, mut app: Box<App>) -> Result<()> {
        let mut avoid = None;
        loop {
            // On the heap and gone while the connection lasts: most of its state is of a dial.
            let (lease, carrying) = Box::pin(self.hand_over(wanted, app, avoid)).await?;
            match carrying.await {
                Outcome::Done(result) => return result,
                Outcome::Again(again, what, error) if avoid.is_none() => {
                    tracing::debug!(%error, tunnel = lease.tunnel.id, "request repeated on another tunnel");
                    avoid = Some(lease.tunnel.id);
                    (app, wanted) = (again, what);
                }
                Outcome::Again(app, _, error) => {
                    app.reset();
                    return Err(error);
                }
            }
        }
    }

    async fn hand_over(&self, wanted: Box<Wanted>, app: Box<App>, avoid: Option<u64>) -> Result<(Lease, Carrying)> {
        let mut held = Held(Some(app));
        let (lease, _) = self.shared.place(&wanted.key, avoid).await?;
        let Connection::Own(client) = &lease.tunnel.connection else {
            return Err(Error::internal("carrying needs an engine of our own"));
        };
        let Some(app) = held.0.take() else { return Err(Error::internal("an application that is carried already")) };
        let carrying = client.carry(wanted, *app);
        Ok((lease, carrying))
    }

    /// Opens a stream on a tunnel that is there, or on a new one (`h2` engine).
    ///
    /// # Errors
    /// The peer cannot be reached, is not who it should be, refuses the request or does not answer it. A request that
    /// the peer did not touch is repeated once on another tunnel before.
    pub async fn open(&self, key: &Key, request: Request) -> Result<Opened> {
        let mut avoid = None;
        loop {
            let (lease, reused) = self.shared.place(key, avoid).await?;
            let tunnel = lease.tunnel.clone();
            let Connection::H2(connection) = &tunnel.connection else {
                return Err(Error::internal("only the h2 engine gives streams"));
            };
            match connection.open(&request, Arc::new(lease)).await {
                Ok((headers, stream)) => {
                    let facts = TunnelFacts { id: tunnel.id, reused };
                    return Ok(Opened { headers, stream, peer: tunnel.peer.clone(), tunnel: facts });
                }
                Err(OpenError::Untouched(error)) if avoid.is_none() => {
                    tracing::debug!(%error, tunnel = tunnel.id, "request repeated on another tunnel");
                    avoid = Some(tunnel.id);
                }
                Err(OpenError::Spent(error)) if avoid.is_none() => {
                    tracing::debug!(%error, tunnel = tunnel.id, "the tunnel is spent, another is used");
                    tunnel.retired.cancel();
                    avoid = Some(tunnel.id);
                }
                Err(OpenError::Spent(error) | OpenError::Untouched(error) | OpenError::Final(error)) => return Err(error),
            }
        }
    }

    /// What there is.
    pub fn counters(&self) -> Counters {
        let gauges = &self.shared.gauges;
        Counters {
            tunnels: *gauges.tunnels.borrow(),
            streams: gauges.streams.load(Ordering::Relaxed),
            dials: gauges.dials.load(Ordering::Relaxed),
            failed_dials: gauges.failed_dials.load(Ordering::Relaxed),
        }
    }

    /// Takes nothing new and returns when the last stream has ended. The caller sets the deadline.
    pub async fn drain(&self) {
        self.shared.drain.cancel();
        self.shared.slots.lock().clear();
        let mut tunnels = self.shared.gauges.tunnels.subscribe();
        // The sender lives in the gauges that are held here.
        let _ = tunnels.wait_for(|tunnels| *tunnels == 0).await;
    }

    /// Ends all tunnels and their streams now.
    pub fn close_all(&self) {
        self.shared.drain.cancel();
        self.shared.cut.cancel();
        self.shared.slots.lock().clear();
    }
}

/// An application that nobody carries yet: dropped, it is reset. What it sent may have been read already, and then it
/// would take the end of its connection for an empty answer.
struct Held(Option<Box<App>>);

impl Drop for Held {
    fn drop(&mut self) {
        if let Some(app) = &self.0 {
            app.reset();
        }
    }
}

impl Shared {
    /// A place on a tunnel for `key`, not on the tunnel `avoid`; and whether that tunnel was there already.
    async fn place(self: &Arc<Self>, key: &Key, avoid: Option<u64>) -> Result<(Lease, bool)> {
        let mut left = false;
        for _ in 0..ROUNDS {
            let (mut progress, first) = match self.find(key, avoid)? {
                Found::Place(lease) => return Ok((lease, true)),
                Found::Wait { progress, first } => (progress, first),
            };
            let usable = |progress: &Progress| match progress {
                Progress::Dialling => false,
                Progress::Open(_) => first,
                Progress::Settled(_) | Progress::Failed(_) => true,
            };
            // The dial has a deadline for each of its steps and always tells how it went, unless the runtime stops.
            let result = progress.wait_for(usable).await.map(|progress| progress.clone());
            match result {
                Ok(Progress::Open(tunnel) | Progress::Settled(tunnel)) => {
                    if let Some(lease) = tunnel.reserve(self.settings.max_streams) {
                        return Ok((lease, false));
                    }
                }
                // A peer that stops says so in good order; whoever replaces it takes the next tunnel.
                Ok(Progress::Failed(error)) if *error.code() == code::PEER_CLOSED && !left => left = true,
                Ok(Progress::Failed(error)) => return Err(error),
                Ok(Progress::Dialling) | Err(_) => return Err(drained()),
            }
        }
        Err(Error::new(&code::CAPACITY, format!("{}: no free stream on {ROUNDS} tunnels: the peer takes too few streams", key.addr)))
    }

    fn find(self: &Arc<Self>, key: &Key, avoid: Option<u64>) -> Result<Found> {
        let mut slots = self.slots.lock();
        if self.drain.is_cancelled() {
            return Err(drained());
        }
        if let Some(slot) = slots.get_mut(key) {
            slot.drop_unusable();
            let others = slot.tunnels.iter().filter(|tunnel| Some(tunnel.id) != avoid);
            if let Some(lease) = others.into_iter().find_map(|tunnel| tunnel.reserve(self.settings.max_streams)) {
                return Ok(Found::Place(lease));
            }
            // Those of a runtime that stopped, or of a panic, will never tell how they went.
            slot.dials.retain(|dial| dial.progress.has_changed().is_ok());
            if let Some(dial) = slot.dials.iter_mut().find(|dial| dial.waiters < slot.places) {
                dial.waiters += 1;
                return Ok(Found::Wait { progress: dial.progress.clone(), first: false });
            }
        }
        make_room(&mut slots, self.settings.max_tunnels)?;
        let places = self.settings.max_streams.max(1);
        let slot = slots.entry(key.clone()).or_insert_with(|| Slot { tunnels: Vec::new(), dials: Vec::new(), places });
        let id = self.tunnel_ids.fetch_add(1, Ordering::Relaxed);
        let (sender, progress) = watch::channel(Progress::Dialling);
        slot.dials.push(Dial { id, progress: progress.clone(), waiters: 1 });
        tokio::spawn(self.clone().keep(key.clone(), id, sender));
        Ok(Found::Wait { progress, first: true })
    }

    /// Dials a tunnel and keeps it in the pool as long as it is of use.
    async fn keep(self: Arc<Self>, key: Key, id: u64, progress: watch::Sender<Progress>) {
        self.gauges.dials.fetch_add(1, Ordering::Relaxed);
        let established = tokio::select! {
            established = self.establish(&key, id, &progress) => established,
            () = self.cut.cancelled() => Err(drained()),
        };
        let tunnel = {
            let mut slots = self.slots.lock();
            let kept = !self.drain.is_cancelled();
            let slot = slots.get_mut(&key);
            match (established, slot) {
                (Ok(tunnel), Some(slot)) if kept => {
                    slot.dials.retain(|dial| dial.id != id);
                    slot.places = self.settings.max_streams.min(tunnel.connection.peer_limit()).max(1);
                    slot.tunnels.push(tunnel.clone());
                    progress.send_replace(Progress::Settled(tunnel.clone()));
                    tunnel
                }
                (Ok(_), _) => {
                    progress.send_replace(Progress::Failed(drained()));
                    return;
                }
                (Err(error), slot) => {
                    if let Some(slot) = slot {
                        slot.dials.retain(|dial| dial.id != id);
                    }
                    drop_if_empty(&mut slots, &key);
                    self.gauges.failed_dials.fetch_add(1, Ordering::Relaxed);
                    progress.send_replace(Progress::Failed(error));
                    return;
                }
            }
        };
        // Late waiters have their own handles; this one would keep the tunnel.
        drop(progress);
        self.until_useless(&tunnel).await;
        let mut slots = self.slots.lock();
        if let Some(slot) = slots.get_mut(&key) {
            slot.tunnels.retain(|kept| kept.id != id);
        }
        drop_if_empty(&mut slots, &key);
    }

    async fn establish(&self, key: &Key, id: u64, progress: &watch::Sender<Progress>) -> Result<Arc<Tunnel>> {
        let certificate = self.dialer.certificate(&key.source).await?;
        let what = format!("connecting to the proxy at {}", key.addr);
        let io = deadline(self.settings.connect_limit, &code::TUNNEL_TIMEOUT, &what, self.dialer.dial(key))
            .await?
            .map_err(|error| unreachable(&what, error))?;
        let (limit, cut) = (self.settings.handshake_limit, self.cut.child_token());
        // Envoy drops what does not fit into the window when the application behind it ends a connection first.
        let settings = &Settings { whole_window: key.gateway, ..self.settings.tunnel.clone() };
        let (connection, peer) = match (settings.engine, io) {
            (Engine::Own, Io::Tcp(socket)) => {
                let (secured, peer) = tls::secured::connect(socket, &certificate, &key.destinations, limit).await?;
                (Connection::Own(Client::start(secured, settings, cut)), peer)
            }
            (engine, io) => {
                let (io, peer) = tls::connect(io.boxed(), &certificate, &key.destinations, engine.versions(), limit).await?;
                (Connection::H2(client::Connection::handshake(io, settings, cut).await?), peer)
            }
        };
        let tunnel = Arc::new(Tunnel::new(id, peer, connection, self.gauges.clone()));
        progress.send_replace(Progress::Open(tunnel.clone()));
        let settled = tunnel.connection.settled();
        deadline(self.settings.tunnel.preface_limit, &code::TUNNEL_BROKEN, "HTTP/2 SETTINGS of the peer", settled).await??;
        Ok(tunnel)
    }

    /// Returns when the tunnel has ended, has been idle for too long, or is no longer wanted.
    async fn until_useless(&self, tunnel: &Tunnel) {
        let mut look = Instant::now() + self.settings.idle;
        loop {
            tokio::select! {
                () = tunnel.connection.closed() => return,
                () = tunnel.retired.cancelled() => return,
                () = self.drain.cancelled() => return,
                () = tokio::time::sleep_until(look) => {
                    // Looked at under the lock that hands out places.
                    let _slots = self.slots.lock();
                    let now = Instant::now();
                    match tunnel.idle_since() {
                        Some(since) if now >= since + self.settings.idle => {
                            tunnel.retired.cancel();
                            return;
                        }
                        Some(since) => look = since + self.settings.idle,
                        None => look = now + self.settings.idle,
                    }
                }
            }
        }
    }
}

impl Slot {
    fn drop_unusable(&mut self) {
        self.tunnels.retain(|tunnel| {
            let usable = tunnel.connection.is_usable() && !tunnel.retired.is_cancelled();
            if !usable {
                tunnel.retired.cancel();
            }
            usable
        });
    }
}

/// At the limit the tunnel that has been idle longest makes room; the look at all of them is paid by a dial only.
fn make_room(slots: &mut HashMap<Key, Slot>, max: usize) -> Result<()> {
    let count: usize = slots.values().map(|slot| slot.tunnels.len() + slot.dials.len()).sum();
    if count < max {
        return Ok(());
    }
    let idle = slots.values().flat_map(|slot| &slot.tunnels).filter_map(|tunnel| Some((tunnel.idle_since()?, tunnel.id)));
    let Some((_, oldest)) = idle.min() else {
        return Err(Error::new(&code::CAPACITY, format!("{count} tunnels of one pod are all in use")));
    };
    for slot in slots.values_mut() {
        slot.tunnels.retain(|tunnel| {
            if tunnel.id == oldest {
                tunnel.retired.cancel();
            }
            tunnel.id != oldest
        });
    }
    Ok(())
}

fn drop_if_empty(slots: &mut HashMap<Key, Slot>, key: &Key) {
    if slots.get(key).is_some_and(|slot| slot.tunnels.is_empty() && slot.dials.is_empty()) {
        slots.remove(key);
    }
}

fn drained() -> Error {
    Error::new(&code::DRAINED, "the pod is being removed or the proxy stops")
}
