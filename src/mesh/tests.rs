use std::sync::Arc;
use std::time::Duration;

use super::fixture::{at, endpoint, mesh, pod, service};
use super::*;
use crate::base::{Str, code};

fn uid(workload: Option<&Arc<Workload>>) -> Option<&str> {
    workload.map(|workload| workload.uid.rsplit('/').next().expect("a last part"))
}

fn endpoint_names(mesh: &Mesh, key: &str) -> Vec<String> {
    let key = key.parse().expect("namespace/hostname");
    mesh.endpoints(&key).map(|endpoint| endpoint.workload.name.to_string()).collect()
}

#[test]
fn of_several_workloads_with_one_address_the_most_specific_is_found() {
    let external = |name: &str| {
        let mut workload = pod("a", name, "10.0.0.1");
        workload.uid = Str::from(format!("Kubernetes/networking.istio.io/ServiceEntry/a/{name}"));
        workload
    };
    let tcp = |mut workload: Workload| {
        workload.protocol = Protocol::TCP;
        workload
    };
    let unhealthy = |mut workload: Workload| {
        workload.status = Health::Unhealthy;
        workload
    };
    // (inserted in this order, found)
    let cases = [
        (vec![pod("a", "p", "10.0.0.1"), external("e")], "p"),
        (vec![tcp(pod("a", "p", "10.0.0.1")), external("e")], "p"),
        (vec![external("e"), tcp(external("t"))], "e"),
        (vec![tcp(pod("a", "t", "10.0.0.1")), pod("a", "h", "10.0.0.1"), tcp(pod("a", "u", "10.0.0.1"))], "h"),
        (vec![pod("a", "old", "10.0.0.1"), pod("a", "new", "10.0.0.1")], "new"),
        (vec![pod("a", "new", "10.0.0.1"), unhealthy(pod("a", "old", "10.0.0.1"))], "new"),
    ];
    for (workloads, expected) in cases {
        let mesh = mesh(workloads, []);
        assert_eq!(uid(mesh.workload_at(&at("10.0.0.1"))), Some(expected));
    }
}

#[test]
fn a_workload_on_its_nodes_network_is_not_found_by_address() {
    let mut host = pod("a", "host", "192.0.2.1");
    host.network_mode = NetworkMode::HostNetwork;
    let mesh = mesh([host], []);
    assert_eq!(mesh.workload_at(&at("192.0.2.1")), None);
    assert_eq!(uid(mesh.workload("Kubernetes//Pod/a/host")), Some("host"));
}

#[test]
fn an_address_is_only_known_in_its_network() {
    let mut other = pod("a", "other", "10.0.0.1");
    other.network = Str::from("net2");
    let mesh = mesh([other], []);
    assert_eq!(mesh.workload_at(&at("10.0.0.1")), None);
    assert_eq!(uid(mesh.workload_at(&NetworkAddress::new("net2", "10.0.0.1".parse().expect("IP")))), Some("other"));
}

#[test]
fn a_mapped_address_is_its_ipv4_address() {
    let mesh = mesh([pod("a", "p", "::ffff:10.0.0.1")], [service("a/s.a", "::ffff:10.1.0.1", &[(80, 80)])]);
    assert_eq!(uid(mesh.workload_at(&at("10.0.0.1"))), Some("p"));
    assert!(mesh.service_at_vip(&at("10.1.0.1"), None).is_some());
}

#[test]
fn a_local_workload_needs_its_account_and_this_node() {
    let mesh = mesh([pod("a", "p", "10.0.0.1")], []);
    let local =
        |name: &str, account: &str| LocalWorkload { name: Str::from(name), namespace: Str::from("a"), service_account: Str::from(account) };
    let cases = [
        (local("p", "p"), Some("node1"), true),
        (local("p", "p"), None, true),
        (local("p", "p"), Some("node2"), false),
        (local("p", "other"), Some("node1"), false),
        (local("q", "p"), Some("node1"), false),
    ];
    for (local, node, found) in cases {
        assert_eq!(mesh.local_workload(&local, node).is_some(), found, "{local} on {node:?}");
    }
}

