//! The control plane as a whole: one TLS port with discovery and certificates, fed by one source.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use parking_lot::RwLock;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;

use super::accept::{accept, listen};
use super::ads::{Ads, Counters};
use super::auth::{Accounts, Authenticator};
use super::ca::{Authority, Ca, MAX_MESSAGE};
use super::follow::{Follower, SourceHealth};
use super::foundation::{Foundation, Report};
use super::health::{self, Health, Stage};
use super::index::Index;
use super::metrics::Metrics;
use super::source::{AnySource, Location};
use super::tls::ServerTls;
use crate::base::{Error, Result, code, drain};
use crate::wire::ca::istio_certificate_service_server::IstioCertificateServiceServer;
use crate::wire::discovery::aggregated_discovery_service_server::AggregatedDiscoveryServiceServer;

/// Largest discovery request, bytes: what a client of 100 000 resources holds when it comes back.
const MAX_REQUEST: usize = 16 * 1024 * 1024;

/// A connection that does not answer a PING for this long is dead; its proxy comes back.
const PING_INTERVAL: Duration = Duration::from_secs(30);
const PING_LIMIT: Duration = Duration::from_secs(10);

/// After a drain has started, open calls have this long.
const DRAIN_LIMIT: Duration = Duration::from_secs(5);

/// How to run.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where mesh objects come from.
    pub source: Location,
    /// The TLS port.
    pub listen: SocketAddr,
    /// Holds `ca/` and `tokens/`; not used in a cluster.
    pub state_dir: PathBuf,
    /// Names of the server's certificate beside the default ones.
    pub sans: Vec<String>,
    /// The plain HTTP port of `/healthz`, `/readyz` and `/metrics`.
    pub health: Option<SocketAddr>,
    /// Used in a cluster only.
    pub cluster: Cluster,
}

/// How to run in a cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cluster {
    /// Where this control plane and its Secret are. Policies in it are for all namespaces.
    pub namespace: String,
    /// Of all identities.
    pub trust_domain: String,
    /// The accounts of the nodes' proxies.
    pub proxies: Accounts,
}

/// A control plane that listens.
pub struct Control {
    listener: TcpListener,
    health_address: Option<SocketAddr>,
    tls: Arc<ServerTls>,
    authority: watch::Receiver<Arc<Authority>>,
    callers: Arc<Authenticator>,
    follower: Follower<AnySource>,
    foundation: Foundation,
    index: watch::Receiver<Arc<Index>>,
    counters: Arc<Counters>,
    metrics: Arc<Metrics>,
    stage: watch::Sender<Stage>,
    /// The health port, which is open until the end.
    health: JoinSet<()>,
    health_end: drain::Trigger,
}

