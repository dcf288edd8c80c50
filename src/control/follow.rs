//! From a source's states to what is served: the one place that changes the index.

use std::sync::Arc;

use parking_lot::RwLock;
use tokio::sync::watch;

use super::index::{Index, Type};
use super::source::{Snapshot, Source};
use super::tokens::Tokens;
use crate::base::{Error, drain};

/// How the source does, for the health endpoint.
#[derive(Debug, Default)]
pub(super) struct SourceHealth {
    /// Why the newest state could not be used; `None`: it is in force.
    pub(super) error: Option<String>,
    /// What the newest state in force left out.
    pub(super) rejected: Vec<String>,
}

/// Takes over state after state.
pub(super) struct Follower<S> {
    source: S,
    /// Those of a mesh file's nodes; in a cluster there are none to be made.
    tokens: Option<Arc<Tokens>>,
    index: watch::Sender<Arc<Index>>,
    health: Arc<RwLock<SourceHealth>>,
}

impl<S: Source> Follower<S> {
    pub(super) fn new(source: S, tokens: Option<Arc<Tokens>>, index: watch::Sender<Arc<Index>>, health: Arc<RwLock<SourceHealth>>) -> Self {
        Self { source, tokens, index, health }
    }

    /// Follows the source until the drain.
    pub(super) async fn run(mut self, mut drain: drain::Watch) {
        loop {
            let next = tokio::select! {
                next = self.source.next() => next,
                _ = drain.started() => return,
            };
            match next {
                Ok(snapshot) => self.take(&snapshot),
                Err(error) => self.keep(&error),
            }
        }
    }

    /// Puts a state in force.
    pub(super) fn take(&self, snapshot: &Snapshot) {
        for error in &snapshot.rejected {
            tracing::warn!(%error, "an element of the source is left out");
        }
        if !snapshot.kept.is_empty() {
            tracing::warn!(elements = snapshot.kept.join(", "), "their previous versions stay in force");
        }
        if !snapshot.refused.is_empty() {
            let policies = snapshot.refused.join(", ");
            tracing::error!(policies, "policies that cannot be used have no previous version: everything is refused in their place");
        }
        *self.health.write() =
            SourceHealth { error: None, rejected: snapshot.rejected.iter().take(100).map(ToString::to_string).collect() };

        let previous = self.index.borrow().clone();
        let next = Index::build(&snapshot.mesh, &previous);
        // A node can authenticate before anything tells it that it may.
        if let Some(Err(error)) = self.tokens.as_ref().map(|tokens| tokens.follow(next.nodes())) {
            tracing::error!(%error, "a node has no token and cannot connect");
        }
        let (addresses, policies) = (next.last_delta(Type::Address), next.last_delta(Type::Authorization));
        if previous.generation() > 0 && previous.trust_domain() != next.trust_domain() {
            tracing::warn!(
                from = previous.trust_domain(),
                to = next.trust_domain(),
                "the trust domain has changed: all identities are new"
            );
        } else if previous.generation() > 0 && addresses.is_empty() && policies.is_empty() {
            return;
        }
        tracing::info!(
            source = self.source.name(),
            generation = next.generation(),
            changed = addresses.changed.len() + policies.changed.len(),
            removed = addresses.removed.len() + policies.removed.len(),
            "new state in force"
        );
        self.index.send_replace(Arc::new(next));
    }

    fn keep(&self, error: &Error) {
        tracing::error!(source = self.source.name(), %error, "the source is broken; the last good state stays in force");
        self.health.write().error = Some(error.to_string());
    }
}
