//! `warren purge`: takes Warren off a node.

use std::path::PathBuf;

use super::agent::{CNI_SOCKET, PROC, ZDS_SOCKET};
use crate::agent::cni;
use crate::agent::find::Finder;
use crate::agent::probe::ProbeTable;
use crate::agent::purge::purge;
use crate::agent::redirect::Options;
use crate::agent::redirect::nft::Nft;
use crate::base::Result;

/// Removes the rules from all pods of this node, and the CNI plugin. Asks no API server; refuses while an agent runs.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct Args {
    /// Where the processes of the node are seen
    #[arg(long, value_name = "DIR", default_value = PROC)]
    host_proc: PathBuf,
    /// The node's directory of CNI configurations
    #[arg(long, value_name = "DIR", default_value = "/etc/cni/net.d")]
    cni_conf_dir: PathBuf,
    /// The node's directory of CNI plugins
    #[arg(long, value_name = "DIR", default_value = "/opt/cni/bin")]
    cni_bin_dir: PathBuf,
    /// The socket that the plugin called
    #[arg(long, value_name = "PATH", default_value = CNI_SOCKET)]
    cni_socket: PathBuf,
    /// The socket on which proxies connected
    #[arg(long, env = "INPOD_UDS", value_name = "PATH", default_value = ZDS_SOCKET)]
    zds_socket: PathBuf,
}

/// # Errors
/// An agent runs, or something could not be removed; the log names each.
pub(super) async fn run(args: Args) -> Result<()> {
    let finder = Finder::new(args.host_proc.clone());
    let plugin = cni::Settings::new(args.cni_socket, args.cni_conf_dir, args.cni_bin_dir, Vec::new());
    let probes = ProbeTable::new(Options::default(), args.host_proc, 1);
    let namespaces = purge(&finder, &Nft::default(), &probes, &plugin, &args.zds_socket).await?;
    tracing::info!(namespaces, "nothing of Warren is left on this node");
    Ok(())
}
