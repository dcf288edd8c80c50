//! Tunnels over real sockets and real TLS: both ends ours, and each end against the `h2` crate over `tokio-rustls`.

mod ending;
mod moving;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::future::join_all;
use http::HeaderMap;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

mod parting;

use super::*;
use crate::base::addr::NextHop;
use crate::base::deadline;
use crate::hbone::client as h2_client;
use crate::hbone::{Engine as Kind, Server, Settings};
use crate::hbone::{Key, Request};
use crate::identity::{Certificate, FakeAuthority, SpiffeId, fake::scratch};
use crate::net::socket::SocketFactory;
use crate::tls;

/// For anything that is to happen at all.
async fn soon<T>(future: impl Future<Output = T>) -> T {
    deadline(Duration::from_secs(60), &code::INTERNAL, "the event", future).await.unwrap()
}

/// What went each way.
#[derive(Default)]
struct Bytes2 {
    up: AtomicUsize,
    down: AtomicUsize,
}

impl Count for Bytes2 {
    fn client_sent(&self, bytes: usize) {
        self.up.fetch_add(bytes, Ordering::Relaxed);
    }

    fn server_sent(&self, bytes: usize) {
        self.down.fetch_add(bytes, Ordering::Relaxed);
    }
}

async fn sockets() -> (TcpStream, TcpStream) {
    let factory = SocketFactory::default();
    let (listener, _) = factory.listen("127.0.0.1:0".parse().unwrap(), false).unwrap();
    let near = factory.connect(NextHop::new(listener.local_addr().unwrap()), None).await.unwrap();
    (near, listener.accept().await.unwrap().0)
}

fn id(name: &str) -> SpiffeId {
    SpiffeId::new("cluster.local", "shop", name).unwrap()
}

fn own(settings: Settings) -> Settings {
    Settings { engine: Kind::Own, ..settings }
}

struct Pair {
    client: Client,
    host: Host,
    cut: CancellationToken,
}

/// Both ends ours.
async fn pair(client: Settings, server: Settings) -> Pair {
    let ca: FakeAuthority = scratch();
    let (near, far) = sockets().await;
    let (mine, theirs) = (ca.mint(&id("client")).unwrap(), ca.mint(&id("server")).unwrap());
    let expected = [id("server")];
    let cut = CancellationToken::new();
    // The client's last flight goes out with the first bytes of the tunnel.
    let opened = async {
        let (secured, _) = tls::secured::connect(near, &mine, &expected, tls::HANDSHAKE_LIMIT).await.unwrap();
        Client::start(secured, &own(client), cut.clone())
    };
    let (client, accepted) = tokio::join!(opened, tls::secured::accept(far, &theirs, tls::HANDSHAKE_LIMIT));
    Pair { client, host: Host::start(accepted.unwrap().0, &own(server)), cut }
}

async fn usual() -> Pair {
    pair(Settings::client(), Settings::server()).await
}

/// An application's end, the tunnel's part of it, and the count.
async fn app(side: Side) -> (TcpStream, App, Arc<Bytes2>) {
    let (application, ours) = sockets().await;
    let count = Arc::new(Bytes2::default());
    (application, App::new(ours, side, count.clone()), count)
}

fn wanted(authority: &str) -> Box<Wanted> {
    let key = Key {
        source: id("client"),
        destinations: vec![id("server")],
        addr: ([10, 0, 0, 1], 15008).into(),
        source_ip: None,
        gateway: false,
    };
    Box::new(Wanted { key, request: Request { authority: authority.to_owned(), headers: HeaderMap::new() } })
}

type End = tokio::task::JoinHandle<Result<()>>;

struct Through {
    client: TcpStream,
    server: TcpStream,
    opened: End,
    accepted: End,
    counts: [Arc<Bytes2>; 2],
}

