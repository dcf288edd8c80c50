use std::collections::BTreeMap;
use std::sync::Arc;

use super::Session;
use crate::config::meshfile;
use crate::control::index::Index;
use crate::control::source;
use crate::wire::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use crate::wire::rpc::Status;
use crate::wire::{ADDRESS_TYPE, AUTHORIZATION_TYPE};

const MESH: &str = "
pods:
  - {name: a, node: n1, ips: [10.0.1.1], labels: {app: a}}
  - {name: b, node: n2, ips: [10.0.2.1], labels: {app: b}}
services:
  - {name: b, vips: [10.96.0.1], ports: {80: 80}, selector: {app: b}}
policies:
  - {name: p, selector: {app: a}, action: Deny}
";
const A: &str = "Kubernetes//Pod/default/a";
const B: &str = "Kubernetes//Pod/default/b";
const C: &str = "Kubernetes//Pod/default/c";
const SERVICE: &str = "default/b.default.svc.cluster.local";

fn index(text: &str, previous: &Index) -> Arc<Index> {
    let loaded = meshfile::parse(text).unwrap();
    assert!(loaded.rejected.is_empty(), "{:?}", loaded.rejected);
    Arc::new(Index::clone(&source::index_of(&loaded.mesh)).after(previous))
}

fn first() -> Arc<Index> {
    index(MESH, &Index::default())
}

/// The mesh with one more pod behind the service.
fn with_c() -> String {
    MESH.replace("services:", "  - {name: c, node: n2, ips: [10.0.2.2], labels: {app: b}}\nservices:")
}

fn ask(type_url: &str, subscribe: &[&str], unsubscribe: &[&str]) -> DeltaDiscoveryRequest {
    let owned = |names: &[&str]| names.iter().map(|name| name.to_string()).collect();
    DeltaDiscoveryRequest {
        type_url: type_url.to_owned(),
        resource_names_subscribe: owned(subscribe),
        resource_names_unsubscribe: owned(unsubscribe),
        ..DeltaDiscoveryRequest::default()
    }
}

fn names(response: &DeltaDiscoveryResponse) -> Vec<&str> {
    response.resources.iter().map(|resource| resource.name.as_str()).collect()
}

fn session() -> Session {
    Session::new("n1".into())
}

#[test]
fn the_wildcard_in_both_forms_gets_everything_once() {
    for subscribe in [&[][..], &["*"][..]] {
        let mut session = session();
        let response = session.request(&ask(ADDRESS_TYPE, subscribe, &[]), &first()).unwrap().unwrap();
        assert_eq!(names(&response), [A, B, SERVICE]);
        assert!(response.resources.iter().all(|resource| !resource.version.is_empty() && resource.aliases.is_empty()));
        assert_eq!(session.request(&ask(ADDRESS_TYPE, subscribe, &[]), &first()).unwrap(), None, "asked twice");
    }
}

#[test]
fn a_push_holds_only_what_changed_and_skipped_states_are_merged() {
    let mut session = session();
    let one = first();
    session.request(&ask(ADDRESS_TYPE, &[], &[]), &one).unwrap().unwrap();
    let two = index(&with_c(), &one);
    let pushed = session.advance(&two);
    assert_eq!(pushed.len(), 1);
    assert_eq!(names(&pushed[0]), [C]);
    // Two states later: `c` left, `b` changed; the state between is never seen.
    let three = index(&with_c().replace("10.0.2.2", "10.0.2.9"), &two);
    let four = index(&MESH.replace("10.0.2.1", "10.0.2.7"), &three);
    let pushed = session.advance(&four);
    assert_eq!((names(&pushed[0]), pushed[0].removed_resources.as_slice()), (vec![B], [C.to_owned()].as_slice()));
    assert!(session.advance(&four).is_empty());
}

#[test]
fn a_client_that_comes_back_gets_the_difference_to_what_it_holds() {
    let index = first();
    let full = session().request(&ask(ADDRESS_TYPE, &[], &[]), &index).unwrap().unwrap();
    let mut held: BTreeMap<_, _> = full.resources.iter().map(|resource| (resource.name.clone(), resource.version.clone())).collect();
    let again = |held: &BTreeMap<String, String>| {
        let request = DeltaDiscoveryRequest { initial_resource_versions: held.clone(), ..ask(ADDRESS_TYPE, &[], &[]) };
        session().request(&request, &index).unwrap().expect("always answered")
    };
    let same = again(&held);
    assert!(same.resources.is_empty() && same.removed_resources.is_empty() && !same.nonce.is_empty());
    held.insert(A.to_owned(), "0".to_owned());
    held.remove(B);
    held.insert(C.to_owned(), "1".to_owned());
    let news = again(&held);
    assert_eq!((names(&news), news.removed_resources.as_slice()), (vec![A, B], [C.to_owned()].as_slice()));
}

