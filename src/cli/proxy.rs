//! `warren proxy`

use std::ffi::OsString;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Builder;
use tokio::sync::{mpsc, watch};

use super::shutdown::Signals;
use super::{descriptors, supervise};
use crate::admin::{self, Admin};
use crate::base::{Code, Error, Result, code, drain};
use crate::config::settings::{Ca, LocalXds, Server, Settings};
use crate::config::{Env, env, settings};
use crate::identity::{Authority, CertificateStore, FakeAuthority, FakeRoot, GrpcAuthority, GrpcAuthoritySettings};
use crate::mesh::MeshStore;
use crate::net::socket::{SocketFactory, any};
use crate::proxy::{Limits, Pods, ServePods, Shared, Workers};
use crate::telemetry::metrics::{Metrics, Reason, Url};
use crate::telemetry::{Readiness, http, log};
use crate::tls::channel::{Channel, ChannelSettings};
use crate::tls::{RootSource, TokenSource};
use crate::{xds, zds};

/// Accepted for compatibility; everything is configured by the environment.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Run as two processes: a small one that starts the proxy again at once when it was killed
    #[arg(long)]
    supervise: bool,
    /// `ztunnel` and what may follow it: ignored.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, hide = true)]
    ignored: Vec<String>,
}

const STATE: &str = "state manager";
const PODS: &str = "workload proxy manager";

/// Runs the node proxy until it is told to end.
pub(super) fn run(arguments: Arguments) -> Result<ExitCode> {
    let vars = Env::process();
    if arguments.supervise || vars.parse(&env::SUPERVISE, false)? {
        drop(vars);
        let own = std::iter::once("proxy").chain(arguments.ignored.iter().map(String::as_str));
        return supervise::run(&own.map(OsString::from).collect::<Vec<_>>());
    }
    supervise::unblock_signals()?;
    let settings = Settings::from_env(&vars)?;
    let _log = log::init(settings.log_format, &settings.log_filter)?;
    if !arguments.ignored.is_empty() {
        tracing::debug!(arguments = ?arguments.ignored, "arguments are ignored");
    }
    // Runtimes of their own: a large answer of the control plane must not stand in the way of packets.
    let runtime = |error| Error::caused(&code::NO_PERMISSION, "cannot start threads", error);
    let (workers, data_plane) = Workers::start(settings.workers.get())?;
    let control = Builder::new_current_thread().enable_all().build().map_err(runtime)?;
    let status = control.block_on(serve(settings, workers));
    data_plane.end();
    status
}

async fn serve(settings: Settings, workers: Arc<Workers>) -> Result<ExitCode> {
    let mut signals = Signals::listen()?;
    let descriptors = descriptors::raise_limit();
    tracing::info!(version = env!("CARGO_PKG_VERSION"), node = %settings.node, workers = settings.workers.get(), descriptors, "starting");
    let metrics = Arc::new(Metrics::new());
    let readiness = Arc::new(Readiness::new());
    readiness.waits(STATE, "starting");
    readiness.waits(PODS, "waits for the state manager");

    if settings.http2.tls12 {
        tracing::warn!("TLS12_ENABLED: tunnels may be TLS 1.2; all of them are framed by h2");
    }
    let mesh = Arc::new(MeshStore::new(Some(settings.node.clone())));
    load_local(&settings, &mesh)?;
    let certificates = Arc::new(CertificateStore::new(authority(&settings)?));
    let limits = Limits::of(descriptors);
    let pods = Arc::new(Pods::new(Arc::new(Shared {
        mesh: mesh.clone(),
        certificates: certificates.clone(),
        metrics: metrics.clone(),
        workers,
        limits,
        strangers: tokio::sync::Semaphore::new(limits.strangers),
        settings: settings.clone(),
    })));

    let (servers, server_watch) = drain::new();
    let (quit, mut quit_asked) = mpsc::channel(1);
    let admin = Admin { mesh: mesh.clone(), certificates, pods: pods.clone(), settings: json(&settings), quit };
    serve_http(&settings, admin, &metrics, &readiness, &server_watch)?;
    drop(server_watch);

    let (discovery, discovery_watch) = drain::new();
    let synced = start_xds(&settings, &mesh, &metrics, &readiness, &discovery_watch)?;
    drop(discovery_watch);
    let (agent, agent_watch) = drain::new();
    let zds = tokio::spawn(start_zds(settings.clone(), pods.clone(), metrics.clone(), readiness.clone(), synced, agent_watch));

    let reason = tokio::select! {
        signal = signals.first() => signal,
        _ = quit_asked.recv() => "quitquitquit",
        ended = zds => match ended {
            Ok(()) => "the agent's client ended",
            Err(error) => return Err(Error::internal(format!("task: {error}"))),
        },
    };
    tracing::info!(reason, limit = ?settings.drain, "draining");
    let end = async {
        // Readiness goes first, so that nothing new is sent here.
        servers.drain(Duration::from_millis(100)).await;
        agent.drain(Duration::from_secs(1)).await;
        pods.drain(settings.drain).await;
        // Last: a connection that is allowed to finish is still subject to policy.
        discovery.drain(Duration::from_secs(1)).await;
        tracing::info!("ended");
    };
    Ok(signals.finish(end).await)
}

