use prost::Message;

use super::*;
use crate::config::meshfile;
use crate::control::source;
use crate::wire::authorization::string_match::MatchType;
use crate::wire::authorization::{Authorization, Scope};
use crate::wire::workload::address::Type as Kind;
use crate::wire::workload::{Address, Service, Workload};

const MESH: &str = "
pods:
  - {name: web-1, namespace: shop, node: n1, ips: [10.0.1.2, 'fd00::2'], netns: /a, ambient: true, serviceAccount: web, labels: {app: web, version: v2}}
  - {name: web-2, namespace: shop, node: n2, ips: [10.0.2.2], ready: false, labels: {app: web}}
  - {name: web-3, namespace: other, node: n2, ips: [10.0.2.3], labels: {app: web}}
services:
  - {name: web, namespace: shop, vips: [10.96.0.1], ports: {80: 8080, 443: 8443}, selector: {app: web}}
  - {name: all, namespace: shop, ports: {80: 80}}
policies:
  - {name: sel, namespace: shop, selector: {app: web, version: v2}, action: Deny, rules: [{namespaces: [bad]}]}
  - {name: ns, namespace: shop, action: Allow, rules: [{}]}
  - {name: root, global: true, action: Deny, dryRun: true}
";

fn index(text: &str, previous: &Index) -> Index {
    let loaded = meshfile::parse(text).unwrap();
    assert!(loaded.rejected.is_empty(), "{:?}", loaded.rejected);
    Index::clone(&source::index_of(&loaded.mesh)).after(previous)
}

fn workload(index: &Index, name: &str) -> Workload {
    match Address::decode(&index.addresses.get(name).unwrap().body[..]).unwrap().r#type.unwrap() {
        Kind::Workload(workload) => workload,
        Kind::Service(_) => panic!("{name} is a service"),
    }
}

fn service(index: &Index, name: &str) -> Service {
    match Address::decode(&index.addresses.get(name).unwrap().body[..]).unwrap().r#type.unwrap() {
        Kind::Service(service) => service,
        Kind::Workload(_) => panic!("{name} is a workload"),
    }
}

fn policy(index: &Index, name: &str) -> Authorization {
    Authorization::decode(&index.policies.get(name).unwrap().body[..]).unwrap()
}

#[test]
fn a_pod_becomes_a_workload() {
    let index = index(MESH, &Index::default());
    let web = workload(&index, "Kubernetes//Pod/shop/web-1");
    assert_eq!((web.name.as_str(), web.namespace.as_str(), web.node.as_str()), ("web-1", "shop", "n1"));
    assert_eq!((web.tunnel_protocol, web.status, web.workload_type), (1, 0, 2));
    assert_eq!((web.canonical_name.as_str(), web.canonical_revision.as_str(), web.workload_name.as_str()), ("web", "v2", "web-1"));
    assert_eq!((web.trust_domain.as_str(), web.service_account.as_str(), web.cluster_id.as_str()), ("", "web", "Kubernetes"));
    assert_eq!(web.addresses.iter().map(|bytes| bytes.len()).collect::<Vec<_>>(), [4, 16]);
    assert_eq!(web.authorization_policies, ["shop/sel"]);
    let ports = &web.services["shop/web.shop.svc.cluster.local"].ports;
    assert_eq!(ports.iter().map(|port| (port.service_port, port.target_port)).collect::<Vec<_>>(), [(80, 8080), (443, 8443)]);
    assert_eq!(web.services.len(), 1);

    let unready = workload(&index, "Kubernetes//Pod/shop/web-2");
    assert_eq!((unready.tunnel_protocol, unready.status), (0, 1));
    assert_eq!((unready.services.len(), unready.authorization_policies.len()), (1, 0));
    assert_eq!(unready.canonical_revision, "latest");
    assert!(workload(&index, "Kubernetes//Pod/other/web-3").services.is_empty(), "a selector stays in its namespace");
}

#[test]
fn a_service_becomes_an_address() {
    let index = index(MESH, &Index::default());
    let web = service(&index, "shop/web.shop.svc.cluster.local");
    assert_eq!((web.name.as_str(), web.hostname.as_str(), web.canonical), ("web", "web.shop.svc.cluster.local", true));
    assert_eq!(web.addresses[0].address.as_ref() as &[u8], [10, 96, 0, 1]);
    assert_eq!((web.ports.len(), web.ip_families), (2, 1));
    let headless = service(&index, "shop/all.shop.svc.cluster.local");
    assert!(headless.addresses.is_empty());
}

#[test]
fn another_trust_domain_is_named() {
    let index = index(&format!("trustDomain: example.org\n{MESH}"), &Index::default());
    assert_eq!(workload(&index, "Kubernetes//Pod/shop/web-2").trust_domain, "example.org");
    assert_eq!(index.trust_domain(), "example.org");
}

