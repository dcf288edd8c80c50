//! The environment of `warren proxy`: one table, from which settings are read and the reference page is printed.
//!
//! Names, defaults and meaning are those of the reference proxy, so that its DaemonSet runs this one unchanged.

use std::collections::BTreeMap;
use std::str::FromStr;
use std::time::Duration;

use crate::base::{Error, Result, code};

/// One variable.
#[derive(Debug)]
pub struct Variable {
    /// Its name; a trailing `*` stands for any suffix.
    pub name: &'static str,
    /// What is used without it, as text.
    pub default: &'static str,
    /// What it does, with the unit of its value.
    pub meaning: &'static str,
}

macro_rules! variables {
    ($($id:ident $name:literal $default:literal $meaning:literal;)*) => {
        $(
            #[doc = $meaning]
            pub static $id: Variable = Variable { name: $name, default: $default, meaning: $meaning };
        )*
        /// All of them, in the order of the reference page.
        pub static ALL: &[&Variable] = &[$(&$id),*];
    };
}

variables! {
    SUPERVISE "WARREN_SUPERVISE" "false" "Run as two processes: a small one that starts the proxy again at once when it was killed. Also as flag `--supervise`.";
    PROXY_MODE "PROXY_MODE" "shared" "`shared`: one proxy serves all pods of its node. The only mode.";
    NODE_NAME "NODE_NAME" "" "Name of the node. Empty: workloads of any node count as local.";
    NETWORK "NETWORK" "" "Network id of the node.";
    CLUSTER_ID "CLUSTER_ID" "Kubernetes" "Cluster id; `ISTIO_META_CLUSTER_ID` wins.";
    TRUST_DOMAIN "TRUST_DOMAIN" "" "Of pods that the control plane has not told of yet. Empty: that of others it told of, or else `cluster.local`. Records have their own.";
    XDS_ADDRESS "XDS_ADDRESS" "https://istiod.istio-system.svc:15012 in a cluster, else https://localhost:15012" "Control plane. Empty: none.";
    XDS_ROOT_CA "XDS_ROOT_CA" "./var/run/secrets/istio/root-cert.pem" "What verifies the control plane: a path, `SYSTEM`, or PEM text.";
    ALT_XDS_HOSTNAME "ALT_XDS_HOSTNAME" "" "A second name the control plane's certificate may carry.";
    XDS_HEADER "XDS_HEADER_*" "" "Extra request header for the control plane.";
    CA_ADDRESS "CA_ADDRESS" "XDS_ADDRESS" "Certificate authority.";
    CA_ROOT_CA "CA_ROOT_CA" "XDS_ROOT_CA" "What verifies the authority: a path, `SYSTEM`, or PEM text.";
    ALT_CA_HOSTNAME "ALT_CA_HOSTNAME" "ALT_XDS_HOSTNAME" "A second name the authority's certificate may carry.";
    CA_HEADER "CA_HEADER_*" "" "Extra request header for the authority.";
    AUTH_TOKEN "AUTH_TOKEN" "./var/run/secrets/tokens/istio-token if it exists" "Bearer token for both: a path, read anew for every request, or the token.";
    SECRET_TTL "SECRET_TTL" "24h" "Certificate lifetime to ask for.";
    FAKE_CA "FAKE_CA" "false" "Mint certificates in this process from a test root. Never in production.";
    FAKE_CA_ROOT "FAKE_CA_ROOT" "" "`cert.pem:key.pem` of another test root.";
    LOCAL_XDS_PATH "LOCAL_XDS_PATH" "" "YAML file of workloads, services and policies, loaded once.";
    LOCAL_XDS "LOCAL_XDS" "" "The same as text.";
    INPOD_UDS "INPOD_UDS" "/var/run/ztunnel/ztunnel.sock" "Socket of the node agent.";
    INPOD_PORT_REUSE "INPOD_PORT_REUSE" "true" "SO_REUSEPORT on pod listeners, so that two proxies overlap during an upgrade.";
    PACKET_MARK "PACKET_MARK" "1337" "SO_MARK of all sockets in pods.";
    ENABLE_ORIG_SRC "ENABLE_ORIG_SRC" "auto" "Whether applications see the client's address: `auto`, `true` (or fail), `false`.";
    IPV6_ENABLED "IPV6_ENABLED" "true" "Listen on IPv6 too.";
    KEEPALIVE_ENABLED "KEEPALIVE_ENABLED" "true" "TCP keepalive on proxied connections.";
    KEEPALIVE_TIME "KEEPALIVE_TIME" "180s" "Silence before the first probe.";
    KEEPALIVE_INTERVAL "KEEPALIVE_INTERVAL" "180s" "Between probes.";
    KEEPALIVE_RETRIES "KEEPALIVE_RETRIES" "9" "Probes without answer before the connection is given up.";
    USER_TIMEOUT_ENABLED "USER_TIMEOUT_ENABLED" "false" "End a connection whose data is not acknowledged for time + retries * interval.";
    CONGESTION_CONTROL "CONGESTION_CONTROL" "auto" "`system`: what the pod's sysctl net.ipv4.tcp_congestion_control says. `auto`: the same, but cubic instead of bbr where a round trip takes 2 ms at most.";
    HTTP2_STREAM_WINDOW_SIZE "HTTP2_STREAM_WINDOW_SIZE" "4194304" "Bytes a peer may send ahead on one stream.";
    HTTP2_CONNECTION_WINDOW_SIZE "HTTP2_CONNECTION_WINDOW_SIZE" "16777216" "Bytes a peer may send ahead on one tunnel.";
    HTTP2_FRAME_SIZE "HTTP2_FRAME_SIZE" "1048576" "Largest frame accepted, bytes.";
    HBONE_ENGINE "HBONE_ENGINE" "warren" "What frames the bytes of a tunnel: `warren`, or `h2` (the h2 and tokio-rustls crates), for comparison and for one release.";
    TLS12_ENABLED "TLS12_ENABLED" "false" "Tunnels may be TLS 1.2, with peers that have no other; certificates then cross the wire in clear text. All tunnels of this proxy are then framed by `h2`, whatever HBONE_ENGINE says.";
    POOL_MAX_STREAMS_PER_CONNECTION "POOL_MAX_STREAMS_PER_CONNECTION" "100" "Connections carried by one tunnel.";
    POOL_UNUSED_RELEASE_TIMEOUT "POOL_UNUSED_RELEASE_TIMEOUT" "5m" "How long an unused tunnel is kept.";
    CONNECTION_TERMINATION_DEADLINE "CONNECTION_TERMINATION_DEADLINE" "TERMINATION_GRACE_PERIOD_SECONDS less 5 s, else 5s" "How long open connections may finish at shutdown.";
    TERMINATION_GRACE_PERIOD_SECONDS "TERMINATION_GRACE_PERIOD_SECONDS" "" "The pod's grace period, seconds.";
    ZTUNNEL_WORKER_THREADS "ZTUNNEL_WORKER_THREADS" "a quarter of the CPUs, at least 2" "Data-plane threads: a number, or `P%` of the CPUs; 0 is all. As many again, at most 4, wait for connections that are opened while these are busy.";
    ZTUNNEL_CPU_LIMIT "ZTUNNEL_CPU_LIMIT" "the node's CPUs" "CPUs this process may use.";
    LOCALHOST_APP_TUNNEL "LOCALHOST_APP_TUNNEL" "" "Accepted for compatibility, without effect: the PROXY protocol is refused (W1015).";
    ENABLE_RESPONSE_BAGGAGE "ENABLE_RESPONSE_BAGGAGE" "true" "Exchange workload metadata in tunnel headers.";
    POD_NAME "POD_NAME" "" "The proxy's own pod.";
    POD_NAMESPACE "POD_NAMESPACE" "" "The proxy's own namespace.";
    INSTANCE_IP "INSTANCE_IP" "1.1.1.1" "The proxy's own address, for its node id.";
    ISTIO_META "ISTIO_META_*" "" "Node metadata for the control plane.";
    ADMIN_PORT "ADMIN_PORT" "15000" "Admin API, on loopback.";
    STATS_PORT "STATS_PORT" "15020" "Metrics.";
    READINESS_PORT "READINESS_PORT" "15021" "Readiness.";
    RUST_LOG "RUST_LOG" "info" "Log filter: comma list of `level` and `target=level`.";
    LOG_FORMAT "LOG_FORMAT" "plain" "`plain` or `json`.";
}

