//! Opens the connection under a control-plane channel: TCP, then TLS with the server's name verified.

use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::RootSource;
use super::failure::from_handshake;
use crate::base::addr::NextHop;
use crate::base::{Code, Error, Result, code, deadline};
use crate::net::socket::{Keepalive, SocketFactory};

/// Bound of resolving the name, of each TCP connect, and of the TLS handshake.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);

const KEEPALIVE: Keepalive =
    Keepalive { idle: Duration::from_secs(300), interval: Duration::from_secs(75), retries: 9, user_timeout: false };

/// Addresses of one name that are tried.
const MAX_ADDRESSES: usize = 4;

pub(super) type Io = TokioIo<tokio_rustls::client::TlsStream<TcpStream>>;

/// Where to connect and what to verify.
#[derive(Clone, Debug)]
pub(super) struct Target {
    pub(super) host: String,
    pub(super) port: u16,
    pub(super) root: RootSource,
    pub(super) alternative: Option<ServerName<'static>>,
    /// What it means when nobody answers there.
    pub(super) unreachable: &'static Code,
}

impl Target {
    pub(super) async fn connect(&self) -> Result<Io> {
        // Read for each connection: a rotated root is taken up by the next one.
        let roots = Arc::new(self.root.load().await?);
        let config = self.config(roots)?;
        let stream = self.tcp().await?;
        let name = server_name(&self.host)?;
        let handshake = TlsConnector::from(Arc::new(config)).connect(name, stream);
        let stream = deadline(CONNECT_LIMIT, &code::TLS_TIMEOUT, format!("TLS handshake with {}:{}", self.host, self.port), handshake)
            .await?
            .map_err(|error| from_handshake(&format!("{}:{}", self.host, self.port), error))?;
        if stream.get_ref().1.alpn_protocol() != Some(b"h2") {
            return Err(Error::new(&code::TLS_FAILED, format!("{}:{} does not speak HTTP/2 (ALPN h2)", self.host, self.port)));
        }
        Ok(TokioIo::new(stream))
    }

    fn config(&self, roots: Arc<rustls::RootCertStore>) -> Result<ClientConfig> {
        let provider = Arc::new(default_provider());
        let inner = WebPkiServerVerifier::builder_with_provider(roots, provider.clone())
            .build()
            .map_err(|error| Error::caused(&code::BAD_TRUST_ROOT, "control-plane root", error))?;
        let verifier = EitherName { inner, alternative: self.alternative.clone() };
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
            .map_err(|error| Error::caused(&code::INTERNAL, "TLS versions", error))?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_no_client_auth();
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(config)
    }

    async fn tcp(&self) -> Result<TcpStream> {
        let sockets = SocketFactory { keepalive: Some(KEEPALIVE), ..SocketFactory::default() };
        let place = format!("{}:{}", self.host, self.port);
        let host = self.host.trim_start_matches('[').trim_end_matches(']');
        let lookup = tokio::net::lookup_host((host, self.port));
        let addresses = deadline(CONNECT_LIMIT, self.unreachable, format!("resolving {place}"), lookup)
            .await?
            .map_err(|error| Error::caused(self.unreachable, format!("resolving {place}"), error))?;
        let mut last = Error::new(self.unreachable, format!("{place}: the name has no address"));
        for address in addresses.take(MAX_ADDRESSES) {
            let what = if address.to_string() == place { place.clone() } else { format!("{place} ({address})") };
            let connect = sockets.connect(NextHop::new(address), None);
            last = match deadline(CONNECT_LIMIT, self.unreachable, format!("connecting to {what}"), connect).await {
                Ok(Ok(stream)) => return Ok(stream),
                Ok(Err(error)) => Error::caused(self.unreachable, format!("connecting to {what}"), error),
                Err(timeout) => timeout,
            };
        }
        Err(last)
    }
}

/// A host name or address as TLS compares it.
pub(super) fn server_name(host: &str) -> Result<ServerName<'static>> {
    let bare = host.trim_start_matches('[').trim_end_matches(']').to_owned();
    ServerName::try_from(bare).map_err(|error| Error::caused(&code::BAD_SETTING, format!("{host}: not a host name"), error))
}

/// Accepts a certificate for the host that was dialled or for the alternative name.
#[derive(Debug)]
struct EitherName {
    inner: Arc<WebPkiServerVerifier>,
    alternative: Option<ServerName<'static>>,
}

impl ServerCertVerifier for EitherName {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> std::result::Result<ServerCertVerified, rustls::Error> {
        let first = self.inner.verify_server_cert(end_entity, intermediates, name, ocsp, now);
        match (&first, &self.alternative) {
            (Err(_), Some(alternative)) => self.inner.verify_server_cert(end_entity, intermediates, alternative, ocsp, now).or(first),
            _ => first,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}