#[test]
fn a_rejected_response_is_counted_and_not_sent_again_until_it_changes() {
    let mut session = session();
    let one = first();
    let response = session.request(&ask(ADDRESS_TYPE, &[], &[]), &one).unwrap().unwrap();
    let reply = |nonce: &str, message: Option<&str>| DeltaDiscoveryRequest {
        response_nonce: nonce.to_owned(),
        error_detail: message.map(|message| Status { message: message.to_owned(), ..Status::default() }),
        ..ask(ADDRESS_TYPE, &[], &[])
    };
    assert_eq!(session.request(&reply("made-up", Some("no")), &one).unwrap(), None);
    assert_eq!(session.nacks(), 0, "an unknown nonce is ignored");
    assert_eq!(session.request(&reply(&response.nonce, Some("bad\nworkload")), &one).unwrap(), None);
    assert_eq!(session.request(&reply(&response.nonce, Some("twice")), &one).unwrap(), None);
    assert_eq!(session.nacks(), 1);
    assert!(session.advance(&one).is_empty());
    let two = index(&MESH.replace("10.0.1.1", "10.0.1.9"), &one);
    assert_eq!(names(&session.advance(&two)[0]), [A]);
}

#[test]
fn a_node_on_demand_gets_its_own_workloads_and_what_it_asks_for() {
    let mut session = session();
    let one = first();
    let start = session.request(&ask(ADDRESS_TYPE, &["*"], &["*"]), &one).unwrap().unwrap();
    assert_eq!(names(&start), [A]);
    assert_eq!(start.resources[0].aliases, ["/10.0.1.1"]);

    let cases: &[(&[&str], &[&str], &[&str])] = &[
        (&["/10.96.0.1"], &[B, SERVICE], &[]),
        (&["/10.96.0.1"], &[B, SERVICE], &[]),
        (&[SERVICE], &[B, SERVICE], &[]),
        (&[B, "/10.9.9.9"], &[B], &["/10.9.9.9"]),
        (&["garbage"], &[], &["garbage"]),
    ];
    for (asked, expected, unknown) in cases {
        let response = session.request(&ask(ADDRESS_TYPE, asked, &[]), &one).unwrap().expect("a request by name is always answered");
        assert_eq!(
            (names(&response), response.removed_resources.clone()),
            (expected.to_vec(), unknown.iter().map(|name| name.to_string()).collect())
        );
    }
    // A new endpoint of a service that was looked up, and an address that was unknown, are pushed.
    let two = index(&with_c().replace("10.0.2.2", "10.9.9.9"), &one);
    assert_eq!(names(&session.advance(&two)[0]), [C]);
    // What is not asked for any more is not followed; nothing else is withdrawn.
    assert_eq!(session.request(&ask(ADDRESS_TYPE, &[], &[SERVICE, "/10.96.0.1", B, C, "/10.9.9.9"]), &two).unwrap(), None);
    assert!(session.advance(&index(MESH, &two)).is_empty());
}

#[test]
fn a_stream_can_start_by_name_and_turn_to_the_wildcard() {
    let mut session = session();
    let one = first();
    let start = session.request(&ask(ADDRESS_TYPE, &[SERVICE, "nope/nope"], &[]), &one).unwrap().unwrap();
    assert_eq!((names(&start), start.removed_resources.clone()), (vec![A, B, SERVICE], vec!["nope/nope".to_owned()]));
    let mut two = index(&with_c(), &one);
    let rest = session.request(&ask(ADDRESS_TYPE, &["*"], &[]), &two).unwrap().unwrap();
    assert_eq!(names(&rest), [C]);
    two = index(MESH, &two);
    assert_eq!(session.advance(&two)[0].removed_resources, [C]);
}

#[test]
fn policies_come_before_workloads_that_name_them_and_go_after() {
    let mut session = session();
    let one = first();
    session.request(&ask(ADDRESS_TYPE, &[], &[]), &one).unwrap().unwrap();
    let policies = session.request(&ask(AUTHORIZATION_TYPE, &[], &[]), &one).unwrap().unwrap();
    assert_eq!(names(&policies), ["default/p"]);
    let two = index(&MESH.replace("name: p", "name: q"), &one);
    let pushed = session.advance(&two);
    let seen: Vec<_> =
        pushed.iter().map(|response| (response.type_url.as_str(), names(response), response.removed_resources.len())).collect();
    assert_eq!(seen, [(AUTHORIZATION_TYPE, vec!["default/q"], 0), (ADDRESS_TYPE, vec![A], 0), (AUTHORIZATION_TYPE, vec![], 1)]);
}

#[test]
fn a_type_that_is_not_served_is_answered_empty_and_harms_nothing() {
    let mut session = session();
    let index = first();
    let other = "type.googleapis.com/envoy.config.cluster.v3.Cluster";
    let response = session.request(&ask(other, &[], &[]), &index).unwrap().unwrap();
    assert_eq!((response.type_url.as_str(), response.resources.len()), (other, 0));
    let ack = DeltaDiscoveryRequest { response_nonce: response.nonce, ..ask(other, &[], &[]) };
    assert_eq!(session.request(&ack, &index).unwrap(), None);
    assert_eq!(session.request(&ask(ADDRESS_TYPE, &[], &[]), &index).unwrap().unwrap().resources.len(), 3);
}

#[test]
fn names_are_bounded() {
    let long = "x".repeat(600);
    assert!(session().request(&ask(ADDRESS_TYPE, &[long.as_str()], &[]), &first()).is_err());
    let many: Vec<String> = (0..70_000).map(|number| format!("ns/{number}")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    assert!(session().request(&ask(ADDRESS_TYPE, &many, &[]), &first()).is_err());
}