impl Pair {
    /// A connection through the tunnel.
    async fn through(self: &mut Pair) -> Through {
        let (client, near, near_count) = app(Side::Client).await;
        let (server, far, far_count) = app(Side::Server).await;
        let shared = self.client.shared.clone();
        let opened = tokio::spawn(async move { over(carry(&shared, near).await) });
        let arrival = soon(self.host.next()).await.unwrap();
        assert_eq!(arrival.head.authority, "10.0.0.1:80");
        let accepted = tokio::spawn(arrived(arrival, far));
        Through { client, server, opened, accepted, counts: [near_count, far_count] }
    }
}

async fn carry(shared: &Arc<Shared>, app: App) -> Outcome {
    let (done, ended) = oneshot::channel();
    assert!(shared.send(Command::Open(Box::new(Opening { wanted: wanted("10.0.0.1:80"), app, done }))).is_ok());
    Carrying::new(ended, shared.clone()).await
}

async fn arrived(arrival: Arrival, app: App) -> Result<()> {
    over(arrival.carry(HeaderMap::new(), app)?.await)
}

fn over(outcome: Outcome) -> Result<()> {
    match outcome {
        Outcome::Done(result) => result,
        Outcome::Again(.., error) => Err(error),
    }
}

fn noise(length: usize) -> Vec<u8> {
    (0..length).map(|at| (at * 7 + at / 251) as u8).collect()
}

/// Sends all, says that it is done, and reads to the end.
async fn exchange(mut socket: TcpStream, bytes: Vec<u8>) -> Vec<u8> {
    let (mut read, mut write) = socket.split();
    let mut got = Vec::new();
    let sent = async {
        for chunk in bytes.chunks(100_000) {
            write.write_all(chunk).await.unwrap();
        }
        write.shutdown().await.unwrap();
    };
    let (_, read) = tokio::join!(sent, read.read_to_end(&mut got));
    read.unwrap();
    got
}

/// A server of the `h2` crate that sends back what comes.
async fn h2_echo(socket: TcpStream, cert: Certificate, settings: Settings) {
    let (io, _) = tls::accept(socket, &cert, tls::Versions::Tls13, tls::HANDSHAKE_LIMIT).await.unwrap();
    let mut server = Server::handshake(io, &settings).await.unwrap();
    while let Some(incoming) = server.next().await {
        let (mut receive, mut send) = incoming.accept(HeaderMap::new()).unwrap().into_split();
        tokio::spawn(async move {
            while let Some(bytes) = receive.data().await {
                send.data(bytes.unwrap()).await.unwrap();
            }
            send.finish().unwrap();
        });
    }
}

