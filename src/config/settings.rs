//! Typed settings of the node proxy.

use std::collections::BTreeMap;
use std::fmt;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::env::{self, Env, Variable};
use crate::base::{Error, Result, Str, code};
use crate::net::socket::{Keepalive, PROXY_MARK};
use crate::telemetry::log;

const DEFAULT_ROOT: &str = "./var/run/secrets/istio/root-cert.pem";
const DEFAULT_TOKEN: &str = "./var/run/secrets/tokens/istio-token";
const IN_CLUSTER: &str = "https://istiod.istio-system.svc:15012";
const OUT_OF_CLUSTER: &str = "https://localhost:15012";

/// Everything `warren proxy` is told.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Empty: workloads of any node are local.
    pub node: Str,
    /// Network id.
    pub network: Str,
    /// Cluster id.
    pub cluster: Str,
    /// Of pods that the control plane has not told of yet; without it, as of those that it told of.
    pub trust_domain: Option<Str>,
    /// Where workloads, services and policies come from.
    pub xds: Option<Server>,
    /// Who signs.
    pub ca: Ca,
    /// Lifetime to ask for.
    pub secret_ttl: Duration,
    /// Static mesh state.
    pub local_xds: Option<LocalXds>,
    /// The agent's socket.
    pub inpod_uds: PathBuf,
    /// How pod sockets are made.
    pub sockets: Sockets,
    /// HTTP/2 parameters of tunnels.
    pub http2: Http2,
    /// Drain time at shutdown.
    pub drain: Duration,
    /// Data-plane threads.
    pub workers: NonZeroUsize,
    /// Metadata in tunnel headers.
    pub baggage: bool,
    /// The proxy's own pod, namespace and address.
    pub own: Own,
    /// Node metadata for the control plane, prefixes stripped.
    pub metadata: BTreeMap<String, String>,
    /// Ports of the proxy's own servers.
    pub ports: Ports,
    /// Log filter.
    pub log_filter: String,
    /// Log format.
    pub log_format: log::Format,
}

/// A server of the control plane.
#[derive(Clone)]
pub struct Server {
    /// `https://host:port`
    pub address: String,
    /// A path, `SYSTEM`, or PEM text.
    pub root: String,
    /// A second accepted name.
    pub alt_hostname: Option<String>,
    /// Path or value.
    pub token: Option<String>,
    /// Extra headers.
    pub headers: BTreeMap<String, String>,
}

/// Never shows the token or what the headers say.
impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server").field("address", &self.address).field("headers", &self.headers.keys()).finish_non_exhaustive()
    }
}

/// Who signs certificates.
#[derive(Clone, Debug)]
pub enum Ca {
    /// A server.
    Server(Server),
    /// This process, from a test root: the default one, or `cert.pem:key.pem`.
    Fake(Option<String>),
}

/// Static mesh state.
#[derive(Clone, Debug)]
pub enum LocalXds {
    /// In a file.
    Path(PathBuf),
    /// As text.
    Inline(String),
}

/// Whether applications see the client's address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OriginalSource {
    /// Where the kernel allows it.
    Auto,
    /// Or a pod is not served.
    Always,
    /// No.
    Never,
}

/// How pod sockets are made.
#[derive(Clone, Debug)]
pub struct Sockets {
    /// SO_MARK.
    pub mark: u32,
    /// SO_REUSEPORT.
    pub reuse_port: bool,
    /// Source spoofing.
    pub original_source: OriginalSource,
    /// Listen on `[::]`.
    pub ipv6: bool,
    /// TCP keepalive.
    pub keepalive: Option<Keepalive>,
    /// Congestion control.
    pub congestion: CongestionControl,
}

/// Who chooses the congestion control of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CongestionControl {
    /// The node; but on short ways not one that paces.
    Auto,
    /// The node.
    System,
}

/// What frames the bytes of a tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Engine {
    /// Warren's own.
    Warren,
    /// The `h2` crate.
    H2,
}

