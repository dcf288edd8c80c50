use std::path::PathBuf;

use super::*;
use crate::base::drain;
use crate::net::seqpacket::Connection;
use crate::zds::codec::{self, Answer, Request};

struct Agent {
    handle: Handle,
    path: PathBuf,
    _drain: drain::Trigger,
    _directory: tempfile::TempDir,
}

async fn agent(pods: &[&str]) -> Agent {
    let directory = tempfile::tempdir().expect("temporary directory");
    let path = directory.path().join("run/zds.sock");
    let handle = Handle::new();
    for uid in pods {
        handle.register(pod(uid));
    }
    let server = Server::bind(&path, &handle).await.expect("bind");
    let (trigger, watch) = drain::new();
    tokio::spawn(server.run(watch));
    Agent { handle, path, _drain: trigger, _directory: directory }
}

fn pod(uid: &str) -> Pod {
    let info = WorkloadInfo { name: uid.into(), namespace: "ns".into(), service_account: "sa".into() };
    Pod { uid: uid.into(), info, netns: Some(NetNs::current().expect("own namespace")) }
}

async fn soon<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(Duration::from_secs(10), future).await.expect("in time")
}

/// A proxy that is played by hand.
struct Proxy(Connection);

impl Proxy {
    async fn connect(agent: &Agent) -> Self {
        let connection = Connection::connect(&agent.path).await.expect("connect");
        connection.send(&codec::encode_hello(), None).await.expect("hello");
        Self(connection)
    }

    /// The next request; `None` at the end.
    async fn next(&self) -> Option<String> {
        let packet = soon(self.0.receive()).await.expect("receive")?;
        Some(match codec::decode_request(&packet.data, packet.fd.is_some()).expect("a request") {
            Request::Add { uid, .. } => format!("add {uid}"),
            Request::Keep { uid } => format!("keep {uid}"),
            Request::Del { uid } => format!("del {uid}"),
            Request::SnapshotSent => "snapshot".into(),
        })
    }

    async fn answer(&self, answer: Answer) {
        self.0.send(&codec::encode_answer(&answer), None).await.expect("answer");
    }

    /// Takes everything up to the end of the snapshot.
    async fn snapshot(&self) -> Vec<String> {
        let mut seen = Vec::new();
        while seen.last().map(String::as_str) != Some("snapshot") {
            seen.push(self.next().await.expect("open"));
            self.answer(Answer::Done).await;
        }
        seen
    }
}

async fn until(handle: &Handle, mut holds: impl FnMut(&Handle) -> bool) {
    let mut changed = handle.changed();
    soon(async {
        while !holds(handle) {
            changed.changed().await.expect("the table lives");
        }
    })
    .await;
}

#[tokio::test]
async fn a_proxy_gets_the_snapshot_and_then_the_changes() {
    let agent = agent(&["a"]).await;
    agent.handle.register(Pod { netns: None, ..pod("b") });
    assert_eq!(agent.handle.served("a"), Served::NoProxy);
    let proxy = Proxy::connect(&agent).await;
    assert_eq!(proxy.snapshot().await, ["add a", "keep b", "snapshot"]);
    let netns = NetNs::current().expect("own namespace").id();
    until(&agent.handle, |handle| handle.served("a") == Served::Yes(netns)).await;
    assert_eq!(agent.handle.served("b"), Served::Unknown);

    let (added, ()) = tokio::join!(agent.handle.add(pod("c")), async {
        assert_eq!(proxy.next().await.as_deref(), Some("add c"));
        proxy.answer(Answer::Refused("no room".into())).await;
    });
    assert!(added.expect_err("refused").to_string().contains("no room"));
    assert_eq!(agent.handle.served("c"), Served::Refused("no room".into()));

    let (removed, ()) = tokio::join!(agent.handle.remove("c"), async {
        assert_eq!(proxy.next().await.as_deref(), Some("del c"));
        proxy.answer(Answer::Done).await;
    });
    removed.expect("answered");
    assert_eq!(agent.handle.served("c"), Served::Unknown);
}

