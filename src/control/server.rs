//! The control plane as a whole: one TLS port with discovery and certificates, fed by one source.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::RwLock;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;

use super::ads::{Ads, Counters};
use super::ca::{Authority, Ca, MAX_MESSAGE};
use super::follow::{Follower, SourceHealth};
use super::gate::{Connection, MAX_STRANGERS, Strangers};
use super::health::{self, Health};
use super::index::Index;
use super::source::{self, AnySource, Location, Source};
use super::tls::ServerTls;
use super::tokens::Tokens;
use crate::base::{Error, Result, code, deadline, drain};
use crate::net::socket::{Keepalive, SocketFactory};
use crate::telemetry::rate::Rate;
use crate::wire::ca::istio_certificate_service_server::IstioCertificateServiceServer;
use crate::wire::discovery::aggregated_discovery_service_server::AggregatedDiscoveryServiceServer;

/// Largest discovery request, bytes: what a client of 100 000 resources holds when it comes back.
const MAX_REQUEST: usize = 16 * 1024 * 1024;

/// Connections at once, those in handshake included.
const MAX_CONNECTIONS: usize = 4096;

const HANDSHAKE_LIMIT: Duration = Duration::from_secs(10);

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
    /// Holds `ca/` and `tokens/`.
    pub state_dir: PathBuf,
    /// Names of the server's certificate beside the default ones.
    pub sans: Vec<String>,
    /// The plain HTTP port of `/healthz` and `/readyz`.
    pub health: Option<SocketAddr>,
}

/// A control plane that listens.
pub struct Control {
    listener: TcpListener,
    health_listener: Option<TcpListener>,
    tls: Arc<ServerTls>,
    authority: Arc<Authority>,
    tokens: Arc<Tokens>,
    follower: Follower<AnySource>,
    index: watch::Receiver<Arc<Index>>,
    source_health: Arc<RwLock<SourceHealth>>,
}

impl Control {
    /// Reads the source, opens the authority, makes tokens and listens. A source that is broken at start is an error:
    /// there is no last good state to serve, and serving none would tell proxies that everything is gone.
    ///
    /// # Errors
    /// SOURCE_BROKEN, CA_MATERIAL, BAD_SETTING, BAD_FILE, BIND_FAILED.
    pub async fn start(settings: Settings) -> Result<Self> {
        let root_namespace = std::env::var("POD_NAMESPACE").unwrap_or_else(|_| "warren-system".to_owned());
        let mut source = source::open(&settings.source, &root_namespace).await?;
        let first = source.next().await?;
        let authority = Arc::new(Authority::open(&settings.state_dir.join("ca"), &first.mesh.trust_domain)?);
        let tokens = Arc::new(Tokens::open(&settings.state_dir.join("tokens"))?);

        let mut names = settings.sans;
        if !settings.listen.ip().is_unspecified() {
            names.push(settings.listen.ip().to_string());
        }
        let tls = Arc::new(ServerTls::new(Arc::clone(&authority), &names)?);
        // A certificate that cannot be made is known before anyone connects.
        tls.config()?;

        let (sender, index) = watch::channel(Arc::new(Index::default()));
        let source_health = Arc::new(RwLock::new(SourceHealth::default()));
        let mut follower = Follower::new(source, Arc::clone(&tokens), sender, Arc::clone(&source_health));
        follower.take(first);

        let listener = listen(settings.listen)?;
        let health_listener = settings.health.map(listen).transpose()?;
        Ok(Self { listener, health_listener, tls, authority, tokens, follower, index, source_health })
    }

    /// The TLS port.
    pub fn address(&self) -> SocketAddr {
        self.listener.local_addr().unwrap_or_else(|_| unknown())
    }

    /// The health port.
    pub fn health_address(&self) -> Option<SocketAddr> {
        self.health_listener.as_ref().map(|listener| listener.local_addr().unwrap_or_else(|_| unknown()))
    }

