//! `warren uninstall`: what has to happen, and in which order, before the chart's objects may go. The chart runs it in Jobs.
//!
//! An agent that ends takes its pods out of the mesh, for which it needs its rights; so it has to be gone before those are. Nodes on
//! which no agent ran (it crashed, its image was missing) are cleaned by a DaemonSet of `warren purge`, which is waited for.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::time::Duration;

use k8s_openapi::api::apps::v1::{DaemonSet, Deployment};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{ConfigMap, ContainerStatus, Pod};
use kube::api::{DeleteParams, ListParams, Patch, PatchParams};
use kube::core::metadata::PartialObjectMeta;
use kube::{Api, Client, Resource};
use serde::de::DeserializeOwned;
use tokio::time::Instant;

use crate::base::{Error, Result, code};

/// Takes Warren out of a cluster, one step at a time: the chart runs them at `helm uninstall`.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct Args {
    /// What is to be done now.
    #[arg(value_enum)]
    step: Step,
    /// The namespace in which Warren is installed
    #[arg(long, env = "POD_NAMESPACE")]
    namespace: String,
    /// Seconds after which what is not gone is named, and the step fails
    #[arg(long, value_name = "SECONDS", default_value_t = 120)]
    limit: u64,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Step {
    /// Ends the agents and waits until each has taken its pods out of the mesh
    Agents,
    /// Waits until every node is purged, ends proxies and control plane, removes what the latter wrote
    Rest,
}

const AGENT: &str = "warren-agent";
const PROXY: &str = "warren-proxy";
const PURGE: &str = "warren-purge";
const CONTROL: &str = "warren-control";
const ROOT: &str = "istio-ca-root-cert";
const LEASE: &str = "warren-control-status";
const ANNOTATION: &str = "ambient.istio.io/redirection";

/// Between two looks at what is waited for.
const LOOK: Duration = Duration::from_millis(500);

/// Objects of one page of a list.
const PAGE: u32 = 500;

/// # Errors
/// The API server refuses or is away, or something is not gone in time; the text names it.
pub(super) async fn run(args: Args) -> Result<()> {
    let client = Client::try_default().await.map_err(|error| failed("find the API server", error))?;
    let cluster = Cluster { client, namespace: args.namespace };
    let limit = Duration::from_secs(args.limit);
    let step = async {
        match args.step {
            Step::Agents => cluster.end::<DaemonSet>(AGENT).await,
            Step::Rest => {
                cluster.purged().await?;
                cluster.end::<DaemonSet>(PROXY).await?;
                cluster.end::<Deployment>(CONTROL).await?;
                cluster.remove_roots().await?;
                cluster.remove::<Lease>(LEASE).await?;
                cluster.clear_annotations().await
            }
        }
    };
    match tokio::time::timeout(limit, step).await {
        Ok(done) => done,
        Err(_) => Err(Error::new(&code::UNINSTALL, format!("not done within {limit:?}: {}", cluster.left(args.step).await))),
    }
}

struct Cluster {
    client: Client,
    namespace: String,
}

