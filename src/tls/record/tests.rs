//! Sessions on real sockets, with rustls or another session at the other end.

mod hostile;
mod link;
mod rules;
mod transfer;
mod vectors;

use std::sync::Arc;

use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs::cipher_suite;
use rustls::{ClientConfig, RootCertStore, ServerConfig, SupportedCipherSuite};
use tokio::net::TcpStream;

use super::*;
use crate::identity::fake::scratch;
use crate::identity::{Certificate, SpiffeId};
use crate::tls::secured::tests::tcp;
use crate::tls::secured::{self, Secured};
use crate::tls::verify::{ClientOfMesh, ServerOfMesh};
use crate::tls::{HANDSHAKE_LIMIT, Versions, workload};

const SUITES: [(Suite, SupportedCipherSuite); 3] = [
    (Suite::Aes128Gcm, cipher_suite::TLS13_AES_128_GCM_SHA256),
    (Suite::Aes256Gcm, cipher_suite::TLS13_AES_256_GCM_SHA384),
    (Suite::ChaCha20Poly1305, cipher_suite::TLS13_CHACHA20_POLY1305_SHA256),
];

/// Two certificates of one mesh.
struct Mesh {
    client: Certificate,
    server: Certificate,
}

impl Mesh {
    fn new() -> Self {
        let (ca, id) = (scratch(), |name: &str| SpiffeId::new("cluster.local", "ns", name).unwrap());
        Self { client: ca.mint(&id("client")).unwrap(), server: ca.mint(&id("server")).unwrap() }
    }

    fn roots(&self) -> Arc<RootCertStore> {
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(self.client.roots.iter().cloned());
        Arc::new(roots)
    }

    /// A server of rustls.
    fn rustls_server(&self, provider: CryptoProvider) -> ServerConfig {
        let provider = Arc::new(provider);
        let verifier = ClientOfMesh::new(self.roots(), provider.clone(), self.server.id.trust_domain.clone()).unwrap();
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_client_cert_verifier(Arc::new(verifier))
            .with_single_cert(self.server.chain.clone(), self.server.key.clone_key())
            .unwrap();
        config.alpn_protocols = vec![b"h2".to_vec()];
        config
    }

    /// A client of rustls.
    fn rustls_client(&self, provider: CryptoProvider) -> ClientConfig {
        let provider = Arc::new(provider);
        let verifier = ServerOfMesh::new(self.roots(), provider.clone(), vec![self.server.id.clone()]);
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_client_auth_cert(self.client.chain.clone(), self.client.key.clone_key())
            .unwrap();
        config.alpn_protocols = vec![b"h2".to_vec()];
        config
    }

    async fn connect(&self, socket: TcpStream) -> Result<Secured> {
        let (secured, peer) = secured::connect(socket, &self.client, std::slice::from_ref(&self.server.id), HANDSHAKE_LIMIT).await?;
        assert_eq!(peer, self.server.id);
        Ok(secured)
    }

    async fn accept(&self, socket: TcpStream) -> Result<Secured> {
        let (secured, peer) = secured::accept(socket, &self.server, HANDSHAKE_LIMIT).await?;
        assert_eq!(peer, self.client.id);
        Ok(secured)
    }
}

/// Knows one suite.
fn one(suite: SupportedCipherSuite) -> CryptoProvider {
    CryptoProvider { cipher_suites: vec![suite], ..(*workload::provider(Versions::Tls13)).clone() }
}
