//! One pod of this node and everything that is open in it; and all of them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use parking_lot::Mutex;
use serde::Serialize;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, SemaphorePermit, watch};
use tokio_util::task::AbortOnDropHandle;

use super::accept::Spread;
use super::track::{Connections, Entry, Subject};
use super::workers::{Kind, Workers};
use super::{CONNECT_LIMIT, HBONE_PORT, LOCAL_LIMIT, OUTBOUND_PORT, PASSTHROUGH_PORT, TLS_LIMIT, accept, inbound, outbound, passthrough};
use crate::base::addr::NextHop;
use crate::base::{Error, Result, code, drain};
use crate::config::Settings;
use crate::config::settings::{CongestionControl, Engine, OriginalSource};
use crate::hbone;
use crate::identity::{Certificate, CertificateStore, SpiffeId};
use crate::mesh::{LocalWorkload, MeshStore, Protocol, Workload};
use crate::net::NetNs;
use crate::net::congestion::Congestion;
use crate::net::socket::{self, SocketFactory};
use crate::policy::{self, Verdict};
use crate::telemetry::Metrics;
use crate::telemetry::tcp::Series;
use crate::tls;
use crate::zds::WorkloadInfo;
use crate::zds::pods::Serve;

/// What all pods of the node share.
pub struct Shared {
    /// Settings.
    pub settings: Settings,
    /// The mesh.
    pub mesh: Arc<MeshStore>,
    /// Certificates.
    pub certificates: Arc<CertificateStore>,
    /// Metrics.
    pub metrics: Arc<Metrics>,
    /// What carries connections.
    pub workers: Arc<Workers>,
    /// How many connections may be open.
    pub limits: Limits,
    /// Places for connections whose other end nobody vouches for, of all pods together.
    pub strangers: Semaphore,
}

impl Shared {
    /// The node, if it is known.
    fn node(&self) -> Option<&str> {
        Some(&*self.settings.node).filter(|node| !node.is_empty())
    }

    /// The workload of a pod that the control plane has not told of, as far as it can be known without.
    fn newcomer(&self, local: &LocalWorkload) -> Workload {
        let Settings { cluster, network, node, trust_domain, .. } = &self.settings;
        let mut workload =
            Workload::new(format!("{cluster}//Pod/{}/{}", local.namespace, local.name), local.name.clone(), local.namespace.clone());
        workload.service_account = local.service_account.clone();
        workload.cluster_id = cluster.clone();
        workload.network = network.clone();
        workload.node = node.clone();
        workload.protocol = Protocol::HBONE;
        // What is the same for all pods of a node, or of a cluster, others have been told of.
        let mesh = self.mesh.snapshot();
        let neighbour = mesh.workloads().find(|other| other.cluster_id == *cluster && !node.is_empty() && other.node == *node);
        if let Some(neighbour) = neighbour {
            workload.locality = neighbour.locality.clone();
        }
        let kin = neighbour.or_else(|| mesh.workloads().find(|other| other.cluster_id == *cluster));
        if let Some(trust_domain) = trust_domain.as_ref().or(kin.map(|kin| &kin.trust_domain)) {
            workload.trust_domain = trust_domain.clone();
        }
        workload
    }
}

/// How many connections may be open, by who decides about them. A connection holds one or two descriptors.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// That the applications of one pod open.
    pub outbound: usize,
    /// That one pod's peers bring in tunnels.
    pub streams: usize,
    /// Tunnels to one pod.
    pub tunnels: usize,
    /// In plaintext, or in a TLS handshake, to all pods together: what strangers can take up.
    pub strangers: usize,
}

impl Limits {
    /// Shares `descriptors` out: no single pod and no stranger can use up what all need.
    pub fn of(descriptors: usize) -> Self {
        let usable = descriptors.saturating_sub(256).max(64);
        Self { outbound: usable / 4 * 3, streams: usable / 4 * 3, tunnels: (usable / 8).min(4096), strangers: usable / 4 }
    }
}

/// One pod.
pub(super) struct Pod {
    pub(super) shared: Arc<Shared>,
    pub(super) local: LocalWorkload,
    pub(super) sockets: SocketFactory,
    /// One for each thread.
    pools: Vec<hbone::Pool>,
    pub(super) connections: Arc<Connections>,
    pub(super) series: Series,
    /// What the agent says of it, for as long as the control plane has not told more.
    newcomer: Arc<Workload>,
    /// Those whose certificates are held for it.
    identities: Mutex<BTreeSet<SpiffeId>>,
    /// Places for connections that arrive in tunnels: a peer with many tunnels must not take all descriptors.
    pub(super) streams: Arc<Semaphore>,
    transparent: bool,
}

