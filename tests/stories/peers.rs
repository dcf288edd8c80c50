//! Peers on the tunnel port that are no proxies of the mesh: with any certificate, speaking anything.

use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use h2::client::SendRequest;
use http::{Method, Request, StatusCode, Uri, Version};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::version::TLS13;
use rustls::{ClientConfig, DigitallySignedStruct, ServerConfig, SignatureScheme, SupportedProtocolVersion};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};
use warren::demo::story::mesh::Mesh;

use crate::apps::*;

/// A certificate authority.
pub(crate) struct Root {
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
}

/// A leaf with its key.
pub(crate) struct Leaf {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
}

impl Root {
    /// The mesh's own.
    pub(crate) fn of(mesh: &Mesh) -> Self {
        let dir = mesh.state_dir().join("ca");
        let read = |path: &Path| std::fs::read_to_string(path).expect("the control plane has made it");
        let key = KeyPair::from_pem(&read(&dir.join("ca-key.pem"))).expect("a key");
        let text = read(&dir.join("ca-cert.pem"));
        let certificate = CertificateDer::from_pem_slice(text.as_bytes()).expect("a certificate");
        Self { issuer: Issuer::from_ca_cert_pem(&text, key).expect("an authority"), certificate }
    }

    /// Of another mesh.
    pub(crate) fn stranger() -> Self {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let certificate = params.self_signed(&key).expect("a root").der().clone();
        Self { issuer: Issuer::new(params, key), certificate }
    }

    /// A leaf for both sides of a tunnel that names `uri`, if any.
    pub(crate) fn leaf(&self, uri: Option<&str>) -> Leaf {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = match uri {
            Some(uri) => vec![SanType::URI(uri.try_into().expect("ASCII"))],
            None => vec![SanType::DnsName("somebody.example".try_into().expect("ASCII"))],
        };
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let leaf = params.signed_by(&key, &self.issuer).expect("signed").der().clone();
        Leaf { chain: vec![leaf, self.certificate.clone()], key: PrivateKeyDer::try_from(key.serialize_der()).expect("PKCS#8") }
    }

    /// The same for an account of the mesh.
    pub(crate) fn account(&self, account: &str) -> Leaf {
        self.leaf(Some(&format!("spiffe://cluster.local/ns/default/sa/{account}")))
    }
}

/// A TCP connection from the pod outside the mesh to the tunnel port of `server`.
pub(crate) fn knock(mesh: &Mesh) -> TcpStream {
    connect(mesh, "outside", at(mesh, "server", warren::agent::redirect::port::TUNNEL))
}

pub(crate) type ClientTls = client::TlsStream<tokio::net::TcpStream>;
pub(crate) type ServerTls = server::TlsStream<tokio::net::TcpStream>;

/// TLS 1.3 with that certificate, if any, to whoever answers.
pub(crate) async fn tls(stream: TcpStream, leaf: Option<&Leaf>, alpn: &[u8]) -> std::io::Result<ClientTls> {
    tls_of(&TLS13, stream, leaf, alpn).await
}

/// TLS of that version alone.
pub(crate) async fn tls_of(
    version: &'static SupportedProtocolVersion,
    stream: TcpStream,
    leaf: Option<&Leaf>,
    alpn: &[u8],
) -> std::io::Result<ClientTls> {
    let builder = ClientConfig::builder_with_provider(Arc::new(default_provider()))
        .with_protocol_versions(&[version])
        .expect("a version of the library")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anybody));
    let mut config = match leaf {
        Some(leaf) => builder.with_client_auth_cert(leaf.chain.clone(), leaf.key.clone_key()).expect("a usable key"),
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![alpn.to_vec()];
    let name = ServerName::try_from("nobody.example").expect("a name");
    TlsConnector::from(Arc::new(config)).connect(name, asynchronous(stream)).await
}

