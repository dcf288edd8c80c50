//! A control plane that sends resources that nobody can use.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;

use prost::Message;
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::{Request, Response, Status, Streaming};
use warren::base::addr::NextHop;
use warren::config::meshfile::MeshFile;
use warren::control::index::Type;
use warren::control::source;
use warren::demo::story::mesh::Mesh;
use warren::net::socket::SocketFactory;
use warren::wire::discovery::aggregated_discovery_service_server::{AggregatedDiscoveryService, AggregatedDiscoveryServiceServer};
use warren::wire::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Resource};
use warren::wire::workload::{Address, Workload, address};
use warren::wire::{ADDRESS_TYPE, AUTHORIZATION_TYPE};

use crate::common::sandboxed_async;
use crate::tools::{LIMIT, dump, metric, metrics, prepared, soon, wait_for_tunnel};

#[test]
fn unusable_resources_are_named_in_the_answer_and_the_others_apply() {
    sandboxed_async("malformed::discovery::unusable_resources_are_named_in_the_answer_and_the_others_apply", |dir| async move {
        let mut mesh = prepared(&dir);
        mesh.start_control().unwrap();
        let mut file = MeshFile::default();
        mesh.enrol(true).unwrap();
        mesh.edit(|now| file = now.clone()).unwrap();
        let mut plane = Plane::start(&mesh, &dir).await;
        for node in 1..=2 {
            mesh.start_agent(node, &[]).unwrap();
        }
        let root = dir.join("plane.pem").display().to_string();
        mesh.start_proxy(1, &[("XDS_ADDRESS", &format!("https://{}", plane.address)), ("XDS_ROOT_CA", &root)]).unwrap();
        mesh.start_proxy(2, &[]).unwrap();

        let mut stream = plane.stream().await;
        let mut first = vec![stream.request().await.type_url, stream.request().await.type_url];
        first.sort();
        assert_eq!(first, [AUTHORIZATION_TYPE, ADDRESS_TYPE]);
        let index = source::index_of(&file);
        let mut resources: Vec<Resource> =
            index.resources(Type::Address).iter().map(|good| resource(&good.name, ADDRESS_TYPE, good.body.to_vec())).collect();
        let good = resources.len();
        resources.push(resource("garbage", ADDRESS_TYPE, vec![0xff; 9]));
        resources.insert(0, resource("odd-address", ADDRESS_TYPE, odd_address()));
        resources.insert(2, resource("other-type", AUTHORIZATION_TYPE, vec![]));
        let answer = stream.say("1", ADDRESS_TYPE, resources).await;
        let why = answer.error_detail.expect("a NACK").message;
        for name in ["garbage", "odd-address", "other-type"] {
            assert!(why.contains(name), "{why}");
        }
        assert!(!why.contains("default/server"), "the good ones are not named: {why}");
        let answer = stream.say("2", AUTHORIZATION_TYPE, vec![]).await;
        assert!(answer.error_detail.is_none(), "{answer:?}");
        // Of a type that nobody asked for.
        stream.say("3", "type.googleapis.com/nobody.asked", vec![resource("x", "y", vec![1])]).await;

        let mesh = tokio::task::spawn_blocking(move || {
            wait_for_tunnel(&mut mesh, "client", "server", 1);
            let dump = dump(&mesh, 1);
            let count = |list: &str| dump[list].as_array().map_or(0, Vec::len);
            assert_eq!(count("workloads") + count("services"), good, "{dump}");
            let page = metrics(&mesh, 1);
            assert_eq!(metric(&page, "warren_xds_rejected_resources_total", &[ADDRESS_TYPE]), 3.0, "{page}");
            soon(&mut mesh, "the log names what is rejected", |mesh| {
                let output = mesh.child("proxy-node1").unwrap().output();
                output.lines().any(|line| line.contains("W4003") && line.contains("garbage")).then_some(())
            });
            mesh
        });
        drop(mesh.await.expect("the story goes on"));
    });
}

