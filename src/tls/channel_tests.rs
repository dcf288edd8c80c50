//! A real gRPC server behind TLS on loopback.

use std::net::SocketAddr;

use parking_lot::Mutex;
use rcgen::{CertificateParams, KeyPair};
use rustls::ServerConfig;
use rustls_pki_types::PrivateKeyDer;
use tokio_rustls::TlsAcceptor;
use tonic::{Status, metadata::MetadataMap};

use super::*;
use crate::net::socket::SocketFactory;
use crate::wire::ca::istio_certificate_service_client::IstioCertificateServiceClient;
use crate::wire::ca::istio_certificate_service_server::{IstioCertificateService, IstioCertificateServiceServer};
use crate::wire::ca::{IstioCertificateRequest, IstioCertificateResponse};

#[derive(Default)]
struct Seen(Mutex<Vec<MetadataMap>>);

#[tonic::async_trait]
impl IstioCertificateService for Seen {
    async fn create_certificate(
        &self,
        request: tonic::Request<IstioCertificateRequest>,
    ) -> std::result::Result<tonic::Response<IstioCertificateResponse>, Status> {
        self.0.lock().push(request.metadata().clone());
        Ok(tonic::Response::new(IstioCertificateResponse { cert_chain: vec!["answer".to_owned()] }))
    }
}

/// Its certificate is for `istiod.example` only. Returns the address, the root's PEM and what was seen.
async fn server() -> (SocketAddr, String, Arc<Seen>) {
    let key = KeyPair::generate().unwrap();
    let certificate = CertificateParams::new(vec!["istiod.example".to_owned()]).unwrap().self_signed(&key).unwrap();
    let mut config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], PrivateKeyDer::try_from(key.serialize_der()).unwrap())
        .unwrap();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let sockets = SocketFactory::default();
    let (listener, _) = sockets.listen("127.0.0.1:0".parse().unwrap(), false).unwrap();
    let address = listener.local_addr().unwrap();
    let seen = Arc::new(Seen::default());
    let service = IstioCertificateServiceServer::from_arc(seen.clone());
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (acceptor, service) = (acceptor.clone(), service.clone());
            tokio::spawn(async move {
                let Ok(stream) = acceptor.accept(stream).await else { return };
                let incoming = futures::stream::iter([Ok::<_, std::io::Error>(Tls(stream))]);
                let _ = tonic::transport::Server::builder().add_service(service).serve_with_incoming(incoming).await;
            });
        }
    });
    (address, certificate.pem(), seen)
}

struct Tls(tokio_rustls::server::TlsStream<tokio::net::TcpStream>);

impl tonic::transport::server::Connected for Tls {
    type ConnectInfo = ();
    fn connect_info(&self) {}
}

