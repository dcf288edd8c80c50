//! What the control plane counts, and the page on which that and its state can be read.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, text};
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;

use super::health::Health;
use super::index::Type;
use crate::base::Error;
use crate::telemetry::metrics::CodeLabel;
use crate::telemetry::process::ProcessCollector;

/// Counted while it happens. Everything else is read when the page is asked for.
#[derive(Debug, Default)]
pub(in crate::control) struct Metrics {
    /// Certificates.
    pub(in crate::control) signed: Counter,
    /// Requests for certificates that were not granted.
    refused: Family<CodeLabel, Counter>,
    /// Root certificates written into namespaces.
    pub(in crate::control) published: Counter,
}

impl Metrics {
    /// A certificate was not signed.
    pub(in crate::control) fn refused(&self, error: &Error) {
        self.refused.get_or_create(&CodeLabel { code: error.code().id }).inc();
    }

    /// The registry of the page.
    pub(super) fn registry(&self, health: Health) -> Registry {
        let mut registry = Registry::default();
        let control = registry.sub_registry_with_prefix("warren_control");
        control.register("certificates_signed", "Certificates signed", self.signed.clone());
        control.register("certificates_refused", "Requests for certificates that were refused, by error code", self.refused.clone());
        control.register("roots_published", "Times the root certificate was written into a namespace", self.published.clone());
        registry.register_collector(Box::new(health));
        registry.register_collector(Box::new(ProcessCollector));
        registry
    }
}

/// The OpenMetrics text.
pub(super) fn page(registry: &Registry) -> Result<String, std::fmt::Error> {
    let mut page = String::new();
    text::encode(&mut page, registry)?;
    Ok(page)
}

impl Collector for Health {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let index = self.index.borrow().clone();
        let mut gauge = |name: &str, help: &str, value: i64| {
            let metric = ConstGauge::new(value);
            metric.encode(encoder.encode_descriptor(name, help, None, metric.metric_type())?)
        };
        let count = |of: Type| i64::try_from(index.resources(of).len()).unwrap_or(i64::MAX);
        gauge("warren_control_addresses", "Workloads and services in force", count(Type::Address))?;
        gauge("warren_control_policies", "Policies in force", count(Type::Authorization))?;
        gauge("warren_control_generation", "States that have been in force", i64::try_from(index.generation()).unwrap_or(i64::MAX))?;
        gauge("warren_control_clients", "Discovery streams that are open", self.counters.streams.load(Ordering::Relaxed) as i64)?;
        let source = self.source.read();
        gauge(
            "warren_control_source_broken",
            "1: the source cannot be used, the last good state is in force",
            source.error.is_some().into(),
        )?;
        let age = source.since.and_then(|since| SystemTime::now().duration_since(since).ok()).unwrap_or_default();
        gauge("warren_control_source_age_seconds", "How long the source has been broken; 0: it is in order", age.as_secs() as i64)?;
        gauge("warren_control_source_rejected", "Elements of the source that are left out", source.rejected.len() as i64)?;
        if let Some(authority) = self.authority.get() {
            let ends = authority.borrow().not_after().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
            gauge(
                "warren_control_authority_ends_seconds",
                "When the authority can sign no more, seconds since the epoch",
                ends.as_secs() as i64,
            )?;
        }
        let mut counter = |name: &str, help: &str, value: &AtomicU64| {
            let metric = ConstCounter::new(value.load(Ordering::Relaxed));
            metric.encode(encoder.encode_descriptor(name, help, None, metric.metric_type())?)
        };
        counter("warren_control_pushes", "Discovery responses sent", &self.counters.responses)?;
        counter("warren_control_rejections", "Discovery responses that a client rejected", &self.counters.nacks)
    }
}

/// Shared by the server of the page and nothing else.
pub(super) type Page = Arc<Registry>;
