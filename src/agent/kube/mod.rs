//! Pods of this node from the Kubernetes API: watches, and what is told back about each pod.

mod api;
mod leftover;
mod object;
mod publish;
mod pulse;
mod removal;
mod store;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::{StreamExt, TryStream, TryStreamExt};
use kube::core::ApiResource;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client};
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::discovery::{Discovery, Lookup, Pod};
use super::enrolment::{AMBIENT, MODE};
use crate::base::{Error, Result, code, deadline};
use crate::config::cluster::WATCH_PERIOD;
use crate::telemetry::Readiness;
use api::failed;
pub use leftover::end_purge;
use object::Meta;
pub use publish::publish;
use pulse::Pulse;
pub use removal::Removal;
pub use store::Rules;
use store::Store;

/// Between two attempts to watch: doubles from the first to the last.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(3));

/// Objects in one answer to a list: bounds the memory that it takes.
const PAGE: u32 = 100;

/// For one call of the API.
const CALL: Duration = Duration::from_secs(5);

/// The pods of one node. Clones share what is known.
#[derive(Clone)]
pub struct Pods {
    shared: Arc<Shared>,
}

struct Shared {
    client: Client,
    store: Mutex<Store>,
    /// Counts the changes.
    changed: watch::Sender<u64>,
    /// Of the watches that decide about pods of this node: pods, namespaces.
    pulses: [Arc<Pulse>; 2],
    ready: Arc<Readiness>,
}

impl std::fmt::Debug for Pods {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pods").finish_non_exhaustive()
    }
}

/// The pods of one node as they change.
#[derive(Debug)]
pub struct KubeDiscovery {
    pods: Pods,
    changed: watch::Receiver<u64>,
    last: Option<Vec<Pod>>,
    _watches: JoinSet<()>,
}

impl KubeDiscovery {
    /// Starts to watch. While the API server is away the last state stays.
    pub fn start(client: Client, node: &str, rules: Rules, ready: Arc<Readiness>) -> Self {
        ready.waits("kubernetes", "the pods of this node are not known yet");
        let (changed, receiver) = watch::channel(0);
        let store = Mutex::new(Store::new(rules));
        let pulses: [Arc<Pulse>; 2] = Default::default();
        let shared = Arc::new(Shared { client: client.clone(), store, changed, pulses: pulses.clone(), ready });
        let [of_pods, of_namespaces] = &pulses;
        let config = || watcher::Config::default().timeout(WATCH_PERIOD).page_size(PAGE);
        let pods = watcher(Api::<object::Pod>::all(of_pods.listen(&client)), config().fields(&format!("spec.nodeName={node}")));
        let namespaces = watcher_of(of_namespaces.listen(&client), &namespace_kind(), config());
        let asking = watcher_of(client, &pod_kind(), config().labels(&format!("{MODE}={AMBIENT}")));
        let mut watches = JoinSet::new();
        let known = shared.clone();
        watches.spawn(follow(shared.clone(), "pods", of_pods.clone(), pods, move |event| {
            known.store.lock().pod_event(event);
            true
        }));
        let known = shared.clone();
        watches.spawn(follow(shared.clone(), "namespaces", of_namespaces.clone(), namespaces, move |event| {
            known.store.lock().namespace_event(event);
            true
        }));
        let known = shared.clone();
        let take = move |event| known.store.lock().asking_event(event);
        watches.spawn(follow(shared.clone(), "pods that ask for the mesh", Arc::default(), asking, take));
        Self { pods: Pods { shared }, changed: receiver, last: None, _watches: watches }
    }

    /// For those who ask about one pod, or tell about it.
    pub fn pods(&self) -> Pods {
        self.pods.clone()
    }
}