/// An environment: the process's, or one made by a test.
#[derive(Clone, Debug, Default)]
pub struct Env(BTreeMap<String, String>);

impl Env {
    /// The process's environment; values that are not UTF-8 are not seen.
    pub fn process() -> Self {
        Self(std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?))).collect())
    }

    /// The value, if it is set; it may be empty.
    pub fn text(&self, variable: &Variable) -> Option<&str> {
        self.0.get(variable.name).map(String::as_str)
    }

    /// The value, if it is set and not empty.
    pub fn some(&self, variable: &Variable) -> Option<&str> {
        self.text(variable).filter(|value| !value.is_empty())
    }

    /// A number or other parsed value.
    ///
    /// # Errors
    /// BAD_SETTING with the name and the value.
    pub fn parse<T: FromStr>(&self, variable: &Variable, default: T) -> Result<T>
    where
        T::Err: std::fmt::Display,
    {
        match self.some(variable) {
            Some(value) => value.parse().map_err(|error: T::Err| invalid(variable, value, error)),
            None => Ok(default),
        }
    }

    /// A duration such as `300s`, `5m`, `1h30m`, `100ms`.
    ///
    /// # Errors
    /// BAD_SETTING with the name and the value.
    pub fn duration(&self, variable: &Variable, default: Duration) -> Result<Duration> {
        match self.some(variable) {
            Some(value) => humantime::parse_duration(value).map_err(|error| invalid(variable, value, error)),
            None => Ok(default),
        }
    }

    /// All variables of a family `PREFIX_*`, without the prefix.
    pub fn family(&self, variable: &Variable) -> BTreeMap<String, String> {
        let prefix = variable.name.trim_end_matches('*');
        self.0.iter().filter_map(|(name, value)| Some((name.strip_prefix(prefix)?.to_owned(), value.clone()))).collect()
    }
}