impl Control {
    /// Opens the health port, reads the source, opens the authority and listens. A mesh file that is broken at start is
    /// an error: there is no last good state to serve, and serving none would tell proxies that everything is gone. A
    /// cluster that does not answer is waited for, not ready.
    ///
    /// # Errors
    /// SOURCE_BROKEN, CA_MATERIAL, BAD_SETTING, BAD_FILE, BIND_FAILED.
    pub async fn start(settings: Settings) -> Result<Self> {
        let (stage, stages) = watch::channel(Stage::Starting("the source".to_owned()));
        let (indexes, index) = watch::channel(Arc::new(Index::default()));
        let source_health = Arc::new(RwLock::new(SourceHealth::default()));
        let (counters, metrics) = (Arc::new(Counters::default()), Arc::new(Metrics::default()));
        let (authority_known, trouble) = (Arc::new(OnceLock::new()), Arc::new(RwLock::new(None)));

        let health_listener = settings.health.map(listen).transpose()?;
        let health_address = health_listener.as_ref().map(|listener| listener.local_addr().unwrap_or_else(|_| unknown()));
        let (health_end, health_drain) = drain::new();
        let mut health = JoinSet::new();
        if let Some(listener) = health_listener {
            let state = Health {
                stage: stages,
                index: index.clone(),
                source: Arc::clone(&source_health),
                counters: Arc::clone(&counters),
                authority: Arc::clone(&authority_known),
                trouble: Arc::clone(&trouble),
            };
            health.spawn(health::serve(listener, state, Arc::clone(&metrics), health_drain));
        }

        let report = Report { stage: &stage, trouble, metrics: Arc::clone(&metrics) };
        let (foundation, source, first) = Foundation::lay(&settings, &index, report).await?;
        let authority = foundation.authority();
        let _ = authority_known.set(authority.clone());
        let mut names = settings.sans;
        names.extend(foundation.names());
        if !settings.listen.ip().is_unspecified() {
            names.push(settings.listen.ip().to_string());
        }
        let tls = Arc::new(ServerTls::new(authority.clone(), &names)?);
        // A certificate that cannot be made is known before anyone connects.
        tls.config()?;

        let mut follower = Follower::new(source, foundation.tokens(), indexes, source_health);
        follower.take(first);
        let callers = foundation.callers();
        let listener = listen(settings.listen)?;
        stage.send_replace(Stage::Serving);
        Ok(Self {
            listener,
            health_address,
            tls,
            authority,
            callers,
            follower,
            foundation,
            index,
            counters,
            metrics,
            stage,
            health,
            health_end,
        })
    }

    /// The TLS port.
    pub fn address(&self) -> SocketAddr {
        self.listener.local_addr().unwrap_or_else(|_| unknown())
    }

    /// The health port.
    pub fn health_address(&self) -> Option<SocketAddr> {
        self.health_address
    }

    /// Serves until the drain; then streams end and open calls finish. In a cluster callers are sent here for a moment
    /// longer, and are still served.
    ///
    /// # Errors
    /// The transport failed as a whole.
    pub async fn serve(mut self, mut drain: drain::Watch) -> Result<()> {
        tracing::info!(address = %self.address(), health = ?self.health_address, "the control plane serves");
        let linger = self.foundation.linger();
        let (end, ending) = drain::new();
        let ads = Ads::new(self.index.clone(), Arc::clone(&self.callers), ending.clone(), self.counters);
        let ca = Ca::new(self.authority, self.callers, self.index, self.metrics);

        let mut tasks = JoinSet::new();
        tasks.spawn(self.follower.run(ending.clone()));
        self.foundation.keep(&mut tasks, &ending);
        let (sender, connections) = mpsc::channel(16);
        tasks.spawn(accept(self.listener, self.tls, sender, ending.clone()));

        let router = tonic::transport::Server::builder()
            .http2_keepalive_interval(Some(PING_INTERVAL))
            .http2_keepalive_timeout(Some(PING_LIMIT))
            .http2_max_header_list_size(64 * 1024)
            .max_concurrent_streams(128)
            .add_service(AggregatedDiscoveryServiceServer::new(ads).max_decoding_message_size(MAX_REQUEST))
            .add_service(IstioCertificateServiceServer::new(ca).max_decoding_message_size(MAX_MESSAGE));
        let mut started = ending;
        let incoming = ReceiverStream::new(connections).map(Ok::<_, std::io::Error>);
        let served = router.serve_with_incoming_shutdown(incoming, async move {
            started.started().await;
        });
        let outcome = tokio::select! {
            outcome = served => outcome.map_err(|error| Error::caused(&code::INTERNAL, "serving gRPC", error)),
            () = async {
                drain.started().await;
                self.stage.send_replace(Stage::Draining);
                let _ = tokio::time::timeout(linger, drain.ended()).await;
                end.drain(DRAIN_LIMIT).await;
            } => Ok(()),
        };
        tasks.shutdown().await;
        self.health_end.stop().await;
        self.health.shutdown().await;
        outcome
    }
}

fn unknown() -> SocketAddr {
    SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0)
}
