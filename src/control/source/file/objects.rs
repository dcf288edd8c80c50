//! The elements of a mesh file as objects.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use crate::base::Str;
use crate::base::addr::ip_to_bytes;
use crate::config::meshfile::{self, MeshFile};
use crate::control::kubernetes::strings;
use crate::control::objects::{
    AuthorizationPolicy, Change, Families, Id, Kind, Labels, Mesh, Object, Phase, Pod, Port, Scope, Service, Target, Tunnel, Version,
};
use crate::wire::authorization::{self as wire, Action, Address, Authorization, Clause, Match, Rule};
use crate::wire::workload::AppProtocol;

/// All of a file.
pub(in super::super) fn of(file: &MeshFile) -> (Mesh, Vec<Change>) {
    // Policies say themselves that they are for all namespaces.
    let mesh = Mesh { trust_domain: file.trust_domain().into(), root_namespace: Str::default() };
    let pods = file.pods.iter().map(|pod| Object::Pod(Arc::new(self::pod(pod))));
    let services = file.services.iter().zip(0..).map(|(service, place)| Object::Service(Arc::new(self::service(service, place))));
    let policies = file.policies.iter().map(|policy| Object::AuthorizationPolicy(Arc::new(self::policy(policy))));
    let changes = vec![
        Change::Replace(Kind::Pod, pods.map(Version::Good).collect()),
        Change::Replace(Kind::Service, services.map(Version::Good).collect()),
        Change::Replace(Kind::AuthorizationPolicy, policies.map(Version::Good).collect()),
    ];
    (mesh, changes)
}

fn pod(pod: &meshfile::Pod) -> Pod {
    let labels: Labels = pod.labels.iter().collect();
    Pod {
        id: Id::new(pod.namespace.as_str(), pod.name.as_str()),
        uid: pod.effective_uid().into(),
        node: pod.node.as_str().into(),
        service_account: pod.service_account.as_str().into(),
        ips: pod.ips.clone(),
        workload_name: labels.get("service.istio.io/workload-name").cloned().unwrap_or_else(|| pod.name.as_str().into()),
        labels,
        ports: Vec::new(),
        phase: Phase::Live,
        ready: pod.ready,
        host_network: false,
        tunnel: if pod.ambient { Tunnel::Hbone } else { Tunnel::None },
    }
}

/// Of services with one host name the first in the file is meant.
fn service(service: &meshfile::Service, place: u64) -> Service {
    let port = |(port, target): (&u16, &u16)| Port {
        name: Str::default(),
        port: *port,
        target: Target::Number(*target),
        protocol: AppProtocol::Unknown,
    };
    Service {
        id: Id::new(service.namespace.as_str(), service.name.as_str()),
        hostname: service.effective_hostname().into(),
        vips: service.vips.clone(),
        ports: service.ports.iter().map(port).collect(),
        selector: service.selector.iter().collect(),
        families: match (service.vips.iter().any(IpAddr::is_ipv4), service.vips.iter().any(IpAddr::is_ipv6)) {
            (false, false) => Families::Automatic,
            (true, false) => Families::V4,
            (false, true) => Families::V6,
            (true, true) => Families::Dual,
        },
        local: false,
        distribution: None,
        publish_not_ready: false,
        age: place,
    }
}

fn policy(policy: &meshfile::Policy) -> AuthorizationPolicy {
    let scope = match (policy.global, policy.selector.is_empty()) {
        (true, _) => Scope::Global,
        (false, true) => Scope::Namespace,
        (false, false) => Scope::Pods { labels: policy.selector.iter().collect(), everywhere: false },
    };
    let message = Authorization {
        name: policy.name.clone(),
        namespace: policy.namespace.clone(),
        scope: match scope {
            Scope::Global => wire::Scope::Global,
            Scope::Namespace => wire::Scope::Namespace,
            Scope::Pods { .. } => wire::Scope::WorkloadSelector,
        }
        .into(),
        action: match policy.action {
            meshfile::Action::Allow => Action::Allow,
            meshfile::Action::Deny => Action::Deny,
        }
        .into(),
        rules: policy.rules.iter().map(rule).collect(),
        dry_run: policy.dry_run,
        ..Authorization::default()
    };
    AuthorizationPolicy { id: Id::new(policy.namespace.as_str(), policy.name.as_str()), scope, message, is_stand_in: false }
}

/// One clause says where to, one where from; both must match. A rule without fields has no clause and matches all.
fn rule(rule: &meshfile::Rule) -> Rule {
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

fn networks(values: &[IpNet]) -> Vec<Address> {
    values.iter().map(|net| Address { address: ip_to_bytes(net.network()), length: u32::from(net.prefix_len()) }).collect()
}

fn ports(values: &[u16]) -> Vec<u32> {
    values.iter().copied().map(u32::from).collect()
}
