//! Whatever happens in whatever order: the index is the one that would be made of the same objects from nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};

use super::golden;
use super::{Index, Indexer, Type};
use crate::base::Str;
use crate::control::objects::{Change, Id, Kind, Mesh, Object, Version};

/// Names that collide often.
const NAMESPACES: [&str; 3] = ["a", "b", "istio-system"];
const NAMES: [&str; 4] = ["one", "two", "three", "four"];
const APPS: [&str; 3] = ["web", "db", "other"];
const NODES: [&str; 3] = ["n1", "n2", ""];

fn item(rng: &mut SmallRng) -> Value {
    let pick = |rng: &mut SmallRng, from: &[&str]| (*from.choose(rng).expect("not empty")).to_owned();
    let (namespace, name) = (pick(rng, &NAMESPACES), pick(rng, &NAMES));
    let app = pick(rng, &APPS);
    let meta = json!({"namespace": namespace, "name": name, "uid": rng.random_range(0..3).to_string(), "labels": {"app": app},
        "creationTimestamp": format!("2026-11-22T10:00:0{}Z", rng.random_range(0..3))});
    let selector = rng.random_bool(0.7).then(|| json!({"matchLabels": {"app": pick(rng, &APPS)}}));
    let mode = pick(rng, &["STRICT", "PERMISSIVE", "UNSET", "DISABLE"]);
    match rng.random_range(0..9) {
        0 => json!({"kind": "Node", "metadata": {"name": pick(rng, &NODES[..2]),
            "labels": {"topology.kubernetes.io/zone": pick(rng, &["z1", "z2"])}}}),
        1 => json!({"kind": "Namespace", "metadata": {"name": namespace,
            "annotations": {"networking.istio.io/traffic-distribution": pick(rng, &["Any", "PreferClose"])}}}),
        2 | 3 => json!({"kind": "Pod", "metadata": meta,
            "spec": {"nodeName": pick(rng, &NODES), "containers": [{"ports": [{"name": "http", "containerPort": rng.random_range(80..82)}]}]},
            "status": {"podIP": pick(rng, &["10.0.0.1", "10.0.0.2", "fd00::1", ""]), "phase": pick(rng, &["Running", "Pending", "Failed", "Succeeded"]),
                "conditions": [{"type": "Ready", "status": pick(rng, &["True", "False"])}]}}),
        4 => {
            let selector = rng.random_bool(0.6).then(|| json!({"app": pick(rng, &APPS)}));
            json!({"kind": "Service", "metadata": meta, "spec": {"clusterIP": pick(rng, &["10.96.0.1", "10.96.0.2", "None"]), "selector": selector,
                "type": pick(rng, &["ClusterIP", "ClusterIP", "ExternalName"]),
                "ports": [{"name": "http", "port": 80, "targetPort": "http"}]}})
        }
        5 => json!({"kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": {"namespace": namespace, "name": name, "labels": {"kubernetes.io/service-name": pick(rng, &NAMES)}},
            "endpoints": [{"addresses": [pick(rng, &["192.0.2.1", "192.0.2.2"])], "conditions": {"ready": rng.random_bool(0.5)}},
                {"addresses": ["192.0.2.1"]},
                {"addresses": ["10.0.0.1"], "targetRef": {"kind": "Pod", "name": pick(rng, &NAMES), "namespace": namespace, "uid": "1"}}],
            "ports": [{"name": "http", "port": 8080}]}),
        6 => json!({"kind": "PeerAuthentication", "metadata": meta, "spec": {"selector": selector, "mtls": {"mode": mode},
            "portLevelMtls": {"8080": {"mode": pick(rng, &["STRICT", "PERMISSIVE"])}}}}),
        _ => {
            json!({"kind": "AuthorizationPolicy", "metadata": meta, "spec": {"selector": selector, "action": pick(rng, &["ALLOW", "DENY"])}})
        }
    }
}

fn changes(rng: &mut SmallRng, objects: &BTreeMap<(Kind, Id), Object>) -> Vec<Change> {
    let mut changes = Vec::new();
    for _ in 0..rng.random_range(1..4) {
        let keys: Vec<_> = objects.keys().cloned().collect();
        match keys.choose(rng) {
            Some((kind, id)) if rng.random_bool(0.3) => changes.push(Change::Remove(*kind, id.clone())),
            Some((kind, _)) if rng.random_bool(0.1) => {
                let rest = objects.values().filter(|object| object.kind() == *kind).filter(|_| rng.random_bool(0.5));
                changes.push(Change::Replace(*kind, rest.cloned().map(Version::Good).collect()));
            }
            _ => changes.extend(golden::change(&item(rng))),
        }
    }
    changes
}

/// What the changes make of the objects, the simple way.
fn note(objects: &mut BTreeMap<(Kind, Id), Object>, changes: &[Change]) {
    let put = |objects: &mut BTreeMap<(Kind, Id), Object>, version: &Version| match version {
        Version::Good(object) => objects.insert((object.kind(), object.id().clone()), object.clone()),
        Version::Bad { .. } => panic!("all are good"),
    };
    for change in changes {
        match change {
            Change::Put(version) => drop(put(objects, version)),
            Change::Remove(kind, id) => drop(objects.remove(&(*kind, id.clone()))),
            Change::Replace(kind, versions) => {
                objects.retain(|(known, _), _| known != kind);
                versions.iter().for_each(|version| drop(put(objects, version)));
            }
        }
    }
}