/// Sends all in a stream of a client of the `h2` crate, and reads to the end.
async fn h2_exchange(client: &h2_client::Connection, bytes: Vec<u8>) -> Vec<u8> {
    let opened = client.open(&wanted("10.0.0.1:80").request, Arc::new(())).await;
    let Ok((_, stream)) = opened else { panic!("not opened") };
    let (mut receive, mut send) = stream.into_split();
    let sent = async {
        for chunk in bytes.chunks(70_000) {
            send.data(Bytes::copy_from_slice(chunk)).await.unwrap();
        }
        send.finish().unwrap();
    };
    let got = async {
        let mut got = Vec::new();
        while let Some(bytes) = receive.data().await {
            got.extend_from_slice(&bytes.unwrap());
        }
        got
    };
    tokio::join!(sent, got).1
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_cross_whole_and_end_on_both_sides() {
    let mut pair = usual().await;
    for (up, down) in [(0, 0), (1, 1), (16_375, 16_376), (3_000_000, 5_000_000)] {
        let through = pair.through().await;
        let (at_client, at_server) =
            soon(async { tokio::join!(exchange(through.client, noise(up)), exchange(through.server, noise(down))) }).await;
        assert!(at_client == noise(down) && at_server == noise(up), "{up} {down}");
        soon(through.opened).await.unwrap().unwrap();
        soon(through.accepted).await.unwrap().unwrap();
        for count in through.counts {
            assert_eq!((count.up.load(Ordering::Relaxed), count.down.load(Ordering::Relaxed)), (up, down));
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hundred_connections_share_a_tunnel() {
    let mut pair =
        pair(Settings { stream_window: 30_000, ..Settings::client() }, Settings { stream_window: 20_000, ..Settings::server() }).await;
    let mut all = Vec::new();
    for number in 0..200 {
        let through = pair.through().await;
        all.push(tokio::spawn(async move {
            let (at_client, at_server) =
                tokio::join!(exchange(through.client, noise(50_000 + number)), exchange(through.server, noise(40_000)));
            assert!(at_client == noise(40_000) && at_server == noise(50_000 + number));
            through.opened.await.unwrap().unwrap();
            through.accepted.await.unwrap().unwrap();
        }));
    }
    for done in soon(join_all(all)).await {
        done.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_half_closed_connection_still_carries_the_other_way() {
    let mut pair = usual().await;
    let mut through = pair.through().await;
    through.client.shutdown().await.unwrap();
    assert_eq!(soon(through.server.read(&mut [0; 1])).await.unwrap(), 0);
    through.server.write_all(b"the answer").await.unwrap();
    let mut got = [0; 10];
    soon(through.client.read_exact(&mut got)).await.unwrap();
    assert_eq!(&got, b"the answer");
    drop(through.server);
    assert_eq!(soon(through.client.read(&mut [0; 1])).await.unwrap(), 0);
    soon(through.opened).await.unwrap().unwrap();
    soon(through.accepted).await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reset_of_either_application_reaches_the_other() {
    let mut pair = usual().await;
    for server_resets in [false, true] {
        for half_closed in [false, true] {
            let mut through = pair.through().await;
            through.client.write_all(b"hello").await.unwrap();
            soon(through.server.read_exact(&mut [0; 5])).await.unwrap();
            let (mut torn, mut told) = if server_resets { (through.server, through.client) } else { (through.client, through.server) };
            if half_closed {
                torn.shutdown().await.unwrap();
                assert_eq!(soon(told.read(&mut [0; 1])).await.unwrap(), 0);
            }
            torn.set_zero_linger().unwrap();
            drop(torn);
            let error = soon(async {
                loop {
                    if let Err(error) = told.write_all(b"more").await {
                        break error;
                    }
                    if !half_closed && let Err(error) = told.read_exact(&mut [0; 1]).await {
                        break error;
                    }
                    tokio::task::yield_now().await;
                }
            })
            .await;
            assert!(matches!(error.kind(), std::io::ErrorKind::ConnectionReset | std::io::ErrorKind::BrokenPipe), "{error}");
            soon(through.opened).await.unwrap().unwrap();
            soon(through.accepted).await.unwrap().unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_is_let_go_of_is_reset_on_both_sides() {
    let mut pair = usual().await;
    for cut_server in [false, true] {
        let mut through = pair.through().await;
        through.client.write_all(b"hello").await.unwrap();
        soon(through.server.read_exact(&mut [0; 5])).await.unwrap();
        if cut_server {
            through.accepted.abort()
        } else {
            through.opened.abort()
        };
        for mut end in [through.client, through.server] {
            let error = soon(end.read(&mut [0; 1])).await.unwrap_err();
            assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_application_stops_nobody_else() {
    let mut pair =
        pair(Settings { stream_window: 100_000, ..Settings::client() }, Settings { stream_window: 100_000, ..Settings::server() }).await;
    // As many as would fill the window of the connection.
    let mut stalled = Vec::new();
    for _ in 0..20 {
        let mut through = pair.through().await;
        let mut client = std::mem::replace(&mut through.client, sockets().await.0);
        tokio::spawn(async move { client.write_all(&noise(20_000_000)).await });
        stalled.push(through);
    }
    for _ in 0..3 {
        let through = pair.through().await;
        let (at_client, at_server) =
            soon(async { tokio::join!(exchange(through.client, noise(2_000_000)), exchange(through.server, noise(100))) }).await;
        assert!(at_client == noise(100) && at_server == noise(2_000_000));
    }
    // And those that were slow have lost nothing.
    let mut got = vec![0; 20_000_000];
    soon(stalled[0].server.read_exact(&mut got)).await.unwrap();
    assert!(got == noise(20_000_000));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refusals_are_told_and_what_was_not_touched_comes_back() {
    let mut pair = usual().await;
    let (mut client, near, _) = app(Side::Client).await;
    let shared = pair.client.shared.clone();
    let opened = tokio::spawn(async move { over(carry(&shared, near).await) });
    soon(pair.host.next()).await.unwrap().refuse(503);
    let error = soon(opened).await.unwrap().unwrap_err();
    assert_eq!((error.code().id, error.to_string().contains("503")), (code::CONNECT_REJECTED.id, true));
    assert_eq!(soon(client.read(&mut [0; 1])).await.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);

    let (mut client, near, _) = app(Side::Client).await;
    client.write_all(b"early").await.unwrap();
    let shared = pair.client.shared.clone();
    let opened = tokio::spawn(async move { carry(&shared, near).await });
    let arrival = soon(pair.host.next()).await.unwrap();
    arrival.reject();
    let Outcome::Again(app_again, ..) = soon(opened).await.unwrap() else { panic!("it was not touched") };
    // On another tunnel nothing is missing.
    let mut other = usual().await;
    let (mut server, far, _) = app(Side::Server).await;
    let shared = other.client.shared.clone();
    let opened = tokio::spawn(async move { over(carry(&shared, *app_again).await) });
    let arrival = soon(other.host.next()).await.unwrap();
    let accepted = tokio::spawn(arrived(arrival, far));
    client.write_all(b" and late").await.unwrap();
    client.shutdown().await.unwrap();
    let mut got = Vec::new();
    drop(tokio::spawn(async move {
        let mut sink = Vec::new();
        let _ = client.read_to_end(&mut sink).await;
    }));
    soon(server.read_to_end(&mut got)).await.unwrap();
    assert_eq!(got, b"early and late");
    drop(server);
    soon(opened).await.unwrap().unwrap();
    soon(accepted).await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tunnel_that_ends_takes_its_connections_with_it_and_says_why() {
    let mut pair = usual().await;
    let mut through = pair.through().await;
    pair.cut.cancel();
    assert_eq!(soon(through.opened).await.unwrap().unwrap_err().code().id, code::DRAINED.id);
    assert_eq!(soon(through.accepted).await.unwrap().unwrap_err().code().id, code::PEER_CLOSED.id);
    assert!(soon(through.client.read(&mut [0; 1])).await.is_err() && soon(through.server.read(&mut [0; 1])).await.is_err());
    soon(pair.client.closed()).await;
    assert!(!pair.client.is_usable() && soon(pair.host.next()).await.is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_lets_open_connections_end() {
    let mut pair = usual().await;
    let through = pair.through().await;
    pair.host.graceful_shutdown();
    let (at_client, at_server) =
        soon(async { tokio::join!(exchange(through.client, noise(1_000_000)), exchange(through.server, noise(5))) }).await;
    assert!(at_client == noise(5) && at_server == noise(1_000_000));
    assert!(soon(pair.host.next()).await.is_none() && pair.host.reason().is_none());
    assert!(!pair.client.is_usable());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn our_client_speaks_with_an_h2_server() {
    for (window, frame) in [(1, 16_384), (65_535, 16_384), (4 << 20, 1 << 20)] {
        let ca = scratch();
        let (near, far) = sockets().await;
        let (mine, theirs) = (ca.mint(&id("client")).unwrap(), ca.mint(&id("server")).unwrap());
        let settings = Settings { stream_window: window, frame_size: frame, ..Settings::server() };
        let serve = tokio::spawn(h2_echo(far, theirs, settings));
        let (secured, _) = tls::secured::connect(near, &mine, &[id("server")], tls::HANDSHAKE_LIMIT).await.unwrap();
        let client = Client::start(secured, &own(Settings { stream_window: window, ..Settings::client() }), CancellationToken::new());
        let length = if window == 1 { 500 } else { 4_000_000 };
        let all = join_all((0..5).map(|_| async {
            let (application, near, _) = app(Side::Client).await;
            let (got, outcome) =
                soon(async { tokio::join!(exchange(application, noise(length)), client.carry(wanted("10.0.0.1:80"), near)) }).await;
            assert!(got == noise(length));
            over(outcome).unwrap();
        }));
        all.await;
        drop(client);
        soon(serve).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_h2_client_speaks_with_our_server() {
    for (window, frame) in [(1, 16_384), (65_535, 16_384), (4 << 20, 1 << 20)] {
        let ca = scratch();
        let (near, far) = sockets().await;
        let (mine, theirs) = (ca.mint(&id("client")).unwrap(), ca.mint(&id("server")).unwrap());
        let settings = own(Settings { stream_window: window, frame_size: frame, ..Settings::server() });
        let serve = tokio::spawn(async move {
            let (secured, _) = tls::secured::accept(far, &theirs, tls::HANDSHAKE_LIMIT).await.unwrap();
            let mut host = Host::start(secured, &settings);
            while let Some(arrival) = host.next().await {
                let (application, far, _) = app(Side::Server).await;
                tokio::spawn(async move {
                    let (mut read, mut write) = application.into_split();
                    tokio::io::copy(&mut read, &mut write).await.unwrap();
                    write.shutdown().await.unwrap();
                });
                tokio::spawn(arrived(arrival, far));
            }
        });
        let (io, _) = tls::connect(near, &mine, &[id("server")], tls::Versions::Tls13, tls::HANDSHAKE_LIMIT).await.unwrap();
        let settings = Settings { stream_window: window, ..Settings::client() };
        let client = h2_client::Connection::handshake(io, &settings, CancellationToken::new()).await.unwrap();
        let length = if window == 1 { 500 } else { 4_000_000 };
        let all = join_all((0..5).map(|_| async {
            let got = soon(h2_exchange(&client, noise(length))).await;
            assert!(got == noise(length));
        }));
        all.await;
        drop(client);
        soon(serve).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_comes_too_late_is_not_anothers() {
    let mut pair = usual().await;
    let (_client, near, _) = app(Side::Client).await;
    let first = tokio::spawn({
        let shared = pair.client.shared.clone();
        async move { carry(&shared, near).await }
    });
    let mut gone = soon(pair.host.next()).await.unwrap();
    first.abort();
    soon(gone.abandoned()).await;
    // In the place of the one that is gone.
    let (mut client, near, _) = app(Side::Client).await;
    let shared = pair.client.shared.clone();
    let second = tokio::spawn(async move { over(carry(&shared, near).await) });
    let here = soon(pair.host.next()).await.unwrap();
    assert_eq!((gone.of.slot, gone.of == here.of), (here.of.slot, false));
    let (mut wrong, other, _) = app(Side::Server).await;
    let (done, ended) = oneshot::channel();
    let late = Answering { of: gone.of, headers: HeaderMap::new(), app: other, done };
    assert!(gone.shared.send(Command::Answer(Box::new(late))).is_ok());
    assert!(matches!(soon(ended).await, Ok(Outcome::Done(Err(_)))));
    assert!(soon(wrong.read(&mut [0; 1])).await.is_err(), "it was reset");
    drop(gone);
    // The one that is there is not touched by any of it.
    let (mut server, far, _) = app(Side::Server).await;
    let accepted = tokio::spawn(arrived(here, far));
    client.write_all(b"mine").await.unwrap();
    let mut got = [0; 4];
    soon(server.read_exact(&mut got)).await.unwrap();
    assert_eq!(&got, b"mine");
    drop((client, server));
    soon(second).await.unwrap().unwrap();
    soon(accepted).await.unwrap().unwrap();
}