/// HTTP/2 parameters, bytes unless said otherwise.
#[derive(Clone, Copy, Debug)]
pub struct Http2 {
    /// What frames the bytes.
    pub engine: Engine,
    /// TLS 1.2 too, where the peer has no other. Then the engine is [`Engine::H2`]: records of its own are TLS 1.3.
    pub tls12: bool,
    /// Per stream.
    pub stream_window: u32,
    /// Per tunnel.
    pub connection_window: u32,
    /// Largest frame.
    pub frame_size: u32,
    /// Streams of one tunnel.
    pub max_streams: u16,
    /// Time an unused tunnel is kept.
    pub idle: Duration,
}

/// The proxy's own pod.
#[derive(Clone, Debug)]
pub struct Own {
    /// Pod name.
    pub name: String,
    /// Namespace.
    pub namespace: String,
    /// Address.
    pub ip: String,
}

/// Ports of the proxy's own servers.
#[derive(Clone, Copy, Debug)]
pub struct Ports {
    /// Admin API.
    pub admin: u16,
    /// Metrics.
    pub stats: u16,
    /// Readiness.
    pub readiness: u16,
}

impl Settings {
    /// Reads them.
    ///
    /// # Errors
    /// BAD_SETTING for the first variable that cannot be used; UNSUPPORTED for a mode this proxy does not have.
    pub fn from_env(vars: &Env) -> Result<Self> {
        if let Some(mode) = vars.some(&env::PROXY_MODE)
            && mode != "shared"
        {
            return Err(env::invalid(&env::PROXY_MODE, mode, "only `shared` is supported"));
        }
        let metadata = vars.family(&env::ISTIO_META);
        let cluster = metadata.get("CLUSTER_ID").map(String::as_str).or(vars.some(&env::CLUSTER_ID)).unwrap_or("Kubernetes");
        let tls12 = vars.parse(&env::TLS12_ENABLED, false)?;
        let log_filter = vars.some(&env::RUST_LOG).unwrap_or("info").to_owned();
        Ok(Self {
            node: vars.text(&env::NODE_NAME).unwrap_or_default().into(),
            network: vars.text(&env::NETWORK).unwrap_or_default().into(),
            cluster: cluster.into(),
            trust_domain: vars.some(&env::TRUST_DOMAIN).map(Into::into),
            xds: server(vars, &XDS),
            ca: ca(vars)?,
            secret_ttl: vars.duration(&env::SECRET_TTL, Duration::from_secs(86_400))?,
            local_xds: local_xds(vars)?,
            inpod_uds: vars.some(&env::INPOD_UDS).unwrap_or("/var/run/ztunnel/ztunnel.sock").into(),
            sockets: sockets(vars)?,
            http2: Http2 {
                engine: match vars.some(&env::HBONE_ENGINE) {
                    None | Some("warren") if !tls12 => Engine::Warren,
                    None | Some("warren" | "h2") => Engine::H2,
                    Some(other) => return Err(env::invalid(&env::HBONE_ENGINE, other, "warren or h2")),
                },
                tls12,
                stream_window: window(vars, &env::HTTP2_STREAM_WINDOW_SIZE, 4 << 20)?,
                connection_window: window(vars, &env::HTTP2_CONNECTION_WINDOW_SIZE, 16 << 20)?,
                frame_size: frame_size(vars)?,
                max_streams: vars.parse(&env::POOL_MAX_STREAMS_PER_CONNECTION, 100)?,
                idle: vars.duration(&env::POOL_UNUSED_RELEASE_TIMEOUT, Duration::from_secs(300))?,
            },
            drain: drain(vars)?,
            workers: workers(vars)?,
            baggage: vars.parse(&env::ENABLE_RESPONSE_BAGGAGE, true)?,
            own: Own {
                name: vars.text(&env::POD_NAME).unwrap_or_default().to_owned(),
                namespace: vars.text(&env::POD_NAMESPACE).unwrap_or_default().to_owned(),
                ip: vars.some(&env::INSTANCE_IP).unwrap_or("1.1.1.1").to_owned(),
            },
            metadata,
            ports: Ports {
                admin: vars.parse(&env::ADMIN_PORT, 15000)?,
                stats: vars.parse(&env::STATS_PORT, 15020)?,
                readiness: vars.parse(&env::READINESS_PORT, 15021)?,
            },
            log_filter,
            log_format: match vars.some(&env::LOG_FORMAT) {
                None | Some("plain") => log::Format::Plain,
                Some("json") => log::Format::Json,
                Some(other) => return Err(env::invalid(&env::LOG_FORMAT, other, "plain or json")),
            },
        })
    }
}