#[test]
fn of_several_services_the_clients_own_wins_then_the_canonical_one() {
    let plain = |key: &str| {
        let mut service = service(key, "10.1.0.1", &[(80, 80)]);
        service.canonical = false;
        service
    };
    let private = |key: &str| {
        let mut service = service(key, "10.1.0.1", &[(80, 80)]);
        service.visibility = Visibility::Namespace;
        service
    };
    let canonical = |key: &str| service(key, "10.1.0.1", &[(80, 80)]);
    // (services, namespace of the client, namespace of the service found)
    let cases = [
        (vec![plain("b/h"), plain("a/h")], None, Some("a")),
        (vec![plain("a/h"), canonical("b/h")], None, Some("b")),
        (vec![plain("a/h"), canonical("b/h")], Some("a"), Some("a")),
        (vec![plain("a/h"), private("b/h")], Some("c"), Some("a")),
        (vec![plain("a/h"), private("b/h")], Some("b"), Some("b")),
        (vec![private("b/h")], Some("c"), None),
        (vec![private("b/h")], None, Some("b")),
    ];
    for (services, client, expected) in cases {
        let mesh = mesh([], services);
        let namespace = |service: Option<&Arc<Service>>| service.map(|service| service.namespace.to_string());
        assert_eq!(namespace(mesh.service_at_vip(&at("10.1.0.1"), client)).as_deref(), expected, "by address");
        assert_eq!(namespace(mesh.service_named("h", client)).as_deref(), expected, "by name");
    }
}

#[test]
fn of_several_ranges_the_clients_own_wins_then_the_longest() {
    let ranged = |key: &str, cidr: &str| {
        let mut service = service(key, "", &[(80, 80)]);
        service.cidr_vips = vec![NetworkCidr::new("", cidr.parse().expect("a range"))];
        service
    };
    let mesh = mesh([], [ranged("a/wide", "10.0.0.0/8"), ranged("b/long", "10.9.0.0/16"), ranged("c/six", "fd00::/8")]);
    let found = |ip: &str, client| mesh.service_at_range(&at(ip), client).map(|service| service.hostname.to_string());
    assert_eq!(found("10.9.1.1", None).as_deref(), Some("long"));
    assert_eq!(found("10.9.1.1", Some("a")).as_deref(), Some("wide"));
    assert_eq!(found("10.8.1.1", Some("b")).as_deref(), Some("wide"));
    assert_eq!(found("fd00::1", None).as_deref(), Some("six"));
    assert_eq!(found("192.0.2.1", None), None);
}

#[test]
fn an_exact_virtual_address_comes_before_a_workload_and_a_workload_before_a_range() {
    let mut ranged = service("a/range", "", &[(80, 80)]);
    ranged.cidr_vips = vec![NetworkCidr::new("", "10.0.0.0/8".parse().expect("a range"))];
    let mesh = mesh([pod("a", "p", "10.0.0.1,10.0.0.2")], [service("a/vip", "10.0.0.1", &[(80, 80)]), ranged]);
    let owner = |ip: &str| match mesh.owner(&at(ip), None) {
        Some(Owner::Service(service)) => service.hostname.to_string(),
        Some(Owner::Workload(workload)) => workload.name.to_string(),
        None => "nobody".to_owned(),
    };
    assert_eq!([owner("10.0.0.1"), owner("10.0.0.2"), owner("10.0.0.3"), owner("192.0.2.1")], ["vip", "p", "range", "nobody"]);
}

#[test]
fn endpoints_wait_for_their_service_and_outlive_it() {
    let store = MeshStore::new(None);
    store.edit(|edit| edit.upsert_workload(endpoint(pod("a", "p", "10.0.0.1"), "a/s.a")));
    assert_eq!(endpoint_names(&store.snapshot(), "a/s.a"), ["p"]);
    assert!(store.snapshot().dump().staged_services.contains_key(&NamespacedHostname::new("a", "s.a")));
    let web = service("a/s.a", "10.1.0.1", &[(80, 80)]);
    store.edit(|edit| edit.upsert_service(web.clone()));
    assert!(store.snapshot().dump().staged_services.is_empty());
    assert!(store.edit(|edit| edit.remove_service(&web.key())));
    store.edit(|edit| edit.upsert_service(web.clone()));
    assert_eq!(endpoint_names(&store.snapshot(), "a/s.a"), ["p"], "recreated service");
    // The workload moves to another service, then goes.
    store.edit(|edit| edit.upsert_workload(endpoint(pod("a", "p", "10.0.0.1"), "a/t.a")));
    assert_eq!(endpoint_names(&store.snapshot(), "a/s.a"), [] as [&str; 0]);
    assert_eq!(endpoint_names(&store.snapshot(), "a/t.a"), ["p"]);
    assert!(store.edit(|edit| edit.remove_address("Kubernetes//Pod/a/p")));
    assert_eq!(endpoint_names(&store.snapshot(), "a/t.a"), [] as [&str; 0]);
}

