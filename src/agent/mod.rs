//! The node agent: finds the pods of this node, redirects their traffic to the proxy, and tells the proxy about them.

pub mod board;
pub mod cni;
mod decide;
pub mod discovery;
pub mod enrolment;
pub mod existing;
pub mod find;
pub mod health;
pub mod kube;
pub mod metrics;
pub mod node;
pub mod probe;
pub mod purge;
pub mod reconcile;
pub mod redirect;
pub mod sandbox;

use std::path::Path;
use std::sync::Arc;

use crate::base::Result;
use crate::base::drain::Watch;
use crate::telemetry::Readiness;
use crate::zds::server::{Handle, Server};
use board::Board;
use discovery::{Discovery, Pod};
use find::{Finder, Found};
use kube::Removal;
use reconcile::{Calls, Reconciler, Settings};
use redirect::Redirect;

/// What an agent has around it, beside the source of pods and the kernel.
#[derive(Debug)]
pub struct Surroundings {
    /// Where it shows how pods are.
    pub board: Arc<Board>,
    /// Where it says when it is ready.
    pub ready: Arc<Readiness>,
    /// CNI calls.
    pub calls: Calls,
    /// Where it looks for pods of which the source does not say where they are.
    pub finder: Option<Finder>,
    /// Whether its end is that of Warren on this node.
    pub removal: Removal,
}

impl Surroundings {
    /// None at all: the source of pods says everything, and when the agent ends all pods leave.
    pub fn none() -> Self {
        let (board, _) = Board::new();
        let removal = Removal::at_end();
        Self { board: Arc::new(board), ready: Arc::default(), calls: reconcile::no_calls(), finder: None, removal }
    }
}

/// Runs the agent until a drain starts, or until it is removed: serves proxies on the socket file `socket` and keeps the pods of `discovery`
/// enrolled by `redirect`. Tells whether all pods have left at the end.
///
/// # Errors
/// The socket cannot be made. Everything else is tried again for as long as the agent runs.
pub async fn run(
    mut discovery: impl Discovery,
    redirect: impl Redirect + 'static,
    socket: &Path,
    settings: Settings,
    around: Surroundings,
    mut drain: Watch,
) -> Result<bool> {
    let Surroundings { board, ready, mut calls, finder, mut removal } = around;
    ready.waits("proxies", "the socket for proxies is not open yet");
    // Proxies stop what a snapshot does not name: they are let in only when the pods are known.
    let pods = tokio::select! {
        pods = discovery.next() => pods,
        _ = drain.started() => return Ok(false),
    };
    let proxies = Handle::new();
    let found = find_all(finder.clone(), &pods).await;
    let mut reconciler = Reconciler::new(redirect, proxies.clone(), settings, board.clone(), finder);
    reconciler.begin(pods, found);
    let server = Server::bind(socket, &proxies).await?;
    tracing::info!(socket = %socket.display(), "waiting for proxies");
    ready.ready("proxies");
    // Proxies must hear of pods that leave at the end: their side is ended last.
    let (end, ended) = crate::base::drain::new();
    let serving = tokio::spawn(server.run(ended));
    let removed = tokio::select! {
        () = reconciler.run(&mut discovery, &mut calls, &mut drain) => false,
        () = removal.started() => true,
    };
    let leave = removed || (!settings.keep_on_exit && removal.is_removal().await);
    if leave {
        ready.waits("removal", "Warren is being removed: no pod of this node is kept in the mesh");
        board.all_leave();
        reconciler.leave_all(&mut calls).await;
    } else {
        tracing::info!(pods = reconciler.len(), "the agent ends, pods stay enrolled");
    }
    end.stop().await;
    serving.abort();
    Ok(leave)
}

/// Where the pods of the first list are: also those that are not to be in the mesh, an earlier agent may have enrolled
/// them.
async fn find_all(finder: Option<Finder>, pods: &[Pod]) -> Found {
    let Some(finder) = finder else { return Found::new() };
    let wanted: Vec<_> = pods.iter().filter(|pod| pod.netns.is_none()).map(|pod| reconcile::wanted(pod, None)).collect();
    let found = tokio::task::spawn_blocking(move || finder.find(&wanted)).await;
    match found {
        Ok(Ok(found)) => found,
        Ok(Err(error)) => {
            tracing::warn!(%error, "pods cannot be looked for");
            Found::new()
        }
        Err(error) => {
            tracing::error!(%error, "the search for pods ended");
            Found::new()
        }
    }
}
