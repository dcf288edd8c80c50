mod orders;

use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures::future::{BoxFuture, join_all};
use http::StatusCode;
use parking_lot::Mutex;

use super::super::{Dialer, Io, Key, Opened, Pool, PoolSettings};
use super::*;
use crate::identity::{Certificate, FakeAuthority, SpiffeId, fake::scratch};
use crate::tls;

/// What the peers of a scripted dialer do with a tunnel.
#[derive(Clone, Copy, PartialEq)]
enum Peer {
    /// Takes every request and sends back what comes.
    Echo,
    /// Leaves every request on the first tunnel untouched.
    RefuseFirstTunnel,
    /// Nobody listens.
    Refused,
    /// Never answers the TCP connect.
    Silent,
    /// Ends the first tunnel in good order when it is up.
    GoAwayAtOnce,
}

struct Net {
    ca: FakeAuthority,
    peer: Peer,
    server: Settings,
    dials: AtomicUsize,
    ends: Mutex<Vec<tokio::task::JoinHandle<()>>>,
}

fn id(name: &str) -> SpiffeId {
    SpiffeId::new("cluster.local", "shop", name).unwrap()
}

fn key() -> Key {
    Key { source: id("client"), destinations: vec![id("server")], addr: "10.0.0.2:15008".parse().unwrap(), source_ip: None, gateway: false }
}

impl Dialer for Net {
    fn dial<'a>(&'a self, _key: &'a Key) -> BoxFuture<'a, io::Result<Io>> {
        Box::pin(async move {
            let number = self.dials.fetch_add(1, Ordering::SeqCst);
            match self.peer {
                Peer::Refused => return Err(io::ErrorKind::ConnectionRefused.into()),
                Peer::Silent => std::future::pending::<()>().await,
                _ => {}
            }
            let (near, far) = duplex(1 << 16);
            let certificate = self.ca.mint(&id("server")).unwrap();
            let (settings, peer) = (self.server.clone(), self.peer);
            self.ends.lock().push(tokio::spawn(async move {
                let Ok((io, _)) = tls::accept(far, &certificate, tls::Versions::Tls13, tls::HANDSHAKE_LIMIT).await else { return };
                let Ok(mut server) = Server::handshake(io, &settings).await else { return };
                if peer == Peer::GoAwayAtOnce && number == 0 {
                    server.graceful_shutdown();
                }
                while let Some(incoming) = server.next().await {
                    if peer == Peer::RefuseFirstTunnel && number == 0 {
                        incoming.reject();
                        continue;
                    }
                    if incoming.authority == "10.0.0.1:1" {
                        incoming.refuse(StatusCode::SERVICE_UNAVAILABLE);
                        continue;
                    }
                    let Ok(stream) = incoming.accept(HeaderMap::new()) else { continue };
                    let (mut receive, mut send) = stream.into_split();
                    tokio::spawn(async move {
                        while let Some(Ok(bytes)) = receive.data().await {
                            if send.data(bytes).await.is_err() {
                                return;
                            }
                        }
                        let _ = send.finish();
                    });
                }
            }));
            Ok(Io::Other(Box::new(near)))
        })
    }

    fn certificate<'a>(&'a self, source: &'a SpiffeId) -> BoxFuture<'a, Result<Arc<Certificate>>> {
        Box::pin(async move { self.ca.mint(source).map(Arc::new) })
    }
}

fn pool(peer: Peer, settings: PoolSettings, server: Settings) -> (Pool, Arc<Net>) {
    let net = Arc::new(Net { ca: scratch(), peer, server, dials: AtomicUsize::default(), ends: Mutex::default() });
    (Pool::new(settings, net.clone()), net)
}

async fn open(pool: &Pool) -> Result<Opened> {
    soon(pool.open(&key(), request("10.0.0.1:80"))).await
}

