use std::collections::BTreeSet;
use std::os::fd::AsFd;
use std::sync::Arc;

use parking_lot::Mutex;

use super::*;
use crate::base::drain;
use crate::net::seqpacket::Listener;
use crate::zds::codec::WorkloadInfo;

/// Serves by writing down.
#[derive(Clone, Default)]
struct Fake(Arc<Mutex<BTreeSet<String>>>);

impl Serve for Fake {
    async fn start(&mut self, uid: &str, _info: &WorkloadInfo, _netns: NetNs) -> Result<()> {
        self.0.lock().insert(uid.to_owned());
        Ok(())
    }

    async fn stop(&mut self, uid: &str) {
        self.0.lock().remove(uid);
    }
}

/// The proxy under test, and an agent that is played by hand.
struct Story {
    listener: Listener,
    served: Fake,
    status: watch::Receiver<Status>,
    drain: drain::Trigger,
    _directory: tempfile::TempDir,
}

fn story() -> Story {
    let directory = tempfile::tempdir().expect("temporary directory");
    let path = directory.path().join("s");
    let listener = Listener::bind(&path).expect("bind");
    let served = Fake::default();
    let (client, status) = Client::new(path, served.clone());
    let (drain, watch) = drain::new();
    tokio::spawn(async move { client.run(watch).await });
    Story { listener, served, status, drain, _directory: directory }
}

async fn soon<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(Duration::from_secs(10), future).await.expect("in time")
}

impl Story {
    async fn session(&self) -> Connection {
        let connection = soon(self.listener.accept()).await.expect("accept");
        let hello = soon(connection.receive()).await.expect("receive").expect("open");
        codec::decode_hello(&hello.data).expect("hello");
        connection
    }

    fn served(&self) -> Vec<String> {
        self.served.0.lock().iter().cloned().collect()
    }

    async fn until(&mut self, holds: impl FnMut(&Status) -> bool) -> Status {
        soon(self.status.wait_for(holds)).await.expect("the client lives").clone()
    }
}

async fn tell(connection: &Connection, request: Request) -> Answer {
    let netns = NetNs::current().expect("own namespace");
    let fd = matches!(request, Request::Add { .. }).then(|| netns.as_fd());
    connection.send(&codec::encode_request(&request).expect("fits"), fd).await.expect("send");
    let answer = soon(connection.receive()).await.expect("receive").expect("an answer");
    codec::decode_answer(&answer.data).expect("an answer")
}

fn add(uid: &str) -> Request {
    let info = WorkloadInfo { name: uid.into(), namespace: "ns".into(), service_account: "sa".into() };
    Request::Add { uid: uid.into(), info }
}

#[tokio::test]
async fn pods_go_on_over_a_restart_of_the_agent_and_the_next_snapshot_decides() {
    let mut story = story();
    let first = story.session().await;
    assert_eq!(tell(&first, add("a")).await, Answer::Done);
    assert_eq!(tell(&first, add("b")).await, Answer::Done);
    assert!(!story.status.borrow().ready(), "the snapshot is not complete");
    assert_eq!(tell(&first, Request::SnapshotSent).await, Answer::Done);
    assert_eq!(story.until(Status::ready).await.served, 2);

    drop(first);
    story.until(|status| !status.connected).await;
    assert_eq!(story.served(), ["a", "b"]);

    let second = story.session().await;
    tell(&second, add("a")).await;
    tell(&second, Request::SnapshotSent).await;
    story.until(Status::ready).await;
    assert_eq!(story.served(), ["a"]);
}

#[tokio::test]
async fn what_is_not_understood_is_refused_and_a_new_session_begun() {
    let mut story = story();
    let first = story.session().await;
    tell(&first, add("a")).await;
    tell(&first, Request::SnapshotSent).await;
    for (garbage, reason) in [(&b"\xff\xff\xff"[..], "not a ZDS message"), (b"\x3a\x00", "unknown kind")] {
        let session = if garbage[0] == 0xff { &first } else { &story.session().await };
        session.send(garbage, None).await.expect("send");
        let answer = soon(session.receive()).await.expect("receive").expect("an answer");
        assert!(matches!(codec::decode_answer(&answer.data), Ok(Answer::Refused(text)) if text.contains(reason)), "{reason}");
        assert!(soon(session.receive()).await.expect("receive").is_none(), "the session is over");
    }
    story.session().await;
    assert_eq!(story.served(), ["a"]);
    assert!(story.until(|status| status.connected).await.last_error.is_none());
}

#[tokio::test]
async fn a_descriptor_that_is_no_namespace_costs_one_pod_not_the_session() {
    let story = story();
    let session = story.session().await;
    let file = tempfile::tempfile().expect("file");
    session.send(&codec::encode_request(&add("a")).expect("fits"), Some(file.as_fd())).await.expect("send");
    let answer = soon(session.receive()).await.expect("receive").expect("an answer");
    assert!(matches!(codec::decode_answer(&answer.data), Ok(Answer::Refused(_))));
    assert_eq!(tell(&session, add("b")).await, Answer::Done);
    assert_eq!(story.served(), ["b"]);
}

#[tokio::test]
async fn a_drain_ends_the_client_and_leaves_the_pods() {
    let story = story();
    let session = story.session().await;
    tell(&session, add("a")).await;
    assert!(soon(story.drain.drain(Duration::from_secs(5))).await);
    assert!(soon(session.receive()).await.expect("receive").is_none());
    assert_eq!(story.served.0.lock().len(), 1);
}
