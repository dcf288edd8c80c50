use std::os::fd::AsFd;

use super::*;
use crate::base::drain;
use crate::cni::message::PodRef;

/// Has every pod in the mesh.
struct All;

impl Sandboxes for All {
    async fn add(&self, _: Sandbox, _: Duration) -> Result<Verdict> {
        Ok(Verdict::Enrolled)
    }

    async fn del(&self, _: &str, _: &str) {}
}

/// Has none, and forgets its own limit.
struct Stuck;

impl Sandboxes for Stuck {
    async fn add(&self, _: Sandbox, _: Duration) -> Result<Verdict> {
        std::future::pending().await
    }

    async fn del(&self, _: &str, _: &str) {}
}

fn call(limit_ms: u64) -> Vec<u8> {
    let pod = PodRef { uid: "u".into(), namespace: "shop".into(), name: "web".into(), container: "c".into() };
    Call::Add { pod, ips: Vec::new(), limit_ms }.encode().expect("fits")
}

async fn ask(path: &Path, message: &[u8], netns: Option<&NetNs>) -> Option<Answer> {
    let exchange = async {
        let connection = Connection::connect(path).await.expect("connect");
        connection.send(message, netns.map(AsFd::as_fd)).await.expect("send");
        let answer = connection.receive().await.ok()??;
        Some(Answer::decode(&answer.data).expect("understood"))
    };
    tokio::time::timeout(Duration::from_secs(10), exchange).await.expect("in time")
}

#[tokio::test]
async fn only_the_owner_is_answered() {
    let directory = tempfile::tempdir().expect("temporary directory");
    let path = directory.path().join("run/cni.sock");
    let own = NetNs::current().expect("own namespace");
    for (stranger, expected) in [(0, Some(Answer::Enrolled)), (1, None)] {
        let (trigger, watch) = drain::new();
        let mut server = Server::bind(&path, Arc::new(All), Metrics::default()).expect("bind, also where another has listened");
        server.owner += stranger;
        let metrics = server.metrics.clone();
        let running = tokio::spawn(server.run(watch));
        assert_eq!(ask(&path, &call(1000), Some(&own)).await, expected);
        assert!(trigger.drain(Duration::from_secs(5)).await, "the drain ends the server");
        running.await.expect("ends by itself");
        let refused = metrics.calls.get_or_create(&super::super::metrics::Outcome { outcome: "refused" }).get();
        assert_eq!(refused, u64::from(stranger));
    }
}

#[tokio::test]
async fn a_pod_that_takes_too_long_is_told_of_in_time() {
    let directory = tempfile::tempdir().expect("temporary directory");
    let path = directory.path().join("cni.sock");
    let (_trigger, watch) = drain::new();
    let server = Server::bind(&path, Arc::new(Stuck), Metrics::default()).expect("bind");
    tokio::spawn(server.run(watch));
    let answer = ask(&path, &call(50), Some(&NetNs::current().expect("own namespace"))).await;
    assert!(matches!(&answer, Some(Answer::Failed { code, .. }) if code == "W9002"), "{answer:?}");
}

#[tokio::test]
async fn nonsense_gets_no_answer() {
    let directory = tempfile::tempdir().expect("temporary directory");
    let path = directory.path().join("cni.sock");
    let (_trigger, watch) = drain::new();
    let server = Server::bind(&path, Arc::new(All), Metrics::default()).expect("bind");
    tokio::spawn(server.run(watch));
    let own = NetNs::current().expect("own namespace");
    for (message, netns) in [(&b"{"[..], Some(&own)), (br#"{"call":"eat"}"#, None), (&call(1000), None)] {
        assert_eq!(ask(&path, message, netns).await, None, "{}", String::from_utf8_lossy(message));
    }
    assert_eq!(ask(&path, &call(1000), Some(&own)).await, Some(Answer::Enrolled));
}

#[tokio::test(start_paused = true)]
async fn a_socket_file_that_somebody_removed_is_made_again_unless_another_listens() {
    let directory = tempfile::tempdir().expect("temporary directory");
    let path = directory.path().join("cni.sock");
    let (_trigger, watch) = drain::new();
    let server = Server::bind(&path, Arc::new(All), Metrics::default()).expect("bind");
    tokio::spawn(server.run(watch));
    let own = NetNs::current().expect("own namespace");
    std::fs::remove_file(&path).expect("remove");
    let again = async {
        while !path.exists() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), again).await.expect("in time");
    assert_eq!(ask(&path, &call(1000), Some(&own)).await, Some(Answer::Enrolled));
    let other = listen(&path).expect("a newer agent listens");
    tokio::time::sleep(Duration::from_secs(20)).await;
    assert!(other.is_at(&path), "it is left alone");
}