#[test]
fn services_that_share_an_address_do_not_erase_each_other() {
    let store = MeshStore::new(None);
    store.edit(|edit| {
        edit.upsert_service(service("a/one", "10.1.0.1", &[(80, 80)]));
        edit.upsert_service(service("a/two", "10.1.0.1", &[(80, 80)]));
    });
    assert!(store.edit(|edit| edit.remove_address("a/one")));
    let mesh = store.snapshot();
    assert_eq!(mesh.service_at_vip(&at("10.1.0.1"), None).map(|service| &*service.hostname), Some("two"));
}

#[test]
fn a_changed_range_leaves_nothing_of_the_old_one() {
    let store = MeshStore::new(None);
    let mut ranged = service("a/range", "", &[(80, 80)]);
    ranged.cidr_vips = vec!["10.9.0.0/16", "10.9.0.1/16"]
        .into_iter()
        .map(|cidr| NetworkCidr { network: Str::from(""), cidr: cidr.parse().expect("a range") })
        .collect();
    store.edit(|edit| edit.upsert_service(ranged.clone()));
    assert!(store.snapshot().service_at_range(&at("10.9.0.1"), None).is_some());
    ranged.cidr_vips = vec![NetworkCidr::new("", "10.8.0.0/24".parse().expect("a range"))];
    store.edit(|edit| edit.upsert_service(ranged));
    let mesh = store.snapshot();
    assert_eq!(mesh.service_at_range(&at("10.9.0.1"), None), None);
    assert_eq!((mesh.by_cidr.size(), mesh.cidr_lengths.size()), (1, 1));
}

#[test]
fn removing_everything_leaves_no_index_entry() {
    let store = MeshStore::new(None);
    let mut named = endpoint(pod("a", "p", "10.0.0.1,fd00::1"), "a/s.a");
    named.hostname = Str::from("p.example");
    let mut ranged = service("a/s.a", "10.1.0.1,fd00::2", &[(80, 80)]);
    ranged.cidr_vips = vec![NetworkCidr::new("", "10.9.0.0/16".parse().expect("a range"))];
    let policy = Policy {
        name: Str::from("deny"),
        namespace: Str::from("a"),
        scope: Scope::Namespace,
        action: Action::Deny,
        rules: Vec::new(),
        dry_run: false,
    };
    store.edit(|edit| {
        edit.upsert_workload(named);
        edit.upsert_service(ranged);
        edit.upsert_policy(policy.key(), policy);
    });
    store.edit(|edit| edit.remove_workload("Kubernetes//Pod/a/p") && edit.remove_address("a/s.a") && edit.remove_policy("a/deny"));
    let mesh = store.snapshot();
    let sizes = [
        mesh.workload_count(),
        mesh.service_count(),
        mesh.policy_count(),
        mesh.by_address.size(),
        mesh.by_hostname.size(),
        mesh.by_name.size(),
        mesh.services_by_hostname.size(),
        mesh.by_vip.size(),
        mesh.by_cidr.size(),
        mesh.cidr_lengths.size(),
        mesh.endpoints.size(),
        mesh.scoped_policies.size(),
    ];
    assert_eq!(sizes, [0; 12]);
}

#[test]
fn one_edit_is_one_publication_and_an_equal_resource_is_none() {
    let store = MeshStore::new(None);
    let changed = store.changed();
    let old = store.snapshot();
    store.edit(|edit| {
        edit.upsert_workload(pod("a", "p", "10.0.0.1"));
        edit.upsert_workload(pod("a", "q", "10.0.0.2"));
    });
    assert_eq!((*changed.borrow(), store.snapshot().version()), (1, 1));
    assert_eq!(old.workload_count(), 0, "a snapshot does not change");
    let before = store.snapshot();
    store.edit(|edit| edit.upsert_workload(pod("a", "p", "10.0.0.1")));
    assert!(Arc::ptr_eq(&before, &store.snapshot()));
    assert_eq!(*changed.borrow(), 1);
}

