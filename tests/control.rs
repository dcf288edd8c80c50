//! The control plane through its port: discovery, certificates, and what happens when its file is changed or broken.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests fail by panicking")]

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use hyper_util::rt::TokioIo;
use prost::Message;
use prost_types::{Struct, Value, value::Kind};
use rcgen::{CertificateParams, KeyPair};
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::net::TcpSocket;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio_rustls::TlsConnector;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status, Streaming};
use warren::base::addr::NextHop;
use warren::base::{code, drain};
use warren::control::source::Location;
use warren::control::{Cluster, Control, Settings};
use warren::identity::{Authority, GrpcAuthority, GrpcAuthoritySettings, SpiffeId};
use warren::mesh::MeshStore;
use warren::net::socket::SocketFactory;
use warren::wire::ca::istio_certificate_service_client::IstioCertificateServiceClient;
use warren::wire::ca::{IstioCertificateRequest, IstioCertificateResponse};
use warren::wire::discovery::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use warren::wire::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Node};
use warren::wire::rpc;
use warren::wire::workload::{Address, address::Type};
use warren::wire::{ADDRESS_TYPE, AUTHORIZATION_TYPE};
use warren::{tls, xds};

const LIMIT: Duration = Duration::from_secs(10);

const MESH: &str = "
pods:
  - {name: client, node: n1, ips: [10.0.1.2], netns: /run/netns/a, ambient: true, serviceAccount: client}
  - {name: server, node: n2, ips: [10.0.2.2], netns: /run/netns/b, ambient: true, serviceAccount: server, labels: {app: server}}
services:
  - {name: server, vips: [10.96.0.1], ports: {80: 8080}, selector: {app: server}}
policies:
  - {name: only-client, selector: {app: server}, action: Allow, rules: [{principals: [cluster.local/ns/default/sa/client]}]}
";
const CLIENT: &str = "Kubernetes//Pod/default/client";
const SERVER: &str = "Kubernetes//Pod/default/server";
const SERVICE: &str = "default/server.default.svc.cluster.local";

/// A control plane in this process, its file and its state.
struct Plane {
    dir: Arc<tempfile::TempDir>,
    address: SocketAddr,
    health: SocketAddr,
    drain: drain::Trigger,
    task: JoinHandle<warren::base::Result<()>>,
}