#[tokio::test]
async fn additions_go_to_the_newest_proxy_and_removals_to_all() {
    let agent = agent(&["a"]).await;
    let old = Proxy::connect(&agent).await;
    old.snapshot().await;
    let new = Proxy::connect(&agent).await;
    new.snapshot().await;
    let (added, ()) = tokio::join!(agent.handle.add(pod("b")), async {
        assert_eq!(new.next().await.as_deref(), Some("add b"));
        new.answer(Answer::Done).await;
    });
    added.expect("answered");
    let (removed, (), ()) = tokio::join!(
        agent.handle.remove("a"),
        async {
            assert_eq!(old.next().await.as_deref(), Some("del a"), "and never heard of b");
            old.answer(Answer::Done).await;
        },
        async {
            assert_eq!(new.next().await.as_deref(), Some("del a"));
            new.answer(Answer::Done).await;
        }
    );
    removed.expect("answered");

    drop(new);
    until(&agent.handle, |handle| handle.proxies() == 1).await;
    assert_eq!(agent.handle.served("b"), Served::Unknown, "the proxy that is left does not serve it");
}

#[tokio::test]
async fn the_end_of_a_proxy_is_noticed_at_once_and_a_removal_needs_none() {
    let agent = agent(&["a"]).await;
    let proxy = Proxy::connect(&agent).await;
    proxy.snapshot().await;
    drop(proxy);
    until(&agent.handle, |handle| handle.proxies() == 0).await;
    assert!(agent.handle.add(pod("b")).await.is_err());
    agent.handle.remove("a").await.expect("nobody to tell");
    assert_eq!(Proxy::connect(&agent).await.snapshot().await, ["add b", "snapshot"], "what could not be added stays wanted");
}

#[tokio::test]
async fn a_refusal_in_the_snapshot_does_not_stop_it() {
    let agent = agent(&["a", "b"]).await;
    let proxy = Proxy::connect(&agent).await;
    assert_eq!(proxy.next().await.as_deref(), Some("add a"));
    proxy.answer(Answer::Refused("port taken".into())).await;
    assert_eq!(proxy.snapshot().await, ["add b", "snapshot"]);
    assert_eq!(agent.handle.served("a"), Served::Refused("port taken".into()));
}

#[tokio::test]
async fn a_proxy_that_talks_unasked_is_disconnected() {
    let agent = agent(&[]).await;
    let proxy = Proxy::connect(&agent).await;
    proxy.snapshot().await;
    proxy.answer(Answer::Done).await;
    assert_eq!(proxy.next().await, None);
}

#[tokio::test]
async fn what_is_no_proxy_is_turned_away() {
    let agent = agent(&["a"]).await;
    let stranger = Connection::connect(&agent.path).await.expect("connect");
    stranger.send(b"hello?", None).await.expect("send");
    assert!(soon(stranger.receive()).await.expect("receive").is_none());
    assert_eq!(agent.handle.proxies(), 0);
}

#[tokio::test]
async fn a_stale_socket_is_replaced_a_live_one_and_a_file_are_not() {
    let directory = tempfile::tempdir().expect("temporary directory");
    let path = directory.path().join("s");
    drop(Listener::bind(&path).expect("bind"));
    assert!(path.exists(), "as after a crash");
    let live = Server::bind(&path, &Handle::new()).await.expect("the stale file is replaced");
    let error = Server::bind(&path, &Handle::new()).await.expect_err("taken");
    assert!(error.to_string().contains("another agent"), "{error}");
    drop(live);
    std::fs::write(&path, "precious").expect("file");
    Server::bind(&path, &Handle::new()).await.expect_err("a file");
    assert_eq!(std::fs::read(&path).expect("file"), b"precious");
}

#[tokio::test(start_paused = true)]
async fn a_socket_file_that_somebody_removed_is_made_again_unless_another_listens() {
    let agent = agent(&["a"]).await;
    for _ in 0..2 {
        std::fs::remove_file(&agent.path).expect("remove");
        until_file(&agent.path, true).await;
        assert_eq!(Proxy::connect(&agent).await.snapshot().await, ["add a", "snapshot"]);
    }
    std::fs::remove_file(&agent.path).expect("remove");
    let other = Listener::bind(&agent.path).expect("another agent listens");
    tokio::time::sleep(LIMIT * 4).await;
    assert!(other.is_at(&agent.path), "it is left alone");
    drop(agent._drain);
    tokio::time::sleep(LIMIT).await;
    assert!(other.is_at(&agent.path), "also at the end");
}

async fn until_file(path: &Path, there: bool) {
    soon(async {
        while path.exists() != there {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
}
