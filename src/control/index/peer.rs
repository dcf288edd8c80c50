//! PeerAuthentication → policies that refuse connections without identity.
//!
//! What a policy makes of a workload is decided in one place, [`effect`]; what is sent and what workloads name both
//! follow from it, so that no workload can name a policy that does not exist.

use crate::base::Str;
use crate::control::objects::{Id, Mode, PeerAuthentication};
use crate::wire::authorization::{Action, Authorization, Clause, Match, Rule, Scope, StringMatch, string_match::MatchType};

/// The policy, in the root namespace, that workloads name which accept no connection without identity at all.
const STATIC_STRICT: &str = "istio_converted_static_strict";

/// What an exception for ports is called, before the name of the PeerAuthentication.
const CONVERTED: &str = "converted_peer_authentication_";

/// What a workload has to refuse.
#[derive(Debug, PartialEq)]
pub(super) enum Effect {
    /// Nothing.
    Open,
    /// All connections without identity.
    Strict,
    /// Those of some ports.
    Ports(Vec<Rule>),
}

/// What a policy with a selector means for its workloads. `is_strict`: what is said one level up.
pub(super) fn effect(policy: &PeerAuthentication, is_strict: bool) -> Effect {
    let is_strict = match policy.mode {
        Mode::Unset => is_strict,
        mode => mode == Mode::Strict,
    };
    let exception = if is_strict { Mode::Permissive } else { Mode::Strict };
    let ports: Vec<u32> = policy.ports.iter().filter(|(_, mode)| **mode == exception).map(|(port, _)| u32::from(*port)).collect();
    match (is_strict, ports.is_empty()) {
        (true, true) => Effect::Strict,
        (false, true) => Effect::Open,
        (true, false) => {
            let excepted = ports.into_iter().map(|port| Match { not_destination_ports: vec![port], ..Match::default() });
            let clauses = std::iter::once(anonymous()).chain(excepted).map(|fields| Clause { matches: vec![fields] });
            Effect::Ports(vec![Rule { clauses: clauses.collect() }])
        }
        (false, false) => {
            let rule = |port| Rule { clauses: vec![Clause { matches: vec![Match { destination_ports: vec![port], ..anonymous() }] }] };
            Effect::Ports(ports.into_iter().map(rule).collect())
        }
    }
}

/// The mode that the oldest of these says.
pub(super) fn mode<'a>(policies: impl Iterator<Item = &'a PeerAuthentication>) -> Mode {
    oldest(policies).map(|policy| policy.mode).unwrap_or_default()
}

/// The one that counts.
pub(super) fn oldest<'a>(policies: impl Iterator<Item = &'a PeerAuthentication>) -> Option<&'a PeerAuthentication> {
    policies.min_by(|one, other| (one.created, &one.id).cmp(&(other.created, &other.id)))
}

/// The name of the resource of [`Effect::Strict`].
pub(super) fn strict_name(root_namespace: &str) -> Str {
    format!("{root_namespace}/{STATIC_STRICT}").into()
}

/// The resource of [`Effect::Strict`].
pub(super) fn strict(root_namespace: &str) -> Authorization {
    let rule = Rule { clauses: vec![Clause { matches: vec![anonymous()] }] };
    deny(root_namespace, STATIC_STRICT.to_owned(), vec![rule])
}

/// The name of the resource of [`Effect::Ports`].
pub(super) fn converted_name(id: &Id) -> Str {
    format!("{}/{CONVERTED}{}", id.namespace, id.name).into()
}

/// The resource of [`Effect::Ports`].
pub(super) fn converted(id: &Id, rules: Vec<Rule>) -> Authorization {
    deny(&id.namespace, format!("{CONVERTED}{}", id.name), rules)
}

fn deny(namespace: &str, name: String, rules: Vec<Rule>) -> Authorization {
    Authorization {
        name,
        namespace: namespace.to_owned(),
        scope: Scope::WorkloadSelector.into(),
        action: Action::Deny.into(),
        rules,
        ..Authorization::default()
    }
}

/// Connections that show no identity.
fn anonymous() -> Match {
    Match { not_principals: vec![StringMatch { match_type: Some(MatchType::Presence(())) }], ..Match::default() }
}