fn authority(settings: &Settings) -> Result<Arc<dyn Authority>> {
    Ok(match &settings.ca {
        Ca::Fake(root) => Arc::new(FakeAuthority::load(&FakeRoot::parse(root.as_deref())?)?),
        Ca::Server(server) => {
            let options = GrpcAuthoritySettings { lifetime: settings.secret_ttl, ..GrpcAuthoritySettings::default() };
            Arc::new(GrpcAuthority::new(
                channel(settings, server, "CA_ADDRESS or else XDS_ADDRESS, ALT_CA_HOSTNAME, CA_HEADER_*", &code::CA_UNAVAILABLE)?,
                options,
            ))
        }
    })
}

fn channel(settings: &Settings, server: &Server, names: &str, unreachable: &'static Code) -> Result<Channel> {
    let channel = Channel::new(ChannelSettings {
        address: server.address.clone(),
        root: RootSource::parse(&server.root),
        alternative_name: server.alt_hostname.clone(),
        token: TokenSource::parse(server.token.as_deref()),
        cluster_id: settings.cluster.to_string(),
        headers: server.headers.clone().into_iter().collect(),
        unreachable,
    });
    // What is wrong may be in any of these variables; the cause says which kind of value it is.
    channel.map_err(|error| Error::caused(error.code(), names, error))
}

fn load_local(settings: &Settings, mesh: &MeshStore) -> Result<()> {
    let (name, text) = match &settings.local_xds {
        None => return Ok(()),
        Some(LocalXds::Path(path)) => {
            let name = format!("LOCAL_XDS_PATH={}", path.display());
            let text = std::fs::read_to_string(path).map_err(|error| Error::caused(&code::BAD_FILE, name.clone(), error))?;
            (name, text)
        }
        Some(LocalXds::Inline(text)) => ("LOCAL_XDS".to_owned(), text.clone()),
    };
    let local = xds::local::parse(&name, &text)?;
    for error in &local.refused {
        tracing::warn!(%error, "resource of the local file rejected");
    }
    mesh.edit(|edit| local.apply(edit));
    Ok(())
}

fn serve_http(
    settings: &settings::Settings,
    admin: Admin,
    metrics: &Arc<Metrics>,
    readiness: &Arc<Readiness>,
    drain: &drain::Watch,
) -> Result<()> {
    let sockets = SocketFactory { reuse_port: true, ..SocketFactory::default() };
    let listen = |addr: std::net::SocketAddr, what: &str| {
        let listened = sockets.listen(addr, false);
        listened.map(|(listener, _)| listener).map_err(|error| Error::caused(&code::BIND_FAILED, format!("{what} on {addr}"), error))
    };
    let ipv6 = settings.sockets.ipv6 && std::path::Path::new("/proc/sys/net/ipv6").exists();
    let ports = settings.ports;
    let readiness_listener = listen(any(ipv6, ports.readiness), "readiness")?;
    let stats_listener = listen(any(ipv6, ports.stats), "metrics")?;
    let admin_listener = listen(([127, 0, 0, 1], ports.admin).into(), "admin")?;
    tokio::spawn(http::serve(readiness_listener, admin::readiness_router(readiness.clone()), drain.clone()));
    tokio::spawn(http::serve(stats_listener, admin::stats_router(metrics.clone()), drain.clone()));
    tokio::spawn(http::serve(admin_listener, admin::admin_router(admin), drain.clone()));
    Ok(())
}

/// Starts the control-plane client. The receiver turns true when all that was asked for has arrived once; without a
/// control plane the local file is all there is.
fn start_xds(
    settings: &Settings,
    mesh: &Arc<MeshStore>,
    metrics: &Arc<Metrics>,
    readiness: &Arc<Readiness>,
    drain: &drain::Watch,
) -> Result<watch::Receiver<bool>> {
    let (synced, synced_view) = watch::channel(false);
    let Some(server) = &settings.xds else {
        readiness.ready(STATE);
        synced.send_replace(true);
        return Ok(synced_view);
    };
    let channel = channel(settings, server, "XDS_ADDRESS, ALT_XDS_HOSTNAME, XDS_HEADER_*", &code::XDS_UNREACHABLE)?;
    let (report, mut progress) = watch::channel(xds::Progress::default());
    let client = xds::run(client_settings(settings), mesh.clone(), channel, report, Arc::new(XdsMetrics(metrics.clone())), drain.clone());
    tokio::spawn(client);
    let (readiness, address) = (readiness.clone(), server.address.clone());
    tokio::spawn(async move {
        loop {
            let now = progress.borrow_and_update().clone();
            if now.synced() {
                readiness.ready(STATE);
                synced.send_replace(true);
                return;
            }
            readiness.waits(STATE, format!("waits for {}", now.waiting_for(&address).unwrap_or_default()));
            if progress.changed().await.is_err() {
                return;
            }
        }
    });
    Ok(synced_view)
}

