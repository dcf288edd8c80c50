//! Authorization policies. Nothing in a policy is dropped: what is left out of a condition makes it match more.

use ipnet::IpNet;
use prost::Message;

use super::{Refusal, ip, known, port};
use crate::base::Str;
use crate::mesh::{Action, Match, Policy, Scope, ServiceAccountMatch, StringMatch, UnusablePolicy};
use crate::wire::authorization as wire;

/// A policy that is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RefusedPolicy {
    /// Why.
    pub reason: Refusal,
    /// What is to be held against connections meanwhile; nothing for one in dry run.
    pub unusable: Option<UnusablePolicy>,
}

/// Decodes the policy of that name, `namespace/name`.
///
/// # Errors
/// Why it is refused, and as much of it as is needed to fail closed.
pub fn policy(name: &str, bytes: &[u8]) -> Result<Policy, RefusedPolicy> {
    let refused = |namespace: &str, scope: Scope, dry_run: bool, reason: Refusal| {
        let unusable = (!dry_run).then(|| UnusablePolicy { namespace: Str::from(namespace), scope, reason: reason.clone() });
        RefusedPolicy { reason, unusable }
    };
    let message = wire::Authorization::decode(bytes).map_err(|error| {
        let namespace = name.split_once('/').map_or("", |(namespace, _)| namespace);
        refused(namespace, Scope::WorkloadSelector, false, format!("not an Authorization: {error}"))
    })?;
    let scope = known("scope", message.scope).map(|scope| match scope {
        wire::Scope::Global => Scope::Global,
        wire::Scope::Namespace => Scope::Namespace,
        wire::Scope::WorkloadSelector => Scope::WorkloadSelector,
    });
    let readable_scope = scope.as_ref().copied().unwrap_or(Scope::WorkloadSelector);
    let (namespace, dry_run) = (message.namespace.clone(), message.dry_run);
    scope.and_then(|scope| convert(message, scope)).map_err(|reason| refused(&namespace, readable_scope, dry_run, reason))
}

fn convert(message: wire::Authorization, scope: Scope) -> Result<Policy, Refusal> {
    let action = match known("action", message.action)? {
        wire::Action::Allow => Action::Allow,
        wire::Action::Deny => Action::Deny,
    };
    let clause = |clause: wire::Clause| all(clause.matches, one_match);
    let rules = all(message.rules, |rule| all(rule.clauses, clause))?;
    Ok(Policy { name: message.name.into(), namespace: message.namespace.into(), scope, action, rules, dry_run: message.dry_run })
}

fn one_match(message: wire::Match) -> Result<Match, Refusal> {
    Ok(Match {
        namespaces: all(message.namespaces, |value| text("namespaces", value))?,
        not_namespaces: all(message.not_namespaces, |value| text("not_namespaces", value))?,
        principals: all(message.principals, |value| text("principals", value))?,
        not_principals: all(message.not_principals, |value| text("not_principals", value))?,
        source_ips: all(message.source_ips, |value| range("source_ips", &value))?,
        not_source_ips: all(message.not_source_ips, |value| range("not_source_ips", &value))?,
        destination_ips: all(message.destination_ips, |value| range("destination_ips", &value))?,
        not_destination_ips: all(message.not_destination_ips, |value| range("not_destination_ips", &value))?,
        destination_ports: all(message.destination_ports, |value| port("destination_ports", value))?,
        not_destination_ports: all(message.not_destination_ports, |value| port("not_destination_ports", value))?,
        service_accounts: message.service_accounts.into_iter().map(account).collect(),
        not_service_accounts: message.not_service_accounts.into_iter().map(account).collect(),
    })
}

fn all<T, U>(values: Vec<T>, convert: impl Fn(T) -> Result<U, Refusal>) -> Result<Vec<U>, Refusal> {
    values.into_iter().map(convert).collect()
}

fn text(of: &str, message: wire::StringMatch) -> Result<StringMatch, Refusal> {
    use wire::string_match::MatchType;
    match message.match_type {
        Some(MatchType::Exact(value)) => Ok(StringMatch::Exact(value.into())),
        Some(MatchType::Prefix(value)) => Ok(StringMatch::Prefix(value.into())),
        Some(MatchType::Suffix(value)) => Ok(StringMatch::Suffix(value.into())),
        Some(MatchType::Presence(())) => Ok(StringMatch::Presence()),
        None => Err(format!("{of}: a match without a type")),
    }
}

fn range(of: &str, message: &wire::Address) -> Result<IpNet, Refusal> {
    let ip = ip(of, &message.address)?;
    let range = u8::try_from(message.length).ok().and_then(|length| IpNet::new(ip, length).ok());
    range.ok_or_else(|| format!("{of}: {ip} has no prefix of {} bits", message.length))
}

fn account(message: wire::ServiceAccountMatch) -> ServiceAccountMatch {
    ServiceAccountMatch { namespace: message.namespace.into(), service_account: message.service_account.into() }
}
