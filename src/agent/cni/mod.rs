//! The agent's side of the CNI plugin: it puts the plugin in place, answers its calls, and leaves beside it what the plugin
//! may act on while the agent is away.
//!
//! [`run`] does all three until a drain starts and leaves everything in place: a successor takes over, and meanwhile pods
//! that may be in the mesh wait. [`uninstall`] takes all of it away.

mod conflist;
mod files;
mod follow;
mod install;
mod metrics;
mod server;

use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::watch;

use super::sandbox::Sandboxes;
use crate::base::drain::Watch;
use crate::base::{Error, Result, code};
use crate::cni::spec::Entry;
use crate::telemetry::ready::Readiness;

pub use crate::cni::outside::Outside as NodeState;
pub use metrics::Metrics;
pub use server::Server;

/// Where things are on the node, as the agent sees them.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The socket that the plugin calls. The plugin, which runs on the host, must find it at the same path.
    pub socket: PathBuf,
    /// The directory of CNI configurations.
    pub conf_dir: PathBuf,
    /// The directory of CNI plugins.
    pub bin_dir: PathBuf,
    /// Namespaces whose pods are never in the mesh. The agent's own must be among them: its pod starts before it answers.
    pub exclude: Vec<String>,
    /// The program that becomes the plugin.
    pub program: PathBuf,
}

/// Where it is told how things are.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// The part `cni` of the agent's readiness.
    pub readiness: Arc<Readiness>,
    /// What is counted.
    pub metrics: Metrics,
}

impl Settings {
    /// This very program is the plugin.
    pub fn new(socket: PathBuf, conf_dir: PathBuf, bin_dir: PathBuf, exclude: Vec<String>) -> Self {
        Self { socket, conf_dir, bin_dir, exclude, program: "/proc/self/exe".into() }
    }

    /// The plugin's entry in the network's configuration, JSON.
    fn entry(&self) -> Result<String> {
        let socket = self.socket.to_str().ok_or_else(|| Error::new(&code::BAD_SETTING, "the CNI socket's path is not UTF-8"))?;
        let entry = Entry { kind: crate::cni::NAME, socket, exclude: &self.exclude };
        serde_json::to_string(&entry).map_err(|error| Error::caused(&code::BAD_SETTING, "the CNI entry", error))
    }
}

/// Answers the plugin's calls by `sandboxes`, keeps the plugin in place, and writes down each `state` that is sent (the
/// first value of the channel counts only if it names a namespace: until then the file of an earlier agent stays).
///
/// # Errors
/// The socket cannot be made, or its path cannot be used. Everything else is tried again for as long as the agent runs.
pub async fn run<S: Sandboxes>(
    settings: Settings,
    sandboxes: Arc<S>,
    state: watch::Receiver<NodeState>,
    report: Report,
    drain: Watch,
) -> Result<()> {
    let entry = settings.entry()?;
    report.readiness.waits("cni", "the plugin is not in place yet");
    // Somebody answers before anybody is made to ask.
    let server = Server::bind(&settings.socket, sandboxes, report.metrics.clone())?;
    tracing::info!(socket = %settings.socket.display(), "waiting for CNI calls");
    let installer = install::Installer::new(settings.clone(), entry);
    tokio::join!(
        server.run(drain.clone()),
        follow::keep_installed(installer, report, drain.clone()),
        follow::keep_state(settings.bin_dir, state, drain),
    );
    Ok(())
}

/// Takes the plugin off the node: its entry out of all configurations, then its program, state and socket. What is gone
/// already is no error.
///
/// # Errors
/// CNI_INSTALL: something could not be removed; the rest is.
pub fn uninstall(settings: &Settings) -> Result<()> {
    install::remove(settings)
}
