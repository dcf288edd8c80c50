//! Handshakes between workloads that end in a [`Session`] instead of a stream.

use std::time::Duration;

use tokio::net::TcpStream;

use super::failure::from_handshake;
use super::handshake;
use super::record::Session;
use super::workload::{WITH_CLIENT, WITH_DESTINATION, any_name, client_identity, configs, server_identity};
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
}

/// Makes `socket` a TLS connection to a peer that proves to be one of `expected`; says which one it is.
///
/// # Errors
/// The peer is silent for `limit`, speaks something else, is not trusted, or is somebody else.
pub async fn connect(mut socket: TcpStream, cert: &Certificate, expected: &[SpiffeId], limit: Duration) -> Result<(Secured, SpiffeId)> {
    let config = configs(cert)?.client(cert, expected)?;
    let handshake = handshake::connect(&mut socket, &config, any_name());
    let remains =
        deadline(limit, &code::TLS_TIMEOUT, WITH_DESTINATION, handshake).await?.map_err(|error| from_handshake("connecting", error))?;
    let peer = server_identity(&remains.connection, expected)?;
    let (session, leftover) = remains.into_session()?;
    Ok((Secured { socket, session, leftover }, peer))
}

/// Makes `socket` a TLS connection from a peer of the same trust domain; says who it is.
///
/// # Errors
/// The peer is silent for `limit`, speaks something else, has no certificate, is not trusted, or is of another domain.
pub async fn accept(mut socket: TcpStream, cert: &Certificate, limit: Duration) -> Result<(Secured, SpiffeId)> {
    let config = configs(cert)?.server.clone();
    let handshake = handshake::accept(&mut socket, &config);
    let remains = deadline(limit, &code::TLS_TIMEOUT, WITH_CLIENT, handshake).await?.map_err(|error| from_handshake("accepting", error))?;
    let peer = client_identity(&remains.connection, &cert.id.trust_domain)?;
    let (session, leftover) = remains.into_session()?;
    Ok((Secured { socket, session, leftover }, peer))
}

#[cfg(test)]
#[path = "secured_tests.rs"]
pub(super) mod tests;
