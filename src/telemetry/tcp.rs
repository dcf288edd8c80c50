//! A proxied connection as an event: told once, it becomes metrics and a line of the access log.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, OnceLock};
use std::time::Instant;

use parking_lot::Mutex;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::{Registry, Unit};

use super::metrics::{CodeLabel, Metrics};
use super::rate::Rate;
use crate::base::{Error, Result, Str, code};

/// Labels of the TCP metrics, in the order they are printed. Empty prints `unknown`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Labels {
    reporter: &'static str,
    source_workload: Text,
    source_canonical_service: Text,
    source_canonical_revision: Text,
    source_workload_namespace: Text,
    source_principal: Text,
    source_app: Text,
    source_version: Text,
    source_cluster: Text,
    destination_service: Text,
    destination_service_namespace: Text,
    destination_service_name: Text,
    destination_workload: Text,
    destination_canonical_service: Text,
    destination_canonical_revision: Text,
    destination_workload_namespace: Text,
    destination_principal: Text,
    destination_app: Text,
    destination_version: Text,
    destination_cluster: Text,
    request_protocol: &'static str,
    response_flags: &'static str,
    connection_security_policy: &'static str,
}

impl Labels {
    fn with_flags(&self, flags: &'static str) -> Self {
        Self { response_flags: flags, ..self.clone() }
    }

    /// Only what cannot grow without bound.
    fn anonymous(&self) -> Self {
        Self {
            reporter: self.reporter,
            request_protocol: self.request_protocol,
            response_flags: self.response_flags,
            connection_security_policy: self.connection_security_policy,
            ..Self::default()
        }
    }
}

/// A label value.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct Text(Option<Str>);

impl prometheus_client::encoding::EncodeLabelValue for Text {
    fn encode(&self, encoder: &mut prometheus_client::encoding::LabelValueEncoder<'_>) -> std::result::Result<(), std::fmt::Error> {
        std::fmt::Write::write_str(encoder, self.0.as_deref().unwrap_or("unknown"))
    }
}

/// The families of the TCP metrics.
#[derive(Debug)]
pub struct TcpMetrics {
    opened: Family<Labels, Counter>,
    closed: Family<Labels, Counter>,
    failed: Family<Labels, Counter>,
    received: Family<Labels, Counter>,
    sent: Family<Labels, Counter>,
    /// How many pods use a label set.
    users: Mutex<HashMap<Labels, usize>>,
}

/// Label sets that one pod may bring into being. Above, the other end is reported as unknown.
const SERIES_PER_POD: usize = 4096;

/// The metric series of one pod. They are forgotten with it, unless another pod has the same.
#[derive(Debug)]
pub struct Series {
    metrics: Arc<Metrics>,
    used: Mutex<HashMap<Labels, Arc<Counters>>>,
    /// So that connections between the same two ends share what is said about them.
    known: Mutex<HashMap<Parties, Arc<Known>>>,
}

/// What is said about all connections of one kind between the same two ends.
#[derive(Debug)]
struct Known {
    metrics: Arc<Metrics>,
    parties: Parties,
    counters: Arc<Counters>,
}

/// The counters of one label set.
#[derive(Debug)]
struct Counters {
    labels: Labels,
    opened: Counter,
    received: Counter,
    sent: Counter,
    /// Of connections that ended well: there is none before the first.
    closed: OnceLock<Counter>,
}

impl Series {
    /// None yet.
    pub fn new(metrics: &Arc<Metrics>) -> Self {
        Self { metrics: metrics.clone(), used: Mutex::default(), known: Mutex::default() }
    }

    fn admit(&self, parties: Parties) -> Arc<Known> {
        if let Some(known) = self.known.lock().get(&parties) {
            return known.clone();
        }
        let counters = self.counters(parties.labels());
        let known = Arc::new(Known { metrics: self.metrics.clone(), parties: parties.clone(), counters });
        let mut all = self.known.lock();
        // Those of peers that are long gone too: what is still needed comes back.
        if all.len() >= SERIES_PER_POD {
            all.clear();
        }
        all.insert(parties, known.clone());
        known
    }

    fn counters(&self, labels: Labels) -> Arc<Counters> {
        let mut used = self.used.lock();
        if let Some(counters) = used.get(&labels) {
            return counters.clone();
        }
        let labels = if used.len() < SERIES_PER_POD { labels } else { labels.anonymous() };
        if let Some(counters) = used.get(&labels) {
            return counters.clone();
        }
        let tcp = &self.metrics.tcp;
        *tcp.users.lock().entry(labels.clone()).or_default() += 1;
        let counters = Arc::new(Counters {
            opened: tcp.opened.get_or_create(&labels).clone(),
            received: tcp.received.get_or_create(&labels).clone(),
            sent: tcp.sent.get_or_create(&labels).clone(),
            closed: OnceLock::new(),
            labels: labels.clone(),
        });
        used.insert(labels, counters.clone());
        counters
    }
}

