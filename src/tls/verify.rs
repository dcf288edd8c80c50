//! Who is at the other end: the chain by the standard verifier, the name by SPIFFE alone.

use std::fmt;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, OtherError, RootCertStore, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use crate::base::{Error, Result, Str, code};
use crate::identity::{SpiffeId, peer_ids};

type TlsResult<T> = std::result::Result<T, rustls::Error>;

/// Verifies a client: trusted by our roots, for client authentication, and of our trust domain.
pub(super) struct ClientOfMesh {
    chain: Arc<dyn ClientCertVerifier>,
    trust_domain: Str,
}

impl ClientOfMesh {
    pub(super) fn new(roots: Arc<RootCertStore>, provider: Arc<CryptoProvider>, trust_domain: Str) -> Result<Self> {
        let chain = WebPkiClientVerifier::builder_with_provider(roots, provider)
            .build()
            .map_err(|error| Error::caused(&code::BAD_CERTIFICATE, "trust bundle", error))?;
        Ok(Self { chain, trust_domain })
    }
}

impl ClientCertVerifier for ClientOfMesh {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        // A mesh has one trust bundle: hints would only make the handshake longer.
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> TlsResult<ClientCertVerified> {
        let verified = self.chain.verify_client_cert(end_entity, intermediates, now)?;
        peer_of_trust_domain(end_entity, &self.trust_domain).map_err(refuse)?;
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> TlsResult<HandshakeSignatureValid> {
        self.chain.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> TlsResult<HandshakeSignatureValid> {
        self.chain.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chain.supported_verify_schemes()
    }
}

impl fmt::Debug for ClientOfMesh {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientOfMesh").field("trust_domain", &self.trust_domain).finish_non_exhaustive()
    }
}

/// Verifies a server: trusted by our roots, for server authentication, and one of the expected identities.
#[derive(Debug)]
pub(super) struct ServerOfMesh {
    roots: Arc<RootCertStore>,
    provider: Arc<CryptoProvider>,
    expected: Vec<SpiffeId>,
}

impl ServerOfMesh {
    pub(super) fn new(roots: Arc<RootCertStore>, provider: Arc<CryptoProvider>, expected: Vec<SpiffeId>) -> Self {
        Self { roots, provider, expected }
    }
}

impl ServerCertVerifier for ServerOfMesh {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> TlsResult<ServerCertVerified> {
        let parsed = ParsedCertificate::try_from(end_entity)?;
        let algorithms = self.provider.signature_verification_algorithms.all;
        verify_server_cert_signed_by_trust_anchor(&parsed, &self.roots, intermediates, now, algorithms)?;
        one_of(end_entity, &self.expected).map_err(refuse)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> TlsResult<HandshakeSignatureValid> {
        verify_tls12_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> TlsResult<HandshakeSignatureValid> {
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// The identity of `leaf` that belongs to `trust_domain`. A second identity of another domain is never the peer's:
/// policy would compare a name that nobody of this mesh vouched for.
pub(super) fn peer_of_trust_domain(leaf: &CertificateDer<'_>, trust_domain: &str) -> Result<SpiffeId> {
    let ids = peer_ids(leaf)?;
    if let Some(id) = ids.iter().find(|id| &*id.trust_domain == trust_domain) {
        return Ok(id.clone());
    }
    match ids.first() {
        None => Err(Error::new(&code::NO_IDENTITY, "the client's certificate holds no spiffe:// name")),
        Some(got) => Err(Error::new(&code::WRONG_TRUST_DOMAIN, format!("want trust domain {trust_domain}, got {got}"))),
    }
}

fn one_of(leaf: &CertificateDer<'_>, expected: &[SpiffeId]) -> Result<()> {
    let ids = peer_ids(leaf)?;
    if ids.iter().any(|id| expected.contains(id)) {
        return Ok(());
    }
    if ids.is_empty() {
        return Err(Error::new(&code::NO_IDENTITY, format!("want {}, got a certificate without a spiffe:// name", list(expected))));
    }
    Err(Error::new(&code::IDENTITY_MISMATCH, format!("want {}, got {}", list(expected), list(&ids))))
}

/// A set of identities in a sentence; a certificate chosen by a peer must not make it endless.
fn list(ids: &[SpiffeId]) -> String {
    const SHOWN: usize = 4;
    let mut text = ids.iter().take(SHOWN).map(SpiffeId::to_string).collect::<Vec<_>>().join(" or ");
    if ids.len() > SHOWN {
        text.push_str(&format!(" or {} more", ids.len() - SHOWN));
    }
    text
}

/// Carries our error through the handshake; `failure` finds it again.
fn refuse(error: Error) -> rustls::Error {
    rustls::Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(error))))
}
