//! Handshakes between workloads that end in a [`Session`] instead of a stream. They are of TLS 1.3.

use std::time::Duration;

use rustls_pki_types::{CertificateDer, ServerName};
use tokio::net::TcpStream;

use super::failure::from_handshake;
use super::handshake;
use super::record::Session;
use super::workload::{Versions, WITH_CLIENT, WITH_DESTINATION, any_name, client_identity, configs, server_identity};
use crate::base::{Result, code, deadline};
use crate::identity::{Certificate, SpiffeId};

/// A TCP connection with its handshake behind it.
#[derive(Debug)]
pub struct Secured {
    /// Nothing else may write to it or read from it but the owner of `session`.
    pub socket: TcpStream,
    /// Its first [`Session::pending`] may hold our last flight, which the peer waits for.
    pub session: Session,
    /// Records, or the start of one, that were read behind the handshake: they come before what the socket gives.
    pub leftover: Vec<u8>,
    /// Whether an earlier session was resumed. The peer's certificates were judged all the same.
    pub resumed: bool,
}

/// Makes `socket` a TLS connection to a peer that proves to be one of `expected`; says which one it is.
///
/// # Errors
/// The peer is silent for `limit`, speaks something else, is not trusted, or is somebody else.
pub async fn connect(mut socket: TcpStream, cert: &Certificate, expected: &[SpiffeId], limit: Duration) -> Result<(Secured, SpiffeId)> {
    let configs = configs(cert, Versions::Tls13)?;
    let config = configs.client(cert, expected)?;
    // Tickets are kept by the server's address.
    let name = socket.peer_addr().map_or_else(|_| any_name(), |address| ServerName::IpAddress(address.ip().into()));
    let recheck = |chain: &[CertificateDer<'static>]| configs.check_server(expected, chain);
    let handshake = handshake::connect(&mut socket, &config, name, &configs.tickets, &recheck);
    let remains =
        deadline(limit, &code::TLS_TIMEOUT, WITH_DESTINATION, handshake).await?.map_err(|error| from_handshake("connecting", error))?;
    let (peer, resumed) = (server_identity(remains.state(), expected)?, remains.resumed());
    let (session, leftover) = remains.into_session()?;
    Ok((Secured { socket, session, leftover, resumed }, peer))
}

/// Makes `socket` a TLS connection from a peer of the same trust domain; says who it is.
///
/// # Errors
/// The peer is silent for `limit`, speaks something else, has no certificate, is not trusted, or is of another domain.
pub async fn accept(mut socket: TcpStream, cert: &Certificate, limit: Duration) -> Result<(Secured, SpiffeId)> {
    let configs = configs(cert, Versions::Tls13)?;
    let recheck = |chain: &[CertificateDer<'static>]| configs.check_client(chain);
    let handshake = handshake::accept(&mut socket, &configs.server, &configs.ticketer, &recheck);
    let remains = deadline(limit, &code::TLS_TIMEOUT, WITH_CLIENT, handshake).await?.map_err(|error| from_handshake("accepting", error))?;
    let (peer, resumed) = (client_identity(remains.state(), &cert.id.trust_domain)?, remains.resumed());
    let (session, leftover) = remains.into_session()?;
    Ok((Secured { socket, session, leftover, resumed }, peer))
}

#[cfg(test)]
#[path = "secured_tests.rs"]
pub(super) mod tests;

#[cfg(test)]
#[path = "resumption_tests.rs"]
mod resumption_tests;
