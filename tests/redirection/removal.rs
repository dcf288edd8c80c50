//! The agent of a node and DaemonSets: its own is deleted while its pod stays, and is there again; that of the purge was left.

use std::convert::Infallible;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use axum::body::Body;
use axum::extract::Request;
use axum::http::{Method, StatusCode};
use axum::response::{IntoResponse, Response};
use futures::StreamExt;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio_stream::wrappers::WatchStream;
use warren::agent::health;
use warren::agent::kube::Rules;
use warren::agent::node::Node;
use warren::agent::reconcile::Settings;
use warren::base::drain;

use crate::sandboxes::{Process, process};
use crate::world::{LIMIT, World, both_families};

/// What the API server says about the agent's DaemonSet: nothing else is in the cluster but, at first, that of the purge.
fn answer(request: &Request<kube::client::Body>, exists: &watch::Sender<bool>, purge: &AtomicBool) -> Response {
    if request.method() == Method::DELETE
        && request.uri().path().ends_with("/daemonsets/warren-purge")
        && purge.swap(false, Ordering::Relaxed)
    {
        return json!({"kind": "Status", "apiVersion": "v1", "status": "Success"}).to_string().into_response();
    }
    let (path, query) = (request.uri().path(), request.uri().query().unwrap_or_default());
    let Some(kind) = path.rsplit('/').next().filter(|kind| ["pods", "namespaces", "daemonsets"].contains(kind)) else {
        let status =
            json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": "none", "reason": "NotFound", "code": 404});
        return (StatusCode::NOT_FOUND, status.to_string()).into_response();
    };
    let is_set = kind == "daemonsets";
    if !query.contains("watch=true") {
        let items: Vec<Value> = (is_set && *exists.borrow()).then(set).into_iter().collect();
        let list = json!({"kind": "PartialObjectMetadataList", "apiVersion": "meta.k8s.io/v1", "metadata": {"resourceVersion": "1"}, "items": items});
        return list.to_string().into_response();
    }
    if !is_set {
        return Body::from_stream(futures::stream::pending::<Result<String, Infallible>>()).into_response();
    }
    let changes = WatchStream::from_changes(exists.subscribe()).map(|exists| {
        let change = if exists { "ADDED" } else { "DELETED" };
        Ok::<_, Infallible>(json!({"type": change, "object": set()}).to_string() + "\n")
    });
    Body::from_stream(changes).into_response()
}

fn set() -> Value {
    let metadata = json!({"name": "warren-agent", "namespace": "warren-system", "uid": "u", "resourceVersion": "2"});
    json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": metadata})
}

/// Status and text of a page of the agent.
fn page(world: &World, port: u16, path: &str) -> String {
    let connect = || TcpStream::connect(("127.0.0.1", port));
    let mut stream = world.host.run(connect).expect("enter").expect("the agent answers");
    write!(stream, "GET {path} HTTP/1.1\r\nHost: agent\r\nConnection: close\r\n\r\n").expect("ask");
    let mut text = String::new();
    stream.read_to_string(&mut text).expect("answer");
    text
}

#[test]
fn an_agent_that_has_left_says_so_and_ends_when_its_daemon_set_is_there_again() {
    both_families(|world| {
        let directory = tempfile::tempdir().expect("temporary directory");
        let proc = directory.path().join("proc");
        let init = Process::inside(&world.host);
        process(&proc, 1, &init.real(), "0::/init.scope\n", 1);
        let (exists, _) = watch::channel(true);
        let purge = Arc::new(AtomicBool::new(true));
        let api = (exists.clone(), purge.clone());
        let service = tower::service_fn(move |request| std::future::ready(Ok::<_, Infallible>(answer(&request, &api.0, &api.1))));
        let status = world.wait(async { world.host.run(|| health::listen("127.0.0.1:0".parse().expect("an address"))).expect("enter") });
        let status = status.expect("listen");
        let port = status.local_addr().expect("address").port();
        let node = Node {
            name: "here".into(),
            namespace: "warren-system".into(),
            rules: Rules::default(),
            settings: Settings { keep_on_exit: true, ..Settings::default() },
            zds_socket: directory.path().join("zds.sock"),
            host_proc: proc,
            cni: None,
            status,
        };
        let (_open, drain) = drain::new();
        let agent = world.spawn(async move { node.run(kube::Client::new(service, "default"), drain).await });
        let until = |path, holds: &dyn Fn(&str) -> bool| {
            world.wait(async {
                let mut look = tokio::time::interval(std::time::Duration::from_millis(10));
                while !holds(&page(world, port, path)) {
                    look.tick().await;
                }
            });
        };
        until("/readyz", &|text| text.contains("200 OK") && exists.receiver_count() > 0);
        until("/readyz", &|_| !purge.load(Ordering::Relaxed));
        exists.send_replace(false);
        until("/readyz", &|text| text.contains("503") && text.contains("removal: "));
        assert!(page(world, port, "/healthz").contains("200 OK"), "it is not to be started again while Warren is being removed");
        assert!(!agent.is_finished());
        exists.send_replace(true);
        let ended = world.wait(async { tokio::time::timeout(LIMIT * 2, agent).await });
        ended.expect("it ends").expect("no panic").expect("no error");
    });
}
