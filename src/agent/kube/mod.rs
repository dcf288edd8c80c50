//! Pods of this node from the Kubernetes API: watches, and what is told back about each pod.

mod api;
mod leftover;
mod object;
mod publish;
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
use tokio::time::Instant;

use super::discovery::{Discovery, Lookup, Pod};
use super::enrolment::{AMBIENT, MODE};
use crate::base::{Error, Result, code, deadline};
use crate::telemetry::Readiness;
pub use api::client;
use api::failed;
pub use leftover::end_purge;
use object::Meta;
pub use publish::publish;
pub use removal::Removal;
pub use store::Rules;
use store::Store;

/// The longest that a watch goes on; a connection that has died in silence is noticed 5 s later.
const WATCH_SECONDS: u32 = 60;

/// Between two attempts to watch: doubles from the first to the last.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(3));

/// A watch that has not failed for so long is up: it fails more often while the API server is away.
const STALE: Duration = Duration::from_secs(10);

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
    /// When a watch failed, the last time.
    failed: Mutex<Option<Instant>>,
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
        let shared = Arc::new(Shared { client: client.clone(), store, changed, failed: Mutex::new(None), ready });
        let config = || watcher::Config::default().timeout(WATCH_SECONDS).page_size(PAGE);
        let pods = watcher(Api::<object::Pod>::all(client.clone()), config().fields(&format!("spec.nodeName={node}")));
        let namespaces = watcher_of(client.clone(), &namespace_kind(), config());
        let asking = watcher_of(client, &pod_kind(), config().labels(&format!("{MODE}={AMBIENT}")));
        let mut watches = JoinSet::new();
        let of_pods = shared.clone();
        watches.spawn(follow(shared.clone(), "pods", pods, move |event| {
            of_pods.store.lock().pod_event(event);
            true
        }));
        let of_namespaces = shared.clone();
        watches.spawn(follow(shared.clone(), "namespaces", namespaces, move |event| {
            of_namespaces.store.lock().namespace_event(event);
            true
        }));
        let of_asking = shared.clone();
        let take = move |event| of_asking.store.lock().asking_event(event);
        watches.spawn(follow(shared.clone(), "pods that ask for the mesh", asking, take));
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
        let fresh = self.shared.failed.lock().is_none_or(|failed| failed.elapsed() >= STALE);
        if let (Some(pod), true) = (&known, fresh) {
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
                *shared.failed.lock() = Some(Instant::now());
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