/// The variables of one server.
struct ServerVariables {
    address: &'static Variable,
    root: &'static Variable,
    alt: &'static Variable,
    header: &'static Variable,
    instead: Option<&'static ServerVariables>,
}

static XDS: ServerVariables = ServerVariables {
    address: &env::XDS_ADDRESS,
    root: &env::XDS_ROOT_CA,
    alt: &env::ALT_XDS_HOSTNAME,
    header: &env::XDS_HEADER,
    instead: None,
};
static CA: ServerVariables = ServerVariables {
    address: &env::CA_ADDRESS,
    root: &env::CA_ROOT_CA,
    alt: &env::ALT_CA_HOSTNAME,
    header: &env::CA_HEADER,
    instead: Some(&XDS),
};

fn server(vars: &Env, names: &ServerVariables) -> Option<Server> {
    let in_cluster = std::env::var_os("KUBERNETES_SERVICE_HOST").is_some();
    // One control plane is usually both: what is not said of one is taken from the other.
    let other = |variable: Option<&'static Variable>| variable.and_then(|variable| vars.some(variable));
    let address = vars.text(names.address).or(other(names.instead.map(|other| other.address)));
    let address = address.unwrap_or(if in_cluster { IN_CLUSTER } else { OUT_OF_CLUSTER });
    if address.is_empty() {
        return None;
    }
    let address = if address.contains("://") { address.to_owned() } else { format!("https://{address}") };
    let token = match vars.some(&env::AUTH_TOKEN) {
        Some(token) => Some(token.to_owned()),
        None => Path::new(DEFAULT_TOKEN).exists().then(|| DEFAULT_TOKEN.to_owned()),
    };
    Some(Server {
        address,
        root: vars.some(names.root).or(other(names.instead.map(|other| other.root))).unwrap_or(DEFAULT_ROOT).to_owned(),
        alt_hostname: vars.some(names.alt).or(other(names.instead.map(|other| other.alt))).map(str::to_owned),
        token,
        headers: vars.family(names.header),
    })
}

fn ca(vars: &Env) -> Result<Ca> {
    if vars.parse(&env::FAKE_CA, false)? {
        return Ok(Ca::Fake(vars.some(&env::FAKE_CA_ROOT).map(str::to_owned)));
    }
    server(vars, &CA).map(Ca::Server).ok_or_else(|| {
        Error::new(&code::BAD_SETTING, "CA_ADDRESS is empty and FAKE_CA is not true: there is nobody to sign certificates".to_owned())
    })
}

fn local_xds(vars: &Env) -> Result<Option<LocalXds>> {
    match (vars.some(&env::LOCAL_XDS_PATH), vars.some(&env::LOCAL_XDS)) {
        (Some(_), Some(_)) => Err(Error::new(&code::BAD_SETTING, "LOCAL_XDS_PATH and LOCAL_XDS exclude each other")),
        (Some(path), None) => Ok(Some(LocalXds::Path(path.into()))),
        (None, Some(text)) => Ok(Some(LocalXds::Inline(text.to_owned()))),
        (None, None) => Ok(None),
    }
}

