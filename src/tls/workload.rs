//! Handshakes between workloads.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rustls::client::Resumption;
use rustls::client::danger::ServerCertVerifier;
use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs::{Ticketer, cipher_suite, default_provider, kx_group};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{NoServerSessionStorage, ProducesTickets};
use rustls::{ClientConfig, CommonState, RootCertStore, ServerConfig, SupportedProtocolVersion};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::failure::from_handshake;
use super::tickets::TicketStore;
use super::verify::{ClientOfMesh, ServerOfMesh, peer_of_trust_domain};
use crate::base::{Error, Result, code, deadline};
use crate::identity::{Certificate, SpiffeId};

/// How long a peer may take for a handshake.
pub const HANDSHAKE_LIMIT: Duration = Duration::from_secs(10);

/// The side that connected.
pub type ClientTlsStream<IO> = tokio_rustls::client::TlsStream<IO>;

/// The side that accepted.
pub type ServerTlsStream<IO> = tokio_rustls::server::TlsStream<IO>;

/// Versions of TLS that a tunnel may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Versions {
    /// 1.3 alone.
    #[default]
    Tls13,
    /// 1.3, or 1.2 where the peer has no other (TLS12_ENABLED).
    Tls12And13,
}

impl Versions {
    fn protocols(self) -> Vec<&'static SupportedProtocolVersion> {
        match self {
            Self::Tls13 => vec![&rustls::version::TLS13],
            Self::Tls12And13 => vec![&rustls::version::TLS13, &rustls::version::TLS12],
        }
    }
}

const ALPN: &[u8] = b"h2";

pub(super) const WITH_DESTINATION: &str = "TLS handshake with the destination's proxy";
pub(super) const WITH_CLIENT: &str = "TLS handshake with the client's proxy";

/// Client configurations of one certificate, one for each set of identities that a destination may have. Past this the
/// set is started anew: building one costs tens of microseconds.
const MAX_CLIENT_CONFIGS: usize = 256;

/// Makes `io` a TLS connection to a peer that proves to be one of `expected`; says which one it is.
///
/// # Errors
/// The peer is silent for `limit`, speaks something else, is not trusted, or is somebody else.
pub async fn connect<IO>(
    io: IO,
    cert: &Certificate,
    expected: &[SpiffeId],
    versions: Versions,
    limit: Duration,
) -> Result<(ClientTlsStream<IO>, SpiffeId)>
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    let config = configs(cert, versions)?.client(cert, expected)?;
    let handshake = TlsConnector::from(config).connect(any_name(), io);
    let stream =
        deadline(limit, &code::TLS_TIMEOUT, WITH_DESTINATION, handshake).await?.map_err(|error| from_handshake("connecting", error))?;
    let peer = server_identity(stream.get_ref().1, expected)?;
    Ok((stream, peer))
}

/// Makes `io` a TLS connection from a peer of the same trust domain; says who it is.
///
/// # Errors
/// The peer is silent for `limit`, speaks something else, has no certificate, is not trusted, or is of another domain.
pub async fn accept<IO>(io: IO, cert: &Certificate, versions: Versions, limit: Duration) -> Result<(ServerTlsStream<IO>, SpiffeId)>
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    let config = configs(cert, versions)?.server.clone();
    let handshake = TlsAcceptor::from(config).accept(io);
    let stream = deadline(limit, &code::TLS_TIMEOUT, WITH_CLIENT, handshake).await?.map_err(|error| from_handshake("accepting", error))?;
    let peer = client_identity(stream.get_ref().1, &cert.id.trust_domain)?;
    Ok((stream, peer))
}

/// The cryptography of workload connections, in order of preference.
pub(super) fn provider(versions: Versions) -> Arc<CryptoProvider> {
    let mut cipher_suites =
        vec![cipher_suite::TLS13_AES_128_GCM_SHA256, cipher_suite::TLS13_AES_256_GCM_SHA384, cipher_suite::TLS13_CHACHA20_POLY1305_SHA256];
    if versions == Versions::Tls12And13 {
        cipher_suites.extend([
            cipher_suite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
            cipher_suite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
            cipher_suite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
            cipher_suite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
        ]);
    }
    Arc::new(CryptoProvider {
        cipher_suites,
        kx_groups: vec![kx_group::X25519, kx_group::SECP256R1, kx_group::SECP384R1, kx_group::X25519MLKEM768],
        ..default_provider()
    })
}

/// What is made of one certificate, once.
pub(super) struct Configs {
    versions: Versions,
    provider: Arc<CryptoProvider>,
    roots: Arc<RootCertStore>,
    pub(super) server: Arc<ServerConfig>,
    pub(super) verifier: Arc<ClientOfMesh>,
    /// Of this certificate alone: a ticket is worth nothing after its renewal, nor where another workload answers.
    pub(super) ticketer: Arc<dyn ProducesTickets>,
    /// What servers gave to the holder of this certificate.
    pub(super) tickets: Resumption,
    clients: Mutex<HashMap<Vec<SpiffeId>, Arc<ClientConfig>>>,
}

pub(super) fn configs(cert: &Certificate, versions: Versions) -> Result<Arc<Configs>> {
    let kept = cert.derived(|| Configs::new(cert, versions))?;
    // A process has one setting: others are asked for by tests alone.
    if kept.versions == versions { Ok(kept) } else { Configs::new(cert, versions).map(Arc::new) }
}