impl Plane {
    async fn start(text: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("mesh.yaml"), text).unwrap();
        Self::start_in(Arc::new(dir)).await
    }

    async fn start_in(dir: Arc<tempfile::TempDir>) -> Self {
        let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
        let settings = Settings {
            source: Location::File(dir.path().join("mesh.yaml")),
            listen: any,
            state_dir: dir.path().join("state"),
            sans: vec!["control.test".to_owned()],
            health: Some(any),
            cluster: Cluster::default(),
        };
        let control = Control::start(settings).await.unwrap();
        let (address, health) = (control.address(), control.health_address().unwrap());
        let (trigger, watch) = drain::new();
        Plane { dir, address, health, drain: trigger, task: tokio::spawn(control.serve(watch)) }
    }

    async fn stop(self) -> Arc<tempfile::TempDir> {
        assert!(self.drain.drain(LIMIT).await, "it drains by itself");
        self.task.await.unwrap().unwrap();
        self.dir
    }

    fn state(&self, path: &str) -> PathBuf {
        self.dir.path().join("state").join(path)
    }

    /// Replaced by a rename, as editors and mounts do.
    fn write(&self, text: &str) {
        fs::write(self.dir.path().join("new"), text).unwrap();
        fs::rename(self.dir.path().join("new"), self.dir.path().join("mesh.yaml")).unwrap();
    }

    fn token(&self, node: &str) -> String {
        fs::read_to_string(self.state("tokens").join(node)).unwrap()
    }

    fn connector(&self) -> TlsConnector {
        let mut roots = RootCertStore::empty();
        for root in CertificateDer::pem_file_iter(self.state("ca/root-cert.pem")).unwrap() {
            roots.add(root.unwrap()).unwrap();
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = vec![b"h2".to_vec()];
        TlsConnector::from(Arc::new(config))
    }

    async fn channel(&self, name: &str) -> Channel {
        let (connector, name, address) = (self.connector(), ServerName::try_from(name.to_owned()).unwrap(), self.address);
        let connect = tower::service_fn(move |_| {
            let (connector, name) = (connector.clone(), name.clone());
            async move {
                let sockets = SocketFactory::default();
                let tcp = sockets.connect(NextHop::new(address), None).await?;
                Ok::<_, std::io::Error>(TokioIo::new(connector.connect(name, tcp).await?))
            }
        });
        let endpoint = Endpoint::from_static("http://control").connect_timeout(LIMIT).timeout(Duration::from_secs(60));
        // Small windows: a client that does not read is felt at once.
        let endpoint = endpoint.initial_stream_window_size(65_535).initial_connection_window_size(65_535);
        endpoint.connect_with_connector(connect).await.unwrap()
    }

    async fn discover(&self, node: &str) -> Conversation {
        Conversation::open(self.channel("localhost").await, &self.token(node)).await.unwrap()
    }

    async fn ready(&self) -> serde_json::Value {
        serde_json::from_str(&self.page("/readyz").await).unwrap()
    }

    async fn page(&self, path: &str) -> String {
        use tokio::io::AsyncWriteExt;
        let sockets = SocketFactory::default();
        let mut tcp = sockets.connect(NextHop::new(self.health), None).await.unwrap();
        tcp.write_all(format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").as_bytes()).await.unwrap();
        let mut text = String::new();
        tcp.read_to_string(&mut text).await.unwrap();
        assert!(text.starts_with("HTTP/1.1 200"), "{text}");
        text.split_once("\r\n\r\n").unwrap().1.to_owned()
    }

    async fn sign(&self, token: Option<&str>, id: Option<&str>, csr: &str, seconds: i64) -> Result<IstioCertificateResponse, Status> {
        let string = |text: &str| Value { kind: Some(Kind::StringValue(text.to_owned())) };
        let mut request = Request::new(IstioCertificateRequest {
            csr: csr.to_owned(),
            validity_duration: seconds,
            metadata: id.map(|id| Struct { fields: [("ImpersonatedIdentity".to_owned(), string(id))].into() }),
        });
        if let Some(token) = token {
            request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
        }
        let mut client = IstioCertificateServiceClient::new(self.channel("istiod.istio-system.svc").await);
        client.create_certificate(request).await.map(tonic::Response::into_inner)
    }
}

/// One discovery stream.
struct Conversation {
    requests: mpsc::Sender<DeltaDiscoveryRequest>,
    responses: Streaming<DeltaDiscoveryResponse>,
}

impl Conversation {
    async fn open(channel: Channel, token: &str) -> Result<Self, Status> {
        let (requests, receiver) = mpsc::channel(4);
        let mut request = Request::new(ReceiverStream::new(receiver));
        request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
        let mut client = AggregatedDiscoveryServiceClient::new(channel).max_decoding_message_size(usize::MAX);
        let responses = client.delta_aggregated_resources(request).await?.into_inner();
        Ok(Self { requests, responses })
    }

    async fn send(&self, request: DeltaDiscoveryRequest) {
        self.requests.send(request).await.unwrap();
    }

    async fn ask(&self, type_url: &str) {
        self.send(DeltaDiscoveryRequest { type_url: type_url.to_owned(), ..DeltaDiscoveryRequest::default() }).await;
    }

    async fn next(&mut self) -> DeltaDiscoveryResponse {
        self.receive().await.unwrap().expect("the stream goes on")
    }

    async fn receive(&mut self) -> Result<Option<DeltaDiscoveryResponse>, Status> {
        tokio::time::timeout(LIMIT, self.responses.message()).await.expect("an answer in time")
    }

    async fn reply(&self, to: &DeltaDiscoveryResponse, rejection: Option<&str>) {
        self.send(DeltaDiscoveryRequest {
            type_url: to.type_url.clone(),
            response_nonce: to.nonce.clone(),
            error_detail: rejection.map(|text| rpc::Status { message: text.to_owned(), ..rpc::Status::default() }),
            ..DeltaDiscoveryRequest::default()
        })
        .await;
    }

    /// Both types, accepted.
    async fn sync(&mut self) -> BTreeMap<String, String> {
        let mut versions = BTreeMap::new();
        for type_url in [ADDRESS_TYPE, AUTHORIZATION_TYPE] {
            self.ask(type_url).await;
            let response = self.next().await;
            assert_eq!(response.type_url, type_url);
            versions.extend(response.resources.iter().map(|resource| (resource.name.clone(), resource.version.clone())));
            self.reply(&response, None).await;
        }
        versions
    }
}

fn names(response: &DeltaDiscoveryResponse) -> Vec<&str> {
    response.resources.iter().map(|resource| resource.name.as_str()).collect()
}

fn csr() -> String {
    CertificateParams::new(vec!["ignored.example".to_owned()])
        .unwrap()
        .serialize_request(&KeyPair::generate().unwrap())
        .unwrap()
        .pem()
        .unwrap()
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().mode() & 0o777
}

#[tokio::test]
async fn a_proxy_is_told_the_mesh_and_then_only_its_changes_within_a_second() {
    let plane = Plane::start(MESH).await;
    let mut stream = plane.discover("n1").await;
    stream.ask(ADDRESS_TYPE).await;
    let first = stream.next().await;
    assert_eq!(names(&first), [CLIENT, SERVER, SERVICE]);
    let body = &first.resources[1].resource.as_ref().unwrap().value;
    let Some(Type::Workload(server)) = Address::decode(body.as_slice()).unwrap().r#type else { panic!("a workload") };
    assert_eq!((server.name.as_str(), server.authorization_policies.as_slice()), ("server", ["default/only-client".to_owned()].as_slice()));
    stream.reply(&first, None).await;
    stream.ask(AUTHORIZATION_TYPE).await;
    assert_eq!(names(&stream.next().await), ["default/only-client"]);

    let changed_at = Instant::now();
    plane.write(&MESH.replace("services:", "  - {name: third, node: n2, ips: [10.0.2.3]}\nservices:"));
    let push = stream.next().await;
    assert!(changed_at.elapsed() < Duration::from_secs(1), "{:?}", changed_at.elapsed());
    assert_eq!((names(&push), push.removed_resources.len()), (vec!["Kubernetes//Pod/default/third"], 0));

    plane.write(MESH);
    let push = stream.next().await;
    assert_eq!((names(&push), push.removed_resources.as_slice()), (vec![], ["Kubernetes//Pod/default/third".to_owned()].as_slice()));

    // A policy that replaces another: the new one first, then the workload that names it, the old one last.
    plane.write(&MESH.replace("only-client", "renamed"));
    let order = [stream.next().await, stream.next().await, stream.next().await];
    assert_eq!(order.each_ref().map(|push| push.type_url.as_str()), [AUTHORIZATION_TYPE, ADDRESS_TYPE, AUTHORIZATION_TYPE]);
    assert_eq!((names(&order[0]), names(&order[1])), (vec!["default/renamed"], vec![SERVER]));
    assert_eq!(order[2].removed_resources, ["default/only-client"]);
    plane.stop().await;
}

#[tokio::test]
async fn a_rejection_is_counted_and_the_stream_goes_on() {
    let plane = Plane::start(MESH).await;
    let mut stream = plane.discover("n1").await;
    stream.ask(ADDRESS_TYPE).await;
    let first = stream.next().await;
    stream.reply(&first, Some("Kubernetes//Pod/default/server: not today")).await;
    plane.write(&MESH.replace("10.0.1.2", "10.0.1.9"));
    assert_eq!(names(&stream.next().await), [CLIENT], "what was rejected is not sent again");
    assert_eq!(plane.ready().await["nacks"], 1);
    plane.stop().await;
}

#[tokio::test]
async fn a_proxy_that_comes_back_after_a_restart_gets_only_what_changed() {
    let plane = Plane::start(MESH).await;
    let token = plane.token("n1");
    let root = fs::read(plane.state("ca/root-cert.pem")).unwrap();
    let mut stream = plane.discover("n1").await;
    let mut held = stream.sync().await;
    let policy = held.remove("default/only-client").unwrap();

    let dir = {
        let stopped = tokio::spawn(plane.stop());
        assert!(stream.receive().await.unwrap().is_none(), "a drain ends the stream without an error");
        stopped.await.unwrap()
    };
    fs::write(dir.path().join("mesh.yaml"), MESH.replace("10.0.1.2", "10.0.1.9")).unwrap();
    let plane = Plane::start_in(dir).await;
    assert_eq!((plane.token("n1"), fs::read(plane.state("ca/root-cert.pem")).unwrap()), (token, root));

    let mut stream = plane.discover("n1").await;
    held.insert("Kubernetes//Pod/default/gone".to_owned(), "1".to_owned());
    let again = |type_url: &str, versions| DeltaDiscoveryRequest {
        type_url: type_url.to_owned(),
        initial_resource_versions: versions,
        ..DeltaDiscoveryRequest::default()
    };
    stream.send(again(ADDRESS_TYPE, held)).await;
    let difference = stream.next().await;
    assert_eq!(names(&difference), [CLIENT]);
    assert_eq!(difference.removed_resources, ["Kubernetes//Pod/default/gone"]);
    stream.send(again(AUTHORIZATION_TYPE, [("default/only-client".to_owned(), policy)].into())).await;
    let same = stream.next().await;
    assert!(same.resources.is_empty() && same.removed_resources.is_empty());
    plane.stop().await;
}

#[tokio::test]
async fn a_broken_file_changes_nothing_and_a_repaired_one_is_pushed() {
    let plane = Plane::start(MESH).await;
    let mut stream = plane.discover("n1").await;
    stream.sync().await;
    plane.write("pods:\n  - name: client\n   node: [\n");
    let broken = tokio::time::timeout(LIMIT, async {
        loop {
            let state = plane.ready().await;
            if let Some(error) = state["source_error"].as_str() {
                return error.to_owned();
            }
        }
    });
    let error = broken.await.expect("the error is told");
    assert!(error.contains("mesh.yaml:3:") && error.contains("W7001"), "{error}");
    // A client that comes now gets the last good state.
    let mut late = plane.discover("n2").await;
    late.ask(ADDRESS_TYPE).await;
    assert_eq!(names(&late.next().await), [CLIENT, SERVER, SERVICE]);

    // One wrong element keeps its version; the others are applied.
    plane.write(&MESH.replace("10.0.1.2", "10.0.1.9").replace("{80: 8080}", "{80: none}"));
    let push = stream.next().await;
    assert_eq!((names(&push), push.removed_resources.len()), (vec![CLIENT], 0));
    let state = plane.ready().await;
    assert_eq!(state["source_error"], serde_json::Value::Null);
    let rejected = state["rejected"][0].as_str().unwrap();
    assert!(rejected.contains("service default/server") && rejected.contains("W7006"), "{rejected}");
    plane.stop().await;
}

#[tokio::test]
async fn only_proxies_of_named_nodes_may_listen() {
    let plane = Plane::start(MESH).await;
    assert_eq!((mode(&plane.state("tokens")), mode(&plane.state("tokens/n1"))), (0o700, 0o600));
    assert_eq!((mode(&plane.state("ca")), mode(&plane.state("ca/ca-key.pem"))), (0o700, 0o600));
    let refused = Conversation::open(plane.channel("control.test").await, "wrong").await.err().expect("refused");
    assert_eq!(refused.code(), Code::Unauthenticated);
    assert!(refused.message().contains("W7003"), "{refused}");

    // The token says which node; a proxy that says another is refused.
    let mut liar = plane.discover("n1").await;
    let string = Value { kind: Some(Kind::StringValue("n2".to_owned())) };
    let node = Node { metadata: Some(Struct { fields: [("NODE_NAME".to_owned(), string)].into() }), ..Node::default() };
    liar.send(DeltaDiscoveryRequest { type_url: ADDRESS_TYPE.to_owned(), node: Some(node), ..DeltaDiscoveryRequest::default() }).await;
    assert_eq!(liar.receive().await.unwrap_err().code(), Code::PermissionDenied);

    // A node whose last pod goes away keeps its token and its stream: another pod may come. Of pods that are not there
    // it gets no certificates.
    let (token, mut stream) = (plane.token("n1"), plane.discover("n1").await);
    stream.sync().await;
    plane.write(&MESH.replace("node: n1", "node: n3"));
    assert_eq!(names(&stream.next().await), [CLIENT]);
    assert_eq!(plane.token("n1"), token);
    let own = Some("spiffe://cluster.local/ns/default/sa/client");
    assert_eq!(plane.sign(Some(&token), own, &csr(), 60).await.unwrap_err().code(), Code::PermissionDenied);
    plane.sign(Some(&plane.token("n3")), own, &csr(), 60).await.unwrap();

    // Who removes the file revokes the token: at once for new calls, with the next change for streams.
    fs::remove_file(plane.state("tokens/n1")).unwrap();
    assert_eq!(plane.sign(Some(&token), own, &csr(), 60).await.unwrap_err().code(), Code::Unauthenticated);
    plane.write(&MESH.replace("node: n1", "node: n4"));
    assert_eq!(stream.receive().await.unwrap_err().code(), Code::PermissionDenied);
    assert!(!plane.state("tokens/n1").exists());
    plane.stop().await;
}

#[tokio::test]
async fn strangers_keep_nobody_out_and_do_not_stay() {
    const MOST: usize = 64;
    let plane = Plane::start(MESH).await;
    let mut known = Vec::new();
    for _ in 0..MOST {
        let mut stream = plane.discover("n1").await;
        stream.ask(ADDRESS_TYPE).await;
        stream.next().await;
        known.push(stream);
    }
    // Those that have shown a token do not count: as many again may come, and no more.
    let connect = async |from: &str| {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(SocketAddr::new(from.parse().unwrap(), 0)).unwrap();
        socket.connect(plane.address).await.unwrap()
    };
    let localhost = || ServerName::try_from("localhost").unwrap();
    let mut idle = plane.connector().connect(localhost(), connect("127.0.0.1").await).await.unwrap();
    let begun = Instant::now();
    let mut silent = Vec::new();
    for _ in 1..MOST {
        silent.push(connect("127.0.0.1").await);
    }
    let mut one_more = connect("127.0.0.1").await;
    ends(&mut one_more, LIMIT).await;
    let elsewhere = plane.connector().connect(localhost(), connect("127.0.0.2").await).await;
    elsewhere.expect("another source is not kept out");

    // Who shows no token is cut, also after a handshake; who has shown one stays.
    ends(&mut idle, LIMIT * 2).await;
    assert!(begun.elapsed() > Duration::from_secs(9), "{:?}", begun.elapsed());
    for stream in &mut silent {
        ends(stream, LIMIT).await;
    }
    plane.discover("n1").await;
    for mut stream in known {
        stream.ask(AUTHORIZATION_TYPE).await;
        assert_eq!(names(&stream.next().await), ["default/only-client"]);
    }
    plane.stop().await;
}

/// Waits until the other side has closed the connection.
async fn ends(stream: &mut (impl AsyncRead + Unpin), limit: Duration) {
    let mut rest = Vec::new();
    let _ = tokio::time::timeout(limit, stream.read_to_end(&mut rest)).await.expect("closed in time");
}

#[tokio::test]
async fn certificates_are_signed_for_pods_of_the_callers_node_only() {
    let plane = Plane::start(MESH).await;
    let token = plane.token("n1");
    let own = "spiffe://cluster.local/ns/default/sa/client";

    let signed = plane.sign(Some(&token), Some(own), &csr(), 3600).await.unwrap();
    assert_eq!(signed.cert_chain.len(), 2, "leaf, roots");
    assert_eq!(signed.cert_chain[1].as_bytes(), fs::read(plane.state("ca/root-cert.pem")).unwrap());
    let leaf = CertificateDer::from_pem_slice(signed.cert_chain[0].as_bytes()).unwrap();
    let (_, leaf) = x509_parser::parse_x509_certificate(&leaf).unwrap();
    let names = &leaf.subject_alternative_name().unwrap().unwrap().value.general_names;
    assert_eq!(format!("{names:?}"), format!("[URI({own:?})]"), "the names of the request are ignored");
    assert_eq!(leaf.validity().not_after.timestamp() - leaf.validity().not_before.timestamp(), 3600 + 120);
    let default = plane.sign(Some(&token), Some(own), &csr(), 0).await.unwrap();
    let default = CertificateDer::from_pem_slice(default.cert_chain[0].as_bytes()).unwrap();
    let (_, default) = x509_parser::parse_x509_certificate(&default).unwrap();
    assert_eq!(default.validity().not_after.timestamp() - default.validity().not_before.timestamp(), 86400 + 120);

    // The request is of one key, the signature of another.
    let forged = {
        let der = rustls_pki_types::CertificateSigningRequestDer::from_pem_slice(csr().as_bytes()).unwrap();
        let mut bytes = der.to_vec();
        let at = bytes.windows(7).position(|window| window == b"ignored").unwrap();
        bytes[at] ^= 1;
        use base64::Engine;
        let body = base64::engine::general_purpose::STANDARD.encode(bytes);
        format!("-----BEGIN CERTIFICATE REQUEST-----\n{body}\n-----END CERTIFICATE REQUEST-----\n")
    };
    let good = csr();
    type Case<'a> = (Option<&'a str>, Option<&'a str>, &'a str, i64, Code, &'static code::Code);
    let cases: [Case<'_>; 9] = [
        (None, Some(own), &good, 60, Code::Unauthenticated, &code::NOT_AUTHENTICATED),
        (Some("garbage"), Some(own), &good, 60, Code::Unauthenticated, &code::NOT_AUTHENTICATED),
        (Some(&token), Some("spiffe://cluster.local/ns/default/sa/server"), &good, 60, Code::PermissionDenied, &code::NOT_AUTHORIZED),
        (Some(&token), Some("spiffe://other/ns/default/sa/client"), &good, 60, Code::PermissionDenied, &code::NOT_AUTHORIZED),
        (Some(&token), Some("hello"), &good, 60, Code::InvalidArgument, &code::BAD_SPIFFE_ID),
        (Some(&token), None, &good, 60, Code::InvalidArgument, &code::BAD_SPIFFE_ID),
        (Some(&token), Some(own), "nonsense", 60, Code::InvalidArgument, &code::CSR_INVALID),
        (Some(&token), Some(own), &forged, 60, Code::InvalidArgument, &code::CSR_INVALID),
        (Some(&token), Some(own), &good, 91 * 86400, Code::InvalidArgument, &code::CSR_INVALID),
    ];
    for (token, id, request, seconds, expected, reason) in cases {
        let status = plane.sign(token, id, request, seconds).await.expect_err(reason.title);
        assert_eq!(status.code(), expected, "{id:?}: {status}");
        assert!(status.message().contains(reason.id), "{id:?}: {status}");
    }
    plane.stop().await;
}

#[tokio::test]
async fn what_it_does_can_be_counted() {
    let plane = Plane::start(MESH).await;
    let mut stream = plane.discover("n1").await;
    stream.sync().await;
    let (token, id) = (plane.token("n1"), |account: &str| format!("spiffe://cluster.local/ns/default/sa/{account}"));
    plane.sign(Some(&token), Some(&id("client")), &csr(), 60).await.unwrap();
    plane.sign(Some(&token), Some(&id("server")), &csr(), 60).await.unwrap_err();
    plane.sign(None, Some(&id("client")), &csr(), 60).await.unwrap_err();
    assert_eq!(plane.page("/healthz").await, "ok\n");
    let page = plane.page("/metrics").await;
    for line in [
        "warren_control_certificates_signed_total 1",
        "warren_control_certificates_refused_total{code=\"W7004\"} 1",
        "warren_control_certificates_refused_total{code=\"W7003\"} 1",
        "warren_control_clients 1",
        "warren_control_pushes_total 2",
        "warren_control_rejections_total 0",
        "warren_control_addresses 3",
        "warren_control_policies 1",
        "warren_control_source_broken 0",
    ] {
        assert!(page.lines().any(|found| found == line), "{line} in {page}");
    }
    assert!(page.contains("warren_control_authority_ends_seconds ") && page.contains("process_resident_memory_bytes "));
    plane.stop().await;
}

#[tokio::test]
async fn a_nodes_own_clients_understand_it() {
    let plane = Plane::start(MESH).await;
    let channel = tls::channel::Channel::new(tls::channel::ChannelSettings {
        address: plane.address.to_string(),
        root: tls::RootSource::File(plane.state("ca/root-cert.pem")),
        alternative_name: None,
        token: tls::TokenSource::File(plane.state("tokens/n1")),
        cluster_id: "Kubernetes".to_owned(),
        headers: Vec::new(),
        unreachable: &code::CA_UNAVAILABLE,
    })
    .unwrap();

    let authority = GrpcAuthority::new(channel.clone(), GrpcAuthoritySettings::default());
    let id: SpiffeId = "spiffe://cluster.local/ns/default/sa/client".parse().unwrap();
    let certificate = authority.sign(&id).await.unwrap();
    assert_eq!((certificate.id, certificate.chain.len(), certificate.roots.len()), (id, 1, 1));
    let other: SpiffeId = "spiffe://cluster.local/ns/default/sa/server".parse().unwrap();
    let refused = authority.sign(&other).await.map(|_| ()).expect_err("not on this node");
    assert_eq!(refused.code(), &code::CA_REFUSED);

    let store = Arc::new(MeshStore::new(Some("n1".into())));
    let (report, mut progress) = watch::channel(xds::Progress::default());
    let (trigger, ended) = drain::new();
    let metadata = [("NODE_NAME".to_owned(), "n1".to_owned())].into();
    let settings = xds::Settings { node_id: "ztunnel~127.0.0.1~p.ns~ns.svc.cluster.local".to_owned(), metadata };
    let client = tokio::spawn(xds::run(settings, Arc::clone(&store), channel, report, Arc::new(()), ended));
    let synced = progress.wait_for(xds::Progress::synced);
    tokio::time::timeout(LIMIT, synced).await.expect("in time").unwrap();
    let mesh = store.snapshot();
    assert_eq!((mesh.workload_count(), mesh.service_count(), mesh.policy_count()), (2, 1, 1));
    assert_eq!((mesh.missing_policies().len(), mesh.unusable_policies().count()), (0, 0));
    assert!(mesh.workload(SERVER).is_some());

    let mut changed = store.changed();
    plane.write(&MESH.replace("name: client,", "name: renamed,"));
    let seen = tokio::time::timeout(LIMIT, async {
        while store.snapshot().workload(CLIENT).is_some() {
            changed.changed().await.unwrap();
        }
    });
    seen.await.expect("the removal arrives");
    assert!(store.snapshot().workload("Kubernetes//Pod/default/renamed").is_some());
    assert!(trigger.drain(LIMIT).await);
    client.await.unwrap();
    plane.stop().await;
}

#[tokio::test]
async fn a_client_that_reads_nothing_gets_the_latest_state_when_it_does() {
    // Enough resources that one response fills the transport's windows many times over.
    let pods = |image: &str| -> String {
        let pod = |number: usize| {
            let (high, low) = (number / 250, number % 250 + 1);
            format!("  - {{name: pod-{number}, node: n1, ips: [10.9.{high}.{low}], labels: {{app: {image}-{}}}}}\n", "x".repeat(40))
        };
        format!("pods:\n{}", (0..8000).map(pod).collect::<String>())
    };
    let plane = Plane::start(&pods("v0")).await;
    let mut stream = plane.discover("n1").await;
    stream.ask(ADDRESS_TYPE).await;
    assert_eq!(stream.next().await.resources.len(), 8000);
    for version in 1..=6 {
        plane.write(&pods(&format!("v{version}")));
        let taken = tokio::time::timeout(LIMIT, async { while plane.ready().await["generation"] != version + 1 {} });
        taken.await.expect("the state is in force");
    }
    let mut pushes = 0;
    let last = loop {
        let push = stream.next().await;
        pushes += 1;
        let Some(Type::Workload(workload)) = Address::decode(push.resources[0].resource.as_ref().unwrap().value.as_slice()).unwrap().r#type
        else {
            panic!("a workload")
        };
        if workload.canonical_name.starts_with("v6") {
            break push;
        }
    };
    assert_eq!(last.resources.len(), 8000);
    assert!(pushes < 6, "states that nobody waited for are merged: {pushes} pushes");
    plane.stop().await;
}