fn sockets(vars: &Env) -> Result<Sockets> {
    let keepalive = if vars.parse(&env::KEEPALIVE_ENABLED, true)? {
        Some(Keepalive {
            idle: vars.duration(&env::KEEPALIVE_TIME, Duration::from_secs(180))?,
            interval: vars.duration(&env::KEEPALIVE_INTERVAL, Duration::from_secs(180))?,
            retries: vars.parse(&env::KEEPALIVE_RETRIES, 9)?,
            user_timeout: vars.parse(&env::USER_TIMEOUT_ENABLED, false)?,
        })
    } else {
        None
    };
    Ok(Sockets {
        mark: vars.parse(&env::PACKET_MARK, PROXY_MARK)?,
        reuse_port: vars.parse(&env::INPOD_PORT_REUSE, true)?,
        original_source: match vars.some(&env::ENABLE_ORIG_SRC) {
            None | Some("auto") => OriginalSource::Auto,
            Some("true") => OriginalSource::Always,
            Some("false") => OriginalSource::Never,
            Some(other) => return Err(env::invalid(&env::ENABLE_ORIG_SRC, other, "auto, true or false")),
        },
        ipv6: vars.parse(&env::IPV6_ENABLED, true)?,
        keepalive,
        congestion: match vars.some(&env::CONGESTION_CONTROL) {
            None | Some("auto") => CongestionControl::Auto,
            Some("system") => CongestionControl::System,
            Some(other) => return Err(env::invalid(&env::CONGESTION_CONTROL, other, "auto or system")),
        },
    })
}

/// RFC 9113 §6.9.2: a window is at most 2^31-1.
fn window(vars: &Env, variable: &Variable, default: u32) -> Result<u32> {
    let value = vars.parse(variable, default)?;
    if (1..=i32::MAX as u32).contains(&value) { Ok(value) } else { Err(env::invalid(variable, &value.to_string(), "1 to 2147483647")) }
}

/// RFC 9113 §6.5.2: 2^14 to 2^24-1.
fn frame_size(vars: &Env) -> Result<u32> {
    let value = vars.parse(&env::HTTP2_FRAME_SIZE, 1 << 20)?;
    if (1 << 14..1 << 24).contains(&value) {
        Ok(value)
    } else {
        Err(env::invalid(&env::HTTP2_FRAME_SIZE, &value.to_string(), "16384 to 16777215"))
    }
}

fn drain(vars: &Env) -> Result<Duration> {
    // Five seconds of the grace period stay for the process itself; a short one is used almost whole.
    let default = match vars.parse::<u64>(&env::TERMINATION_GRACE_PERIOD_SECONDS, 0)? {
        0 => 5,
        grace if grace > 10 => grace - 5,
        grace => (grace - 1).max(1),
    };
    vars.duration(&env::CONNECTION_TERMINATION_DEADLINE, Duration::from_secs(default))
}

fn workers(vars: &Env) -> Result<NonZeroUsize> {
    let cores = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
    let cpus: usize = vars.parse(&env::ZTUNNEL_CPU_LIMIT, cores)?;
    let count = match vars.some(&env::ZTUNNEL_WORKER_THREADS) {
        None => cpus.div_ceil(4).max(2),
        Some(value) => match value.strip_suffix('%') {
            Some(percent) => {
                let percent: f64 = percent.parse().map_err(|error| env::invalid(&env::ZTUNNEL_WORKER_THREADS, value, error))?;
                if !(percent > 0.0 && percent <= 100.0) {
                    return Err(env::invalid(&env::ZTUNNEL_WORKER_THREADS, value, "more than 0%, at most 100%"));
                }
                (cpus as f64 * percent / 100.0).ceil() as usize
            }
            None => match value.parse().map_err(|error| env::invalid(&env::ZTUNNEL_WORKER_THREADS, value, error))? {
                0 => cpus,
                count => count,
            },
        },
    };
    // A typing error must not start a million threads.
    NonZeroUsize::new(count.min(1024)).map_or(Ok(NonZeroUsize::MIN), Ok)
}

#[cfg(test)]
#[path = "settings_tests.rs"]
mod tests;
