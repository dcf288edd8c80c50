//! Connections of the TLS port, each shaking hands in its own time.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::gate::{Connection, MAX_STRANGERS, Strangers};
use super::tls::ServerTls;
use crate::base::{Error, Result, code, deadline, drain};
use crate::net::socket::{Keepalive, SocketFactory};
use crate::telemetry::rate::Rate;

/// Connections at once, those in handshake included.
const MAX_CONNECTIONS: usize = 4096;

const HANDSHAKE_LIMIT: Duration = Duration::from_secs(10);

/// Accepts until the drain.
pub(super) async fn accept(
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

pub(super) fn listen(address: SocketAddr) -> Result<TcpListener> {
    let bound = sockets().listen(address, false);
    bound.map(|(listener, _)| listener).map_err(|error| Error::caused(&code::BIND_FAILED, address.to_string(), error))
}

fn sockets() -> SocketFactory {
    let keepalive = Keepalive { idle: Duration::from_secs(60), interval: Duration::from_secs(15), retries: 4, user_timeout: true };
    SocketFactory { netns: None, mark: None, reuse_port: false, keepalive: Some(keepalive) }
}
