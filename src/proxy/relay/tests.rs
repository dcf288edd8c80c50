//! The relay between real sockets and real streams.

use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;
use crate::base::addr::NextHop;
use crate::base::deadline;
use crate::hbone::tests::stream;
use crate::net::socket::SocketFactory;

#[derive(Default)]
pub(super) struct Counted(pub(super) AtomicUsize, pub(super) AtomicUsize);

impl Count for Counted {
    fn client_sent(&self, bytes: usize) {
        self.0.fetch_add(bytes, Ordering::Relaxed);
    }

    fn server_sent(&self, bytes: usize) {
        self.1.fetch_add(bytes, Ordering::Relaxed);
    }
}

pub(super) async fn soon<T>(future: impl Future<Output = T>) -> T {
    deadline(Duration::from_secs(10), &code::INTERNAL, "the event", future).await.unwrap()
}

/// The application's end and the proxy's end of a connection.
pub(super) async fn socket() -> (TcpStream, TcpStream) {
    let sockets = SocketFactory::default();
    let (listener, _) = sockets.listen(([127, 0, 0, 1], 0).into(), false).unwrap();
    let to = NextHop::new(listener.local_addr().unwrap());
    let (near, far) = tokio::join!(sockets.connect(to, None), listener.accept());
    (near.unwrap(), far.unwrap().0)
}

#[tokio::test]
async fn each_direction_ends_by_itself_and_is_counted() {
    let (near, far, _tunnel) = stream().await;
    let (mut client, proxy) = socket().await;
    let count = Counted::default();
    let (mut receive, mut send) = far.into_split();
    let talk = async {
        client.write_all(b"question").await.unwrap();
        client.shutdown().await.unwrap();
        assert_eq!(soon(receive.data()).await.unwrap().unwrap(), "question");
        assert!(soon(receive.data()).await.is_none());
        send.data(Bytes::from_static(b"the answer")).await.unwrap();
        send.finish().unwrap();
        let mut answer = String::new();
        soon(client.read_to_string(&mut answer)).await.unwrap();
        assert_eq!(answer, "the answer");
    };
    let (result, ()) = soon(async { tokio::join!(tcp_to_tunnel(&proxy, near, Side::Client, &count), talk) }).await;
    result.unwrap();
    assert_eq!((count.0.into_inner(), count.1.into_inner()), (8, 10));
}

#[tokio::test]
async fn a_quiet_client_whose_answer_is_complete_still_learns_of_a_reset() {
    let (near, far, _tunnel) = stream().await;
    let (mut client, proxy) = socket().await;
    let (_receive, mut send) = far.into_split();
    let peer = async {
        send.data(Bytes::from_static(b"all")).await.unwrap();
        send.finish().unwrap();
        let mut answer = String::new();
        soon(client.read_to_string(&mut answer)).await.unwrap();
        assert_eq!(answer, "all");
        send.reset();
    };
    let count = Counted::default();
    let (result, ()) = soon(async { tokio::join!(tcp_to_tunnel(&proxy, near, Side::Client, &count), peer) }).await;
    result.expect("a reset is an application's way to end");
}

#[tokio::test]
async fn a_peer_that_needs_nothing_more_ends_the_connection_in_order() {
    let (near, far, _tunnel) = stream().await;
    let (mut client, proxy) = socket().await;
    let (receive, mut send) = far.into_split();
    send.data(Bytes::from_static(b"all")).await.unwrap();
    send.finish().unwrap();
    drop((receive, send));
    soon(tcp_to_tunnel(&proxy, near, Side::Client, &Counted::default())).await.unwrap();
    drop(proxy);
    let mut answer = String::new();
    soon(client.read_to_string(&mut answer)).await.expect("no reset");
    assert_eq!(answer, "all");
}

#[tokio::test]
async fn what_is_ended_from_outside_is_reset_not_finished() {
    let (near, far, _tunnel) = stream().await;
    let (mut application, proxy) = socket().await;
    let (mut one, near_proxy) = socket().await;
    let (mut other, far_proxy) = socket().await;
    let count = Counted::default();
    // Polled once, then dropped, as a policy change does it.
    assert!(tokio::time::timeout(Duration::ZERO, tcp_to_tunnel(&proxy, near, Side::Server, &count)).await.is_err());
    assert!(tokio::time::timeout(Duration::ZERO, tcp_to_tcp(&near_proxy, &far_proxy, &count)).await.is_err());
    drop((proxy, near_proxy, far_proxy));
    for end in [&mut application, &mut one, &mut other] {
        let error = soon(end.read(&mut [0; 8])).await.expect_err("a clean end");
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    }
    let (mut receive, _send) = far.into_split();
    assert_eq!(soon(receive.data()).await.unwrap().unwrap_err().code(), &code::STREAM_RESET);
}
