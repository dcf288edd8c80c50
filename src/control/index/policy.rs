//! Policies → Authorization resources, and which of them a pod names. Both from one table, so that no workload can
//! name a policy that is not sent.

use ipnet::IpNet;

use super::address::matches;
use crate::base::addr::ip_to_bytes;
use crate::config::meshfile::{Action as FileAction, MeshFile, Pod, Policy, Rule as FileRule};
use crate::wire::authorization::string_match::MatchType;
use crate::wire::authorization::{Action, Address, Authorization, Clause, Match, Rule, Scope, StringMatch};

/// `namespace/name`.
pub(super) fn name(policy: &Policy) -> String {
    format!("{}/{}", policy.namespace, policy.name)
}

/// Names of the selector policies that protect the pod, sorted. Proxies find namespace and global policies themselves.
pub(super) fn attached(mesh: &MeshFile, pod: &Pod) -> Vec<String> {
    let fits =
        |policy: &&Policy| scope(policy) == Scope::WorkloadSelector && policy.namespace == pod.namespace && matches(&policy.selector, pod);
    let mut names: Vec<String> = mesh.policies.iter().filter(fits).map(name).collect();
    names.sort();
    names.dedup();
    names
}

/// The resource.
pub(super) fn authorization(policy: &Policy) -> Authorization {
    Authorization {
        name: policy.name.clone(),
        namespace: policy.namespace.clone(),
        scope: scope(policy).into(),
        action: match policy.action {
            FileAction::Allow => Action::Allow,
            FileAction::Deny => Action::Deny,
        }
        .into(),
        rules: policy.rules.iter().map(rule).collect(),
        dry_run: policy.dry_run,
        ..Authorization::default()
    }
}

fn scope(policy: &Policy) -> Scope {
    match (policy.global, policy.selector.is_empty()) {
        (true, _) => Scope::Global,
        (false, true) => Scope::Namespace,
        (false, false) => Scope::WorkloadSelector,
    }
}

/// One clause says where to, one where from; both must match. A rule without fields has no clause and matches all.
fn rule(rule: &FileRule) -> Rule {
    let to = Match { destination_ports: ports(&rule.ports), not_destination_ports: ports(&rule.not_ports), ..Match::default() };
    let from = Match {
        namespaces: strings(&rule.namespaces),
        not_namespaces: strings(&rule.not_namespaces),
        principals: strings(&rule.principals),
        not_principals: strings(&rule.not_principals),
        source_ips: networks(&rule.source_ips),
        not_source_ips: networks(&rule.not_source_ips),
        ..Match::default()
    };
    // A match without fields never matches, so it must not be sent.
    let clauses = [to, from].into_iter().filter(|fields| *fields != Match::default()).map(|fields| Clause { matches: vec![fields] });
    Rule { clauses: clauses.collect() }
}

fn strings(values: &[String]) -> Vec<StringMatch> {
    values.iter().map(|value| StringMatch { match_type: Some(string(value)) }).collect()
}

fn string(value: &str) -> MatchType {
    match (value, value.strip_prefix('*'), value.strip_suffix('*')) {
        ("*", ..) => MatchType::Presence(()),
        (_, Some(suffix), _) => MatchType::Suffix(suffix.to_owned()),
        (_, None, Some(prefix)) => MatchType::Prefix(prefix.to_owned()),
        _ => MatchType::Exact(value.to_owned()),
    }
}

fn networks(values: &[IpNet]) -> Vec<Address> {
    values.iter().map(|net| Address { address: ip_to_bytes(net.network()), length: u32::from(net.prefix_len()) }).collect()
}

fn ports(values: &[u16]) -> Vec<u32> {
    values.iter().copied().map(u32::from).collect()
}