impl Pod {
    /// The tunnels that are carried by a thread.
    pub(super) fn pool(&self, worker: usize) -> &hbone::Pool {
        // As many as there are threads.
        &self.pools[worker % self.pools.len()]
    }

    /// Who the pod is: as the control plane has it, or else as the agent does. A pod has its address, and with that its
    /// workload, only after its first instruction may have run; it must not wait for that to open a connection.
    pub(super) fn who(&self) -> Arc<Workload> {
        let known = self.shared.mesh.snapshot().local_workload(&self.local, self.shared.node()).cloned();
        known.unwrap_or_else(|| self.newcomer.clone())
    }

    /// Has a certificate for the identity ready, before the first connection needs it, until the pod is gone.
    fn hold_certificate(&self, id: SpiffeId) {
        if let Err(error) = self.shared.certificates.prefetch(&id) {
            tracing::warn!(pod = %self.local, %error, "no certificate can be had");
        }
        self.identities.lock().insert(id);
    }

    /// Why policy refuses a connection now; `None` lets it through.
    pub(super) fn permit(&self, subject: &Subject) -> Option<Error> {
        self.refusal(subject).map(|reason| Error::new(&code::POLICY_DENIED, format!("connection closed due to policy rejection: {reason}")))
    }

    /// The same for a connection that is open.
    fn still(&self, subject: &Subject) -> Option<Error> {
        self.refusal(subject).map(|reason| Error::new(&code::POLICY_CUT, format!("connection closed due to policy change: {reason}")))
    }

    fn refusal(&self, subject: &Subject) -> Option<String> {
        let mesh = self.shared.mesh.snapshot();
        // Asked of the workload as it is now: a policy that was attached since counts. One that is not known may have any.
        let Some(workload) = mesh.local_workload(&self.local, self.shared.node()) else { return Some("workload not found".to_owned()) };
        let identity = subject.identity.as_deref().map(policy::Peer::from);
        let connection = policy::Connection { source: subject.source, destination: subject.destination, identity };
        match policy::evaluate(&mesh, workload, &connection) {
            Verdict::Allowed { .. } => None,
            Verdict::Denied { reason, .. } => Some(reason),
        }
    }

    /// A place for a connection that nobody vouches for.
    ///
    /// # Errors
    /// CAPACITY: all are taken.
    pub(super) fn stranger(&self) -> Result<SemaphorePermit<'_>> {
        self.shared.strangers.try_acquire().map_err(|_| {
            let limit = self.shared.limits.strangers;
            Error::new(&code::CAPACITY, format!("{limit} connections from outside the mesh are open on this node"))
        })
    }

    /// The source address that the application is shown: the client's, where the kernel lets us.
    pub(super) fn shown_source(&self, client: IpAddr, destination: IpAddr) -> Option<IpAddr> {
        // A pod that calls itself has one address for both ends; binding to it would be in the way.
        (self.transparent && client != destination).then_some(client)
    }
}

/// All pods of this node.
pub struct Pods {
    shared: Arc<Shared>,
    running: Mutex<BTreeMap<String, Running>>,
}

struct Running {
    pod: Arc<Pod>,
    drain: drain::Trigger,
    /// As long as connections may be open, the drain included.
    _review: AbortOnDropHandle<()>,
}

/// A pod as the admin API prints it.
#[derive(Clone, Debug, Serialize)]
pub struct PodState {
    state: &'static str,
    info: LocalWorkload,
    connections: Open,
}

#[derive(Clone, Debug, Serialize)]
struct Open {
    inbound: Vec<Entry>,
    outbound: Vec<Entry>,
}

impl Pods {
    /// None yet.
    pub fn new(shared: Arc<Shared>) -> Self {
        Self { shared, running: Mutex::default() }
    }

    /// All of them by uid, for the admin API.
    pub fn list(&self) -> BTreeMap<String, PodState> {
        let running = self.running.lock();
        let state = |pod: &Pod| {
            let (inbound, outbound) = pod.connections.list();
            PodState { state: "Up", info: pod.local.clone(), connections: Open { inbound, outbound } }
        };
        running.iter().map(|(uid, running)| (uid.clone(), state(&running.pod))).collect()
    }

    /// Ends everything: no new connections, open ones have until `limit`.
    pub async fn drain(&self, limit: Duration) {
        let running = std::mem::take(&mut *self.running.lock());
        let drains = running.into_values().map(|running| running.stop(limit));
        let ended = futures::future::join_all(drains).await;
        if ended.iter().any(|in_time| !in_time) {
            tracing::warn!(?limit, "drain duration expired with pending connections, forcefully shutting down");
        }
    }