fn assert_same(one: &Index, other: &Index) {
    for of in [Type::Address, Type::Authorization] {
        assert_eq!(one.diff(other, of), super::Delta::default());
    }
    let names = |index: &Index, asked: &str| -> Vec<Str> {
        index.resolve(Type::Address, asked).iter().map(|resource| resource.name.clone()).collect()
    };
    let aliases: BTreeSet<&Str> = one.addresses.iter().flat_map(|resource| &resource.aliases).collect();
    let others = ["/10.0.0.1", "/10.0.0.2", "/10.96.0.1", "/10.96.0.2", "/192.0.2.1", "/192.0.2.2", "/fd00::1"];
    let services = one.addresses.iter().map(|resource| &*resource.name);
    for asked in aliases.into_iter().map(AsRef::as_ref).chain(others).chain(services) {
        assert_eq!(names(one, asked), names(other, asked), "{asked}");
    }
    assert_eq!(one.nodes().collect::<Vec<_>>(), other.nodes().collect::<Vec<_>>());
    for node in NODES {
        let on = |index: &Index| index.workloads_on(node).map(|resource| resource.name.clone()).collect::<Vec<_>>();
        assert_eq!(on(one), on(other));
        for namespace in NAMESPACES {
            assert_eq!(one.runs_on(node, namespace, "default"), other.runs_on(node, namespace, "default"));
        }
    }
}

#[test]
fn many_small_changes_make_the_index_that_all_objects_make_at_once() {
    for seed in 0..40 {
        let mut rng = SmallRng::seed_from_u64(seed);
        let mut objects = BTreeMap::new();
        let mut indexer = Indexer::default();
        let mut before = Arc::new(Index::default());
        for step in 0..150 {
            let mesh = Mesh { trust_domain: if step < 100 { "cluster.local" } else { "other" }.into(), ..golden::mesh() };
            let changes = changes(&mut rng, &objects);
            note(&mut objects, &changes);
            indexer.apply(&mesh, changes);
            if rng.random_bool(0.3) {
                continue;
            }
            let is_pending = indexer.is_pending();
            let now = indexer.publish();
            let mut scratch = Indexer::default();
            scratch.apply(&mesh, objects.values().cloned().map(|object| Change::Put(Version::Good(object))).collect());
            assert_same(&now, &scratch.publish());
            for of in [Type::Address, Type::Authorization] {
                let sorted = |mut delta: super::Delta| {
                    delta.changed.sort_by(|one, other| one.name.cmp(&other.name));
                    delta.removed.sort();
                    delta
                };
                assert_eq!(sorted(now.last_delta(of).clone()), sorted(now.diff(&before, of)), "seed {seed} step {step}");
                assert!(is_pending || now.last_delta(of).is_empty(), "what is new was not announced");
            }
            before = now;
        }
    }
}

#[test]
fn one_changed_object_makes_only_what_depends_on_it_anew() {
    let items = golden::items("03-services");
    let mut indexer = Indexer::default();
    let all = indexer.apply(&golden::mesh(), items.iter().filter_map(golden::change).collect());
    indexer.publish();
    assert!(all.encoded > 60);
    assert_eq!(indexer.apply(&golden::mesh(), items.iter().filter_map(golden::change).collect()).encoded, 0, "nothing is new");

    let mut apply = |kind: &str, name: &str, change: fn(&mut Value)| {
        let mut item = items.iter().find(|item| item["kind"] == kind && item["metadata"]["name"] == name).expect(name).clone();
        change(&mut item);
        let applied = indexer.apply(&golden::mesh(), golden::change(&item).into_iter().collect());
        let published = indexer.publish();
        let delta = published.last_delta(Type::Address);
        (applied.encoded, delta.changed.len(), delta.removed.len())
    };
    // A pod: its workload. Its service's slice, which changes with it: nothing.
    assert_eq!(apply("Pod", "web-alt", |item| item["status"]["conditions"] = json!([])), (1, 1, 0));
    assert_eq!(apply("Pod", "web-alt", |item| item["status"]["hostIP"] = json!("10.1.1.1")), (1, 1, 0), "ready again");
    assert_eq!(apply("Pod", "web-alt", |item| item["status"]["hostIP"] = json!("10.1.1.2")), (0, 0, 0), "of no interest");
    // A service: its own resource and its three workloads.
    assert_eq!(apply("Service", "numeric", |item| item["spec"]["ports"][0]["port"] = json!(81)), (4, 4, 0));
    assert_eq!(apply("Service", "manual", |item| item["spec"]["ports"][0]["port"] = json!(81)), (7, 7, 0));
    // A node: the workloads on it.
    let (encoded, changed, removed) = apply("Node", "node1", |item| item["metadata"]["labels"] = json!({}));
    assert!(encoded == changed && removed == 0 && changed > 5, "{encoded} {changed} {removed}");
    // A namespace: the services that say nothing themselves are different, all were looked at.
    assert_eq!(apply("Namespace", "dist", |item| item["metadata"]["annotations"] = json!({})), (3, 1, 0));
}
