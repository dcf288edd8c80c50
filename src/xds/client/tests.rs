use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::time::Duration;

use parking_lot::Mutex;
use prost::Message;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::transport::{Endpoint, Server};
use tonic::{Request, Response, Status, Streaming};

use super::*;
use crate::base::{Str, code, drain};
use crate::wire::discovery::aggregated_discovery_service_server::{AggregatedDiscoveryService, AggregatedDiscoveryServiceServer};
use crate::wire::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Resource};
use crate::wire::{ADDRESS_TYPE, AUTHORIZATION_TYPE, authorization, workload};

const LIMIT: Duration = Duration::from_secs(10);

async fn soon<F: Future>(what: &str, future: F) -> F::Output {
    tokio::time::timeout(LIMIT, future).await.unwrap_or_else(|_| panic!("{what}: not within {LIMIT:?}"))
}

/// A control plane that says what a test makes it say.
struct Plane {
    streams: mpsc::Sender<Stream>,
}

struct Stream {
    requests: Streaming<DeltaDiscoveryRequest>,
    responses: mpsc::Sender<Result<DeltaDiscoveryResponse, Status>>,
}

impl Stream {
    async fn request(&mut self) -> DeltaDiscoveryRequest {
        soon("a request", self.requests.message()).await.expect("a live stream").expect("a request")
    }

    async fn say(&self, response: DeltaDiscoveryResponse) {
        self.responses.send(Ok(response)).await.expect("a client that reads");
    }

    /// Says it and returns the answer.
    async fn ask(&mut self, response: DeltaDiscoveryResponse) -> DeltaDiscoveryRequest {
        let nonce = response.nonce.clone();
        self.say(response).await;
        let answer = self.request().await;
        assert_eq!(answer.response_nonce, nonce);
        answer
    }

    /// Takes the first two requests and answers them with nothing.
    async fn begin(&mut self) -> [DeltaDiscoveryRequest; 2] {
        let first = [self.request().await, self.request().await];
        for request in &first {
            let answer = self.ask(response(&request.type_url, vec![])).await;
            assert_eq!(answer.error_detail, None);
        }
        first
    }
}

#[tonic::async_trait]
impl AggregatedDiscoveryService for Plane {
    type DeltaAggregatedResourcesStream = Pin<Box<dyn futures::Stream<Item = Result<DeltaDiscoveryResponse, Status>> + Send>>;

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        let (responses, said) = mpsc::channel(16);
        let stream = Stream { requests: request.into_inner(), responses };
        self.streams.send(stream).await.map_err(|_| Status::unavailable("the test is over"))?;
        Ok(Response::new(Box::pin(ReceiverStream::new(said))))
    }
}

fn listener() -> std::net::TcpListener {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port on loopback");
    listener.set_nonblocking(true).expect("non-blocking");
    listener
}

fn serve(listener: std::net::TcpListener) -> (mpsc::Receiver<Stream>, JoinHandle<()>) {
    let (streams, incoming) = mpsc::channel(4);
    let listener = tokio::net::TcpListener::from_std(listener).expect("a listener");
    let server = Server::builder().add_service(AggregatedDiscoveryServiceServer::new(Plane { streams }));
    let task = tokio::spawn(async move { server.serve_with_incoming(TcpListenerStream::new(listener)).await.expect("serves") });
    (incoming, task)
}

#[derive(Default)]
struct Ears(Mutex<Vec<String>>);

impl Observer for Ears {
    fn ended(&self, why: Termination) {
        self.0.lock().push(format!("{why:?}"));
    }

    fn rejected(&self, type_url: &str, count: usize) {
        self.0.lock().push(format!("{count} rejected of {type_url}"));
    }
}

/// A running client and what a test sees of it.
struct Client {
    store: Arc<MeshStore>,
    progress: watch::Receiver<Progress>,
    heard: Arc<Ears>,
    task: JoinHandle<()>,
    trigger: drain::Trigger,
}

fn client(addr: SocketAddr) -> Client {
    let channel = Endpoint::from_shared(format!("http://{addr}")).expect("a URL").connect_timeout(Duration::from_secs(5)).connect_lazy();
    let settings = Settings {
        node_id: "ztunnel~10.0.0.1~proxy.system~system.svc.cluster.local".to_owned(),
        metadata: BTreeMap::from([("NODE_NAME".to_owned(), "node1".to_owned())]),
    };
    let store = Arc::new(MeshStore::new(Some(Str::from("node1"))));
    let (report, progress) = watch::channel(Progress::default());
    let heard = Arc::new(Ears::default());
    let (trigger, watch) = drain::new();
    let task = tokio::spawn(run(settings, store.clone(), channel, report, heard.clone(), watch));
    Client { store, progress, heard, task, trigger }
}

