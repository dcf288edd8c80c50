use std::path::Path;

use prost::Message;

use super::*;
use crate::mesh::{Mesh, MeshStore, Scope};
use crate::wire::discovery::DeltaDiscoveryResponse;
use crate::wire::{ADDRESS_TYPE, AUTHORIZATION_TYPE, authorization as wire_authorization, workload as wire};

fn recorded(scenario: &str, file: &str) -> Option<DeltaDiscoveryResponse> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/istiod").join(scenario).join(file);
    let bytes = std::fs::read(path).ok()?;
    Some(DeltaDiscoveryResponse::decode(&*bytes).expect("a recorded response"))
}

/// The mesh of a recorded state, everything converted.
fn mesh_of(scenario: &str) -> std::sync::Arc<Mesh> {
    let store = MeshStore::new(None);
    let addresses = recorded(scenario, "address.binpb").expect("addresses");
    assert_eq!(addresses.type_url, ADDRESS_TYPE);
    store.edit(|edit| {
        for resource in addresses.resources {
            let any = resource.resource.expect("a body");
            match address(&resource.name, &any.value).unwrap_or_else(|reason| panic!("{scenario}: {}: {reason}", resource.name)) {
                Converted::Workload(workload) => edit.upsert_workload(*workload),
                Converted::Service(service) => edit.upsert_service(*service),
            }
        }
        let Some(policies) = recorded(scenario, "authorization.binpb") else { return };
        assert_eq!(policies.type_url, AUTHORIZATION_TYPE);
        for resource in policies.resources {
            let any = resource.resource.expect("a body");
            let policy = policy(&resource.name, &any.value).unwrap_or_else(|refused| panic!("{scenario}: {}: {refused:?}", resource.name));
            assert_eq!(*policy.key(), *resource.name);
            edit.upsert_policy(policy.key(), policy);
        }
    });
    store.snapshot()
}

#[test]
fn recorded_states_convert_without_a_refusal() {
    // (state, workloads, services, policies)
    let states = [
        ("02-workloads", 35, 3, 0),
        ("03-services", 26, 47, 0),
        ("04-serviceentry", 42, 34, 0),
        ("05b-peerauth-mesh-strict", 93, 3, 36),
        ("06-authorization", 12, 3, 48),
        ("07-waypoints", 27, 32, 1),
        ("08-feature-flags", 11, 5, 5),
        ("09-networks", 16, 7, 0),
        ("10a-serviceentry-visibility", 13, 9, 2),
        ("10c-discovery-selectors", 8, 4, 0),
    ];
    for (scenario, workloads, services, policies) in states {
        let mesh = mesh_of(scenario);
        let counts = (mesh.workload_count(), mesh.service_count(), mesh.policy_count());
        assert_eq!(counts, (workloads, services, policies), "{scenario}");
    }
}

#[test]
fn the_control_plane_may_name_policies_that_it_does_not_send() {
    let missing: Vec<String> = mesh_of("05b-peerauth-mesh-strict").missing_policies().into_keys().map(|key| key.to_string()).collect();
    assert_eq!(missing.len(), 4);
    assert!(missing.iter().all(|key| key.contains("/converted_peer_authentication_")), "{missing:?}");
    assert!(mesh_of("06-authorization").missing_policies().is_empty());
}

#[test]
fn a_recorded_state_dumps_under_the_known_names() {
    let mesh = mesh_of("03-services");
    let dump = serde_json::to_value(mesh.dump()).expect("JSON");
    let dns = dump["services"].as_array().expect("services").iter().find(|service| service["name"] == "kube-dns").expect("kube-dns");
    let uid = dns["endpoints"].as_object().expect("endpoints").keys().next().expect("an endpoint").clone();
    assert_eq!(
        *dns,
        serde_json::json!({
            "name": "kube-dns", "namespace": "kube-system", "hostname": "kube-dns.kube-system.svc.cluster.local", "vips": ["/10.96.0.10"],
            "ports": {"53": 53}, "subjectAltNames": [], "ipFamilies": "IPv4", "canonical": true, "visibility": "Public",
            "endpoints": {&uid: {"workloadUid": &uid, "port": {"53": 53}, "status": "Healthy"}},
        })
    );
    let pod = dump["workloads"].as_array().expect("workloads").iter().find(|workload| workload["uid"] == *uid).expect("its workload");
    let expected = [
        ("namespace", "kube-system".into()),
        ("serviceAccount", "coredns".into()),
        ("trustDomain", "cluster.local".into()),
        ("protocol", "TCP".into()),
        ("workloadType", "pod".into()),
        ("clusterId", "Kubernetes".into()),
        ("capacity", 1.into()),
        ("services", serde_json::json!(["kube-system/kube-dns.kube-system.svc.cluster.local"])),
    ];
    for (key, value) in expected {
        assert_eq!(pod[key], value, "{key}");
    }
}