impl Drop for Series {
    fn drop(&mut self) {
        let mut users = self.metrics.tcp.users.lock();
        for (labels, _) in self.used.get_mut().drain() {
            let Some(count) = users.get_mut(&labels) else { continue };
            *count -= 1;
            if *count == 0 {
                users.remove(&labels);
                self.metrics.tcp.remove(&labels);
            }
        }
    }
}

impl TcpMetrics {
    fn remove(&self, labels: &Labels) {
        for family in [&self.opened, &self.received, &self.sent] {
            family.remove(labels);
        }
        for flags in code::ALL.iter().map(|code| code.flag).chain(["-"]) {
            let labels = labels.with_flags(flags);
            self.closed.remove(&labels);
            self.failed.remove(&labels);
        }
    }

    /// Adds the families to `registry`.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self {
            opened: Family::default(),
            closed: Family::default(),
            failed: Family::default(),
            received: Family::default(),
            sent: Family::default(),
            users: Mutex::default(),
        };
        registry.register("tcp_connections_opened", "Connections opened", metrics.opened.clone());
        registry.register("tcp_connections_closed", "Connections closed", metrics.closed.clone());
        registry.register("tcp_connections_failed", "Connections that failed", metrics.failed.clone());
        registry.register_with_unit("tcp_received", "Bytes from client to server", Unit::Bytes, metrics.received.clone());
        registry.register_with_unit("tcp_sent", "Bytes from server to client", Unit::Bytes, metrics.sent.clone());
        metrics
    }
}

/// Which end of the connection this proxy is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    /// The client is a local pod.
    Outbound,
    /// The server is a local pod.
    Inbound,
}

impl Direction {
    /// The `reporter` label.
    pub fn reporter(self) -> &'static str {
        match self {
            Direction::Outbound => "source",
            Direction::Inbound => "destination",
        }
    }

    fn name(self) -> &'static str {
        match self {
            Direction::Outbound => "outbound",
            Direction::Inbound => "inbound",
        }
    }
}

/// One end of a connection as far as it is known.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Party {
    /// Pod name.
    pub pod: Option<Str>,
    /// Deployment or the like.
    pub workload: Option<Str>,
    /// Namespace.
    pub namespace: Option<Str>,
    /// Canonical service.
    pub app: Option<Str>,
    /// Canonical revision.
    pub version: Option<Str>,
    /// Cluster.
    pub cluster: Option<Str>,
    /// SPIFFE id, from TLS only for the source.
    pub principal: Option<Str>,
}

/// The service a connection was for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct ServiceName {
    /// Hostname.
    pub hostname: Str,
    /// Short name.
    pub name: Str,
    /// Namespace.
    pub namespace: Str,
}

/// What connections between the same two ends have in common.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Parties {
    /// Which end this is.
    pub direction: Direction,
    /// The client.
    pub source: Party,
    /// The server.
    pub destination: Party,
    /// The service.
    pub service: Option<ServiceName>,
    /// Whether they are carried in mutual TLS.
    pub mutual_tls: bool,
}

/// Where one connection goes.
#[derive(Clone, Debug)]
pub struct Ends {
    /// Client address.
    pub source: SocketAddr,
    /// Next hop.
    pub destination: SocketAddr,
    /// `:authority` of the tunnel.
    pub hbone_target: Option<Box<str>>,
}

/// An open connection. Finish it; one that is dropped counts as ended by a drain.
#[derive(Debug)]
pub struct Connection {
    known: Arc<Known>,
    ends: Ends,
    started: Instant,
    client_bytes: AtomicU64,
    server_bytes: AtomicU64,
    finished: AtomicBool,
}

impl Connection {
    /// Counts and logs an opened connection.
    pub fn open(series: &Series, parties: Parties, ends: Ends) -> Self {
        let known = series.admit(parties);
        known.counters.opened.inc();
        let (source, hop, direction) = (ends.source, ends.destination, known.parties.direction.name());
        tracing::event!(target: "access", parent: None, tracing::Level::DEBUG, src.addr = %source, dst.addr = %hop, direction, "connection opened");
        Self {
            known,
            ends,
            started: Instant::now(),
            client_bytes: AtomicU64::new(0),
            server_bytes: AtomicU64::new(0),
            finished: AtomicBool::new(false),
        }
    }