impl Client {
    async fn until(&mut self, what: &str, reached: impl FnMut(&Progress) -> bool) -> Progress {
        soon(what, self.progress.wait_for(reached)).await.expect("a running client").clone()
    }

    fn uids(&self) -> Vec<String> {
        let mut uids: Vec<String> = self.store.snapshot().workloads().map(|workload| workload.uid.to_string()).collect();
        uids.sort();
        uids
    }
}

fn response(type_url: &str, resources: Vec<Resource>) -> DeltaDiscoveryResponse {
    static NONCES: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
    let nonce = NONCES.fetch_add(1, std::sync::atomic::Ordering::Relaxed).to_string();
    DeltaDiscoveryResponse { type_url: type_url.to_owned(), nonce, resources, ..DeltaDiscoveryResponse::default() }
}

fn resource(type_url: &str, name: &str, version: &str, value: Vec<u8>) -> Resource {
    let any = prost_types::Any { type_url: type_url.to_owned(), value };
    Resource { name: name.to_owned(), version: version.to_owned(), resource: Some(any), aliases: vec![] }
}

fn pod(uid: &str, version: &str, change: impl FnOnce(&mut workload::Workload)) -> Resource {
    let mut message = workload::Workload { uid: uid.to_owned(), addresses: vec![vec![10, 0, 0, 1]], ..workload::Workload::default() };
    change(&mut message);
    let address = workload::Address { r#type: Some(workload::address::Type::Workload(message)) };
    resource(ADDRESS_TYPE, uid, version, address.encode_to_vec())
}

fn policy(name: &str, action: i32) -> Resource {
    let message = authorization::Authorization { name: name.to_owned(), namespace: "ns".to_owned(), action, ..Default::default() };
    resource(AUTHORIZATION_TYPE, &format!("ns/{name}"), "", message.encode_to_vec())
}

fn removal(type_url: &str, name: &str) -> DeltaDiscoveryResponse {
    DeltaDiscoveryResponse { removed_resources: vec![name.to_owned()], ..response(type_url, vec![]) }
}

#[tokio::test]
async fn a_new_client_asks_for_everything_and_follows_changes() {
    let listener = listener();
    let mut client = client(listener.local_addr().expect("an address"));
    let (mut streams, _server) = serve(listener);
    let mut stream = soon("a stream", streams.recv()).await.expect("a stream");

    let first = [stream.request().await, stream.request().await];
    assert_eq!(first.clone().map(|request| request.type_url), [ADDRESS_TYPE, AUTHORIZATION_TYPE]);
    for request in first {
        let node = request.node.expect("the node");
        assert_eq!(node.id, "ztunnel~10.0.0.1~proxy.system~system.svc.cluster.local");
        let name = &node.metadata.expect("metadata").fields["NODE_NAME"];
        assert_eq!(name.kind, Some(Kind::StringValue("node1".to_owned())));
        assert!(request.resource_names_subscribe.is_empty() && request.initial_resource_versions.is_empty());
    }

    let answer = stream.ask(response(ADDRESS_TYPE, vec![pod("a", "1", |_| {}), pod("b", "1", |_| {})])).await;
    assert_eq!((answer.error_detail, answer.node), (None, None), "an ACK");
    assert_eq!(client.uids(), ["a", "b"]);
    let progress = client.until("addresses", |progress| progress.addresses).await;
    assert!(!progress.synced());
    assert_eq!(progress.waiting_for("here").as_deref(), Some("policies from the control plane at here"));

    stream.ask(response(AUTHORIZATION_TYPE, vec![policy("p", 0)])).await;
    assert_eq!(client.until("both", Progress::synced).await.waiting_for("here"), None);
    assert!(client.store.snapshot().policy("ns/p").is_some());

    let before = client.store.snapshot().version();
    stream.ask(response(ADDRESS_TYPE, vec![pod("a", "2", |pod| pod.network = "n".to_owned()), pod("c", "1", |_| {})])).await;
    let mesh = client.store.snapshot();
    assert_eq!((&*mesh.workload("a").expect("a").network, mesh.version()), ("n", before + 1), "one response is one publication");
    let mut gone = removal(ADDRESS_TYPE, "b");
    gone.resources = vec![pod("d", "1", |_| {})];
    stream.ask(gone).await;
    stream.ask(removal(AUTHORIZATION_TYPE, "ns/p")).await;
    assert_eq!(client.uids(), ["a", "c", "d"]);
    assert_eq!(client.store.snapshot().policy_count(), 0);

    assert!(soon("the drain", client.trigger.drain(LIMIT)).await);
    soon("the end", client.task).await.expect("no panic");
}

#[tokio::test]
async fn a_bad_resource_is_named_in_the_nack_and_the_others_apply() {
    let listener = listener();
    let mut client = client(listener.local_addr().expect("an address"));
    let (mut streams, _server) = serve(listener);
    let mut stream = soon("a stream", streams.recv()).await.expect("a stream");
    stream.begin().await;

    let good_once = pod("kept", "1", |pod| pod.network = "n".to_owned());
    stream.ask(response(ADDRESS_TYPE, vec![good_once])).await;
    let resources = vec![
        pod("short", "1", |pod| pod.addresses = vec![vec![1, 2, 3]]),
        pod("good", "1", |_| {}),
        pod("kept", "2", |pod| pod.tunnel_protocol = 2),
        resource(ADDRESS_TYPE, "garbage", "1", vec![0xff]),
        resource("type.googleapis.com/other", "other", "1", vec![]),
        Resource { name: "empty".to_owned(), ..Resource::default() },
    ];
    let answer = stream.ask(response(ADDRESS_TYPE, resources)).await;
    let message = answer.error_detail.expect("a NACK").message;
    let reasons: Vec<&str> = message.split("; ").collect();
    assert_eq!(reasons[0], "short: addresses: an address has 4 or 16 bytes, not 3");
    assert_eq!(reasons[1], "kept: tunnel_protocol: LEGACY_ISTIO_MTLS is not supported");
    assert!(reasons[2].starts_with("garbage: not an Address: "), "{message}");
    assert_eq!(reasons[3..], [r#"other: its type is "type.googleapis.com/other""#, "empty: no body"]);
    assert_eq!(client.uids(), ["good", "kept"]);
    assert_eq!(&*client.store.snapshot().workload("kept").expect("the old version").network, "n");
    assert_eq!(*client.heard.0.lock(), [format!("5 rejected of {ADDRESS_TYPE}")]);

    // A policy that is not understood is held against connections until it is removed.
    let answer = stream.ask(response(AUTHORIZATION_TYPE, vec![policy("odd", 9)])).await;
    assert_eq!(answer.error_detail.expect("a NACK").message, "ns/odd: action: unknown value 9");
    assert_eq!(client.store.snapshot().unusable_policies().count(), 1);
    assert!(client.until("both", Progress::synced).await.connected, "a NACK is an answer, too");

    // The next stream says what is held: what was rejected, in no version.
    drop(stream);
    let mut stream = soon("a second stream", streams.recv()).await.expect("a stream");
    let [addresses, policies] = stream.begin().await;
    let held =
        |versions: BTreeMap<String, String>| versions.into_iter().map(|(name, version)| format!("{name}={version}")).collect::<Vec<_>>();
    assert_eq!(held(addresses.initial_resource_versions), ["empty=", "garbage=", "good=1", "kept=", "other=", "short="]);
    assert_eq!(held(policies.initial_resource_versions), ["ns/odd="]);
    stream.ask(removal(AUTHORIZATION_TYPE, "ns/odd")).await;
    assert_eq!(client.store.snapshot().unusable_policies().count(), 0);
}

#[tokio::test]
async fn a_new_stream_goes_on_where_the_old_one_ended() {
    let listener = listener();
    let mut client = client(listener.local_addr().expect("an address"));
    let (mut streams, _server) = serve(listener);
    let ends = [
        (None, "Complete"),
        (Some(Status::unavailable("transport is closing")), "Reconnect"),
        (Some(Status::cancelled("restart")), "Reconnect"),
        (Some(Status::internal("broken")), "Error"),
    ];
    let mut stream = soon("a stream", streams.recv()).await.expect("a stream");
    stream.begin().await;
    stream.ask(response(ADDRESS_TYPE, vec![pod("stays", "7", |_| {}), pod("goes", "8", |_| {})])).await;
    for (end, why) in ends {
        let unclean = end.is_some();
        if let Some(status) = end {
            stream.responses.send(Err(status)).await.expect("a client that reads");
        }
        drop(stream);
        client.until("the end", |progress| !progress.connected).await;
        assert_eq!(client.uids(), ["goes", "stays"], "what was received stays in force");
        stream = soon("another stream", streams.recv()).await.expect("a stream");
        let [addresses, _] = stream.begin().await;
        let versions: Vec<_> = addresses.initial_resource_versions.into_iter().collect();
        assert_eq!(versions, [("goes".to_owned(), "8".to_owned()), ("stays".to_owned(), "7".to_owned())]);
        assert_eq!(client.heard.0.lock().pop().as_deref(), Some(why));
        let progress = client.until("connected", |progress| progress.connected).await;
        assert!(progress.synced());
        assert_eq!(progress.last_error.is_some(), unclean);
    }
    stream.ask(removal(ADDRESS_TYPE, "goes")).await;
    assert_eq!(client.uids(), ["stays"]);
}

#[tokio::test]
async fn a_control_plane_that_is_down_at_the_start_is_waited_for() {
    // Bound and not listening: connections are refused, and nobody else can take the port.
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("a socket");
    socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).expect("a port");
    let addr = socket.local_addr().expect("an address").as_socket().expect("IPv4");
    let mut client = client(addr);
    let progress = client.until("a third attempt", |progress| progress.attempts > 2).await;
    let error = progress.last_error.clone().expect("an error");
    assert_eq!(error.code(), &code::XDS_UNREACHABLE);
    let waiting = progress.waiting_for("here").expect("not ready");
    assert!(waiting.starts_with("addresses and policies from the control plane at here: "), "{waiting}");
    assert_eq!(client.heard.0.lock()[0], "ConnectionError");

    socket.listen(16).expect("listens");
    socket.set_nonblocking(true).expect("non-blocking");
    let (mut streams, _server) = serve(socket.into());
    let mut stream = soon("a stream", streams.recv()).await.expect("a stream");
    stream.begin().await;
    client.until("both", Progress::synced).await;
}

#[tokio::test]
async fn a_recorded_stream_of_a_real_control_plane_is_followed() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/istiod/incremental");
    let mut files: Vec<_> = std::fs::read_dir(folder).expect("recordings").map(|entry| entry.expect("an entry").path()).collect();
    files.sort();
    assert_eq!(files.len(), 28);
    let listener = listener();
    let mut client = client(listener.local_addr().expect("an address"));
    let (mut streams, _server) = serve(listener);
    let mut stream = soon("a stream", streams.recv()).await.expect("a stream");
    stream.request().await;
    stream.request().await;
    let mut most = (0, 0, 0);
    let mut gaps = 0;
    for file in files {
        let bytes = std::fs::read(&file).expect("a recording");
        let answer = stream.ask(DeltaDiscoveryResponse::decode(&*bytes).expect("a response")).await;
        assert_eq!(answer.error_detail, None, "{}", file.display());
        let mesh = client.store.snapshot();
        let now = (mesh.workload_count(), mesh.service_count(), mesh.policy_count());
        most = (most.0.max(now.0), most.1.max(now.1), most.2.max(now.2));
        gaps += usize::from(!mesh.missing_policies().is_empty());
    }
    client.until("both", Progress::synced).await;
    let mesh = client.store.snapshot();
    assert_eq!((mesh.workload_count(), mesh.service_count(), mesh.policy_count()), (10, 6, 1));
    assert_eq!(most, (13, 7, 3));
    // Three times workloads named a policy one response before it came: why such a policy must not deny.
    assert_eq!(gaps, 3);
    assert!(mesh.missing_policies().is_empty());
    let endpoints = |key: &str| mesh.endpoints(&key.parse().expect("a key")).count();
    assert_eq!((endpoints("inc/web.inc.svc.cluster.local"), endpoints("inc/extra.inc.svc.cluster.local")), (1, 0));
}

#[test]
fn failures_in_a_row_wait_longer_up_to_a_limit() {
    let end = |why, served| End { why, error: None, served };
    let mut pause = BACKOFF_START;
    let mut pauses = Vec::new();
    for _ in 0..10 {
        pause = next_backoff(pause, &end(Termination::ConnectionError, false));
        pauses.push(pause.as_millis());
    }
    assert_eq!(pauses, [20, 40, 80, 160, 320, 640, 1280, 2560, 4000, 4000]);
    for served in [end(Termination::Error, true), end(Termination::Complete, false), end(Termination::Reconnect, true)] {
        assert_eq!(next_backoff(BACKOFF_MAX, &served), BACKOFF_START);
    }
}

/// The channel that the proxy uses, without a connection: it is only shown that it fits.
#[tokio::test]
async fn the_channel_to_the_control_plane_fits() {
    let settings = crate::tls::channel::ChannelSettings {
        address: "https://127.0.0.1:1".to_owned(),
        root: crate::tls::RootSource::System,
        alternative_name: None,
        token: crate::tls::TokenSource::None,
        cluster_id: String::new(),
        headers: vec![],
        unreachable: &code::XDS_UNREACHABLE,
    };
    let channel = crate::tls::channel::Channel::new(settings).expect("a channel");
    let (report, mut progress) = watch::channel(Progress::default());
    let (trigger, watch) = drain::new();
    let store = Arc::new(MeshStore::new(None));
    let task = tokio::spawn(run(Settings::default(), store, channel, report, Arc::new(()), watch));
    let failed = soon("a failure", progress.wait_for(|progress| progress.last_error.is_some())).await.expect("runs").clone();
    assert!(!failed.connected);
    assert!(soon("the drain", trigger.drain(LIMIT)).await);
    soon("the end", task).await.expect("no panic");
}