#[tokio::test]
async fn connections_share_a_tunnel_and_their_bytes_stay_apart() {
    let (pool, net) = pool(Peer::Echo, PoolSettings::default(), Settings::server());
    let talk = |number: u8| {
        let pool = pool.clone();
        async move {
            let opened = open(&pool).await.unwrap();
            assert_eq!(opened.peer, id("server"));
            let (mut receive, mut send) = opened.stream.into_split();
            send.data(Bytes::from(vec![number; 10_000])).await.unwrap();
            send.finish().unwrap();
            assert_eq!(all(&mut receive).await.unwrap(), vec![number; 10_000]);
        }
    };
    join_all((0..50).map(talk)).await;
    assert_eq!(net.dials.load(Ordering::SeqCst), 1);
    assert_eq!((pool.counters().tunnels, pool.counters().streams, pool.counters().dials), (1, 0, 1));
    assert!(open(&pool).await.unwrap().tunnel.reused);
    let other = Key { source_ip: Some("10.0.0.9".parse().unwrap()), ..key() };
    soon(pool.open(&other, request("10.0.0.1:80"))).await.unwrap();
    assert_eq!(net.dials.load(Ordering::SeqCst), 2, "another key is another tunnel");
}

#[tokio::test]
async fn at_the_limit_another_tunnel_is_opened() {
    let (pool, net) = pool(Peer::Echo, PoolSettings { max_streams: 10, ..PoolSettings::default() }, Settings::server());
    let opened: Vec<_> = join_all((0..35).map(|_| open(&pool))).await.into_iter().map(|opened| opened.unwrap()).collect();
    assert_eq!(net.dials.load(Ordering::SeqCst), 4);
    assert_eq!(pool.counters().streams, 35);
    drop(opened);
}

#[tokio::test]
async fn the_limit_of_the_peer_counts_too() {
    let (pool, _net) = pool(Peer::Echo, PoolSettings::default(), Settings { max_streams: 2, ..Settings::server() });
    let opened: Vec<_> = join_all((0..9).map(|_| open(&pool))).await;
    let mut tunnels = std::collections::HashMap::new();
    for opened in &opened {
        *tunnels.entry(opened.as_ref().unwrap().tunnel.id).or_insert(0) += 1;
    }
    assert!(tunnels.values().all(|streams| *streams <= 2) && tunnels.len() >= 5, "{tunnels:?}");
}

#[tokio::test(start_paused = true)]
async fn all_waiters_get_the_error_of_the_dial_at_once() {
    let (silent, net) = pool(Peer::Silent, PoolSettings::default(), Settings::server());
    let start = tokio::time::Instant::now();
    let errors = join_all((0..20).map(|_| open(&silent))).await;
    assert!(errors.iter().all(|error| code_of(error.as_ref().err().unwrap()) == code::TUNNEL_TIMEOUT.id));
    assert_eq!((start.elapsed().as_secs(), net.dials.load(Ordering::SeqCst)), (10, 1));
    assert_eq!(silent.counters().failed_dials, 1);

    let (refused, _) = pool(Peer::Refused, PoolSettings::default(), Settings::server());
    assert_eq!(code_of(&open(&refused).await.err().unwrap()), code::TUNNEL_REFUSED.id);
}