/// The accepting side of the same.
pub(crate) async fn tls_server(stream: tokio::net::TcpStream, leaf: &Leaf) -> std::io::Result<ServerTls> {
    tls_server_of(&TLS13, stream, leaf).await
}

/// The accepting side, of that version alone.
pub(crate) async fn tls_server_of(
    version: &'static SupportedProtocolVersion,
    stream: tokio::net::TcpStream,
    leaf: &Leaf,
) -> std::io::Result<ServerTls> {
    let mut config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
        .with_protocol_versions(&[version])
        .expect("a version of the library")
        .with_no_client_auth()
        .with_single_cert(leaf.chain.clone(), leaf.key.clone_key())
        .expect("a usable key");
    config.alpn_protocols = vec![b"h2".to_vec()];
    TlsAcceptor::from(Arc::new(config)).accept(stream).await
}

/// A tunnel to `server` that policy lets talk.
pub(crate) async fn tunnel(mesh: &Mesh, leaf: &Leaf) -> SendRequest<Bytes> {
    http2(tls(knock(mesh), Some(leaf), b"h2").await.expect("a handshake")).await
}

/// The tunnel that is spoken there.
pub(crate) async fn http2(stream: ClientTls) -> SendRequest<Bytes> {
    let (sender, connection) = h2::client::handshake(stream).await.expect("HTTP/2");
    tokio::spawn(async move {
        // How it ends, its requests say.
        let _ = connection.await;
    });
    sender
}

/// A request head; CONNECT has only an authority.
pub(crate) fn head(method: Method, authority: &str) -> Request<()> {
    let uri = match method {
        Method::CONNECT => Uri::builder().authority(authority).build(),
        _ => Uri::builder().scheme("https").authority(authority).path_and_query("/").build(),
    };
    let request = Request::builder().method(method).version(Version::HTTP_2).uri(uri.expect("a URI"));
    request.body(()).expect("a request")
}

/// The status of the answer.
pub(crate) async fn ask(sender: &SendRequest<Bytes>, request: Request<()>) -> Result<StatusCode, h2::Error> {
    let mut sender = sender.clone().ready().await?;
    let (answer, _body) = sender.send_request(request, false)?;
    Ok(answer.await?.status())
}

pub(crate) fn asynchronous(stream: TcpStream) -> tokio::net::TcpStream {
    stream.set_nonblocking(true).expect("a socket");
    tokio::net::TcpStream::from_std(stream).expect("a runtime")
}

/// Calls `server` from `client`, over a connection that stays and over new ones, until it is told to stop; every call must
/// be answered. Returns how many were.
pub(crate) fn goes_on<R>(mesh: &Mesh, to: SocketAddr, meanwhile: impl FnOnce() -> R) -> (R, usize) {
    use std::io::{Read, Write};
    use std::sync::atomic::{AtomicBool, Ordering};
    let stop = AtomicBool::new(false);
    let call = |stream: &mut TcpStream| {
        let mut answer = [0; 4];
        stream.set_read_timeout(Some(Duration::from_secs(5))).expect("a socket");
        stream.write_all(b"ping").and_then(|()| stream.read_exact(&mut answer)).expect("a call of the mesh is answered");
    };
    // Also when `meanwhile` panics.
    struct Stop<'a>(&'a AtomicBool);
    impl Drop for Stop<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    std::thread::scope(|scope| {
        let caller = scope.spawn(|| {
            let mut kept = connect(mesh, "client", to);
            let mut calls = 0;
            while !stop.load(Ordering::Relaxed) {
                call(&mut kept);
                call(&mut connect(mesh, "client", to));
                calls += 1;
            }
            calls
        });
        let result = {
            let _stop = Stop(&stop);
            meanwhile()
        };
        (result, caller.join().expect("every call is answered"))
    })
}

/// Takes any server: the stories are about what the other side does.
#[derive(Debug)]
struct Anybody;

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        default_provider().signature_verification_algorithms.supported_schemes()
    }
}
