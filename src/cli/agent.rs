//! `warren agent`: the node agent.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use super::descriptors;
use crate::agent::discovery::FileDiscovery;
use crate::agent::enrolment::Existing;
use crate::agent::kube::Rules;
use crate::agent::node::Node;
use crate::agent::reconcile::Settings;
use crate::agent::redirect::Options;
use crate::agent::redirect::nft::Nft;
use crate::agent::{self, Surroundings, cni, health};
use crate::base::{Error, Result, code, drain};
use crate::config::cluster;

pub(super) const PROC: &str = "/proc";
pub(super) const ZDS_SOCKET: &str = "/var/run/ztunnel/ztunnel.sock";
pub(super) const CNI_SOCKET: &str = "/var/run/warren/cni.sock";

/// The port of `/healthz`, `/readyz` and `/metrics`.
const STATUS_PORT: u16 = 15014;

/// Keeps the pods of this node in the mesh: redirects their traffic and tells the proxy about them.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Where pods come from: kubernetes or file:PATH
    #[arg(long, value_name = "SOURCE")]
    pub source: Source,
    /// The node whose pods these are
    #[arg(long, env = "NODE_NAME")]
    pub node: String,
    /// The socket on which proxies connect
    #[arg(long, env = "INPOD_UDS", value_name = "PATH", default_value = ZDS_SOCKET)]
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
    /// What belongs to a Kubernetes node
    #[command(flatten)]
    pub kubernetes: Kubernetes,
}

/// Used with `--source kubernetes` only.
#[derive(Clone, Debug, clap::Args)]
pub struct Kubernetes {
    /// The namespace in which Warren is installed; its pods are not in the mesh
    #[arg(long, env = "POD_NAMESPACE", default_value = "warren-system")]
    pub namespace: String,
    /// A namespace whose pods are never in the mesh
    #[arg(long = "exclude-namespace", value_name = "NAMESPACE", default_value = "kube-system")]
    pub exclude: Vec<String>,
    /// What becomes of connections that are older than the enrolment of their pod
    #[arg(long, value_enum, default_value_t)]
    pub existing: Existing,
    /// Where the processes of the node are seen
    #[arg(long, value_name = "DIR", default_value = PROC)]
    pub host_proc: PathBuf,
    /// The node's directory of CNI configurations; without it, no plugin is put there and pods are captured after
    /// they have started
    #[arg(long, value_name = "DIR", requires = "cni_bin_dir")]
    pub cni_conf_dir: Option<PathBuf>,
    /// The node's directory of CNI plugins
    #[arg(long, value_name = "DIR", requires = "cni_conf_dir")]
    pub cni_bin_dir: Option<PathBuf>,
    /// The socket that the plugin calls; at this path on the node, too
    #[arg(long, value_name = "PATH", default_value = CNI_SOCKET)]
    pub cni_socket: PathBuf,
    /// Where /healthz, /readyz and /metrics are served [default: port 15014 of all addresses]
    #[arg(long, value_name = "ADDRESS")]
    pub status: Option<SocketAddr>,
}

/// Where pods come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// The API server.
    Kubernetes,
    /// A mesh file.
    File(PathBuf),
}

impl FromStr for Source {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        match text.strip_prefix("file:") {
            Some(path) if !path.is_empty() => Ok(Self::File(path.into())),
            _ if text == "kubernetes" => Ok(Self::Kubernetes),
            _ => Err("only kubernetes and file:PATH are known".to_owned()),
        }
    }
}

/// Runs until the drain; then takes all pods out of the mesh, unless they are to stay.
///
/// # Errors
/// A socket cannot be made, or the settings cannot be used.
pub async fn run(args: Args, drain: drain::Watch) -> Result<()> {
    // Each pod has a namespace that is open.
    let descriptors = descriptors::raise_limit();
    tracing::debug!(descriptors, "starting");
    let drain_time = Duration::from_secs(args.drain);
    let options = Options { probe_v4: args.probe_ip, probe_v6: args.probe_ipv6 };
    let exit_drain = Settings::default().exit_drain.min(drain_time);
    let settings = Settings { drain: drain_time, exit_drain, keep_on_exit: args.keep_on_exit, options, ..Settings::default() };
    match args.source {
        Source::File(path) => {
            let discovery = FileDiscovery::new(path, args.node)?;
            agent::run(discovery, Nft::new(options), &args.zds_socket, settings, Surroundings::none(), drain).await?;
            Ok(())
        }
        Source::Kubernetes => on_kubernetes(args.node, args.zds_socket, args.kubernetes, settings, drain).await,
    }
}

async fn on_kubernetes(name: String, zds_socket: PathBuf, args: Kubernetes, settings: Settings, drain: drain::Watch) -> Result<()> {
    if name.is_empty() {
        return Err(Error::new(&code::BAD_SETTING, "--node (NODE_NAME) names no node"));
    }
    let mut exclude = args.exclude;
    exclude.push(args.namespace.clone());
    let cni = match (args.cni_conf_dir, args.cni_bin_dir) {
        (Some(conf), Some(bin)) => Some(cni::Settings::new(args.cni_socket, conf, bin, exclude.clone())),
        _ => None,
    };
    let status = match args.status {
        Some(address) => health::listen(address)?,
        // Without IPv6 there is IPv4.
        None => health::listen(SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), STATUS_PORT))
            .or_else(|_| health::listen(SocketAddr::new(IpAddr::from(Ipv4Addr::UNSPECIFIED), STATUS_PORT)))?,
    };
    let rules = Rules { excluded: BTreeSet::from_iter(exclude), existing: args.existing };
    let node = Node { name, namespace: args.namespace, rules, settings, zds_socket, host_proc: args.host_proc, cni, status };
    node.run(cluster::client().await?, drain).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_have_two_forms() {
        assert_eq!("kubernetes".parse(), Ok(Source::Kubernetes));
        assert_eq!("file:/a".parse(), Ok(Source::File("/a".into())));
        for wrong in ["", "file:", "kube", "/a"] {
            assert!(wrong.parse::<Source>().is_err(), "{wrong}");
        }
    }
}
