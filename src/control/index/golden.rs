//! The objects of a real cluster → the resources that a real istiod made of them, byte for byte. What is other on purpose
//! is listed here, each with its reason.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use prost::Message;
use serde_json::{Value, json};

use super::{Index, Indexer, Type};
use crate::control::kubernetes::{AuthorizationPolicy, EndpointSlice, Namespace, Node, PeerAuthentication, Pod, Service, Verdict, Watched};
use crate::control::objects::{Change, Mesh};
use crate::wire::authorization::Authorization;
use crate::wire::discovery::{DeltaDiscoveryResponse, Resource};
use crate::wire::workload::{Address, Workload, address};

/// Of objects that are not read yet: WorkloadEntries are given as pods, so that the policies which select them are seen.
const NOT_YET: &str = "Kubernetes/networking.istio.io/WorkloadEntry/";

/// Enforced and sent by us: a DENY policy that asks for HTTP attributes becomes wider by losing them. istiod sends a match
/// without fields in their place, which never matches, so that the policy refuses nothing, though its status says that it
/// is more restrictive than requested.
const HTTP_ALONE: [&str; 7] = [
    "az/deny-l7-and-from",
    "az/deny-l7-method",
    "az/deny-l7-not-request-principal",
    "az/deny-l7-one-op-of-two",
    "az/deny-l7-rule-and-l4-rule",
    "az/deny-l7-when-header",
    "az/deny-l7-when-mixed",
];

/// Sent by us alone. istiod attaches them and does not send them: the whole workload is open.
const FORGOTTEN: [&str; 4] = [
    "pa-nopolicy/converted_peer_authentication_nomode-port-permissive",
    "pa-nopolicy/converted_peer_authentication_unset-port-permissive",
    "pa-unset/converted_peer_authentication_nomode-port-permissive",
    "pa-unset/converted_peer_authentication_unset-port-permissive",
];

/// Sent by istiod alone, in the place of those: no workload names them.
const UNUSED: [&str; 4] = [
    "pa-nopolicy/converted_peer_authentication_nomode-port-strict",
    "pa-nopolicy/converted_peer_authentication_unset-port-strict",
    "pa-unset/converted_peer_authentication_nomode-port-strict",
    "pa-unset/converted_peer_authentication_unset-port-strict",
];

/// In a namespace that is STRICT istiod puts the clause without a principal last, or first and last. All clauses must match,
/// so that it means the same.
const CLAUSE_LAST: [&str; 4] = [
    "pa-strict/converted_peer_authentication_nomode-port-permissive",
    "pa-strict/converted_peer_authentication_strict-one-permissive",
    "pa-strict/converted_peer_authentication_strict-two-permissive",
    "pa-strict/converted_peer_authentication_unset-port-permissive",
];

/// Sent by us alone: dry-run policies, which istiod sends with a feature flag only.
const DRY_RUN: &str = "az/dry-run";

fn folder(scenario: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/istiod").join(scenario)
}

pub(in crate::control) fn items(scenario: &str) -> Vec<Value> {
    let text = std::fs::read_to_string(folder(scenario).join("objects.json")).expect("recorded objects");
    let list: Value = serde_json::from_str(&text).expect("JSON");
    list["items"].as_array().expect("items").clone()
}

pub(super) fn mesh() -> Mesh {
    Mesh { trust_domain: "cluster.local".into(), root_namespace: "istio-system".into() }
}

/// The change that puts an object there; `None`: it is of a kind that is not read.
pub(super) fn change(item: &Value) -> Option<Change> {
    fn read<W: Watched>(item: &Value) -> Change {
        let object: W = serde_json::from_value(item.clone()).expect("the object's fields");
        let (change, refused) = object.change(&mesh());
        assert_eq!(refused, None);
        change
    }
    Some(match item["kind"].as_str().expect("a kind") {
        "Node" => read::<Node>(item),
        "Namespace" => read::<Namespace>(item),
        "Pod" => read::<Pod>(item),
        "Service" => read::<Service>(item),
        "EndpointSlice" => read::<EndpointSlice>(item),
        "PeerAuthentication" => read::<PeerAuthentication>(item),
        "AuthorizationPolicy" => read::<AuthorizationPolicy>(item),
        "WorkloadEntry" => read::<Pod>(&pod_instead(item)),
        _ => return None,
    })
}

