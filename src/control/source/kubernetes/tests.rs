//! The source against a stand-in for the API server that lists and watches, and fails as real ones do. The real one is
//! watched in `tests/e2e`.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Query, Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::{Json, Router};
use futures::StreamExt;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::broadcast;
use tokio_stream::wrappers::BroadcastStream;

use super::*;
use crate::base::drain;
use crate::control::accept;
use crate::control::index::{Indexer, Type};
use crate::control::objects::{Object, Version};
use crate::telemetry::http;

const LIMIT: Duration = Duration::from_secs(60);

/// What the server has, by path.
#[derive(Default)]
struct Cluster {
    kinds: BTreeMap<&'static str, BTreeMap<String, Value>>,
    version: u64,
    /// Version, kind and event.
    log: Vec<(u64, String, String)>,
    /// Policies that are served as v1beta1 alone.
    old: Vec<&'static str>,
    is_away: bool,
    lists: usize,
}

struct Server {
    cluster: Arc<Mutex<Cluster>>,
    events: broadcast::Sender<(String, String)>,
    url: String,
    _trigger: drain::Trigger,
}

type Shared = (Arc<Mutex<Cluster>>, broadcast::Sender<(String, String)>);

impl Server {
    async fn start(kinds: &[&'static str]) -> Self {
        let cluster = Arc::<Mutex<Cluster>>::default();
        cluster.lock().kinds = kinds.iter().map(|kind| (*kind, BTreeMap::new())).collect();
        let (events, _) = broadcast::channel(1000);
        let listener = accept::listen("127.0.0.1:0".parse().unwrap()).unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let router = Router::new().fallback(answer).with_state((Arc::clone(&cluster), events.clone()));
        let (trigger, watch) = drain::new();
        tokio::spawn(http::serve(listener, router, watch));
        Self { cluster, events, url, _trigger: trigger }
    }

    fn source(&self) -> KubernetesSource {
        let mut config = kube::Config::new(self.url.parse().unwrap());
        config.default_retry = false;
        let mesh = Mesh { trust_domain: "cluster.local".into(), root_namespace: "root".into() };
        KubernetesSource::new(mesh, &Client::try_from(config).unwrap(), &Wishes::default())
    }

    fn put(&self, kind: &str, mut object: Value) {
        let mut cluster = self.cluster.lock();
        cluster.version += 1;
        object["metadata"]["resourceVersion"] = json!(cluster.version.to_string());
        let name = object["metadata"]["name"].as_str().unwrap().to_owned();
        let all = cluster.kinds.get_mut(kind).unwrap();
        let event = if all.insert(name, object.clone()).is_some() { "MODIFIED" } else { "ADDED" };
        let event = json!({"type": event, "object": object}).to_string();
        let version = cluster.version;
        cluster.log.push((version, kind.to_owned(), event.clone()));
        let _ = self.events.send((kind.to_owned(), event));
    }

    /// Ends all watches, and answers nothing more until it is back.
    fn go_away(&self, is_away: bool) {
        self.cluster.lock().is_away = is_away;
        let _ = self.events.send((String::new(), String::new()));
    }
}

async fn answer(State((cluster, events)): State<Shared>, Query(query): Query<HashMap<String, String>>, request: Request) -> Response {
    let mut cluster = cluster.lock();
    if cluster.is_away {
        return StatusCode::SERVICE_UNAVAILABLE.into_response();
    }
    let path = request.uri().path();
    if path == "/version" {
        let version = ["major", "minor", "gitVersion", "gitCommit", "gitTreeState", "buildDate", "goVersion", "compiler", "platform"];
        return Json(version.into_iter().map(|field| (field, "1")).collect::<BTreeMap<_, _>>()).into_response();
    }
    if path == "/apis" {
        let version = json!({"groupVersion": "security.istio.io/v1beta1", "version": "v1beta1"});
        let group = (!cluster.old.is_empty()).then(|| json!({"name": "security.istio.io", "versions": [version]}));
        return Json(json!({"groups": Vec::from_iter(group)})).into_response();
    }
    if path == "/apis/security.istio.io/v1beta1" {
        let kind = |name| json!({"name": name, "kind": name, "singularName": "", "namespaced": true, "verbs": ["list"]});
        let kinds: Vec<Value> = cluster.old.iter().map(kind).collect();
        return Json(json!({"groupVersion": "security.istio.io/v1beta1", "resources": kinds})).into_response();
    }
    let kind = path.rsplit('/').next().unwrap_or_default().to_owned();
    let Some(all) = cluster.kinds.get(kind.as_str()) else {
        let status =
            json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": "not found", "reason": "NotFound", "code": 404});
        return (StatusCode::NOT_FOUND, Json(status)).into_response();
    };
    if query.get("watch").is_some_and(|watch| watch == "true") {
        let from: u64 = query.get("resourceVersion").and_then(|version| version.parse().ok()).unwrap_or_default();
        let missed = cluster.log.iter().filter(|(version, ..)| *version > from).map(|(_, of, line)| (of.clone(), line.clone()));
        let missed = futures::stream::iter(missed.collect::<Vec<_>>());
        let events = BroadcastStream::new(events.subscribe()).filter_map(|event| std::future::ready(event.ok()));
        let events = missed.chain(events).take_while(|(of, _)| std::future::ready(!of.is_empty()));
        let lines = events.filter_map(move |(of, line)| std::future::ready((of == kind).then(|| Ok::<_, std::io::Error>(line + "\n"))));
        return Body::from_stream(lines).into_response();
    }
    let list = json!({"metadata": {"resourceVersion": cluster.version.to_string()}, "items": all.values().collect::<Vec<_>>()});
    cluster.lists += 1;
    Json(list).into_response()
}

const BUILT_IN: [&str; 5] = ["nodes", "namespaces", "pods", "services", "endpointslices"];
const ALL: [&str; 7] = ["nodes", "namespaces", "pods", "services", "endpointslices", "peerauthentications", "authorizationpolicies"];

fn pod(name: &str, ip: &str) -> Value {
    json!({"metadata": {"namespace": "a", "name": name, "uid": name, "managedFields": [{"manager": "x"}]},
        "spec": {"nodeName": "n1", "containers": [{"name": "c", "image": "i"}]}, "status": {"phase": "Running", "podIP": ip}})
}

fn policy(name: &str, port: &str) -> Value {
    json!({"metadata": {"namespace": "a", "name": name}, "spec": {"rules": [{"to": [{"operation": {"ports": [port]}}]}]}})
}

async fn next(source: &mut KubernetesSource) -> Batch {
    tokio::time::timeout(LIMIT, source.next()).await.expect("in time").expect("a batch")
}

/// Applies batches until the condition holds.
async fn until(source: &mut KubernetesSource, indexer: &mut Indexer, holds: impl Fn(&Batch, &Indexer) -> bool) {
    tokio::time::timeout(LIMIT, async {
        loop {
            let mut batch = source.next().await.expect("a batch");
            indexer.apply(&batch.mesh, std::mem::take(&mut batch.changes));
            if holds(&batch, indexer) {
                return;
            }
        }
    })
    .await
    .expect("in time")
}

fn has(indexer: &Indexer, of: Type, name: &str) -> bool {
    indexer.current().resources(of).contains(name)
}

#[tokio::test]
async fn the_first_batch_has_everything_and_the_others_what_changed() {
    let server = Server::start(&ALL).await;
    (0..600).for_each(|number| server.put("pods", pod(&format!("p{number}"), "10.0.0.1")));
    server.put("authorizationpolicies", policy("good", "80"));
    let mut source = server.source();
    let mut indexer = Indexer::default();
    let first = next(&mut source).await;
    assert_eq!(first.changes.iter().filter(|change| matches!(change, Change::Replace(..))).count(), 7);
    indexer.apply(&first.mesh, first.changes);
    let index = indexer.publish();
    assert_eq!((index.resources(Type::Address).len(), index.resources(Type::Authorization).len()), (600, 1));

    server.put("pods", pod("new", "10.0.0.2"));
    until(&mut source, &mut indexer, |_, indexer| has(indexer, Type::Address, "Kubernetes//Pod/a/new")).await;
}

#[tokio::test]
async fn a_policy_that_is_broken_keeps_its_version_or_refuses_everything() {
    let server = Server::start(&ALL).await;
    server.put("authorizationpolicies", policy("known", "80"));
    server.put("authorizationpolicies", policy("never-good", "http"));
    let mut source = server.source();
    let mut indexer = Indexer::default();
    let first = next(&mut source).await;
    assert_eq!((first.rejected.len(), first.wrong.len()), (1, 1));
    assert!(first.wrong[0].starts_with("AuthorizationPolicy a/never-good: rule 1: ports: \"http\""), "{}", first.wrong[0]);
    let applied = indexer.apply(&first.mesh, first.changes);
    assert_eq!(applied.refused, ["AuthorizationPolicy a/never-good"]);
    let version = |indexer: &Indexer, name: &str| indexer.current().resources(Type::Authorization).get(name).unwrap().version.clone();
    let (known, refusal) = (version(&indexer, "a/known"), version(&indexer, "a/never-good"));

    server.put("authorizationpolicies", policy("known", "https"));
    until(&mut source, &mut indexer, |batch, _| batch.wrong.len() == 2).await;
    assert_eq!(version(&indexer, "a/known"), known);
    // Listed anew with the same faults: nothing is different.
    server.go_away(true);
    server.go_away(false);
    server.put("authorizationpolicies", policy("never-good", "81"));
    until(&mut source, &mut indexer, |batch, _| batch.wrong.len() == 1).await;
    assert_eq!(version(&indexer, "a/known"), known);
    assert_ne!(version(&indexer, "a/never-good"), refusal);
}

#[tokio::test]
async fn a_server_that_is_away_is_told_and_its_state_stays() {
    let server = Server::start(&ALL).await;
    server.put("pods", pod("p", "10.0.0.1"));
    let mut source = server.source();
    let mut indexer = Indexer::default();
    let first = next(&mut source).await;
    indexer.apply(&first.mesh, first.changes);
    server.go_away(true);
    until(&mut source, &mut indexer, |batch, _| batch.fault.as_ref().is_some_and(|fault| fault.contains("Pod"))).await;
    assert!(has(&indexer, Type::Address, "Kubernetes//Pod/a/p"));
    server.go_away(false);
    until(&mut source, &mut indexer, |batch, _| batch.fault.is_none()).await;
    server.put("pods", pod("q", "10.0.0.2"));
    until(&mut source, &mut indexer, |_, indexer| has(indexer, Type::Address, "Kubernetes//Pod/a/q")).await;
}

#[tokio::test(start_paused = true)]
async fn kinds_that_are_not_defined_are_no_fault_and_are_found_when_they_are() {
    let server = Server::start(&BUILT_IN).await;
    let mut source = server.source();
    let mut indexer = Indexer::default();
    let first = next(&mut source).await;
    assert_eq!(first.fault, None);
    indexer.apply(&first.mesh, first.changes);
    server.cluster.lock().kinds.extend([("peerauthentications", BTreeMap::new()), ("authorizationpolicies", BTreeMap::new())]);
    server.put("authorizationpolicies", policy("new", "80"));
    until(&mut source, &mut indexer, |_, indexer| has(indexer, Type::Authorization, "a/new")).await;

    // No longer defined: its policies are in force until that is certain.
    let begun = tokio::time::Instant::now();
    server.cluster.lock().kinds.remove("authorizationpolicies");
    server.go_away(true);
    server.go_away(false);
    until(&mut source, &mut indexer, |batch, _| batch.fault.as_ref().is_some_and(|fault| fault.contains("no longer defined"))).await;
    assert!(has(&indexer, Type::Authorization, "a/new"));
    until(&mut source, &mut indexer, |_, indexer| !has(indexer, Type::Authorization, "a/new")).await;
    assert!(begun.elapsed() > Duration::from_secs(20));
}

#[tokio::test(start_paused = true)]
async fn a_kind_that_cannot_be_read_keeps_the_first_batch_back_and_is_named() {
    let server = Server::start(&["nodes", "namespaces", "services", "endpointslices"]).await;
    let mut source = server.source();
    let error = source.next().await.expect_err("pods are missing");
    assert_eq!(error.code(), &code::API_UNAVAILABLE);
    assert!(error.detail().starts_with("Pod not read within 10s: Pod: "), "{error}");
    server.cluster.lock().kinds.insert("pods", BTreeMap::new());
    next(&mut source).await;
}

#[tokio::test]
async fn a_number_that_is_no_port_takes_away_nothing_but_itself() {
    let slice = |name: &str, port: i64| {
        json!({"metadata": {"namespace": "a", "name": name, "labels": {"kubernetes.io/service-name": "s"}}, "addressType": "IPv4",
            "endpoints": [{"addresses": ["10.0.0.9"]}], "ports": [{"name": "bad", "port": port}, {"name": "good", "port": 80}]})
    };
    let ports = |change: &Change| match change {
        Change::Put(Version::Good(Object::EndpointSlice(slice))) => vec![slice.ports.clone()],
        Change::Replace(Kind::EndpointSlice, versions) => {
            let slices = versions.iter().filter_map(|version| match version {
                Version::Good(Object::EndpointSlice(slice)) => Some(slice.ports.clone()),
                _ => None,
            });
            slices.collect()
        }
        _ => Vec::new(),
    };
    let server = Server::start(&ALL).await;
    server.put("endpointslices", slice("high", 70000));
    server.put("services", json!({"metadata": {"namespace": "a", "name": "s"}, "spec": {"ports": [{"port": 1, "targetPort": 65536}]}}));
    let mut wrong = pod("p", "10.0.0.1");
    wrong["spec"]["containers"][0]["ports"] = json!([{"name": "x", "containerPort": -1}]);
    server.put("pods", wrong);
    let mut source = server.source();
    let first = next(&mut source).await;
    assert_eq!(first.changes.iter().flat_map(ports).collect::<Vec<_>>(), [[("good".into(), 80)]]);
    server.put("endpointslices", slice("low", -1));
    let second = next(&mut source).await;
    assert_eq!(second.changes.iter().flat_map(ports).collect::<Vec<_>>(), [[("good".into(), 80)]]);
}

#[tokio::test]
async fn what_a_watch_cannot_read_is_told_and_listed_anew() {
    let server = Server::start(&ALL).await;
    let mut source = server.source();
    let mut indexer = Indexer::default();
    let first = next(&mut source).await;
    indexer.apply(&first.mesh, first.changes);
    let mut broken = pod("p", "10.0.0.1");
    broken["spec"] = json!("nonsense");
    server.put("pods", broken);
    until(&mut source, &mut indexer, |batch, _| batch.fault.as_ref().is_some_and(|fault| fault.contains("Pod"))).await;
    // Nothing is said of it again: it is in the list.
    server.cluster.lock().kinds.get_mut("pods").unwrap().insert("p".to_owned(), pod("p", "10.0.0.1"));
    until(&mut source, &mut indexer, |batch, _| batch.fault.is_none()).await;
    assert!(has(&indexer, Type::Address, "Kubernetes//Pod/a/p"));
}

#[tokio::test(start_paused = true)]
async fn policies_of_another_version_are_never_taken_for_none() {
    let server = Server::start(&BUILT_IN).await;
    let policies = ["peerauthentications", "authorizationpolicies"];
    server.cluster.lock().old = policies.to_vec();
    let mut source = server.source();
    let error = source.next().await.expect_err("policies cannot be read");
    assert!(error.detail().contains("the cluster serves security.istio.io as v1beta1, and v1 is read: bring"), "{error}");

    server.cluster.lock().old.clear();
    server.cluster.lock().kinds.extend(policies.map(|kind| (kind, BTreeMap::new())));
    server.put("authorizationpolicies", policy("p", "80"));
    let mut indexer = Indexer::default();
    until(&mut source, &mut indexer, |batch, indexer| batch.fault.is_none() && has(indexer, Type::Authorization, "a/p")).await;

    server.cluster.lock().old = policies.to_vec();
    server.cluster.lock().kinds.retain(|kind, _| BUILT_IN.contains(kind));
    server.go_away(true);
    server.go_away(false);
    until(&mut source, &mut indexer, |batch, _| batch.fault.as_ref().is_some_and(|fault| fault.contains("v1beta1"))).await;
    let more = tokio::time::timeout(Duration::from_secs(600), source.next()).await;
    assert!(more.is_err() || more.is_ok_and(|batch| batch.unwrap().changes.is_empty()));
}
