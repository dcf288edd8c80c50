//! From a source's changes to what is served: the one place that changes the index.

mod pace;

use std::sync::Arc;
use std::time::SystemTime;

use parking_lot::RwLock;
use tokio::sync::watch;
use tokio::time::Instant;

use super::index::{Index, Indexer, Type};
use super::source::{Batch, Source};
use super::tokens::Tokens;
use crate::base::{Error, drain};

use pace::Pace;

/// How the source does, for the health endpoint.
#[derive(Debug, Default)]
pub(super) struct SourceHealth {
    /// Why the newest state could not be had or used, and since when; `None`: it is in force.
    pub(super) error: Option<String>,
    /// Since when there is an error.
    pub(super) since: Option<SystemTime>,
    /// What the newest state in force left out.
    pub(super) rejected: Vec<String>,
}

/// Takes over change after change.
pub(super) struct Follower<S> {
    source: S,
    /// Those of a mesh file's nodes; in a cluster there are none to be made.
    tokens: Option<Arc<Tokens>>,
    indexer: Indexer,
    pace: Pace,
    index: watch::Sender<Arc<Index>>,
    health: Arc<RwLock<SourceHealth>>,
    /// Since when there is a fault.
    fault_since: Option<SystemTime>,
}

impl<S: Source> Follower<S> {
    pub(super) fn new(source: S, tokens: Option<Arc<Tokens>>, index: watch::Sender<Arc<Index>>, health: Arc<RwLock<SourceHealth>>) -> Self {
        Self { source, tokens, indexer: Indexer::default(), pace: Pace::default(), index, health, fault_since: None }
    }

    /// Follows the source until the drain. A single change is seen at once; many are gathered for a moment.
    pub(super) async fn run(mut self, mut drain: drain::Watch) {
        loop {
            let is_pending = self.indexer.is_pending();
            let now = Instant::now();
            let due = self.pace.due(now);
            if is_pending && due <= now {
                self.publish();
                continue;
            }
            let next = tokio::select! {
                biased;
                _ = drain.started() => return,
                () = tokio::time::sleep_until(due), if is_pending => continue,
                next = self.source.next() => next,
            };
            match next {
                Ok(batch) => self.apply(batch),
                Err(error) => self.keep(&error),
            }
        }
    }

    /// Puts a state in force at once.
    pub(super) fn take(&mut self, batch: Batch) {
        self.apply(batch);
        if self.indexer.is_pending() {
            self.publish();
        }
    }

    fn apply(&mut self, batch: Batch) {
        for error in &batch.rejected {
            tracing::warn!(%error, "an object of the source cannot be used");
        }
        let applied = self.indexer.apply(&batch.mesh, batch.changes);
        let (kept, refused) = ([batch.kept, applied.kept].concat(), [batch.refused, applied.refused].concat());
        if !kept.is_empty() {
            tracing::warn!(objects = kept.join(", "), "their previous versions stay in force");
        }
        if !refused.is_empty() {
            let policies = refused.join(", ");
            tracing::error!(policies, "policies that cannot be used have no previous version: everything is refused in their place");
        }
        tracing::debug!(encoded = applied.encoded, "changes taken over");
        match (&batch.fault, self.fault_since) {
            (Some(fault), None) => tracing::error!(source = self.source.name(), fault, "the last known state stays in force"),
            (None, Some(_)) => tracing::info!(source = self.source.name(), "the source is in order again"),
            _ => {}
        }
        self.note(batch.fault);
        self.health.write().rejected = batch.wrong;
    }

    fn publish(&mut self) {
        self.pace.spend(Instant::now());
        let previous = self.index.borrow().clone();
        let next = self.indexer.publish();
        // A node can authenticate before anything tells it that it may.
        if let Some(Err(error)) = self.tokens.as_ref().map(|tokens| tokens.follow(next.nodes())) {
            tracing::error!(%error, "a node has no token and cannot connect");
        }
        if previous.generation() > 0 && previous.trust_domain() != next.trust_domain() {
            let (from, to) = (previous.trust_domain(), next.trust_domain());
            tracing::warn!(from, to, "the trust domain has changed: all identities are new");
        }
        let (addresses, policies) = (next.last_delta(Type::Address), next.last_delta(Type::Authorization));
        let changed = addresses.changed.len() + policies.changed.len();
        let removed = addresses.removed.len() + policies.removed.len();
        let (source, generation) = (self.source.name(), next.generation());
        match changed + removed {
            0 => tracing::debug!(source, generation, "pods are placed otherwise"),
            _ => tracing::info!(source, generation, changed, removed, "new state in force"),
        }
        self.index.send_replace(next);
    }

    fn keep(&mut self, error: &Error) {
        tracing::error!(source = self.source.name(), %error, "the source is broken; the last good state stays in force");
        self.note(Some(error.to_string()));
    }

    /// Tells the health endpoint.
    fn note(&mut self, fault: Option<String>) {
        self.fault_since = fault.as_ref().map(|_| self.fault_since.unwrap_or_else(SystemTime::now));
        let since = self.fault_since.map(humantime::format_rfc3339_seconds);
        let mut health = self.health.write();
        health.since = self.fault_since;
        health.error = fault.zip(since).map(|(fault, since)| format!("{fault} (since {since})"));
    }
}