#[test]
fn a_change_in_a_large_mesh_touches_only_what_changes() {
    let store = MeshStore::new(None);
    store.edit(|edit| {
        edit.upsert_service(service("a/big", "10.200.0.1", &[(80, 80)]));
        for n in 0..10_000u32 {
            let ip = std::net::Ipv4Addr::from(0x0a00_0000 + n).to_string();
            edit.upsert_workload(endpoint(pod("a", &format!("p{n}"), &ip), "a/big"));
        }
    });
    let before = store.snapshot();
    let touched = store.edit(|edit| {
        let mut changed = endpoint(pod("a", "p4711", "10.0.18.103"), "a/big");
        changed.status = Health::Unhealthy;
        edit.upsert_workload(changed);
        edit.touched()
    });
    assert!(touched <= 8, "{touched} entries touched");
    let after = store.snapshot();
    let kept = after.workloads().filter(|workload| before.workload(&workload.uid).is_some_and(|old| Arc::ptr_eq(old, workload))).count();
    assert_eq!(kept, 9_999);
    assert_eq!(after.endpoints(&NamespacedHostname::new("a", "big")).count(), 10_000);
}

#[tokio::test(start_paused = true)]
async fn a_local_workload_is_waited_for_and_not_for_ever() {
    let store = Arc::new(MeshStore::new(Some(Str::from("node1"))));
    let local = LocalWorkload { name: Str::from("p"), namespace: Str::from("a"), service_account: Str::from("p") };
    let waiting = tokio::spawn({
        let (store, local) = (store.clone(), local.clone());
        async move { store.wait_local(&local, Duration::from_secs(5)).await }
    });
    tokio::task::yield_now().await;
    store.edit(|edit| edit.upsert_workload(pod("a", "other", "10.0.0.2")));
    tokio::task::yield_now().await;
    assert!(!waiting.is_finished());
    store.edit(|edit| edit.upsert_workload(pod("a", "p", "10.0.0.1")));
    let found = waiting.await.expect("the task ends").expect("the workload is found");
    assert_eq!(&*found.name, "p");

    store.edit(|edit| edit.remove_workload("Kubernetes//Pod/a/p"));
    let error = store.wait_local(&local, Duration::from_secs(5)).await.expect_err("nobody sends it");
    assert_eq!(error.code(), &code::UNKNOWN_LOCAL);
}

#[test]
fn the_dump_has_the_names_that_its_readers_know() {
    let mut workload = endpoint(pod("a", "p", "10.0.0.1"), "a/s.a");
    workload.waypoint = Some(GatewayAddress { destination: "a/wp.a".parse().expect("a destination"), hbone_mtls_port: 15008 });
    workload.services.insert("a/u.a".parse().expect("a key"), Ports::from([(80, 8080)]));
    let mesh = mesh([workload], [service("a/s.a", "10.1.0.1", &[(80, 8080)])]);
    let dump = serde_json::to_value(mesh.dump()).expect("JSON");
    let expected = serde_json::json!({
        "workloads": [{
            "uid": "Kubernetes//Pod/a/p", "workloadIps": ["10.0.0.1"], "protocol": "HBONE", "networkMode": "Standard",
            "waypoint": {"destination": "a/wp.a", "hboneMtlsPort": 15008}, "name": "p", "namespace": "a", "trustDomain": "cluster.local",
            "serviceAccount": "p", "node": "node1", "status": "Healthy", "clusterId": "Kubernetes",
            "services": ["a/s.a", "a/u.a"], "capacity": 1,
        }],
        "services": [{
            "name": "s", "namespace": "a", "hostname": "s.a", "vips": ["/10.1.0.1"], "ports": {"80": 8080}, "subjectAltNames": [],
            "canonical": true, "visibility": "Public",
            "endpoints": {"Kubernetes//Pod/a/p": {"workloadUid": "Kubernetes//Pod/a/p", "port": {}, "status": "Healthy"}},
        }],
        "policies": [],
        "stagedServices": {"a/u.a": {"Kubernetes//Pod/a/p": {"workloadUid": "Kubernetes//Pod/a/p", "port": {"80": 8080}, "status": "Healthy"}}},
    });
    assert_eq!(dump, expected);
}