fn workload(change: impl FnOnce(&mut wire::Workload)) -> Result<Converted, String> {
    let mut message = wire::Workload { uid: "u".to_owned(), ..wire::Workload::default() };
    change(&mut message);
    let kind = wire::address::Type::Workload(message);
    address("u", &wire::Address { r#type: Some(kind) }.encode_to_vec())
}

fn service(change: impl FnOnce(&mut wire::Service)) -> Result<Converted, String> {
    let mut message = wire::Service { namespace: "ns".to_owned(), hostname: "h".to_owned(), ..wire::Service::default() };
    change(&mut message);
    address("ns/h", &wire::Address { r#type: Some(wire::address::Type::Service(message)) }.encode_to_vec())
}

#[test]
fn absent_fields_of_a_workload_have_their_defaults() {
    let Ok(Converted::Workload(workload)) = workload(|_| {}) else { panic!("a workload") };
    let texts = [&*workload.trust_domain, &workload.service_account, &workload.cluster_id, &workload.workload_type];
    assert_eq!(texts, ["cluster.local", "default", "Kubernetes", "deployment"]);
    assert_eq!((workload.capacity, workload.application_tunnel), (1, None));
}

#[test]
fn what_cannot_be_understood_is_refused_with_its_field() {
    let port = |service_port, target_port| wire::Port { service_port, target_port, app_protocol: 0 };
    let network_address = |address: &[u8], length| wire::NetworkAddress { network: String::new(), address: address.to_vec(), length };
    let cases = [
        (workload(|message| message.uid.clear()), "uid: empty"),
        (workload(|message| message.uid = "other".to_owned()), r#"the resource calls itself "other""#),
        (workload(|message| message.addresses = vec![vec![1, 2, 3]]), "addresses: an address has 4 or 16 bytes, not 3"),
        (workload(|message| message.tunnel_protocol = 2), "tunnel_protocol: LEGACY_ISTIO_MTLS is not supported"),
        (workload(|message| message.tunnel_protocol = 9), "tunnel_protocol: unknown value 9"),
        (workload(|message| message.status = 9), "status: unknown value 9"),
        (workload(|message| message.waypoint = Some(wire::GatewayAddress::default())), "waypoint: no destination"),
        (
            workload(|message| {
                message.services.insert("h".to_owned(), wire::PortList::default());
            }),
            r#"services: "h" is not of the form namespace/hostname"#,
        ),
        (
            workload(|message| {
                message.services.insert("ns/h".to_owned(), wire::PortList { ports: vec![port(80, 70_000)] });
            }),
            "services: 70000 is not a port",
        ),
        (service(|message| message.hostname.clear()), "hostname: empty"),
        (
            service(|message| message.addresses = vec![network_address(&[10, 0, 0, 0], Some(33))]),
            "addresses: 10.0.0.0 has no prefix of 33 bits",
        ),
        (service(|message| message.weighted_waypoints = vec![wire::WeightedWaypoint::default()]), "weighted_waypoints: no destination"),
        (
            service(|message| message.load_balancing = Some(wire::LoadBalancing { routing_preference: vec![0], ..Default::default() })),
            "routing_preference: unspecified",
        ),
        (address("x", &[]), "neither a workload nor a service"),
    ];
    for (converted, reason) in cases {
        assert_eq!(converted.expect_err(reason), reason);
    }
    assert!(address("x", &[0xff]).expect_err("broken bytes").starts_with("not an Address: "));
}

#[test]
fn an_address_with_a_full_prefix_is_one_address() {
    let of = |address: &[u8], length| wire::NetworkAddress { network: "n".to_owned(), address: address.to_vec(), length };
    let six = std::net::Ipv6Addr::LOCALHOST.octets();
    let addresses = vec![of(&[10, 0, 0, 1], None), of(&[10, 0, 0, 2], Some(32)), of(&six, Some(128)), of(&[10, 9, 1, 1], Some(16))];
    let Ok(Converted::Service(service)) = service(|message| message.addresses = addresses) else { panic!("a service") };
    assert_eq!(service.vips.iter().map(ToString::to_string).collect::<Vec<_>>(), ["n/10.0.0.1", "n/10.0.0.2", "n/::1"]);
    assert_eq!(service.cidr_vips.iter().map(|range| range.cidr.to_string()).collect::<Vec<_>>(), ["10.9.0.0/16"]);
}

#[test]
fn a_policy_is_never_widened_but_refused_and_held_against_its_scope() {
    use wire_authorization::{Address, Authorization, Clause, Match, Rule, StringMatch};
    let refused = |scope, dry_run, one: Match| {
        let rules = vec![Rule { clauses: vec![Clause { matches: vec![one] }] }];
        let message =
            Authorization { name: "p".to_owned(), namespace: "ns".to_owned(), scope, action: 1, rules, dry_run, extensions: vec![] };
        policy("ns/p", &message.encode_to_vec()).expect_err("refused")
    };
    let short = Match { not_source_ips: vec![Address { address: vec![10, 0, 0], length: 24 }], ..Match::default() };
    let long = Match { destination_ips: vec![Address { address: vec![10, 0, 0, 0], length: 33 }], ..Match::default() };
    let untyped = Match { not_principals: vec![StringMatch { match_type: None }], ..Match::default() };
    let port = Match { destination_ports: vec![65_536 + 80], ..Match::default() };
    let cases = [
        (2, short, Scope::WorkloadSelector, "not_source_ips: an address has 4 or 16 bytes, not 3"),
        (1, long, Scope::Namespace, "destination_ips: 10.0.0.0 has no prefix of 33 bits"),
        (0, untyped.clone(), Scope::Global, "not_principals: a match without a type"),
        (0, port, Scope::Global, "destination_ports: 65616 is not a port"),
        (9, Match::default(), Scope::WorkloadSelector, "scope: unknown value 9"),
    ];
    for (wire_scope, one, scope, reason) in cases {
        let refusal = refused(wire_scope, false, one);
        assert_eq!(refusal.reason, reason);
        let unusable = refusal.unusable.expect("held against connections");
        assert_eq!((&*unusable.namespace, unusable.scope, &*unusable.reason), ("ns", scope, reason));
    }
    assert_eq!(refused(0, true, untyped).unusable, None, "a dry run never denies");
    let garbage = policy("ns/p", &[0xff]).expect_err("refused").unusable.expect("held against connections");
    assert_eq!((&*garbage.namespace, garbage.scope), ("ns", Scope::WorkloadSelector));
}