impl Discovery for KubeDiscovery {
    async fn next(&mut self) -> Vec<Pod> {
        loop {
            self.changed.borrow_and_update();
            let pods = {
                let store = self.pods.shared.store.lock();
                store.is_synced().then(|| store.pods())
            };
            if let Some(pods) = pods.filter(|pods| self.last.as_ref() != Some(pods)) {
                self.last = Some(pods.clone());
                return pods;
            }
            if self.changed.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }
}

impl Lookup for Pods {
    async fn pod(&self, uid: &str, namespace: &str, name: &str, limit: Duration) -> Result<Pod> {
        let known = self.shared.store.lock().pod(uid, namespace, name);
        let is_fresh = self.shared.pulses.iter().all(|pulse| pulse.is_fresh());
        if let (Some(pod), true) = (&known, is_fresh) {
            return Ok(pod.clone());
        }
        match (self.ask(uid, namespace, name, limit.min(CALL)).await, known) {
            (Ok(pod), _) => Ok(pod),
            // The watch is not up, but it was: what it said last stays in force.
            (Err(_), Some(pod)) => Ok(pod),
            (Err(error), None) => Err(error),
        }
    }
}

impl Pods {
    async fn ask(&self, uid: &str, namespace: &str, name: &str, limit: Duration) -> Result<Pod> {
        let client = &self.shared.client;
        let pods: Api<object::Pod> = Api::namespaced(client.clone(), namespace);
        let namespaces: Api<Meta> = Api::all_with(client.clone(), &namespace_kind());
        let asked = async { tokio::try_join!(pods.get(name), namespaces.get(namespace)) };
        let answer = deadline(limit, &code::API_UNAVAILABLE, format!("the API server about pod {namespace}/{name}"), asked).await?;
        let (pod, meta) = answer.map_err(|error| failed(&format!("read pod {namespace}/{name}"), error))?;
        let pod = self.shared.store.lock().decide(pod, &meta);
        if uid.is_empty() || *pod.uid == *uid || *pod.runtime_uid == *uid {
            return Ok(pod);
        }
        Err(Error::new(&code::API_UNAVAILABLE, format!("pod {namespace}/{name} is another one by now: its UID is {}, not {uid}", pod.uid)))
    }

    /// The names of all namespaces of the cluster, each with whether pods of it are to be in the mesh: by its label, or
    /// by that of a pod in it, on whatever node. None before they are known.
    pub fn namespaces(&self) -> BTreeMap<String, bool> {
        self.shared.store.lock().namespaces()
    }

    /// Changes with every event of the watches.
    pub fn changed(&self) -> watch::Receiver<u64> {
        self.shared.changed.subscribe()
    }
}

fn namespace_kind() -> ApiResource {
    ApiResource::erase::<k8s_openapi::api::core::v1::Namespace>(&())
}

fn pod_kind() -> ApiResource {
    ApiResource::erase::<k8s_openapi::api::core::v1::Pod>(&())
}

/// Watches the metadata of a kind.
fn watcher_of(
    client: Client,
    kind: &ApiResource,
    config: watcher::Config,
) -> impl TryStream<Ok = Event<Meta>, Error = watcher::Error> + Send + 'static {
    watcher(Api::<Meta>::all_with(client, kind), config)
}

