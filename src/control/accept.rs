//! Connections of the TLS port, each shaking hands in its own time.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
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
            Ok((stream, peer)) => (stream, SocketAddr::new(peer.ip().to_canonical(), peer.port())),
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
    let acceptor = TlsAcceptor::from(tls.config()?);
    deadline(HANDSHAKE_LIMIT, &code::TLS_TIMEOUT, "TLS handshake", acceptor.accept(stream))
        .await?
        .map_err(|error| Error::caused(&code::TLS_FAILED, "TLS handshake", error))
}

/// On all addresses of both families; where there is no IPv6, those of IPv4.
pub(super) fn listen(address: SocketAddr) -> Result<TcpListener> {
    let mut bound = sockets().listen(address, false);
    if address.ip() == Ipv6Addr::UNSPECIFIED {
        bound = bound
            .or_else(|error| sockets().listen(SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), address.port()), false).map_err(|_| error));
    }
    bound.map(|(listener, _)| listener).map_err(|error| Error::caused(&code::BIND_FAILED, address.to_string(), error))
}

fn sockets() -> SocketFactory {
    let keepalive = Keepalive { idle: Duration::from_secs(60), interval: Duration::from_secs(15), retries: 4, user_timeout: true };
    SocketFactory { keepalive: Some(keepalive), ..SocketFactory::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn all_addresses_are_those_of_ipv4_too() {
        let listener = listen("[::]:0".parse().unwrap()).unwrap();
        let port = listener.local_addr().unwrap().port();
        for from in ["127.0.0.1", "::1"].map(|ip| ip.parse::<std::net::IpAddr>().unwrap()) {
            let has_family = from.is_ipv4() || std::net::TcpListener::bind((from, 0)).is_ok();
            assert_eq!(std::net::TcpStream::connect((from, port)).is_ok(), has_family, "{from}");
        }
    }
}
