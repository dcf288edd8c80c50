//! `warren control`: the control plane.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Args as ClapArgs;

use crate::base::{Result, drain};
use crate::control::source::Location;
use crate::control::{Control, Settings};

/// Runs the control plane: discovery and certificates for node proxies, over TLS on one port.
#[derive(Clone, Debug, ClapArgs)]
pub struct Args {
    /// Where pods, services and policies come from: file:PATH. A change is pushed at once.
    #[arg(long, value_name = "SOURCE")]
    pub source: Location,

    /// The port of discovery and certificates.
    #[arg(long, value_name = "ADDRESS", default_value = "0.0.0.0:15012")]
    pub listen: SocketAddr,

    /// Holds ca/ (root-cert.pem is what proxies trust; made on first use, or yours in Istio's cacerts layout) and tokens/
    /// (one file for each node).
    #[arg(long, value_name = "DIR", default_value = "/var/lib/warren")]
    pub state_dir: PathBuf,

    /// One more name or address under which proxies reach this control plane.
    #[arg(long = "san", value_name = "NAME_OR_IP")]
    pub sans: Vec<String>,

    /// Plain HTTP port of /healthz and /readyz.
    #[arg(long, value_name = "ADDRESS")]
    pub health: Option<SocketAddr>,
}

/// Runs until the drain; then streams end and open calls finish.
///
/// # Errors
/// It cannot start; the text says what to correct.
pub async fn run(args: Args, drain: drain::Watch) -> Result<()> {
    let Args { source, listen, state_dir, sans, health } = args;
    Control::start(Settings { source, listen, state_dir, sans, health }).await?.serve(drain).await
}