    fn start_pod(&self, uid: &str, info: &WorkloadInfo, netns: NetNs) -> Result<()> {
        let local = LocalWorkload {
            name: info.name.as_str().into(),
            namespace: info.namespace.as_str().into(),
            service_account: info.service_account.as_str().into(),
        };
        let settings = &self.shared.settings.sockets;
        let congestion = match settings.congestion {
            CongestionControl::Auto => netns.run(Congestion::replaced).ok().flatten(),
            CongestionControl::System => None,
        };
        let (mark, reuse_port, keepalive) = (Some(settings.mark), settings.reuse_port, settings.keepalive);
        let sockets = SocketFactory { netns: Some(netns), mark, reuse_port, keepalive, congestion };
        // Sockets belong to the runtime that carries connections, not to the one that talks to the agent.
        let workers = &self.shared.workers;
        let home = workers.home();
        let _data_plane = workers.handle(home).enter();
        let listen = |port| {
            let wanted = settings.original_source != OriginalSource::Never;
            let addr = socket::any(settings.ipv6, port);
            let listened = sockets.listen(addr, wanted).or_else(|error| match error.raw_os_error() {
                // A pod without IPv6 at all cannot have a socket of that family.
                Some(errno) if settings.ipv6 && errno == nix::errno::Errno::EAFNOSUPPORT as i32 => {
                    sockets.listen(socket::any(false, port), wanted)
                }
                _ => Err(error),
            });
            listened.map_err(|error| Error::caused(&code::POD_START, format!("failed to bind to port {port} in the pod"), error))
        };
        let (out, _) = listen(OUTBOUND_PORT)?;
        let (plain, transparent) = listen(PASSTHROUGH_PORT)?;
        let (tunnels, _) = listen(HBONE_PORT)?;
        if settings.original_source == OriginalSource::Always && !transparent {
            return Err(Error::new(&code::POD_START, "ENABLE_ORIG_SRC=true, but the kernel refuses IP_TRANSPARENT"));
        }
        let dialer = Arc::new(Dialer { sockets: sockets.clone(), certificates: self.shared.certificates.clone() });
        let newcomer = Arc::new(self.shared.newcomer(&local));
        let pod = Arc::new(Pod {
            local,
            newcomer,
            pools: (0..workers.count()).map(|_| hbone::Pool::new(pool_settings(&self.shared.settings), dialer.clone())).collect(),
            sockets,
            connections: Arc::default(),
            series: Series::new(&self.shared.metrics),
            identities: Mutex::default(),
            streams: Arc::new(Semaphore::new(self.shared.limits.streams)),
            transparent,
            shared: self.shared.clone(),
        });
        let (trigger, watch) = drain::new();
        // Before the first connection is decided: no change of policy is missed after it.
        let changed = self.shared.mesh.changed();
        let review = AbortOnDropHandle::new(tokio::spawn(review(pod.clone(), changed)));
        spawn_listeners(&pod, [out, plain, tunnels], &watch, home);
        // At once: it is fetched while the pod is still being set up.
        match pod.who().identity() {
            Ok(id) => pod.hold_certificate(id),
            Err(error) => tracing::warn!(pod = %pod.local, %error, "no certificate can be had"),
        }
        tokio::spawn(become_known(pod.clone(), watch));
        self.running.lock().insert(uid.to_owned(), Running { pod, drain: trigger, _review: review });
        self.shared.metrics.pods_active.inc();
        self.shared.metrics.pods_started.inc();
        Ok(())
    }
}

impl Running {
    async fn stop(self, limit: Duration) -> bool {
        let metrics = &self.pod.shared.metrics;
        metrics.pods_active.dec();
        metrics.pods_stopped.inc();
        let in_time = if limit.is_zero() {
            self.drain.stop().await;
            true
        } else {
            self.drain.drain(limit).await
        };
        self.pod.pools.iter().for_each(hbone::Pool::close_all);
        in_time
    }
}

/// What the agent's orders end in.
#[derive(Clone)]
pub struct ServePods(pub Arc<Pods>);

impl Serve for ServePods {
    async fn start(&mut self, uid: &str, info: &WorkloadInfo, netns: NetNs) -> Result<()> {
        self.0.start_pod(uid, info, netns)
    }

    async fn stop(&mut self, uid: &str) {
        let Some(running) = self.0.running.lock().remove(uid) else { return };
        let pod = running.pod.clone();
        running.stop(Duration::ZERO).await;
        // Not before: a connection that is open still may ask for it, and would bring it back for good.
        let identities = std::mem::take(&mut *pod.identities.lock());
        for identity in identities {
            self.0.release_identity(&identity);
        }
    }
}