/// Selected by the same policies.
fn pod_instead(entry: &Value) -> Value {
    let (meta, spec) = (&entry["metadata"], &entry["spec"]);
    json!({
        "metadata": {"name": format!("entry-{}", meta["name"].as_str().expect("a name")), "namespace": meta["namespace"], "labels": spec["labels"]},
        "status": {"podIP": spec["address"]},
    })
}

pub(in crate::control) fn index(items: &[Value]) -> Index {
    let mut indexer = Indexer::default();
    indexer.apply(&mesh(), items.iter().filter_map(change).collect());
    Index::clone(&indexer.publish())
}

fn recorded(scenario: &str, file: &str) -> BTreeMap<String, Resource> {
    let bytes = std::fs::read(folder(scenario).join(file)).expect("a recorded answer");
    let response = DeltaDiscoveryResponse::decode(bytes.as_slice()).expect("a response");
    response.resources.into_iter().map(|resource| (resource.name.clone(), resource)).collect()
}

fn body(resource: &Resource) -> &[u8] {
    &resource.resource.as_ref().expect("a body").value
}

fn workload(body: &[u8]) -> Workload {
    match Address::decode(body).expect("an address").r#type {
        Some(address::Type::Workload(workload)) => workload,
        other => panic!("no workload: {other:?}"),
    }
}

/// All addresses are those that were recorded.
fn assert_addresses(index: &Index, scenario: &str) {
    let expected = recorded(scenario, "address.binpb");
    let ours = index.resources(Type::Address);
    for (name, expected) in &expected {
        if let Some(entry) = name.strip_prefix(NOT_YET) {
            let instead = ours.get(&format!("Kubernetes//Pod/{}", entry.replacen('/', "/entry-", 1))).expect(name);
            let attached = |body: &[u8]| workload(body).authorization_policies;
            assert_eq!(known(attached(&instead.body)), attached(body(expected)), "{name}");
            continue;
        }
        let made = ours.get(name).unwrap_or_else(|| panic!("{scenario}: {name} is missing"));
        if &made.body[..] != body(expected) {
            let (mut made, expected) = (Address::decode(&made.body[..]).unwrap(), Address::decode(body(expected)).unwrap());
            if let Some(address::Type::Workload(workload)) = &mut made.r#type {
                workload.authorization_policies = known(std::mem::take(&mut workload.authorization_policies));
            }
            assert_eq!(made, expected, "{scenario}: {name}");
        } else {
            assert_eq!(*made.version, *expected.version, "{scenario}: {name}");
        }
    }
    let more: Vec<&str> = ours.iter().map(|resource| &*resource.name).filter(|name| !expected.contains_key(*name)).collect();
    assert!(more.iter().all(|name| name.contains("/entry-")), "{scenario}: not recorded: {more:?}");
}

/// Without those that istiod does not name.
fn known(mut policies: Vec<String>) -> Vec<String> {
    policies.retain(|name| name != DRY_RUN);
    policies
}

/// All policies are those that were recorded, but for those that are other on purpose.
fn assert_policies(index: &Index, scenario: &str, other: &[&str], more: &[&str], less: &[&str]) {
    let mut expected = recorded(scenario, "authorization.binpb");
    expected.retain(|name, _| !less.contains(&name.as_str()));
    let ours = index.resources(Type::Authorization);
    for (name, expected) in &expected {
        let made = ours.get(name).unwrap_or_else(|| panic!("{scenario}: {name} is missing"));
        let (decoded, recorded) = (Authorization::decode(&made.body[..]).unwrap(), Authorization::decode(body(expected)).unwrap());
        if CLAUSE_LAST.contains(&name.as_str()) {
            assert_eq!(clauses(&decoded), clauses(&recorded), "{scenario}: {name}");
        }
        match other.contains(&name.as_str()) || CLAUSE_LAST.contains(&name.as_str()) {
            true => assert_ne!(decoded, recorded, "{scenario}: {name} is the same"),
            false => {
                assert_eq!(decoded, recorded, "{scenario}: {name}");
                assert_eq!(&made.body[..], body(expected), "{scenario}: {name}");
            }
        }
    }
    let added: BTreeSet<&str> = ours.iter().map(|resource| &*resource.name).filter(|name| !expected.contains_key(*name)).collect();
    assert_eq!(added, more.iter().copied().collect(), "{scenario}: not recorded");
}

/// As a set.
fn clauses(policy: &Authorization) -> BTreeSet<Vec<u8>> {
    policy.rules.iter().flat_map(|rule| &rule.clauses).map(Message::encode_to_vec).collect()
}

