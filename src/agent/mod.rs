//! The node agent: finds the pods of this node, redirects their traffic to the proxy, and tells the proxy about them.

pub mod cni;
mod decide;
pub mod discovery;
pub mod reconcile;
pub mod redirect;
pub mod sandbox;

use std::path::Path;

use crate::base::Result;
use crate::base::drain::Watch;
use crate::zds::server::{Handle, Server};
use discovery::Discovery;
use reconcile::{Reconciler, Settings};
use redirect::Redirect;

/// Runs the agent until a drain starts: serves proxies on the socket file `socket` and keeps the pods of `discovery`
/// enrolled by `redirect`.
///
/// # Errors
/// The socket cannot be made. Everything else is tried again for as long as the agent runs.
pub async fn run(
    mut discovery: impl Discovery,
    redirect: impl Redirect + 'static,
    socket: &Path,
    settings: Settings,
    mut drain: Watch,
) -> Result<()> {
    // Proxies stop what a snapshot does not name: they are let in only when the pods are known.
    let pods = tokio::select! {
        pods = discovery.next() => pods,
        _ = drain.started() => return Ok(()),
    };
    let proxies = Handle::new();
    let mut reconciler = Reconciler::new(redirect, proxies.clone(), settings);
    reconciler.begin(pods);
    let server = Server::bind(socket, &proxies).await?;
    tracing::info!(socket = %socket.display(), "waiting for proxies");
    // Proxies must hear of pods that leave at the end: their side is ended last.
    let (end, ended) = crate::base::drain::new();
    let serving = tokio::spawn(server.run(ended));
    reconciler.run(discovery, drain).await;
    end.stop().await;
    serving.abort();
    Ok(())
}
