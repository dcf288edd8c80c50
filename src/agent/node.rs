//! The agent of a Kubernetes node: puts its parts together, and takes them down in order.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use ::kube::Client;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::board::Board;
use super::cni::{self, NodeState};
use super::find::Finder;
use super::kube::{self, KubeDiscovery, Pods, Removal, Rules};
use super::probe::ProbeTable;
use super::reconcile::{self, Settings};
use super::redirect::nft::Nft;
use super::{Surroundings, health};
use crate::base::drain::{self, Watch};
use crate::base::{Error, Result, Str, code};
use crate::telemetry::Readiness;

/// How the agent of a node is set up.
#[derive(Debug)]
pub struct Node {
    /// The node's name.
    pub name: String,
    /// The namespace in which Warren is installed.
    pub namespace: String,
    /// Which pods are to be in the mesh.
    pub rules: Rules,
    /// How pods are captured.
    pub settings: Settings,
    /// The socket for proxies.
    pub zds_socket: PathBuf,
    /// The node's `/proc`.
    pub host_proc: PathBuf,
    /// The CNI plugin, if the agent is to keep one.
    pub cni: Option<cni::Settings>,
    /// Where `/healthz`, `/readyz` and `/metrics` are served.
    pub status: TcpListener,
}

impl Node {
    /// Runs until a drain starts, or until Warren is there again after it was removed.
    ///
    /// # Errors
    /// A socket cannot be made, or what was to be removed at the end could not be. Everything else is tried again.
    pub async fn run(self, client: Client, mut drain: Watch) -> Result<()> {
        let Self { name, namespace, rules, settings, zds_socket, host_proc, cni, status } = self;
        let ready = Arc::new(Readiness::new());
        let (board, notices) = Board::new();
        let board = Arc::new(board);
        let discovery = KubeDiscovery::start(client.clone(), &name, rules, ready.clone());
        let pods = discovery.pods();
        let mut removal = Removal::watch(client.clone(), namespace.clone());
        let probes = ProbeTable::new(settings.options, host_proc.clone(), 1);

        // For as long as this process lives: an agent that has left and says nothing would be started again.
        let (_open, open) = drain::new();
        let mut pages = JoinSet::new();
        pages.spawn(health::serve(status, ready.clone(), board.clone(), open));
        // What serves the agent itself, and ends after it.
        let (end, ended) = drain::new();
        let mut parts = JoinSet::new();
        parts.spawn(kube::end_purge(client.clone(), namespace));
        let told = tokio::spawn(kube::publish(client, name, pods.clone(), board.clone(), notices, ended.clone()));
        parts.spawn(keep_probes(probes.clone(), board.captured()));
        let (front, calls) = reconcile::front(pods.clone());
        let plugin = cni.clone().map(|settings| {
            let (state, known) = watch::channel(NodeState::default());
            parts.spawn(keep_state(pods, state));
            let report = cni::Report { readiness: ready.clone(), metrics: board.metrics.cni.clone() };
            tokio::spawn(cni::run(settings, Arc::new(front), known, report, ended))
        });

        let around = Surroundings { board, ready, calls, finder: Some(Finder::new(host_proc)), removal: removal.clone() };
        let agent = super::run(discovery, Nft::new(settings.options), &zds_socket, settings, around, drain.clone());
        let left = tokio::select! {
            left = agent => left?,
            failed = ended_early(plugin) => return Err(failed),
        };
        end.drain(END).await;
        if let Err(error) = told.await {
            tracing::error!(%error, "what is told to the API server ended");
        }
        parts.shutdown().await;
        if left {
            let rules = probes.remove().await;
            cni.as_ref().map_or(Ok(()), cni::uninstall)?;
            rules?;
        }
        // An agent that ends before it is asked to is started again and takes its pods back into the mesh: that is right
        // only when Warren has come back, in which case this very pod may be adopted by the new DaemonSet.
        tokio::select! {
            biased;
            _ = drain.started() => {}
            () = removal.undone() => tracing::warn!("Warren is there again: the agent ends, to be started anew"),
        }
        Ok(())
    }
}

/// For the last annotations, and for calls that are being answered.
const END: std::time::Duration = std::time::Duration::from_secs(8);

/// Returns when the CNI plugin's side cannot go on; it ends by itself only at the drain, and that is no failure.
async fn ended_early(plugin: Option<tokio::task::JoinHandle<Result<()>>>) -> Error {
    if let Some(plugin) = plugin {
        match plugin.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return error,
            Err(error) => return Error::caused(&code::INTERNAL, "the CNI plugin's side", error),
        }
    }
    std::future::pending().await
}

/// Lets probes through to the pods that are captured.
async fn keep_probes(probes: ProbeTable, mut captured: watch::Receiver<Option<BTreeSet<IpAddr>>>) {
    let follow = async {
        loop {
            let pods = captured.borrow_and_update().clone();
            if let Some(pods) = pods
                && let Err(error) = probes.set(pods).await
            {
                // It is tried again, and said, by those who keep the rules.
                tracing::debug!(%error, "kubelet's probes may not reach all pods yet");
            }
            if captured.changed().await.is_err() {
                return;
            }
        }
    };
    tokio::join!(follow, probes.keep());
}

/// Says which namespaces have no pod in the mesh, for the plugin when the agent is away.
async fn keep_state(pods: Pods, state: watch::Sender<NodeState>) {
    let mut changed = pods.changed();
    loop {
        changed.borrow_and_update();
        let outside: BTreeSet<Str> = outside(pods.namespaces());
        state.send_if_modified(|before| {
            let other = before.outside != outside;
            before.outside = outside;
            other
        });
        if changed.changed().await.is_err() {
            return;
        }
    }
}

fn outside(namespaces: BTreeMap<String, bool>) -> BTreeSet<Str> {
    namespaces.into_iter().filter(|(_, inside)| !inside).map(|(name, _)| Str::from(name)).collect()
}