#[test]
fn policies_have_scope_action_and_clauses() {
    let text = format!(
        "{MESH}  - {{name: full, action: Allow, rules: [{{ports: [80], notPorts: [81], principals: ['*', a*, '*b', c], notPrincipals: [d], \
         namespaces: [e], notNamespaces: [f], sourceIps: [10.1.2.3/8], notSourceIps: ['fd00::/8']}}]}}\n"
    );
    let index = index(&text, &Index::default());
    let scope = |name| policy(&index, name).scope();
    assert_eq!((scope("shop/sel"), scope("shop/ns"), scope("default/root")), (Scope::WorkloadSelector, Scope::Namespace, Scope::Global));
    assert!(policy(&index, "default/root").dry_run && policy(&index, "default/root").rules.is_empty());
    assert!(policy(&index, "shop/ns").rules[0].clauses.is_empty(), "an empty rule matches everything");

    let full = policy(&index, "default/full");
    let clauses = &full.rules[0].clauses;
    assert_eq!(clauses.len(), 2);
    let (to, from) = (&clauses[0].matches[0], &clauses[1].matches[0]);
    assert_eq!((to.destination_ports.as_slice(), to.not_destination_ports.as_slice()), ([80].as_slice(), [81].as_slice()));
    let kinds: Vec<_> = from.principals.iter().map(|value| value.match_type.clone().unwrap()).collect();
    let expected =
        [MatchType::Presence(()), MatchType::Prefix("a".to_owned()), MatchType::Suffix("b".to_owned()), MatchType::Exact("c".to_owned())];
    assert_eq!(kinds, expected);
    assert_eq!((from.source_ips[0].address.as_ref() as &[u8], from.source_ips[0].length), ([10, 0, 0, 0].as_slice(), 8));
    assert_eq!((from.not_source_ips[0].address.len(), from.not_source_ips[0].length), (16, 8));
    assert_eq!((from.not_principals.len(), from.namespaces.len(), from.not_namespaces.len()), (1, 1, 1));
}

#[test]
fn only_what_changed_is_in_the_delta_and_the_rest_is_shared() {
    let first = index(MESH, &Index::default());
    assert_eq!(first.last_delta(Type::Address).changed.len(), 5);
    let second = index(MESH, &first);
    assert!(second.last_delta(Type::Address).is_empty() && second.last_delta(Type::Authorization).is_empty());
    let third = index(&MESH.replace("ready: false", "ready: true").replace("name: web-3", "name: web-4"), &second);
    let delta = third.last_delta(Type::Address);
    let changed: Vec<&str> = delta.changed.iter().map(|resource| resource.name.as_ref()).collect();
    assert_eq!(changed, ["Kubernetes//Pod/other/web-4", "Kubernetes//Pod/shop/web-2"]);
    assert_eq!(delta.removed.iter().map(AsRef::as_ref).collect::<Vec<&str>>(), ["Kubernetes//Pod/other/web-3"]);
    assert!(third.last_delta(Type::Authorization).is_empty());
    assert_eq!(third.diff(&first, Type::Address), *delta);
}

#[test]
fn names_of_every_form_are_resolved() {
    let index = index(MESH, &Index::default());
    let web = "shop/web.shop.svc.cluster.local";
    let (one, two) = ("Kubernetes//Pod/shop/web-1", "Kubernetes//Pod/shop/web-2");
    let cases: &[(&str, &[&str])] = &[
        (one, &[one]),
        ("/10.0.1.2", &[one]),
        ("/fd00::2", &[one]),
        (web, &[one, two, web]),
        ("/10.96.0.1", &[one, two, web]),
        ("net1/10.0.1.2", &[]),
        ("/10.9.9.9", &[]),
        ("nonsense", &[]),
    ];
    for (asked, expected) in cases {
        let found = index.resolve(Type::Address, asked);
        assert_eq!(found.iter().map(|resource| resource.name.as_ref()).collect::<Vec<&str>>(), *expected, "{asked}");
    }
    assert_eq!(index.resolve(Type::Authorization, "shop/ns").len(), 1);
    assert_eq!(index.resolve(Type::Authorization, "/10.0.1.2").len(), 0);
}

#[test]
fn a_node_knows_its_accounts() {
    let index = index(MESH, &Index::default());
    assert_eq!(index.nodes().map(AsRef::as_ref).collect::<Vec<&str>>(), ["n1", "n2"]);
    assert!(index.runs_on("n1", "shop", "web") && !index.runs_on("n2", "shop", "web"));
    assert!(index.runs_on("n2", "other", "default") && !index.runs_on("n3", "other", "default"));
    assert_eq!(index.workloads_on("n2").count(), 2);
}