impl Configs {
    fn new(cert: &Certificate, versions: Versions) -> Result<Self> {
        let bad = |error: rustls::Error| Error::caused(&code::BAD_CERTIFICATE, format!("certificate of {}", cert.id), error);
        let provider = provider(versions);
        let mut roots = RootCertStore::empty();
        let (usable, unusable) = roots.add_parsable_certificates(cert.roots.iter().cloned());
        if usable == 0 {
            return Err(Error::new(&code::BAD_CERTIFICATE, format!("certificate of {}: none of {unusable} roots can be used", cert.id)));
        }
        let roots = Arc::new(roots);
        let verifier = Arc::new(ClientOfMesh::new(roots.clone(), provider.clone(), cert.id.trust_domain.clone())?);
        let mut server = ServerConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&versions.protocols())
            .map_err(bad)?
            .with_client_cert_verifier(verifier.clone())
            .with_single_cert(cert.chain.clone(), cert.key.clone_key())
            .map_err(bad)?;
        server.alpn_protocols = vec![ALPN.to_vec()];
        // Who resumes a session here would not be judged again: that is done where the handshake ends in records.
        server.session_storage = Arc::new(NoServerSessionStorage {});
        server.send_tls13_tickets = 0;
        // TLS 1.2: without it the keys are not bound to the handshake (RFC 7627 §5.2).
        server.require_ems = true;
        let ticketer = Ticketer::new().map_err(bad)?;
        let tickets = Resumption::store(Arc::new(TicketStore::default()));
        Ok(Self { versions, provider, roots, server: Arc::new(server), verifier, ticketer, tickets, clients: Mutex::default() })
    }

    /// Judges a client that resumes a session as one that shows its certificates.
    pub(super) fn check_client(&self, chain: &[CertificateDer<'_>]) -> std::result::Result<(), rustls::Error> {
        let (leaf, intermediates) = chain.split_first().ok_or(rustls::Error::NoCertificatesPresented)?;
        self.verifier.verify_client_cert(leaf, intermediates, UnixTime::now()).map(drop)
    }

    /// Judges a server that resumes a session as one that shows its certificates.
    pub(super) fn check_server(&self, expected: &[SpiffeId], chain: &[CertificateDer<'_>]) -> std::result::Result<(), rustls::Error> {
        let (leaf, intermediates) = chain.split_first().ok_or(rustls::Error::NoCertificatesPresented)?;
        let verifier = ServerOfMesh::new(self.roots.clone(), self.provider.clone(), expected.to_vec());
        verifier.verify_server_cert(leaf, intermediates, &any_name(), &[], UnixTime::now()).map(drop)
    }

    pub(super) fn client(&self, cert: &Certificate, expected: &[SpiffeId]) -> Result<Arc<ClientConfig>> {
        if let Some(found) = self.clients.lock().get(expected) {
            return Ok(found.clone());
        }
        let bad = |error: rustls::Error| Error::caused(&code::BAD_CERTIFICATE, format!("certificate of {}", cert.id), error);
        let verifier = ServerOfMesh::new(self.roots.clone(), self.provider.clone(), expected.to_vec());
        let mut config = ClientConfig::builder_with_provider(self.provider.clone())
            .with_protocol_versions(&self.versions.protocols())
            .map_err(bad)?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_client_auth_cert(cert.chain.clone(), cert.key.clone_key())
            .map_err(bad)?;
        config.alpn_protocols = vec![ALPN.to_vec()];
        config.enable_sni = false;
        config.resumption = Resumption::disabled();
        config.require_ems = true;
        let config = Arc::new(config);
        let mut clients = self.clients.lock();
        if clients.len() >= MAX_CLIENT_CONFIGS {
            clients.clear();
        }
        clients.insert(expected.to_vec(), config.clone());
        Ok(config)
    }
}

/// The name of any server: it is never sent and never compared, the identity is.
pub(super) fn any_name() -> ServerName<'static> {
    ServerName::IpAddress(IpAddr::V4(Ipv4Addr::UNSPECIFIED).into())
}

/// Who a client has connected to, after the verifier let it pass.
pub(super) fn server_identity(state: &CommonState, expected: &[SpiffeId]) -> Result<SpiffeId> {
    let ids = crate::identity::peer_ids(leaf(state, "the destination's proxy")?)?;
    ids.into_iter().find(|id| expected.contains(id)).ok_or_else(|| Error::internal("a verified identity is gone"))
}

/// Who has connected to a server, after the verifier let it pass.
pub(super) fn client_identity(state: &CommonState, trust_domain: &str) -> Result<SpiffeId> {
    peer_of_trust_domain(leaf(state, "the client's proxy")?, trust_domain)
}

fn leaf<'a>(state: &'a CommonState, whose: &str) -> Result<&'a CertificateDer<'static>> {
    require_h2(state.alpn_protocol())?;
    let leaf = state.peer_certificates().and_then(<[_]>::first);
    leaf.ok_or_else(|| Error::new(&code::NO_PEER_CERTIFICATE, format!("{whose} sent none")))
}

fn require_h2(protocol: Option<&[u8]>) -> Result<()> {
    match protocol {
        Some(ALPN) => Ok(()),
        _ => Err(Error::new(&code::TLS_FAILED, "the peer did not agree on HTTP/2 (ALPN h2)")),
    }
}

#[cfg(test)]
#[path = "tls12_tests.rs"]
mod tls12_tests;

#[cfg(test)]
#[path = "workload_tests.rs"]
pub(super) mod tests;
