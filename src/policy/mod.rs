//! Whether a connection to a workload is allowed: authorization policies, evaluated and explained.

mod matching;

#[cfg(test)]
mod tests;

use std::net::SocketAddr;
use std::sync::Arc;

use crate::base::{Str, addr};
use crate::identity::SpiffeId;
use crate::mesh::{Action, Mesh, Policy, Scope, Workload};

/// What is known about a connection when it is decided.
#[derive(Clone, Copy, Debug)]
pub struct Connection<'a> {
    /// The peer's socket. Through a tunnel: where the tunnel comes from.
    pub source: SocketAddr,
    /// What the peer asked for.
    pub destination: SocketAddr,
    /// Who the peer is by its certificate; plaintext has no identity.
    pub identity: Option<Peer<'a>>,
}

/// The parts of a peer's SPIFFE id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer<'a> {
    /// Trust domain.
    pub trust_domain: &'a str,
    /// Namespace.
    pub namespace: &'a str,
    /// Service account.
    pub service_account: &'a str,
}

impl<'a> From<&'a SpiffeId> for Peer<'a> {
    fn from(id: &'a SpiffeId) -> Self {
        Self { trust_domain: &id.trust_domain, namespace: &id.namespace, service_account: &id.service_account }
    }
}

/// The decision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Let through.
    Allowed {
        /// The policy that matched; none if no policy restricts the workload.
        by: Option<Str>,
    },
    /// Refused.
    Denied {
        /// Why, for the operator.
        reason: String,
        /// The policy that matched; none if allow policies exist and none of them matched.
        policy: Option<Str>,
    },
}

impl Verdict {
    /// Whether the connection is let through.
    pub fn is_allowed(&self) -> bool {
        matches!(self, Verdict::Allowed { .. })
    }
}

/// A decision with all that went into it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explanation {
    /// The decision.
    pub verdict: Verdict,
    /// What policies in dry run would have done.
    pub dry_run: Vec<DryRun>,
    /// Policies that apply to the workload, enforced or not, in the order of evaluation.
    pub applied: Vec<Str>,
    /// Policies that the workload names and that are not known. They have no effect.
    pub missing: Vec<Str>,
}

/// What a policy in dry run would have done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DryRun {
    /// This policy matches and would refuse the connection.
    WouldDeny(Str),
    /// This policy matches and would let it through.
    WouldAllow(Str),
    /// There are allow policies, all in dry run, and none matches: together they would refuse it.
    NoneWouldAllow,
}

/// Decides whether a connection to `workload` is allowed, and logs at debug level what dry runs found.
pub fn evaluate(mesh: &Mesh, workload: &Workload, connection: &Connection<'_>) -> Verdict {
    let explanation = explain(mesh, workload, connection);
    if !explanation.dry_run.is_empty() || !explanation.missing.is_empty() {
        tracing::debug!(
            workload = %workload.uid, source = %connection.source, dry_run = ?explanation.dry_run, missing = ?explanation.missing,
            "policy evaluated"
        );
    }
    explanation.verdict
}

/// Decides as [`evaluate`] and says what went into it.
///
/// Policies of the workload's namespace, then global ones, then those it names. What could not be understood denies: the
/// control plane asked for something to be enforced. Then deny before allow; with no allow policy everything that is not
/// denied is allowed. Dry runs decide nothing.
pub fn explain(mesh: &Mesh, workload: &Workload, connection: &Connection<'_>) -> Explanation {
    let connection =
        &Connection { source: addr::canonical(connection.source), destination: addr::canonical(connection.destination), ..*connection };
    let mut missing = Vec::new();
    let policies = policies_of(mesh, workload, &mut missing);
    let subject = matching::Subject::new(connection);
    let matching = |dry_run: bool, action: Action| -> Vec<Str> {
        let of_kind = policies.iter().filter(|(_, policy)| policy.dry_run == dry_run && policy.action == action);
        of_kind.filter(|(_, policy)| subject.matches(policy)).map(|(key, _)| (*key).clone()).collect()
    };
    let exists = |dry_run: bool| policies.iter().any(|(_, policy)| policy.dry_run == dry_run && policy.action == Action::Allow);

    let mut dry_run: Vec<DryRun> = matching(true, Action::Deny).into_iter().map(DryRun::WouldDeny).collect();
    let would_allow = matching(true, Action::Allow);
    if exists(true) && !exists(false) && would_allow.is_empty() {
        dry_run.push(DryRun::NoneWouldAllow);
    }
    dry_run.extend(would_allow.into_iter().map(DryRun::WouldAllow));

    let verdict = if let Some((key, reason)) = unusable(mesh, workload) {
        Verdict::Denied { reason: format!("policy {key} could not be understood: {reason}"), policy: Some(key) }
    } else if let Some(key) = matching(false, Action::Deny).into_iter().next() {
        Verdict::Denied { reason: format!("explicitly denied by: {key}"), policy: Some(key) }
    } else if !exists(false) {
        Verdict::Allowed { by: None }
    } else if let Some(key) = matching(false, Action::Allow).into_iter().next() {
        Verdict::Allowed { by: Some(key) }
    } else {
        let names = policies.iter().filter(|(_, policy)| !policy.dry_run && policy.action == Action::Allow).map(|(key, _)| (*key).clone());
        Verdict::Denied { reason: none_allowed(names.collect()), policy: None }
    };
    Explanation { verdict, dry_run, applied: policies.into_iter().map(|(key, _)| key.clone()).collect(), missing }
}

/// How many policies a refusal names: operators look for theirs, and log lines are bounded.
const NAMED: usize = 4;

fn none_allowed(mut policies: Vec<Str>) -> String {
    let more = policies.len().saturating_sub(NAMED);
    policies.truncate(NAMED);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    format!("allow policies exist, but none allowed: {}{more}", policies.join(", "))
}

fn policies_of<'a>(mesh: &'a Mesh, workload: &'a Workload, missing: &mut Vec<Str>) -> Vec<(&'a Str, &'a Arc<Policy>)> {
    let mut policies: Vec<_> = mesh.namespace_policies(&workload.namespace).chain(mesh.global_policies()).collect();
    for key in &workload.authorization_policies {
        match mesh.policy(key) {
            Some(_) if policies.iter().any(|(known, _)| *known == key) => {}
            Some(policy) => policies.push((key, policy)),
            None => missing.push(key.clone()),
        }
    }
    policies
}

/// The first policy that applies to the workload and could not be understood, with the reason.
fn unusable(mesh: &Mesh, workload: &Workload) -> Option<(Str, String)> {
    let applies = |(key, policy): &(&Str, &Arc<crate::mesh::UnusablePolicy>)| match policy.scope {
        Scope::Global => true,
        Scope::Namespace => policy.namespace == workload.namespace,
        Scope::WorkloadSelector => workload.authorization_policies.contains(key),
    };
    mesh.unusable_policies().find(applies).map(|(key, policy)| (key.clone(), policy.reason.clone()))
}
