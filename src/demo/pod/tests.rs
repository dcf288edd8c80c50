use std::net::{IpAddr, Ipv4Addr};

use super::server::{accept, echo, listen, once, sink};
use super::*;

const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const LIMIT: Duration = Duration::from_secs(5);

macro_rules! against {
    ($serve:expr, $client:expr) => {{
        let listener = listen(LOOPBACK, 0).expect("any port");
        let to = listener.local_addr().expect("bound");
        let server = tokio::spawn(accept(listener, $serve));
        let result = tokio::task::spawn_blocking(move || $client(to)).await.expect("the client ends");
        server.abort();
        result
    }};
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn text_comes_back() {
    let said = against!(echo, |to| say(to, "hello", LIMIT));
    assert_eq!(said.outcome, Outcome::Echoed, "{said:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_close_is_a_refusal_and_silence_is_not() {
    let closed = against!(
        |stream: tokio::net::TcpStream| async move {
            drop(stream);
            Ok(())
        },
        |to| say(to, "hello", LIMIT)
    );
    assert_eq!(closed.outcome, Outcome::Refused, "{closed:?}");
    let silent = against!(
        |stream: tokio::net::TcpStream| async move {
            std::future::pending::<()>().await;
            drop(stream);
            Ok(())
        },
        |to| say(to, "hello", Duration::from_millis(50))
    );
    assert_eq!(silent.outcome, Outcome::Silent, "{silent:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_port_without_listener_refuses() {
    let listener = listen(LOOPBACK, 0).expect("any port");
    let to = listener.local_addr().expect("bound");
    drop(listener);
    let said = tokio::task::spawn_blocking(move || say(to, "hello", LIMIT)).await.expect("the client ends");
    assert_eq!(said.outcome, Outcome::Refused, "{said:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_receiver_counts_what_was_sent() {
    let bulk = against!(sink, |to| bulk(to, 2, Duration::from_millis(100))).expect("loopback");
    assert_eq!(bulk.bytes % (256 * 1024), 0, "whole writes only: {bulk:?}");
    assert!(bulk.bytes > 0 && bulk.gbps > 0.0, "{bulk:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn round_trips_and_connections_are_counted() {
    let trips = against!(echo, |to| ping_pong(to, 1024, Duration::from_millis(50))).expect("loopback");
    assert!(trips.count > 0 && trips.p50_us <= trips.p99_us, "{trips:?}");
    let rate = against!(once, |to| rate(to, 4, Duration::from_millis(50))).expect("loopback");
    assert!(rate.connections > 0 && rate.errors == 0, "{rate:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn held_connections_are_all_open_at_once() {
    let (idle, held) = against!(echo, |to| idle(to, 100, LIMIT));
    assert_eq!((idle.open, idle.failed, held.len()), (100, 0, 100), "{idle:?}");
}