#[test]
fn workloads_and_services_are_those_of_istiod() {
    for scenario in ["01-baseline", "02-workloads", "03-services"] {
        let index = index(&items(scenario));
        assert_addresses(&index, scenario);
        assert!(index.resources(Type::Authorization).is_empty());
    }
}

#[test]
fn peer_authentications_are_those_of_istiod() {
    let without = items("05a-peerauth-no-mesh-policy");
    let of_mesh = |mode: &str| json!({"kind": "PeerAuthentication", "metadata": {"name": "default", "namespace": "istio-system"}, "spec": {"mtls": {"mode": mode}}});
    // What the mesh says beside STRICT makes no difference.
    for mode in [None, Some("PERMISSIVE"), Some("DISABLE"), Some("UNSET")] {
        let mut items = without.clone();
        items.extend(mode.map(of_mesh));
        let index = index(&items);
        assert_addresses(&index, "05a-peerauth-no-mesh-policy");
        assert_policies(&index, "05a-peerauth-no-mesh-policy", &[], &[], &[]);
    }
    let strict = index(&items("05b-peerauth-mesh-strict"));
    assert_addresses(&strict, "05b-peerauth-mesh-strict");
    assert_policies(&strict, "05b-peerauth-mesh-strict", &[], &FORGOTTEN, &UNUSED);
}

#[test]
fn every_policy_that_a_workload_names_is_sent() {
    for scenario in ["05a-peerauth-no-mesh-policy", "05b-peerauth-mesh-strict", "06-authorization"] {
        let index = index(&items(scenario));
        let workloads = index.resources(Type::Address).iter().filter(|resource| resource.name.starts_with("Kubernetes/"));
        for name in workloads.flat_map(|resource| workload(&resource.body).authorization_policies) {
            assert!(index.resources(Type::Authorization).contains(&name), "{scenario}: {name}");
        }
    }
}

#[test]
fn authorization_policies_are_those_of_istiod() {
    let index = index(&items("06-authorization"));
    assert_addresses(&index, "06-authorization");
    assert_policies(&index, "06-authorization", &HTTP_ALONE, &[DRY_RUN], &[]);

    let rules = |name: &str| Authorization::decode(&index.resources(Type::Authorization).get(name).unwrap().body[..]).unwrap().rules;
    assert!(rules("az/deny-l7-method")[0].clauses.is_empty(), "refuses every connection");
    assert_eq!(rules("az/deny-l7-when-mixed")[0].clauses.len(), 1, "refuses every connection to the port");
    assert_eq!(rules("az/deny-l7-rule-and-l4-rule").len(), 2);
}

#[test]
fn the_status_says_what_istiod_says() {
    let mut checked = 0;
    for item in items("06-authorization") {
        if item["kind"] != "AuthorizationPolicy" {
            continue;
        }
        let policy: AuthorizationPolicy = serde_json::from_value(item.clone()).unwrap();
        let condition = &item["status"]["conditions"][0];
        let verdict = policy.verdict(&mesh());
        match (condition["type"].as_str().unwrap(), verdict) {
            ("ZtunnelAccepted", Some(verdict)) if item["metadata"]["name"] == "dry-run" => assert!(verdict.accepted),
            // It says so, istiod does not.
            ("ZtunnelAccepted", Some(verdict)) if item["metadata"]["name"] == "empty-selector" => assert!(!verdict.accepted),
            ("ZtunnelAccepted", Some(Verdict { accepted, reason, message })) => {
                assert_eq!(condition["status"], if accepted { "True" } else { "False" }, "{item}");
                assert_eq!((condition["reason"].as_str(), condition["message"].as_str()), (Some(reason), Some(message.as_str())));
                checked += 1;
            }
            ("WaypointAccepted", None) => {}
            other => panic!("{other:?}: {item}"),
        }
    }
    assert!(checked > 40);
}

#[test]
fn a_policy_for_a_waypoint_that_has_not_accepted_it_is_said_to_have_no_effect() {
    let policy = |status: Value| -> AuthorizationPolicy {
        let spec = json!({"targetRefs": [{"kind": "Service", "group": "", "name": "web"}]});
        serde_json::from_value(json!({"metadata": {"name": "a", "namespace": "n"}, "spec": spec, "status": status})).unwrap()
    };
    let verdict = policy(Value::Null).verdict(&mesh()).unwrap();
    assert_eq!((verdict.accepted, verdict.reason), (false, "NoEffect"));
    assert_eq!(policy(json!({"conditions": [{"type": "WaypointAccepted", "status": "True"}]})).verdict(&mesh()), None);
}
