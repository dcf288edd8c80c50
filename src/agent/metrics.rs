//! What the agent counts.

use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::{EncodeLabelSet, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};

use super::cni;
use crate::telemetry::process::ProcessCollector;

/// How a pod is.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct PodState {
    /// `open`, `closed`, `captured` or `leaving`.
    pub state: &'static str,
}

/// Everything that is counted, and the registry that prints it.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    /// Pods of the mesh by state.
    pub pods: Family<PodState, Gauge>,
    /// Time that pods of the mesh have run without being captured, summed over pods.
    pub uncaptured_seconds: Counter<f64, AtomicU64>,
    /// Times that the rules of a captured pod were read back.
    pub audits: Counter,
    /// Captured pods whose rules were missing or changed.
    pub repairs: Counter,
    /// Captured pods that turned up in another network namespace.
    pub sandboxes_replaced: Counter,
    /// CNI calls.
    pub cni: cni::Metrics,
    /// Open connections that are older than the enrolment of their pod.
    pub connections_left: Gauge,
    /// Such connections that were reset.
    pub connections_reset: Counter,
    /// Passes through the node's processes.
    pub searches: Counter,
    /// Events that were not told because too many were waiting.
    pub notices_lost: Counter,
    /// Annotations and Events that the API server did not take.
    pub api_failures: Counter,
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
        let r = registry.sub_registry_with_prefix("warren_agent");
        let metrics = Self {
            pods: added(r, "pods", "Pods of the mesh by state", Family::default()),
            uncaptured_seconds: Counter::default(),
            audits: added(r, "audits", "Times that the rules of a captured pod were read back", Counter::default()),
            repairs: added(r, "repairs", "Captured pods whose rules were missing or changed", Counter::default()),
            sandboxes_replaced: added(
                r,
                "sandboxes_replaced",
                "Captured pods that turned up in another network namespace",
                Counter::default(),
            ),
            cni: cni::Metrics::default(),
            connections_left: added(r, "connections_left", "Open connections older than the enrolment of their pod", Gauge::default()),
            connections_reset: added(r, "connections_reset", "Connections older than the enrolment that were reset", Counter::default()),
            searches: added(r, "searches", "Passes through the processes of the node", Counter::default()),
            notices_lost: added(r, "notices_lost", "Events that were not told because too many were waiting", Counter::default()),
            api_failures: added(r, "api_failures", "Annotations and Events that the API server did not take", Counter::default()),
            registry: Registry::default(),
        };
        let help = "Time that pods of the mesh have run without being captured, summed over pods";
        r.register_with_unit("uncaptured", help, Unit::Seconds, metrics.uncaptured_seconds.clone());
        metrics.cni.register(&mut registry);
        registry.register_collector(Box::new(ProcessCollector));
        Self { registry, ..metrics }
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
}

fn added<M: prometheus_client::registry::Metric + Clone>(registry: &mut Registry, name: &str, help: &str, metric: M) -> M {
    registry.register(name, help, metric.clone());
    metric
}