    /// Serves until the drain; then streams end and open calls finish.
    ///
    /// # Errors
    /// The transport failed as a whole.
    pub async fn serve(self, mut drain: drain::Watch) -> Result<()> {
        let counters = Arc::new(Counters::default());
        tracing::info!(address = %self.address(), health = ?self.health_address(), "the control plane serves");
        let ads = Ads::new(self.index.clone(), Arc::clone(&self.tokens), drain.clone(), Arc::clone(&counters));
        let ca = Ca::new(self.authority, self.tokens, self.index.clone());

        let mut tasks = JoinSet::new();
        tasks.spawn(self.follower.run(drain.clone()));
        if let Some(listener) = self.health_listener {
            let health = Health { index: self.index, source: self.source_health, counters };
            tasks.spawn(health::serve(listener, health, drain.clone()));
        }
        let (sender, connections) = mpsc::channel(16);
        tasks.spawn(accept(self.listener, self.tls, sender, drain.clone()));

        let router = tonic::transport::Server::builder()
            .http2_keepalive_interval(Some(PING_INTERVAL))
            .http2_keepalive_timeout(Some(PING_LIMIT))
            .http2_max_header_list_size(64 * 1024)
            .max_concurrent_streams(128)
            .add_service(AggregatedDiscoveryServiceServer::new(ads).max_decoding_message_size(MAX_REQUEST))
            .add_service(IstioCertificateServiceServer::new(ca).max_decoding_message_size(MAX_MESSAGE));
        let mut started = drain.clone();
        let incoming = ReceiverStream::new(connections).map(Ok::<_, std::io::Error>);
        let served = router.serve_with_incoming_shutdown(incoming, async move {
            started.started().await;
        });
        let outcome = tokio::select! {
            outcome = served => outcome.map_err(|error| Error::caused(&code::INTERNAL, "serving gRPC", error)),
            () = async {
                drain.started().await;
                let _ = tokio::time::timeout(DRAIN_LIMIT, drain.ended()).await;
            } => Ok(()),
        };
        tasks.shutdown().await;
        outcome
    }
}

/// Accepts and shakes hands, each connection in its own time.
async fn accept(
    listener: TcpListener,
    tls: Arc<ServerTls>,
    ready: mpsc::Sender<Connection<TlsStream<TcpStream>>>,
    mut drain: drain::Watch,
) {
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let strangers = Strangers::default();
    let (full, crowded) = (Rate::new(super::LINES_PER_SECOND), Rate::new(super::LINES_PER_SECOND));
    let mut handshakes = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = drain.started() => return,
            Some(_) = handshakes.join_next() => continue,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of descriptors: those that are open must close first.
                tracing::warn!(%error, "accept");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let Ok(slot) = Arc::clone(&slots).try_acquire_owned() else {
            if let Some(left_out) = full.admit(std::time::Instant::now()) {
                tracing::warn!(%peer, left_out, "refused: more than {MAX_CONNECTIONS} connections");
            }
            continue;
        };
        let Some(gate) = strangers.admit(peer.ip()) else {
            if let Some(left_out) = crowded.admit(std::time::Instant::now()) {
                tracing::warn!(%peer, left_out, "refused: more than {MAX_STRANGERS} connections from there have not authenticated");
            }
            continue;
        };
        let (tls, ready) = (Arc::clone(&tls), ready.clone());
        handshakes.spawn(async move {
            match handshake(stream, &tls).await {
                Ok(stream) => {
                    let _ = ready.send(Connection::new(stream, gate, slot)).await;
                }
                Err(error) => tracing::debug!(%peer, %error, "handshake"),
            }
        });
    }
}

async fn handshake(stream: TcpStream, tls: &ServerTls) -> Result<TlsStream<TcpStream>> {
    sockets().tune(&stream);
    let acceptor = TlsAcceptor::from(tls.config()?);
    deadline(HANDSHAKE_LIMIT, &code::TLS_TIMEOUT, "TLS handshake", acceptor.accept(stream))
        .await?
        .map_err(|error| Error::caused(&code::TLS_FAILED, "TLS handshake", error))
}

fn listen(address: SocketAddr) -> Result<TcpListener> {
    let bound = sockets().listen(address, false);
    bound.map(|(listener, _)| listener).map_err(|error| Error::caused(&code::BIND_FAILED, address.to_string(), error))
}

fn sockets() -> SocketFactory {
    let keepalive = Keepalive { idle: Duration::from_secs(60), interval: Duration::from_secs(15), retries: 4, user_timeout: true };
    SocketFactory { netns: None, mark: None, reuse_port: false, keepalive: Some(keepalive) }
}

fn unknown() -> SocketAddr {
    SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0)
}