impl Pods {
    /// Gives the certificate up when the last pod with that identity is gone.
    fn release_identity(&self, gone: &SpiffeId) {
        let still_used = self.running.lock().values().any(|running| running.pod.identities.lock().contains(gone));
        if !still_used {
            self.shared.certificates.release(gone);
        }
    }
}

fn spawn_listeners(pod: &Arc<Pod>, [out, plain, tunnels]: [TcpListener; 3], watch: &drain::Watch, here: usize) {
    let limits = pod.shared.limits;
    let permits = |count| Arc::new(Semaphore::new(count));
    let spread = |kind| Spread { workers: pod.shared.workers.clone(), kind, here };
    let owner = pod.clone();
    let serve = move |stream, worker| outbound::serve(owner.clone(), stream, worker);
    tokio::spawn(accept::accept(out, permits(limits.outbound), watch.clone(), spread(Kind::Outbound), serve));
    let owner = pod.clone();
    let serve = move |stream, _| Box::pin(passthrough::serve(owner.clone(), stream)) as BoxFuture<'static, ()>;
    tokio::spawn(accept::accept(plain, permits(limits.strangers), watch.clone(), spread(Kind::Passthrough), serve));
    let (owner, drain) = (pod.clone(), watch.clone());
    let serve = move |stream, _| Box::pin(inbound::serve(owner.clone(), stream, drain.clone())) as BoxFuture<'static, ()>;
    tokio::spawn(accept::accept(tunnels, permits(limits.tunnels), watch.clone(), spread(Kind::Tunnel), serve));
}

/// Asks policy again about open connections whenever the mesh changes.
async fn review(pod: Arc<Pod>, mut changed: watch::Receiver<u64>) {
    while changed.changed().await.is_ok() {
        pod.connections.review(|subject| pod.still(subject));
    }
}

/// The control plane may know the pod by another identity than the agent: of another trust domain.
async fn become_known(pod: Arc<Pod>, mut drain: drain::Watch) {
    let known = async {
        loop {
            match pod.shared.mesh.wait_local(&pod.local, LOCAL_LIMIT).await {
                Ok(workload) => return workload,
                Err(error) => tracing::debug!(pod = %pod.local, %error, "waiting for the workload"),
            }
        }
    };
    tokio::select! {
        workload = known => match workload.identity() {
            Ok(id) => pod.hold_certificate(id),
            Err(error) => tracing::warn!(pod = %pod.local, %error, "no certificate can be had"),
        },
        _ = drain.started() => {}
    }
}

fn pool_settings(settings: &Settings) -> hbone::PoolSettings {
    hbone::PoolSettings {
        tunnel: sized(settings, hbone::Settings::client()),
        max_streams: usize::from(settings.http2.max_streams).max(1),
        idle: settings.http2.idle,
        max_tunnels: 500,
        connect_limit: CONNECT_LIMIT,
        handshake_limit: TLS_LIMIT,
    }
}

pub(super) fn server_settings(settings: &Settings) -> hbone::Settings {
    sized(settings, hbone::Settings::server())
}

fn sized(settings: &Settings, defaults: hbone::Settings) -> hbone::Settings {
    hbone::Settings {
        engine: match settings.http2.engine {
            Engine::Warren => hbone::Engine::Own,
            Engine::H2 if settings.http2.tls12 => hbone::Engine::H2(tls::Versions::Tls12And13),
            Engine::H2 => hbone::Engine::H2(tls::Versions::Tls13),
        },
        stream_window: settings.http2.stream_window,
        connection_window: settings.http2.connection_window,
        frame_size: settings.http2.frame_size,
        ..defaults
    }
}

/// How the pool opens sockets in this pod and gets this pod's certificate.
struct Dialer {
    sockets: SocketFactory,
    certificates: Arc<CertificateStore>,
}

impl hbone::Dialer for Dialer {
    fn dial<'a>(&'a self, key: &'a hbone::Key) -> BoxFuture<'a, std::io::Result<hbone::Io>> {
        // The pod's own address is the source by itself: the socket is made in its network namespace.
        Box::pin(async move { self.sockets.connect(NextHop::new(key.addr), None).await.map(hbone::Io::Tcp) })
    }

    fn certificate<'a>(&'a self, source: &'a SpiffeId) -> BoxFuture<'a, Result<Arc<Certificate>>> {
        Box::pin(self.certificates.certificate(source))
    }
}
