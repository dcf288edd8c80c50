//! The process's metrics: one registry, OpenMetrics text.

use prometheus_client::encoding::{EncodeLabelSet, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};

use super::tcp::TcpMetrics;

/// `reporter`: which end of a connection speaks.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Reporter {
    /// `source` or `destination`.
    pub reporter: &'static str,
}

/// Why a control-plane stream ended.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Reason {
    /// ConnectionError, Error, Reconnect or Complete.
    pub reason: &'static str,
}

/// The type of a control-plane response.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Url {
    /// Type URL.
    pub url: String,
}

/// An error code.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct CodeLabel {
    /// `W####`
    pub code: &'static str,
}

/// Everything that is counted, and the registry that prints it.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    /// Connections.
    pub tcp: TcpMetrics,
    /// Accepted sockets that are held.
    pub sockets_open: Family<Reporter, Gauge>,
    /// Refusals and failures by code.
    pub refused: Family<CodeLabel, Counter>,
    /// Control-plane streams that ended.
    pub xds_terminations: Family<Reason, Counter>,
    /// Control-plane responses.
    pub xds_messages: Family<Url, Counter>,
    /// Their payload.
    pub xds_bytes: Family<Url, Counter>,
    /// Resources that were rejected.
    pub xds_rejected: Family<Url, Counter>,
    /// Pods served.
    pub pods_active: Gauge,
    /// Pods that cannot be served yet.
    pub pods_pending: Gauge,
    /// Pods taken into service.
    pub pods_started: Counter,
    /// Pods taken out of service.
    pub pods_stopped: Counter,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// Everything at zero.
    pub fn new() -> Self {
        let mut registry = Registry::default();
        let build: Family<Build, Gauge> = Family::default();
        build.get_or_create(&Build { component: "ztunnel", tag: env!("CARGO_PKG_VERSION") }).set(1);
        let istio = registry.sub_registry_with_prefix("istio");
        let tcp = TcpMetrics::register(istio);
        let sockets_open = Family::default();
        istio.register("tcp_sockets_open", "Accepted sockets that are held", Clone::clone(&sockets_open));
        let xds_terminations = Family::default();
        istio.register("xds_connection_terminations", "Control-plane streams that ended", Clone::clone(&xds_terminations));
        let xds_messages = Family::default();
        istio.register("xds_message", "Control-plane responses", Clone::clone(&xds_messages));
        let xds_bytes = Family::default();
        istio.register_with_unit("xds_message", "Payload of control-plane responses", Unit::Bytes, Clone::clone(&xds_bytes));
        istio.register("build", "Version", build);

        let xds_rejected = Family::default();
        registry.register("warren_xds_rejected_resources", "Control-plane resources that were rejected", Clone::clone(&xds_rejected));
        let refused = Family::default();
        registry.register("warren_connections_refused", "Connections refused or failed, by error code", Clone::clone(&refused));
        let (pods_active, pods_pending) = (Gauge::default(), Gauge::default());
        let (pods_started, pods_stopped) = (Counter::default(), Counter::default());
        registry.register("workload_manager_active_proxy_count", "Pods served", pods_active.clone());
        registry.register("workload_manager_pending_proxy_count", "Pods that cannot be served yet", pods_pending.clone());
        registry.register("workload_manager_proxies_started", "Pods taken into service", pods_started.clone());
        registry.register("workload_manager_proxies_stopped", "Pods taken out of service", pods_stopped.clone());
        registry.register_collector(Box::new(super::process::ProcessCollector));
        Self {
            registry,
            tcp,
            sockets_open,
            refused,
            xds_terminations,
            xds_messages,
            xds_bytes,
            xds_rejected,
            pods_active,
            pods_pending,
            pods_started,
            pods_stopped,
        }
    }

    /// The OpenMetrics text.
    ///
    /// # Errors
    /// A collector failed.
    pub fn encode(&self) -> Result<String, std::fmt::Error> {
        let mut page = String::new();
        text::encode(&mut page, &self.registry)?;
        Ok(page)
    }

    /// Counts one held socket until the guard is dropped.
    pub fn socket(&self, reporter: &'static str) -> SocketGuard {
        let gauge = self.sockets_open.get_or_create(&Reporter { reporter }).clone();
        gauge.inc();
        SocketGuard(gauge)
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Build {
    component: &'static str,
    tag: &'static str,
}

/// Keeps `istio_tcp_sockets_open` up.
#[derive(Debug)]
pub struct SocketGuard(Gauge<i64, std::sync::atomic::AtomicI64>);

impl Drop for SocketGuard {
    fn drop(&mut self) {
        self.0.dec();
    }
}
