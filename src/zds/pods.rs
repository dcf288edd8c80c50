//! Which pods the proxy serves, and what each message of the agent changes about that.

use std::collections::{BTreeSet, HashMap};
use std::future::Future;
use std::time::Duration;

use super::codec::{Answer, Request, WorkloadInfo};
use crate::base::{Error, Result, code, deadline};
use crate::net::NetNs;

/// How long starting or stopping one pod may take: less than the 5 s that the agent waits for the answer.
const STEP_LIMIT: Duration = Duration::from_secs(4);

/// More pods than any node runs; what is above is refused.
const MAX_PODS: usize = 4096;

/// What serves a pod. Implemented by the proxy.
pub trait Serve: Send {
    /// Opens the pod's listeners. Pods whose start fails are started again later; the future may be dropped when it
    /// takes longer than 4 s, and must then leave nothing open.
    fn start(&mut self, uid: &str, info: &WorkloadInfo, netns: NetNs) -> impl Future<Output = Result<()>> + Send;

    /// Stops serving the pod and cuts its connections. Returns when the listeners are closed, so that a start in the same
    /// namespace can follow.
    fn stop(&mut self, uid: &str) -> impl Future<Output = ()> + Send;
}

/// All pods of this proxy, over all sessions with the agent.
#[derive(Debug)]
pub struct Pods<S> {
    server: S,
    pods: HashMap<String, Pod>,
    /// Named in the snapshot that is coming in; `None` when it is complete.
    snapshot: Option<BTreeSet<String>>,
}

#[derive(Debug)]
struct Pod {
    info: WorkloadInfo,
    netns: NetNs,
    /// Why it is not served yet.
    pending: Option<Error>,
}

impl<S: Serve> Pods<S> {
    /// None yet.
    pub fn new(server: S) -> Self {
        Self { server, pods: HashMap::new(), snapshot: Some(BTreeSet::new()) }
    }

    /// What serves the pods.
    pub fn into_server(self) -> S {
        self.server
    }

    /// A session begins: a snapshot will follow. Pods go on being served meanwhile.
    pub fn begin_session(&mut self) {
        self.snapshot = Some(BTreeSet::new());
    }

    /// Does what a message asks for. `netns` is there exactly for an added pod.
    ///
    /// # Errors
    /// When the message does not fit the state of the session, which must then be ended.
    pub async fn handle(&mut self, request: Request, netns: Option<NetNs>) -> Result<Answer> {
        match request {
            Request::Add { uid, info } => {
                let Some(netns) = netns else { return Err(Error::new(&code::ZDS_PROTOCOL, "a pod without its network namespace")) };
                if let Some(named) = &mut self.snapshot {
                    remember(named, &uid)?;
                }
                Ok(self.add(uid, info, netns).await)
            }
            Request::Keep { uid } => match &mut self.snapshot {
                Some(named) => remember(named, &uid).map(|()| Answer::Done),
                None => Err(Error::new(&code::ZDS_PROTOCOL, format!("keep {uid} after the snapshot"))),
            },
            Request::Del { uid } => {
                if let Some(named) = &mut self.snapshot {
                    named.remove(&uid);
                }
                self.remove(&uid).await;
                Ok(Answer::Done)
            }
            Request::SnapshotSent => {
                let Some(named) = self.snapshot.take() else { return Err(Error::new(&code::ZDS_PROTOCOL, "a second end of the snapshot")) };
                let gone: Vec<String> = self.pods.keys().filter(|uid| !named.contains(*uid)).cloned().collect();
                for uid in gone {
                    self.remove(&uid).await;
                }
                Ok(Answer::Done)
            }
        }
    }

    /// Starts the pods again whose start failed.
    pub async fn retry(&mut self) {
        let pending: Vec<String> = self.pods.iter().filter(|(_, pod)| pod.pending.is_some()).map(|(uid, _)| uid.clone()).collect();
        for uid in pending {
            self.start(&uid).await;
        }
    }

    /// How many pods are known but not served.
    pub fn pending(&self) -> usize {
        self.pods.values().filter(|pod| pod.pending.is_some()).count()
    }

    /// How many pods are served.
    pub fn served(&self) -> usize {
        self.pods.len() - self.pending()
    }

