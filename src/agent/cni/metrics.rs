//! What is counted about the plugin.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

/// Upper bounds of the answers' durations, seconds.
const SECONDS: [f64; 10] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 2.5, 10.0];

/// A call and how it ended.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Outcome {
    /// `enrolled`, `not_in_mesh`, `failed`, `forgotten`, `refused` (not by the plugin).
    pub outcome: &'static str,
}

/// All of it. Clones count together.
#[derive(Clone, Debug)]
pub struct Metrics {
    /// Calls by outcome.
    pub calls: Family<Outcome, Counter>,
    /// From the call to the answer of an addition.
    pub seconds: Histogram,
    /// How often the plugin was put in place because somebody else had changed it.
    pub repairs: Counter,
}

impl Default for Metrics {
    fn default() -> Self {
        Self { calls: Family::default(), seconds: Histogram::new(SECONDS), repairs: Counter::default() }
    }
}

impl Metrics {
    /// Has `registry` show them.
    pub fn register(&self, registry: &mut Registry) {
        registry.register("warren_cni_calls", "Calls of the CNI plugin, by how they ended", self.calls.clone());
        registry.register_with_unit(
            "warren_cni_add",
            "From the call to the answer, for pods that start",
            Unit::Seconds,
            self.seconds.clone(),
        );
        registry.register("warren_cni_repairs", "Times the CNI plugin was put back in place", self.repairs.clone());
    }

    pub(super) fn count(&self, outcome: &'static str) {
        self.calls.get_or_create(&Outcome { outcome }).inc();
    }
}