impl tokio::io::AsyncRead for Tls {
    fn poll_read(mut self: std::pin::Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut tokio::io::ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        std::pin::Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl tokio::io::AsyncWrite for Tls {
    fn poll_write(mut self: std::pin::Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<std::io::Result<usize>> {
        std::pin::Pin::new(&mut self.0).poll_write(cx, buf)
    }
    fn poll_flush(mut self: std::pin::Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        std::pin::Pin::new(&mut self.0).poll_flush(cx)
    }
    fn poll_shutdown(mut self: std::pin::Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        std::pin::Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

fn settings(address: SocketAddr, root: RootSource) -> ChannelSettings {
    ChannelSettings {
        address: format!("https://{address}"),
        root,
        alternative_name: Some("istiod.example".to_owned()),
        token: TokenSource::Literal("secret".to_owned()),
        cluster_id: "Kubernetes".to_owned(),
        headers: vec![("X-Extra".to_owned(), "1".to_owned())],
        unreachable: &code::XDS_UNREACHABLE,
    }
}

async fn call(channel: &Channel) -> std::result::Result<(), Error> {
    let request = IstioCertificateRequest::default();
    let mut client = IstioCertificateServiceClient::new(channel.clone());
    let call = client.create_certificate(request);
    let answer = crate::base::deadline(Duration::from_secs(20), &code::INTERNAL, "call", call).await.unwrap();
    answer.map(drop).map_err(|status| {
        let mut next: Option<&(dyn std::error::Error + 'static)> = std::error::Error::source(&status);
        while let Some(source) = next {
            if let Some(own) = source.downcast_ref::<Error>() {
                return own.clone();
            }
            next = source.source();
        }
        panic!("no error of ours in {status:?}")
    })
}

#[tokio::test]
async fn requests_carry_the_credentials() {
    let (address, pem, seen) = server().await;
    let directory = tempfile::tempdir().unwrap();
    let token = directory.path().join("token");
    std::fs::write(&token, "one\n").unwrap();
    let mut wanted = settings(address, RootSource::Pem(pem));
    wanted.token = TokenSource::File(token.clone());
    let channel = Channel::new(wanted).unwrap();
    call(&channel).await.unwrap();
    std::fs::write(&token, "two").unwrap();
    call(&channel).await.unwrap();
    let all: Vec<_> = seen.0.lock().iter().map(|seen| seen.get("authorization").unwrap().to_str().unwrap().to_owned()).collect();
    assert_eq!(all, ["Bearer one", "Bearer two"], "the file is read for each request");
    let first = seen.0.lock()[0].clone();
    assert_eq!(first.get("clusterid").unwrap(), "Kubernetes");
    assert_eq!(first.get("x-extra").unwrap(), "1");
}

#[tokio::test]
async fn a_server_with_neither_name_is_refused() {
    let (address, pem, _) = server().await;
    let mut wanted = settings(address, RootSource::Pem(pem));
    wanted.alternative_name = None;
    let error = call(&Channel::new(wanted).unwrap()).await.unwrap_err();
    assert_eq!(error.code().id, code::TLS_FAILED.id, "{error}");
}

#[tokio::test]
async fn the_root_file_is_read_again_for_each_connect() {
    let (address, pem, _) = server().await;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("root.pem");
    let channel = Channel::new(settings(address, RootSource::parse(path.to_str().unwrap()))).unwrap();
    assert_eq!(call(&channel).await.unwrap_err().code().id, code::BAD_TRUST_ROOT.id);
    std::fs::write(&path, "nothing").unwrap();
    assert_eq!(call(&channel).await.unwrap_err().code().id, code::BAD_TRUST_ROOT.id);
    std::fs::write(&path, pem).unwrap();
    call(&channel).await.unwrap();
}

#[tokio::test]
async fn an_empty_token_is_an_error_of_this_node() {
    let (address, pem, seen) = server().await;
    let mut wanted = settings(address, RootSource::Pem(pem));
    wanted.token = TokenSource::Literal(" ".to_owned());
    assert_eq!(call(&Channel::new(wanted).unwrap()).await.unwrap_err().code().id, code::TOKEN_UNREADABLE.id);
    assert!(seen.0.lock().is_empty());
}

#[tokio::test]
async fn a_control_plane_that_is_away_is_named() {
    let (address, pem, _) = server().await;
    let nobody = SocketAddr::new(address.ip(), 1);
    let error = call(&Channel::new(settings(nobody, RootSource::Pem(pem))).unwrap()).await.unwrap_err();
    assert_eq!(error.code().id, code::XDS_UNREACHABLE.id);
}

#[test]
fn settings_are_checked_and_secrets_not_shown() {
    let good = settings("127.0.0.1:1".parse().unwrap(), RootSource::System);
    assert!(!format!("{good:?}").contains("secret"));
    for bad in ["http://istiod:15012", "https://", "::"] {
        let error = Channel::new(ChannelSettings { address: bad.to_owned(), ..good.clone() }).err().unwrap();
        assert_eq!(error.code().id, code::BAD_SETTING.id, "{bad}");
    }
    assert_eq!(address("istiod.istio-system.svc:15012").unwrap().2, 15012);
    assert_eq!(RootSource::parse("SYSTEM"), RootSource::System);
}