    /// Whether the snapshot of this session is complete.
    pub fn snapshot_received(&self) -> bool {
        self.snapshot.is_none()
    }

    async fn add(&mut self, uid: String, info: WorkloadInfo, netns: NetNs) -> Answer {
        if let Some(pod) = self.pods.get(&uid) {
            if pod.pending.is_none() && pod.netns.id() == netns.id() && pod.info == info {
                return Answer::Done;
            }
            if pod.pending.is_none() {
                tracing::info!(%uid, pod = %name(&info), "the pod has another network namespace or identity, starting it anew");
                self.stop(&uid).await;
            }
        } else if self.pods.len() >= MAX_PODS {
            return Answer::Refused(Error::new(&code::POD_START, format!("more than {MAX_PODS} pods")).to_string());
        }
        self.pods.insert(uid.clone(), Pod { info, netns, pending: Some(Error::new(&code::POD_START, "not started yet")) });
        self.start(&uid).await;
        match self.pods.get(&uid).and_then(|pod| pod.pending.as_ref()) {
            None => Answer::Done,
            Some(error) => Answer::Refused(format!("failure to start proxy : {error}")),
        }
    }

    async fn start(&mut self, uid: &str) {
        let Some(pod) = self.pods.get_mut(uid) else { return };
        let started = self.server.start(uid, &pod.info, pod.netns.clone());
        let started = deadline(STEP_LIMIT, &code::POD_START, name(&pod.info), started).await.and_then(|result| result);
        pod.pending = started.err();
        match &pod.pending {
            None => tracing::info!(%uid, pod = %name(&pod.info), netns = %pod.netns.id(), "pod is served"),
            Some(error) => tracing::warn!(%uid, pod = %name(&pod.info), %error, "pod is not served, will be tried again"),
        }
    }

    async fn remove(&mut self, uid: &str) {
        if let Some(pod) = self.pods.get(uid) {
            let pod_name = name(&pod.info);
            if pod.pending.is_none() {
                self.stop(uid).await;
            }
            self.pods.remove(uid);
            tracing::info!(%uid, pod = %pod_name, "pod is no longer served");
        }
    }

    async fn stop(&mut self, uid: &str) {
        // The agent says "gone" only for pods whose connections are over: nothing is waited for.
        if let Err(error) = deadline(STEP_LIMIT, &code::POD_START, format!("stop {uid}"), self.server.stop(uid)).await {
            tracing::warn!(%uid, %error, "pod did not stop in time");
        }
    }
}

fn remember(named: &mut BTreeSet<String>, uid: &str) -> Result<()> {
    if named.len() >= MAX_PODS {
        return Err(Error::new(&code::ZDS_PROTOCOL, format!("a snapshot of more than {MAX_PODS} pods")));
    }
    named.insert(uid.to_owned());
    Ok(())
}