fn odd_address() -> Vec<u8> {
    let workload = Workload { uid: "odd-address".to_owned(), addresses: vec![vec![10, 0, 1]], ..Workload::default() };
    Address { r#type: Some(address::Type::Workload(workload)) }.encode_to_vec()
}

fn resource(name: &str, type_url: &str, value: Vec<u8>) -> Resource {
    let body = prost_types::Any { type_url: type_url.to_owned(), value };
    Resource { name: name.to_owned(), version: "1".to_owned(), resource: Some(body), ..Resource::default() }
}

/// A control plane, played by hand, on node 1.
struct Plane {
    address: SocketAddr,
    streams: mpsc::Receiver<Stream>,
}

struct Stream {
    requests: Streaming<DeltaDiscoveryRequest>,
    responses: mpsc::Sender<Result<DeltaDiscoveryResponse, Status>>,
}

impl Plane {
    async fn start(mesh: &Mesh, dir: &std::path::Path) -> Self {
        let node = mesh.lab().node(1).unwrap();
        let listener = node.netns.run(|| std::net::TcpListener::bind((node.ip(), 0))).unwrap().unwrap();
        listener.set_nonblocking(true).unwrap();
        let listener = TcpListener::from_std(listener).unwrap();
        let address = listener.local_addr().unwrap();
        let rcgen::CertifiedKey { cert, signing_key } = rcgen::generate_simple_self_signed(vec![node.ip().to_string()]).unwrap();
        std::fs::write(dir.join("plane.pem"), cert.pem()).unwrap();
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(signing_key.serialize_der()));
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let mut config = config.with_no_client_auth().with_single_cert(vec![cert.der().clone()], key).unwrap();
        config.alpn_protocols = vec![b"h2".to_vec()];

        // TLS ends here; behind it the service listens in the clear, inside the test's own namespace.
        let (inner, _) = sockets().listen("127.0.0.1:0".parse().unwrap(), false).unwrap();
        let behind = inner.local_addr().unwrap();
        tokio::spawn(front(listener, TlsAcceptor::from(Arc::new(config)), behind));
        let (sender, streams) = mpsc::channel(4);
        let service = AggregatedDiscoveryServiceServer::new(Service(sender));
        let server = tonic::transport::Server::builder().add_service(service);
        tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(inner)));
        Self { address, streams }
    }

    async fn stream(&mut self) -> Stream {
        tokio::time::timeout(LIMIT, self.streams.recv()).await.expect("in time").expect("a stream")
    }
}

impl Stream {
    async fn request(&mut self) -> DeltaDiscoveryRequest {
        tokio::time::timeout(LIMIT, self.requests.message()).await.expect("in time").expect("no error").expect("a request")
    }

    /// Sends a response and returns the answer to it.
    async fn say(&mut self, nonce: &str, type_url: &str, resources: Vec<Resource>) -> DeltaDiscoveryRequest {
        let (type_url, nonce) = (type_url.to_owned(), nonce.to_owned());
        let response = DeltaDiscoveryResponse { type_url, nonce: nonce.clone(), resources, ..DeltaDiscoveryResponse::default() };
        self.responses.send(Ok(response)).await.expect("the stream is open");
        let answer = self.request().await;
        assert_eq!(answer.response_nonce, nonce);
        answer
    }
}

fn sockets() -> SocketFactory {
    SocketFactory::default()
}

async fn front(listener: TcpListener, acceptor: TlsAcceptor, behind: SocketAddr) {
    while let Ok((stream, _)) = listener.accept().await {
        let acceptor = acceptor.clone();
        tokio::spawn(async move {
            let (Ok(mut outside), Ok(mut inside)) = (acceptor.accept(stream).await, sockets().connect(NextHop::new(behind), None).await)
            else {
                return;
            };
            let _ = tokio::io::copy_bidirectional(&mut outside, &mut inside).await;
        });
    }
}

struct Service(mpsc::Sender<Stream>);

#[tonic::async_trait]
impl AggregatedDiscoveryService for Service {
    type DeltaAggregatedResourcesStream = Pin<Box<dyn futures::Stream<Item = Result<DeltaDiscoveryResponse, Status>> + Send>>;

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        let (responses, said) = mpsc::channel(16);
        let stream = Stream { requests: request.into_inner(), responses };
        self.0.send(stream).await.map_err(|_| Status::unavailable("the test is over"))?;
        Ok(Response::new(Box::pin(ReceiverStream::new(said))))
    }
}
