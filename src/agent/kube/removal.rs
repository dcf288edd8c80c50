//! Whether the agent is being replaced or Warren is being uninstalled: what becomes of the agent's own DaemonSet says it.

use std::time::Duration;

use futures::{StreamExt, TryStreamExt};
use kube::api::{DeleteParams, ListParams, PropagationPolicy};
use kube::core::ApiResource;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::object::Meta;
use super::{BACKOFF, CALL, WATCH_SECONDS};
use crate::base::{Error, Result, code, deadline};

/// The agent's own DaemonSet.
pub const DAEMON_SET: &str = "warren-agent";

/// Between two looks at pods that are to end.
const LOOK: Duration = Duration::from_millis(250);

/// Watches the agent's own DaemonSet.
///
/// Its removal is watched for, not only asked about at the end: what is removed together with it are the agent's rights
/// to ask.
#[derive(Debug)]
pub struct Removal {
    client: Option<(Client, String)>,
    gone: watch::Receiver<bool>,
    _watch: JoinSet<()>,
}

impl Removal {
    /// Watches `warren-agent` in `namespace`.
    pub fn watch(client: Client, namespace: String) -> Self {
        let (sender, gone) = watch::channel(false);
        let api: Api<Meta> = Api::namespaced_with(client.clone(), &namespace, &kind());
        let config = watcher::Config::default().timeout(WATCH_SECONDS).fields(&format!("metadata.name={DAEMON_SET}"));
        let mut task = JoinSet::new();
        task.spawn(async move {
            let mut events = std::pin::pin!(watcher(api, config).into_stream());
            let (mut seen, mut listed) = (false, false);
            while let Some(event) = events.next().await {
                match event {
                    Ok(Event::Init) => listed = false,
                    Ok(Event::InitApply(set) | Event::Apply(set)) => {
                        (seen, listed) = (true, true);
                        sender.send_replace(set.metadata.deletion_timestamp.is_some());
                    }
                    Ok(Event::Delete(_)) => {
                        sender.send_replace(true);
                    }
                    // One that was never there is an agent that is run in another way.
                    Ok(Event::InitDone) => {
                        sender.send_replace(seen && !listed);
                    }
                    Err(_) => tokio::time::sleep(BACKOFF.1).await,
                }
            }
        });
        Self { client: Some((client, namespace)), gone, _watch: task }
    }

    /// Nothing is watched: the agent's end is its removal.
    pub fn at_end() -> Self {
        Self { client: None, gone: watch::channel(false).1, _watch: JoinSet::new() }
    }

    /// Returns when Warren is being removed, which may be never.
    pub async fn started(&mut self) {
        if self.gone.wait_for(|gone| *gone).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Whether the end of this agent is a removal. When that cannot be found out it is none: pods stay closed, not open.
    pub async fn is_removal(&self) -> bool {
        let Some((client, namespace)) = &self.client else { return true };
        if *self.gone.borrow() {
            return true;
        }
        let api: Api<Meta> = Api::namespaced_with(client.clone(), namespace, &kind());
        match deadline(CALL, &code::API_FAILED, "the API server about the agent's DaemonSet", api.get_opt(DAEMON_SET)).await {
            Ok(Ok(Some(set))) => set.metadata.deletion_timestamp.is_some(),
            Ok(Ok(None)) => true,
            Ok(Err(error)) => {
                tracing::warn!(%error, "cannot ask about the agent's DaemonSet: pods stay enrolled");
                false
            }
            Err(error) => {
                tracing::warn!(%error, "pods stay enrolled");
                false
            }
        }
    }
}

/// Removes the agents of a release in order, while all that they need is still there, and waits for their end: every
/// pod leaves the mesh, every node is cleaned.
///
/// # Errors
/// The API server refuses, or agents still run when `limit` is over; the text names them.
pub async fn remove_release(client: Client, namespace: &str, limit: Duration) -> Result<()> {
    let failed = |error| Error::caused(&code::API_FAILED, format!("remove DaemonSet {namespace}/{DAEMON_SET}"), error);
    let sets: Api<Meta> = Api::namespaced_with(client.clone(), namespace, &kind());
    let parameters = DeleteParams { propagation_policy: Some(PropagationPolicy::Foreground), ..DeleteParams::default() };
    match deadline(CALL, &code::API_FAILED, "the API server", sets.delete(DAEMON_SET, &parameters)).await? {
        Ok(_) => {}
        Err(kube::Error::Api(status)) if status.code == 404 => return Ok(()),
        Err(error) => return Err(failed(error)),
    }
    let pods: Api<Meta> = Api::namespaced_with(client, namespace, &ApiResource::erase::<k8s_openapi::api::core::v1::Pod>(&()));
    let ours = ListParams::default().labels(&format!("app={DAEMON_SET}"));
    let end = tokio::time::Instant::now() + limit;
    loop {
        let left = deadline(CALL, &code::API_FAILED, "the API server", pods.list(&ours)).await?.map_err(failed)?;
        if left.items.is_empty() {
            return Ok(());
        }
        if tokio::time::Instant::now() >= end {
            let names: Vec<_> = left.items.into_iter().filter_map(|pod| pod.metadata.name).collect();
            return Err(Error::new(&code::API_FAILED, format!("these agents still run after {limit:?}: {}", names.join(", "))));
        }
        tokio::time::sleep(LOOK).await;
    }
}

fn kind() -> ApiResource {
    ApiResource::erase::<k8s_openapi::api::apps::v1::DaemonSet>(&())
}