fn client_settings(settings: &Settings) -> xds::Settings {
    let own = &settings.own;
    let node_id = format!("ztunnel~{}~{}.{}~{}.svc.cluster.local", own.ip, own.name, own.namespace, own.namespace);
    let mut metadata = settings.metadata.clone();
    for (key, value) in [
        ("NAME", own.name.as_str()),
        ("NAMESPACE", &own.namespace),
        ("INSTANCE_IPS", &own.ip),
        ("NODE_NAME", &settings.node),
        ("CLUSTER_ID", &settings.cluster),
    ] {
        if !value.is_empty() {
            metadata.insert(key.to_owned(), value.to_owned());
        }
    }
    xds::Settings { node_id, metadata }
}

/// What the control-plane client does, as metrics.
struct XdsMetrics(Arc<Metrics>);

impl xds::Observer for XdsMetrics {
    fn ended(&self, why: xds::Termination) {
        let reason = match why {
            xds::Termination::ConnectionError => "ConnectionError",
            xds::Termination::Error => "Error",
            xds::Termination::Reconnect => "Reconnect",
            xds::Termination::Complete => "Complete",
        };
        self.0.xds_terminations.get_or_create(&Reason { reason }).inc();
    }

    fn response(&self, type_url: &str, bytes: usize) {
        let url = Url { url: type_url.to_owned() };
        self.0.xds_messages.get_or_create(&url).inc();
        self.0.xds_bytes.get_or_create(&url).inc_by(bytes as u64);
    }

    fn rejected(&self, type_url: &str, count: usize) {
        self.0.xds_rejected.get_or_create(&Url { url: type_url.to_owned() }).inc_by(count as u64);
    }
}

/// Follows the agent once the mesh is known: a pod that is served without policies would be open.
async fn start_zds(
    settings: Settings,
    pods: Arc<Pods>,
    metrics: Arc<Metrics>,
    readiness: Arc<Readiness>,
    mut synced: watch::Receiver<bool>,
    mut drain: drain::Watch,
) {
    let (client, mut status) = zds::client::Client::new(settings.inpod_uds.clone(), ServePods(pods));
    tokio::select! {
        _ = synced.wait_for(|synced| *synced) => {}
        _ = drain.started() => return,
    }
    let report = async {
        loop {
            let now = status.borrow_and_update().clone();
            metrics.pods_pending.set(now.pending as i64);
            if now.ready() {
                readiness.ready(PODS);
            } else {
                readiness.waits(PODS, pods_reason(&now));
            }
            if status.changed().await.is_err() {
                return;
            }
        }
    };
    let run = client.run(drain);
    tokio::join!(run, report);
}

fn pods_reason(status: &zds::client::Status) -> String {
    match &status.last_error {
        Some(error) if !status.connected => error.clone(),
        _ if !status.connected => "waits for the node agent".to_owned(),
        _ if !status.snapshot => "waits for the node agent's snapshot".to_owned(),
        _ => format!("{} pods cannot be served yet", status.pending),
    }
}

/// The settings as the admin API shows them: nothing secret is among them.
fn json(settings: &Settings) -> serde_json::Value {
    serde_json::json!({
        "nodeName": &*settings.node,
        "network": &*settings.network,
        "clusterId": &*settings.cluster,
        "xdsAddress": settings.xds.as_ref().map(|server| server.address.clone()),
        "caAddress": match &settings.ca {
            Ca::Server(server) => Some(server.address.clone()),
            Ca::Fake(_) => None,
        },
        "fakeCa": matches!(settings.ca, Ca::Fake(_)),
        "inpodUds": settings.inpod_uds,
        "numWorkerThreads": settings.workers.get(),
        "windowSize": settings.http2.stream_window,
        "connectionWindowSize": settings.http2.connection_window,
        "frameSize": settings.http2.frame_size,
        "poolMaxStreamsPerConn": settings.http2.max_streams,
        "poolUnusedReleaseTimeout": {"secs": settings.http2.idle.as_secs(), "nanos": settings.http2.idle.subsec_nanos()},
        "selfTerminationDeadline": {"secs": settings.drain.as_secs(), "nanos": settings.drain.subsec_nanos()},
        "packetMark": settings.sockets.mark,
    })
}
