//! `warren agent`: the node agent.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::time::Duration;

use crate::agent;
use crate::agent::discovery::FileDiscovery;
use crate::agent::reconcile::Settings;
use crate::agent::redirect::Options;
use crate::agent::redirect::nft::Nft;
use crate::base::{Result, drain};

/// Keeps the pods of this node in the mesh: redirects their traffic and tells the proxy about them.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Where pods come from: file:PATH
    #[arg(long, value_name = "file:PATH", value_parser = source)]
    pub source: PathBuf,
    /// The node whose pods these are
    #[arg(long, env = "NODE_NAME")]
    pub node: String,
    /// The socket on which proxies connect
    #[arg(long, env = "INPOD_UDS", value_name = "PATH", default_value = "/var/run/ztunnel/ztunnel.sock")]
    pub zds_socket: PathBuf,
    /// Leave pods enrolled at the end, for an agent that takes over
    #[arg(long)]
    pub keep_on_exit: bool,
    /// Seconds that open connections of a pod may go on when it leaves the mesh
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    pub drain: u64,
    /// The address from which kubelet's probes arrive in pods
    #[arg(long, env = "HOST_PROBE_SNAT_IP", value_name = "IP", default_value_t = Options::default().probe_v4)]
    pub probe_ip: Ipv4Addr,
    /// The same for IPv6
    #[arg(long, env = "HOST_PROBE_SNAT_IPV6", value_name = "IP", default_value_t = Options::default().probe_v6)]
    pub probe_ipv6: Ipv6Addr,
}

/// Runs until the drain; then takes all pods out of the mesh, unless they are to stay.
///
/// # Errors
/// The socket cannot be made, or the settings cannot be used.
pub async fn run(args: Args, drain: drain::Watch) -> Result<()> {
    let drain_time = Duration::from_secs(args.drain);
    let defaults = Settings::default();
    let settings = Settings { drain: drain_time, exit_drain: defaults.exit_drain.min(drain_time), keep_on_exit: args.keep_on_exit };
    let discovery = FileDiscovery::new(args.source, args.node)?;
    let redirect = Nft::new(Options { probe_v4: args.probe_ip, probe_v6: args.probe_ipv6 });
    agent::run(discovery, redirect, &args.zds_socket, settings, drain).await
}

fn source(text: &str) -> std::result::Result<PathBuf, String> {
    match text.strip_prefix("file:") {
        Some(path) if !path.is_empty() => Ok(PathBuf::from(path)),
        _ => Err("only file:PATH is known".to_owned()),
    }
}