impl Cluster {
    fn api<K>(&self) -> Api<K>
    where
        K: Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>,
    {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    /// Removes a daemon and waits until its pods are gone.
    async fn end<K>(&self, name: &str) -> Result<()>
    where
        K: Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()> + Clone + DeserializeOwned + Debug,
    {
        let api = self.api::<K>();
        if !deleted(api.delete(name, &DeleteParams::foreground()).await, name)? {
            return Ok(());
        }
        tracing::info!(name, "waits for its pods to end");
        // In the foreground: the object stays until the last of its pods is gone.
        while api.get_metadata_opt(name).await.map_err(|error| failed(name, error))?.is_some() {
            tokio::time::sleep(LOOK).await;
        }
        Ok(())
    }

    async fn remove<K>(&self, name: &str) -> Result<()>
    where
        K: Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()> + Clone + DeserializeOwned + Debug,
    {
        deleted(self.api::<K>().delete(name, &DeleteParams::default()).await, name).map(|_| ())
    }

    /// Waits until the purge has been done once on every node.
    async fn purged(&self) -> Result<()> {
        let started = Instant::now();
        loop {
            let Some(purge) = self.api::<DaemonSet>().get_opt(PURGE).await.map_err(|error| failed(PURGE, error))? else {
                return Err(Error::new(&code::UNINSTALL, format!("there is no DaemonSet {PURGE}")));
            };
            let status = purge.status.unwrap_or_default();
            let seen = status.observed_generation >= purge.metadata.generation && status.observed_generation.is_some();
            let nodes = self.purges().await?;
            let done = nodes.values().filter(|left| left.is_none()).count();
            if seen && usize::try_from(status.desired_number_scheduled).is_ok_and(|desired| done >= desired) {
                tracing::info!(nodes = done, seconds = started.elapsed().as_secs_f32(), "purged");
                return Ok(());
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// By node: nothing if it is purged, else why not.
    async fn purges(&self) -> Result<BTreeMap<String, Option<String>>> {
        let pods = self.api::<Pod>().list(&of(PURGE)).await.map_err(|error| failed("list the pods of the purge", error))?;
        Ok(pods.items.into_iter().map(|pod| (node(&pod), purge_left(&pod))).collect())
    }

    /// Removes the root certificates that the control plane published; those of others stay.
    async fn remove_roots(&self) -> Result<()> {
        let all: Api<ConfigMap> = Api::all(self.client.clone());
        let named = ListParams::default().fields(&format!("metadata.name={ROOT}"));
        for root in pages(&all, named).await? {
            if published(&root) {
                let namespace = root.metadata.namespace.unwrap_or_default();
                let api: Api<ConfigMap> = Api::namespaced(self.client.clone(), &namespace);
                deleted(api.delete(ROOT, &DeleteParams::default()).await, ROOT)?;
            }
        }
        Ok(())
    }

    /// Clears what an agent would have cleared on nodes where none ran.
    async fn clear_annotations(&self) -> Result<()> {
        let all: Api<Pod> = Api::all(self.client.clone());
        let nothing = serde_json::json!({"metadata": {"annotations": {ANNOTATION: null}}});
        for pod in pages(&all, ListParams::default()).await? {
            let annotated = pod.metadata.annotations.is_some_and(|annotations| annotations.contains_key(ANNOTATION));
            let (Some(name), Some(namespace), true) = (pod.metadata.name, pod.metadata.namespace, annotated) else { continue };
            let api: Api<Pod> = Api::namespaced(self.client.clone(), &namespace);
            match api.patch_status(&name, &PatchParams::default(), &Patch::Merge(&nothing)).await {
                Err(kube::Error::Api(status)) if status.is_not_found() => {}
                patched => drop(patched.map_err(|error| failed(&format!("clear the annotation of {namespace}/{name}"), error))?),
            }
        }
        Ok(())
    }

    /// What a step that took too long still waits for.
    async fn left(&self, step: Step) -> String {
        let pods = async {
            match step {
                Step::Agents => Ok(self.nodes_of(AGENT).await?.into_iter().map(|node| format!("the agent of {node} runs")).collect()),
                Step::Rest => {
                    let purges = self.purges().await?.into_iter();
                    let mut left: Vec<String> = purges.filter_map(|(node, left)| left.map(|left| format!("{node}: {left}"))).collect();
                    // What comes after the purge is waited for by then only.
                    let later: &[_] = if left.is_empty() { &[(PROXY, "the proxy"), (CONTROL, "a control plane")] } else { &[] };
                    for (app, name) in later {
                        left.extend(self.nodes_of(app).await?.into_iter().map(|node| format!("{name} of {node} runs")));
                    }
                    Ok::<_, Error>(left)
                }
            }
        };
        match tokio::time::timeout(Duration::from_secs(5), pods).await {
            Ok(Ok(left)) => left.join("; "),
            Ok(Err(error)) => error.to_string(),
            Err(_) => "the API server does not answer".to_owned(),
        }
    }

    async fn nodes_of(&self, app: &str) -> Result<Vec<String>> {
        let pods = self.api::<Pod>().list(&of(app)).await.map_err(|error| failed("list pods", error))?;
        Ok(pods.items.iter().map(node).collect())
    }
}

/// All of a list, metadata only.
async fn pages<K>(api: &Api<K>, mut params: ListParams) -> Result<Vec<PartialObjectMeta<K>>>
where
    K: Clone + DeserializeOwned + Debug,
{
    params = params.limit(PAGE);
    let mut all = Vec::new();
    loop {
        let page = api.list_metadata(&params).await.map_err(|error| failed("list", error))?;
        all.extend(page.items);
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => params = params.continue_token(&token),
            None => return Ok(all),
        }
    }
}

/// Whether there was anything to delete.
fn deleted<T>(answer: kube::Result<T>, name: &str) -> Result<bool> {
    match answer {
        Ok(_) => Ok(true),
        Err(kube::Error::Api(status)) if status.is_not_found() => Ok(false),
        Err(error) => Err(failed(&format!("delete {name}"), error)),
    }
}

/// Whether the control plane is among those who wrote it.
fn published(root: &PartialObjectMeta<ConfigMap>) -> bool {
    let writers = root.metadata.managed_fields.iter().flatten();
    writers.filter_map(|writer| writer.manager.as_deref()).any(|manager| manager == CONTROL)
}

/// Nothing once the container has ended well, be it that the kubelet has started it again since; else what it is at.
fn purge_left(pod: &Pod) -> Option<String> {
    let Some(container) = pod.status.as_ref().and_then(|status| status.container_statuses.as_ref()).and_then(|all| all.first()) else {
        return Some("the purge has not started".to_owned());
    };
    let ends = [&container.state, &container.last_state].into_iter().flatten().filter_map(|state| state.terminated.as_ref());
    let mut ends = ends.map(|ended| ended.exit_code).peekable();
    match ends.peek().copied() {
        Some(_) if ends.any(|code| code == 0) => None,
        Some(code) => Some(format!("the purge failed with status {code}")),
        None => Some(waiting(container)),
    }
}

fn waiting(container: &ContainerStatus) -> String {
    let waiting = container.state.as_ref().and_then(|state| state.waiting.as_ref());
    let reason = waiting.and_then(|waiting| waiting.reason.as_deref()).unwrap_or("running");
    format!("the purge is {reason}")
}

fn of(app: &str) -> ListParams {
    ListParams::default().labels(&format!("app={app}"))
}

fn node(pod: &Pod) -> String {
    pod.spec.as_ref().and_then(|spec| spec.node_name.clone()).unwrap_or_else(|| "no node".to_owned())
}

fn failed(what: &str, error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
    Error::caused(&code::UNINSTALL, what, error)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(status: serde_json::Value) -> Pod {
        serde_json::from_value(serde_json::json!({"metadata": {}, "status": status})).unwrap()
    }

    #[test]
    fn a_purge_is_done_once_it_ended_well() {
        let container = |state: serde_json::Value, last: serde_json::Value| {
            let status = serde_json::json!({"name": "purge", "image": "", "imageID": "", "ready": false, "restartCount": 0,
                "state": state, "lastState": last});
            purge_left(&pod(serde_json::json!({"containerStatuses": [status]})))
        };
        let ended = |code: i32| serde_json::json!({"terminated": {"exitCode": code}});
        let none = serde_json::json!({});
        assert_eq!(purge_left(&pod(none.clone())).unwrap(), "the purge has not started");
        assert_eq!(container(serde_json::json!({"running": {}}), none.clone()).unwrap(), "the purge is running");
        let missing = serde_json::json!({"waiting": {"reason": "ErrImageNeverPull"}});
        assert_eq!(container(missing, none.clone()).unwrap(), "the purge is ErrImageNeverPull");
        assert_eq!(container(ended(1), none.clone()).unwrap(), "the purge failed with status 1");
        assert_eq!(container(ended(0), none), None);
        assert_eq!(container(serde_json::json!({"waiting": {"reason": "CrashLoopBackOff"}}), ended(0)), None);
        assert_eq!(container(ended(1), ended(0)), None, "it was done once");
    }

    #[test]
    fn only_roots_of_our_control_plane_are_removed() {
        let root = |manager: &str| {
            let fields = serde_json::json!([{"manager": manager, "operation": "Apply"}]);
            serde_json::from_value(serde_json::json!({"metadata": {"name": ROOT, "managedFields": fields}})).unwrap()
        };
        assert!(published(&root("warren-control")));
        assert!(!published(&root("pilot-discovery")));
    }
}
