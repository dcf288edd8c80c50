//! `warren control`: the control plane.

use std::net::{Ipv6Addr, SocketAddr};
use std::path::PathBuf;

use clap::Args as ClapArgs;

use crate::base::{Error, Result, code, drain};
use crate::config::meshfile::DEFAULT_TRUST_DOMAIN;
use crate::control::auth::Accounts;
use crate::control::source::Location;
use crate::control::{Cluster, Control, Settings};
use crate::identity::SpiffeId;

/// The health port in a cluster, where probes need one.
const HEALTH_PORT: u16 = 8080;

/// Runs the control plane: discovery and certificates for node proxies, over TLS on one port.
#[derive(Clone, Debug, ClapArgs)]
pub struct Args {
    /// Where pods, services and policies come from: file:PATH or kubernetes (the cluster of KUBECONFIG, else the one this
    /// runs in). A change is pushed at once.
    #[arg(long, value_name = "SOURCE")]
    pub source: Location,

    /// The port of discovery and certificates. Without IPv6, [::] stands for 0.0.0.0.
    #[arg(long, value_name = "ADDRESS", default_value = "[::]:15012")]
    pub listen: SocketAddr,

    /// Holds ca/ (root-cert.pem is what proxies trust; made on first use, or yours in Istio's cacerts layout) and tokens/
    /// (one file for each node). Not used in a cluster.
    #[arg(long, value_name = "DIR", default_value = "/var/lib/warren/control")]
    pub state_dir: PathBuf,

    /// One more name or address under which proxies reach this control plane.
    #[arg(long = "san", value_name = "NAME_OR_IP")]
    pub sans: Vec<String>,

    /// Plain HTTP port of /healthz, /readyz and /metrics. In a cluster [::]:8080, else none.
    #[arg(long, value_name = "ADDRESS")]
    pub health: Option<SocketAddr>,

    /// In a cluster: the namespace of this installation. It holds the Secret of the authority (cacerts, else warren-ca),
    /// and policies in it are for all namespaces.
    #[arg(long, env = "POD_NAMESPACE", value_name = "NAMESPACE", default_value = "")]
    pub namespace: String,

    /// In a cluster: the trust domain of all identities. Proxies take a record that names none for cluster.local's.
    #[arg(long, env = "TRUST_DOMAIN", value_name = "NAME", default_value = DEFAULT_TRUST_DOMAIN)]
    pub trust_domain: String,

    /// In a cluster: the accounts, as namespace/name, whose pods are the proxies of their nodes. They may know the mesh
    /// and have the certificates of the pods on their node. Default: warren-proxy in the namespace.
    #[arg(long, env = "CA_TRUSTED_NODE_ACCOUNTS", value_name = "ACCOUNTS", default_value = "")]
    pub node_accounts: Accounts,
}

/// Runs until the drain.
///
/// # Errors
/// It cannot start; the text says what to correct.
pub async fn run(args: Args, mut drain: drain::Watch) -> Result<()> {
    let settings = settings(args)?;
    let control = tokio::select! {
        control = Control::start(settings) => control?,
        _ = drain.started() => return Ok(()),
    };
    control.serve(drain).await
}

fn settings(args: Args) -> Result<Settings> {
    let Args { source, listen, state_dir, sans, mut health, namespace, trust_domain, node_accounts } = args;
    let mut cluster = Cluster { namespace, trust_domain, proxies: node_accounts };
    if source == Location::Kubernetes {
        if cluster.namespace.is_empty() {
            let text = "POD_NAMESPACE (or --namespace) must name the namespace of this installation";
            return Err(Error::new(&code::BAD_SETTING, text));
        }
        // What no identity can be made of would be found out only by the first pod.
        SpiffeId::new(&cluster.trust_domain, &cluster.namespace, "default")
            .map_err(|error| Error::caused(&code::BAD_SETTING, "TRUST_DOMAIN (or --trust-domain) or POD_NAMESPACE", error))?;
        if cluster.proxies == Accounts::default() {
            cluster.proxies = format!("{}/warren-proxy", cluster.namespace).parse()?;
        }
        health = health.or(Some(SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), HEALTH_PORT)));
    }
    Ok(Settings { source, listen, state_dir, sans, health, cluster })
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    fn of(line: &str) -> Result<Settings> {
        settings(Line::try_parse_from(line.split(' ')).map_err(|error| Error::caused(&code::BAD_SETTING, "usage", error))?.args)
    }

    #[test]
    fn a_cluster_needs_a_namespace_and_gets_the_rest() {
        let found = of("control --source kubernetes --namespace mesh --trust-domain example.org").unwrap();
        assert_eq!((found.listen, found.health), ("[::]:15012".parse().unwrap(), Some("[::]:8080".parse().unwrap())));
        let cluster =
            Cluster { namespace: "mesh".to_owned(), trust_domain: "example.org".to_owned(), proxies: "mesh/warren-proxy".parse().unwrap() };
        assert_eq!(found.cluster, cluster);
        let found =
            of("control --source kubernetes --namespace mesh --node-accounts istio-system/ztunnel,mesh/p --health 127.0.0.1:9").unwrap();
        assert_eq!(found.cluster.proxies, "mesh/p,istio-system/ztunnel".parse().unwrap());
        assert_eq!(found.health, Some("127.0.0.1:9".parse().unwrap()));
        assert_eq!(of("control --source file:/mesh.yaml").unwrap().health, None, "a file has no health port unless it is asked for");

        for (line, named) in [
            ("control --source kubernetes", "POD_NAMESPACE"),
            ("control --source kubernetes --namespace mesh --trust-domain a/b", "TRUST_DOMAIN"),
            ("control --source kubernetes --namespace mesh --node-accounts proxy", "namespace/service-account"),
        ] {
            let error = of(line).expect_err(named);
            assert_eq!(error.code(), &code::BAD_SETTING);
            assert!(error.to_string().contains(named), "{named}: {error}");
        }
    }
}