/// Hands every event of a watch to `take`, which says whether anything has changed by it; for ever.
async fn follow<K: Send + 'static>(
    shared: Arc<Shared>,
    what: &'static str,
    pulse: Arc<Pulse>,
    stream: impl TryStream<Ok = Event<K>, Error = watcher::Error> + Send + 'static,
    take: impl Fn(Event<K>) -> bool + Send,
) {
    let mut stream = std::pin::pin!(stream.into_stream());
    let mut failures = 0_u32;
    while let Some(event) = stream.next().await {
        match event {
            Ok(event) => {
                let listing = matches!(event, Event::Init | Event::InitApply(_));
                let changed = take(event);
                if !listing {
                    pulse.heard();
                    if failures > 0 {
                        tracing::info!(what, "the watch is up again");
                    }
                    failures = 0;
                }
                if shared.store.lock().is_synced() {
                    shared.ready.ready("kubernetes");
                }
                if changed {
                    shared.changed.send_modify(|count| *count += 1);
                }
            }
            Err(error) => {
                pulse.lost();
                let pause = BACKOFF.0.saturating_mul(1 << failures.min(16)).min(BACKOFF.1);
                failures += 1;
                // A watch that ran into its time limit or was compacted away is no news.
                if failures > 1 {
                    tracing::warn!(what, %error, "the watch is down, the last state stays in force");
                    if !shared.store.lock().is_synced() {
                        shared.ready.waits("kubernetes", format!("the {what} cannot be watched: {error}"));
                    }
                }
                tokio::time::sleep(pause).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

    use axum::body::Body;
    use axum::extract::Request;
    use axum::response::{IntoResponse, Response};
    use serde_json::{Value, json};

    use super::*;

    /// An API server that goes away in silence: it begins no watch any more, and those that are begun say nothing.
    #[derive(Default)]
    struct Server {
        is_silent: AtomicBool,
        /// The namespace got its label.
        is_labelled: AtomicBool,
        /// Single objects that were asked for.
        asked: AtomicUsize,
    }

    impl Server {
        fn client(self: &Arc<Self>) -> Client {
            let server = self.clone();
            let answer = move |request: Request<kube::client::Body>| {
                let server = server.clone();
                async move { Ok::<_, Infallible>(server.answer(request).await) }
            };
            Client::new(tower::service_fn(answer), "default")
        }

        async fn answer(&self, request: Request<kube::client::Body>) -> Response {
            let labels = if self.is_labelled.load(Ordering::Relaxed) { json!({MODE: AMBIENT}) } else { json!({}) };
            let namespace = json!({"metadata": {"name": "shop", "uid": "n", "labels": labels}});
            let pod = json!({"metadata": {"name": "web", "namespace": "shop", "uid": "u"}, "spec": {}, "status": {}});
            let list = |item: Option<Value>| json!({"metadata": {"resourceVersion": "1"}, "items": item.as_slice()});
            let query = request.uri().query().unwrap_or_default();
            let is_watch = query.contains("watch=true");
            if is_watch && self.is_silent.load(Ordering::Relaxed) {
                std::future::pending::<()>().await;
            }
            if is_watch {
                // The server ends a watch when its time is over.
                let over = futures::stream::once(tokio::time::sleep(Duration::from_secs(WATCH_PERIOD.into())));
                let nothing = over.filter_map(|()| std::future::ready(None::<std::result::Result<String, Infallible>>));
                return Body::from_stream(nothing).into_response();
            }
            let answer = match request.uri().path() {
                "/api/v1/pods" if query.contains("labelSelector") => list(None),
                "/api/v1/pods" => list(Some(pod)),
                "/api/v1/namespaces" => list(Some(namespace)),
                path => {
                    self.asked.fetch_add(1, Ordering::Relaxed);
                    if path.ends_with("/pods/web") { pod } else { namespace }
                }
            };
            answer.to_string().into_response()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_watch_that_has_died_in_silence_is_not_relied_on() {
        let server = Arc::<Server>::default();
        let mut discovery = KubeDiscovery::start(server.client(), "here", Rules::default(), Arc::default());
        assert_eq!(discovery.next().await.len(), 1);
        let pods = discovery.pods();
        let ambient = async || pods.pod("u", "shop", "web", CALL).await.expect("it is known").ambient;
        let minutes = Duration::from_secs(200);
        for _ in 0..2 {
            tokio::time::sleep(minutes).await;
            assert!(!ambient().await);
            assert_eq!(server.asked.load(Ordering::Relaxed), 0, "the watches are begun anew every minute");
        }
        server.is_silent.store(true, Ordering::Relaxed);
        server.is_labelled.store(true, Ordering::Relaxed);
        tokio::time::sleep(minutes).await;
        assert!(ambient().await, "the API server is asked");
        assert_eq!(server.asked.load(Ordering::Relaxed), 2, "about pod and namespace");
    }
}