impl<const N: usize> From<[(&str, &str); N]> for Env {
    fn from(pairs: [(&str, &str); N]) -> Self {
        Self(pairs.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect())
    }
}

/// `BAD_SETTING`: invalid env var NAME=VALUE (reason)
pub fn invalid(variable: &Variable, value: &str, reason: impl std::fmt::Display) -> Error {
    Error::new(&code::BAD_SETTING, format!("invalid env var {}={value} ({reason})", variable.name))
}

/// The reference page, Markdown.
pub fn reference_page() -> String {
    let mut page = String::from(
        "# Settings of `warren proxy`\n\nAll settings are environment variables; the only flag is `--supervise`. Other arguments are ignored for compatibility (`proxy ztunnel`).\n\
         The flags of the other roles: `warren agent --help`, `warren control --help`.\n\
         Booleans are `true` or `false`; durations carry units (`300s`, `5m`, `1h30m`). An unusable value stops the start with code W0002.\n\n\
         | variable | default | meaning |\n|---|---|---|\n",
    );
    for variable in ALL {
        let default = if variable.default.is_empty() { "–".to_owned() } else { format!("`{}`", variable.default) };
        page.push_str(&format!("| `{}` | {default} | {} |\n", variable.name, variable.meaning));
    }
    page
}