    /// Bytes went from client to server.
    pub fn received(&self, bytes: usize) {
        self.known.counters.received.inc_by(bytes as u64);
        self.client_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Bytes went from server to client.
    pub fn sent(&self, bytes: usize) {
        self.known.counters.sent.inc_by(bytes as u64);
        self.server_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Who has it.
    pub fn parties(&self) -> &Parties {
        &self.known.parties
    }

    /// Where it goes.
    pub fn ends(&self) -> &Ends {
        &self.ends
    }

    /// Counts and logs the end.
    pub fn finish(&self, result: Result<()>) {
        self.close(result.err());
    }

    fn close(&self, error: Option<Error>) {
        if self.finished.swap(true, Ordering::Relaxed) {
            return;
        }
        let Metrics { tcp, refused, .. } = &*self.known.metrics;
        match &error {
            None => {
                let Counters { labels, closed, .. } = &*self.known.counters;
                closed.get_or_init(|| tcp.closed.get_or_create(labels).clone()).inc();
            }
            Some(error) => {
                let labels = self.known.counters.labels.with_flags(error.code().flag);
                tcp.closed.get_or_create(&labels).inc();
                tcp.failed.get_or_create(&labels).inc();
                refused.get_or_create(&CodeLabel { code: error.code().id }).inc();
            }
        }
        let (received, sent) = (self.client_bytes.load(Ordering::Relaxed), self.server_bytes.load(Ordering::Relaxed));
        self.log(error.as_ref(), received, sent);
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.close(Some(Error::new(&code::DRAINED, "connection closed due to connection drain")));
    }
}

impl Parties {
    fn labels(&self) -> Labels {
        let service = self.service.as_ref();
        let (source, destination) = (&self.source, &self.destination);
        Labels {
            reporter: self.direction.reporter(),
            source_workload: Text(source.workload.clone()),
            source_canonical_service: Text(source.app.clone()),
            source_canonical_revision: Text(source.version.clone()),
            source_workload_namespace: Text(source.namespace.clone()),
            source_principal: Text(source.principal.clone().filter(|_| self.mutual_tls)),
            source_app: Text(source.app.clone()),
            source_version: Text(source.version.clone()),
            source_cluster: Text(source.cluster.clone()),
            destination_service: Text(service.map(|service| service.hostname.clone())),
            destination_service_namespace: Text(service.map(|service| service.namespace.clone())),
            destination_service_name: Text(service.map(|service| service.name.clone())),
            destination_workload: Text(destination.workload.clone()),
            destination_canonical_service: Text(destination.app.clone()),
            destination_canonical_revision: Text(destination.version.clone()),
            destination_workload_namespace: Text(destination.namespace.clone()),
            destination_principal: Text(destination.principal.clone()),
            destination_app: Text(destination.app.clone()),
            destination_version: Text(destination.version.clone()),
            destination_cluster: Text(destination.cluster.clone()),
            request_protocol: "tcp",
            response_flags: "-",
            connection_security_policy: if self.mutual_tls { "mutual_tls" } else { "unknown" },
        }
    }
}

impl Connection {
    /// One line. Bytes are from this proxy's point of view: outbound sends what the client said.
    fn log(&self, error: Option<&Error>, received: u64, sent: u64) {
        let Parties { direction, source, destination, service, mutual_tls } = self.parties();
        let (bytes_sent, bytes_recv) = match direction {
            Direction::Outbound => (received, sent),
            Direction::Inbound => (sent, received),
        };
        let identity = |party: &Party| party.principal.clone().filter(|_| *mutual_tls);
        macro_rules! line {
            ($level:ident, $message:literal) => {
                tracing::event!(target: "access", parent: None, tracing::Level::$level,
                    src.addr = %self.ends.source,
                    src.workload = source.pod.as_deref().or(source.workload.as_deref()),
                    src.namespace = source.namespace.as_deref(),
                    src.identity = identity(source).as_deref(),
                    src.cluster = source.cluster.as_deref(),
                    dst.addr = %self.ends.destination,
                    dst.hbone_addr = self.ends.hbone_target.as_deref(),
                    dst.service = service.as_ref().map(|service| &*service.hostname),
                    dst.workload = destination.pod.as_deref().or(destination.workload.as_deref()),
                    dst.namespace = destination.namespace.as_deref(),
                    dst.identity = identity(destination).as_deref(),
                    dst.cluster = destination.cluster.as_deref(),
                    direction = direction.name(),
                    bytes_sent,
                    bytes_recv,
                    duration = format!("{}ms", self.started.elapsed().as_millis()),
                    error = error.map(tracing::field::display),
                    code = error.map(|error| error.code().id),
                    $message
                )
            };
        }
        match error {
            None => line!(INFO, "connection complete"),
            Some(_) => line!(ERROR, "connection complete"),
        }
    }
}

/// Lines about early refusals with one code in one second: enough to see what is going on.
const REFUSALS_PER_SECOND: u32 = 100;

/// A connection that was refused before anything about it was known: counted by code, and logged, though not without bound.
pub fn refuse(metrics: &Metrics, direction: Direction, source: SocketAddr, destination: SocketAddr, error: &Error) {
    // One for each code: a flood of one kind must not hide another.
    static RATES: LazyLock<HashMap<&'static str, Rate>> =
        LazyLock::new(|| code::ALL.iter().map(|code| (code.id, Rate::new(REFUSALS_PER_SECOND))).collect());
    metrics.refused.get_or_create(&CodeLabel { code: error.code().id }).inc();
    let Some(left_out) = RATES.get(error.code().id).map_or(Some(0), |rate| rate.admit(Instant::now())) else { return };
    let left_out = (left_out > 0).then_some(left_out);
    tracing::event!(target: "access", parent: None, tracing::Level::WARN, src.addr = %source, dst.addr = %destination, direction = direction.name(), error = %error, code = error.code().id, left_out, "connection failed");
}