#[tokio::test]
async fn a_dial_goes_on_when_the_one_who_started_it_leaves() {
    let (pool, net) = pool(Peer::Echo, PoolSettings::default(), Settings::server());
    {
        let (key, wanted) = (key(), request("10.0.0.1:80"));
        let first = pool.open(&key, wanted);
        tokio::select! { biased; _ = first => panic!("too early"), () = std::future::ready(()) => {} }
    }
    open(&pool).await.unwrap();
    assert_eq!(net.dials.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn an_impostor_is_told_to_every_waiter() {
    let (pool, _net) = pool(Peer::Echo, PoolSettings::default(), Settings::server());
    let wrong = Key { destinations: vec![id("other")], ..key() };
    let errors = soon(join_all((0..5).map(|_| pool.open(&wrong, request("10.0.0.1:80"))))).await;
    assert!(errors.iter().all(|error| code_of(error.as_ref().err().unwrap()) == code::IDENTITY_MISMATCH.id));
}

#[tokio::test]
async fn a_peer_that_refuses_us_after_the_handshake_is_told_as_tls() {
    let (pool, _net) = pool(Peer::Echo, PoolSettings::default(), Settings::server());
    let stranger = Key { source: SpiffeId::new("other.mesh", "shop", "client").unwrap(), ..key() };
    let errors = soon(join_all((0..3).map(|_| pool.open(&stranger, request("10.0.0.1:80"))))).await;
    for error in errors {
        let error = error.err().unwrap();
        assert_eq!(code_of(&error), code::TLS_FAILED.id, "{error}");
    }
}

#[tokio::test]
async fn what_the_peer_did_not_touch_is_repeated_once_elsewhere() {
    let (refusing, net) = pool(Peer::RefuseFirstTunnel, PoolSettings::default(), Settings::server());
    let opened = open(&refusing).await.unwrap();
    assert_eq!(opened.tunnel.id, 1);
    assert_eq!(net.dials.load(Ordering::SeqCst), 2);

    let (leaving, net) = pool(Peer::GoAwayAtOnce, PoolSettings::default(), Settings::server());
    join_all((0..5).map(|_| open(&leaving))).await.into_iter().for_each(|opened| drop(opened.unwrap()));
    assert!(net.dials.load(Ordering::SeqCst) <= 3);
}

#[tokio::test]
async fn a_rejection_is_final() {
    let (pool, net) = pool(Peer::Echo, PoolSettings::default(), Settings::server());
    let error = soon(pool.open(&key(), request("10.0.0.1:1"))).await.err().unwrap();
    assert_eq!(code_of(&error), code::CONNECT_REJECTED.id);
    assert_eq!((net.dials.load(Ordering::SeqCst), pool.counters().streams), (1, 0));
}

#[tokio::test]
async fn a_dead_tunnel_is_replaced() {
    let (pool, net) = pool(Peer::Echo, PoolSettings::default(), Settings::server());
    let opened = open(&pool).await.unwrap();
    net.ends.lock().drain(..).for_each(|end| end.abort());
    let (mut receive, _send) = opened.stream.into_split();
    assert!(soon(receive.data()).await.unwrap().is_err());
    assert!(!open(&pool).await.unwrap().tunnel.reused);
}

#[tokio::test(start_paused = true)]
async fn an_idle_tunnel_is_closed_and_a_busy_one_is_not() {
    let (pool, net) = pool(Peer::Echo, PoolSettings::default(), Settings::server());
    let busy = open(&pool).await.unwrap();
    tokio::time::sleep(Duration::from_secs(1000)).await;
    assert_eq!(pool.counters().tunnels, 1);
    drop(busy);
    tokio::time::sleep(Duration::from_secs(299)).await;
    assert_eq!(pool.counters().tunnels, 1);
    tokio::time::sleep(Duration::from_secs(302)).await;
    assert_eq!(pool.counters().tunnels, 0);
    let end = net.ends.lock().pop().unwrap();
    soon(end).await.unwrap();
    open(&pool).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn the_tunnel_that_is_idle_longest_makes_room() {
    let (pool, _net) = pool(Peer::Echo, PoolSettings { max_tunnels: 2, ..PoolSettings::default() }, Settings::server());
    let to = |last: u8| Key { addr: std::net::SocketAddr::from(([10, 0, 0, last], 15008)), ..key() };
    drop(soon(pool.open(&to(1), request("10.0.0.1:80"))).await.unwrap());
    tokio::time::sleep(Duration::from_secs(1)).await;
    drop(soon(pool.open(&to(2), request("10.0.0.1:80"))).await.unwrap());
    let third = soon(pool.open(&to(3), request("10.0.0.1:80"))).await.unwrap();
    let second = soon(pool.open(&to(2), request("10.0.0.1:80"))).await.unwrap();
    assert!(second.tunnel.reused, "the first was the oldest");
    let error = soon(pool.open(&to(4), request("10.0.0.1:80"))).await.err().unwrap();
    assert_eq!(code_of(&error), code::CAPACITY.id);
    drop((second, third));
}

#[tokio::test(start_paused = true)]
async fn a_drain_waits_for_streams_and_an_end_does_not() {
    let (pool, _net) = pool(Peer::Echo, PoolSettings::default(), Settings::server());
    let (mut receive, mut send) = open(&pool).await.unwrap().stream.into_split();
    assert!(tokio::time::timeout(Duration::from_secs(5), pool.drain()).await.is_err());
    assert_eq!(code_of(&open(&pool).await.err().unwrap()), code::DRAINED.id);
    send.data(Bytes::from_static(b"still")).await.unwrap();
    assert_eq!(soon(receive.data()).await.unwrap().unwrap(), "still");
    pool.close_all();
    assert_eq!(code_of(&soon(receive.data()).await.unwrap().unwrap_err()), code::DRAINED.id);
    drop((receive, send));
    soon(pool.drain()).await;
    assert_eq!(pool.counters().tunnels, 0);
}