fn name(info: &WorkloadInfo) -> String {
    format!("{}/{}", info.namespace, info.name)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Writes down what it is asked for; refuses pods named `bad` as long as it is told to.
    #[derive(Default)]
    struct Fake {
        did: Vec<String>,
        healed: bool,
    }

    impl Serve for Fake {
        async fn start(&mut self, uid: &str, info: &WorkloadInfo, _netns: NetNs) -> Result<()> {
            self.did.push(format!("start {uid}"));
            if info.name == "bad" && !self.healed {
                return Err(Error::new(&code::POD_START, "port taken"));
            }
            if info.name == "silent" {
                std::future::pending::<()>().await;
            }
            Ok(())
        }

        async fn stop(&mut self, uid: &str) {
            self.did.push(format!("stop {uid}"));
        }
    }

    fn request(kind: &str, uid: &str, name: &str) -> Request {
        let uid = uid.to_owned();
        match kind {
            "add" => Request::Add { uid, info: WorkloadInfo { name: name.into(), namespace: "ns".into(), service_account: "sa".into() } },
            "keep" => Request::Keep { uid },
            "del" => Request::Del { uid },
            _ => Request::SnapshotSent,
        }
    }

    async fn tell(pods: &mut Pods<Fake>, kind: &str, uid: &str, name: &str) -> Result<Answer> {
        let netns = (kind == "add").then(|| NetNs::current().expect("own namespace"));
        pods.handle(request(kind, uid, name), netns).await
    }

    async fn did(pods: &mut Pods<Fake>) -> Vec<String> {
        std::mem::take(&mut pods.server.did)
    }

    #[tokio::test]
    async fn the_snapshot_stops_what_it_does_not_name() {
        let mut pods = Pods::new(Fake::default());
        for uid in ["a", "b", "c"] {
            assert_eq!(tell(&mut pods, "add", uid, "n").await.expect("fits"), Answer::Done);
        }
        tell(&mut pods, "snapshot", "", "").await.expect("fits");
        assert_eq!((pods.served(), pods.snapshot_received()), (3, true));
        did(&mut pods).await;

        pods.begin_session();
        assert_eq!((pods.served(), pods.snapshot_received()), (3, false), "pods go on while the agent is away");
        tell(&mut pods, "add", "a", "n").await.expect("fits");
        tell(&mut pods, "keep", "b", "").await.expect("fits");
        tell(&mut pods, "snapshot", "", "").await.expect("fits");
        assert_eq!(did(&mut pods).await, ["stop c"], "a is the same as before, b is kept");
        assert_eq!(pods.served(), 2);
    }

    #[tokio::test]
    async fn a_deleted_pod_is_stopped_once() {
        let mut pods = Pods::new(Fake::default());
        tell(&mut pods, "add", "a", "n").await.expect("fits");
        tell(&mut pods, "snapshot", "", "").await.expect("fits");
        assert_eq!(tell(&mut pods, "del", "a", "").await.expect("fits"), Answer::Done);
        assert_eq!(tell(&mut pods, "del", "a", "").await.expect("fits"), Answer::Done, "unknown is fine");
        assert_eq!(did(&mut pods).await, ["start a", "stop a"]);
    }

    #[tokio::test]
    async fn another_identity_under_the_same_uid_starts_anew() {
        let mut pods = Pods::new(Fake::default());
        tell(&mut pods, "add", "a", "n").await.expect("fits");
        tell(&mut pods, "add", "a", "other").await.expect("fits");
        assert_eq!(did(&mut pods).await, ["start a", "stop a", "start a"]);
    }

    #[tokio::test]
    async fn a_failed_start_is_refused_and_tried_again() {
        let mut pods = Pods::new(Fake::default());
        let answer = tell(&mut pods, "add", "a", "bad").await.expect("fits");
        assert_eq!(answer, Answer::Refused("failure to start proxy : port taken (W5004)".into()));
        assert_eq!((pods.served(), pods.pending()), (0, 1));
        pods.retry().await;
        assert_eq!(pods.pending(), 1);
        pods.server.healed = true;
        pods.retry().await;
        assert_eq!((pods.served(), pods.pending()), (1, 0));
        assert_eq!(did(&mut pods).await, ["start a"; 3]);
    }

    #[tokio::test]
    async fn a_pending_pod_that_goes_away_is_forgotten_without_a_stop() {
        let mut pods = Pods::new(Fake::default());
        tell(&mut pods, "add", "a", "bad").await.expect("fits");
        tell(&mut pods, "del", "a", "").await.expect("fits");
        pods.retry().await;
        assert_eq!(did(&mut pods).await, ["start a"]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_start_that_hangs_is_answered_before_the_agent_gives_up() {
        let mut pods = Pods::new(Fake::default());
        let begun = tokio::time::Instant::now();
        assert!(matches!(tell(&mut pods, "add", "a", "silent").await, Ok(Answer::Refused(_))));
        assert!(begun.elapsed() < Duration::from_secs(5));
    }

    #[tokio::test]
    async fn what_does_not_fit_the_session_is_an_error_and_changes_nothing() {
        let mut pods = Pods::new(Fake::default());
        tell(&mut pods, "add", "a", "n").await.expect("fits");
        tell(&mut pods, "snapshot", "", "").await.expect("fits");
        did(&mut pods).await;
        assert!(tell(&mut pods, "keep", "a", "").await.is_err());
        assert!(tell(&mut pods, "snapshot", "", "").await.is_err());
        assert!(pods.handle(request("add", "b", "n"), None).await.is_err());
        assert_eq!((did(&mut pods).await.len(), pods.served()), (0, 1));
    }
}
