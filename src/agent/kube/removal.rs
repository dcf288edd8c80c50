//! Whether the agent is being replaced or Warren is being uninstalled: what becomes of the agent's own DaemonSet says it.

use std::sync::Arc;

use futures::{StreamExt, TryStreamExt};
use kube::core::ApiResource;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::object::Meta;
use super::{BACKOFF, CALL};
use crate::base::{code, deadline};
use crate::config::cluster::WATCH_PERIOD;

/// The agent's own DaemonSet.
const DAEMON_SET: &str = "warren-agent";

/// Watches the agent's own DaemonSet.
///
/// Its removal is watched for, not only asked about at the end: what is removed together with it are the agent's rights
/// to ask. Clones share what is known.
#[derive(Clone)]
pub struct Removal {
    client: Option<(Client, String)>,
    gone: watch::Receiver<bool>,
    _watch: Arc<JoinSet<()>>,
}

impl std::fmt::Debug for Removal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Removal").field("gone", &*self.gone.borrow()).finish_non_exhaustive()
    }
}

impl Removal {
    /// Watches `warren-agent` in `namespace`.
    pub fn watch(client: Client, namespace: String) -> Self {
        let (sender, gone) = watch::channel(false);
        let api: Api<Meta> = Api::namespaced_with(client.clone(), &namespace, &kind());
        let config = watcher::Config::default().timeout(WATCH_PERIOD).fields(&format!("metadata.name={DAEMON_SET}"));
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
        Self { client: Some((client, namespace)), gone, _watch: Arc::new(task) }
    }

    /// Nothing is watched: the agent's end is its removal.
    pub fn at_end() -> Self {
        Self { client: None, gone: watch::channel(false).1, _watch: Arc::default() }
    }

    /// Returns when Warren is being removed, which may be never.
    pub async fn started(&mut self) {
        if self.gone.wait_for(|gone| *gone).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Returns when what was being removed is there again, which may be never.
    pub async fn undone(&mut self) {
        if self.gone.wait_for(|gone| !*gone).await.is_err() {
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
        match deadline(CALL, &code::API_UNAVAILABLE, "the API server about the agent's DaemonSet", api.get_opt(DAEMON_SET)).await {
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

pub(super) fn kind() -> ApiResource {
    ApiResource::erase::<k8s_openapi::api::apps::v1::DaemonSet>(&())
}
