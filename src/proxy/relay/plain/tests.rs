//! Two sockets joined, below and beyond the amount from which bytes are spliced.

use std::cell::Cell;
use std::io::ErrorKind;
use std::iter;
use std::pin::pin;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use futures::future::join_all;
use futures::poll;
use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::RwLock;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::*;
use crate::net::splice::{CAPACITY, kept};
use crate::proxy::relay::tests::{Counted, socket, soon};
use crate::proxy::relay::{reset, tcp_to_tcp};

/// Whoever takes all pipes of this process does so alone.
static PIPES: RwLock<()> = RwLock::const_new(());

const MUCH: usize = 8 * BULK;

/// A relay between a client and a server, which are returned.
async fn relayed() -> (TcpStream, TcpStream, JoinHandle<Counted>) {
    let ((client, client_side), (server_side, server)) = (socket().await, socket().await);
    let relay = tokio::spawn(async move {
        let count = Counted::default();
        tcp_to_tcp(&client_side, &server_side, &count).await.expect("an end that applications know");
        count
    });
    (client, server, relay)
}

/// Bytes that show where they belong: the period is no power of two.
fn pattern(length: usize) -> Vec<u8> {
    (0..=250).cycle().take(length).collect()
}

/// Sends `data` and reads it at the other end.
async fn through(from: &mut TcpStream, to: &mut TcpStream, data: &[u8]) {
    let mut arrived = vec![0; data.len()];
    soon(async { tokio::try_join!(from.write_all(data), to.read_exact(&mut arrived)) }).await.unwrap();
    assert!(arrived == data, "{} bytes arrive as they were sent", data.len());
}

async fn ends(socket: &mut TcpStream) {
    assert_eq!(soon(socket.read(&mut [0; 8])).await.expect("no reset"), 0, "an end");
}

/// Reads what is left; there has to be a reset behind it.
async fn breaks(socket: &mut TcpStream) {
    let error = soon(socket.read_to_end(&mut Vec::new())).await.expect_err("a clean end");
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
}

#[test]
fn a_direction_is_bulk_after_much_and_until_it_says_only_a_little() {
    // Bytes between pauses.
    for (bursts, bulk) in [
        (vec![], false),
        (vec![BULK - 1], false),
        (vec![BULK], true),
        (vec![LITTLE; BULK / LITTLE], true),
        (vec![LITTLE - 1; 1000], false),
        (vec![BULK, LITTLE], true),
        (vec![BULK, 0], true),
        (vec![BULK, 1], false),
        (vec![BULK, LITTLE - 1], false),
    ] {
        let mut pace = Pace::default();
        for burst in &bursts {
            pace.moved(*burst);
            pace.pause();
        }
        assert_eq!(pace.is_bulk(), bulk, "{bursts:?}");
    }
}

#[tokio::test]
async fn every_byte_arrives_whatever_the_amount() {
    let _pipes = PIPES.read().await;
    for length in [0, 1, LITTLE, SCRATCH + 1, BULK - 1, BULK, BULK + 1, BULK + SCRATCH, TURN + 1, MUCH] {
        let (mut client, mut server, relay) = relayed().await;
        let data = pattern(length);
        through(&mut client, &mut server, &data).await;
        through(&mut server, &mut client, &data).await;
        drop(client);
        ends(&mut server).await;
        drop(server);
        let count = soon(relay).await.unwrap();
        assert_eq!((count.0.into_inner(), count.1.into_inner()), (length, length));
    }
}

#[tokio::test]
async fn a_quiet_connection_owns_no_pipe() {
    let _pipes = PIPES.read().await;
    let (mut client, mut server, _relay) = relayed().await;
    through(&mut client, &mut server, &pattern(BULK - 1)).await;
    assert_eq!(kept(), 0, "none is needed");
    through(&mut client, &mut server, &pattern(MUCH)).await;
    // What goes the other way comes after the relay has seen that there is no more.
    through(&mut server, &mut client, b"thanks").await;
    assert_eq!(kept(), 1);
}

#[tokio::test]
async fn each_direction_ends_by_itself_after_bulk() {
    let _pipes = PIPES.read().await;
    for client_first in [true, false] {
        let (mut client, mut server, relay) = relayed().await;
        let (first, second) = if client_first { (&mut client, &mut server) } else { (&mut server, &mut client) };
        through(first, second, &pattern(MUCH)).await;
        first.shutdown().await.unwrap();
        ends(second).await;
        through(second, first, &pattern(MUCH)).await;
        second.shutdown().await.unwrap();
        ends(first).await;
        soon(relay).await.unwrap();
    }
}

#[tokio::test]
async fn a_reset_after_bulk_is_told_as_one() {
    let _pipes = PIPES.read().await;
    for from_client in [true, false] {
        let (mut client, mut server, relay) = relayed().await;
        through(&mut client, &mut server, &pattern(MUCH)).await;
        through(&mut server, &mut client, &pattern(MUCH)).await;
        let (gone, mut left) = if from_client { (client, server) } else { (server, client) };
        reset(&gone);
        drop(gone);
        soon(relay).await.unwrap();
        breaks(&mut left).await;
    }
}

#[tokio::test]
async fn a_destination_that_resets_amid_bulk_resets_the_source() {
    let _pipes = PIPES.read().await;
    let (mut client, mut server, relay) = relayed().await;
    let endless = async { while client.write_all(&[7; LITTLE]).await.is_ok() {} };
    let gone = async {
        server.read_exact(&mut vec![0; MUCH]).await.unwrap();
        reset(&server);
        drop(server);
    };
    soon(async { tokio::join!(endless, gone) }).await;
    soon(relay).await.unwrap();
}

#[tokio::test]
async fn a_slow_reader_costs_no_more_than_its_pipe() {
    let _pipes = PIPES.read().await;
    let ((mut client, client_side), (server_side, mut server)) = (socket().await, socket().await);
    // The kernel doubles it.
    for socket in [&client, &client_side, &server_side, &server] {
        SockRef::from(socket).set_send_buffer_size(32 * 1024).unwrap();
        SockRef::from(socket).set_recv_buffer_size(32 * 1024).unwrap();
    }
    let buffers = 4 * 2 * 32 * 1024;
    let count = Counted::default();
    let mut relay = pin!(tcp_to_tcp(&client_side, &server_side, &count));
    let fast = async { through(&mut client, &mut server, &pattern(MUCH)).await };
    tokio::select! { _ = &mut relay => panic!("ended"), () = fast => {} }
    assert_eq!(kept(), 1, "it was bulk");
    let data = pattern(MUCH);
    let mut sent = 0;
    let fill = async {
        // Silence is all there is to see of a relay that waits.
        while let Ok(length) = timeout(Duration::from_millis(300), client.write(data.get(sent..).unwrap_or_default())).await {
            sent += length.unwrap();
        }
    };
    tokio::select! { _ = &mut relay => panic!("ended"), () = fill => {} }
    assert_eq!(kept(), 0, "its pipe is full");
    assert!(sent < buffers + CAPACITY, "{sent} bytes are on their way");
    let rest = async {
        let mut arrived = vec![0; data.len()];
        let unsent = data.get(sent..).unwrap_or_default();
        tokio::try_join!(client.write_all(unsent), server.read_exact(&mut arrived)).unwrap();
        assert!(arrived == data);
    };
    soon(async {
        tokio::select! { _ = &mut relay => panic!("ended"), () = rest => {} }
    })
    .await;
    assert_eq!(count.0.load(Relaxed), 2 * MUCH);
}

#[tokio::test]
async fn what_is_dropped_amid_bulk_is_reset_and_its_pipe_not_used_again() {
    let _pipes = PIPES.read().await;
    let ((mut client, client_side), (server_side, mut server)) = (socket().await, socket().await);
    let count = Counted::default();
    {
        let mut relay = pin!(tcp_to_tcp(&client_side, &server_side, &count));
        // The server reads nothing: the pipe fills.
        let fill = async { while timeout(Duration::from_millis(300), client.write(&[7; LITTLE])).await.is_ok() {} };
        tokio::select! { _ = &mut relay => panic!("ended"), () = fill => {} }
    }
    assert!(count.0.load(Relaxed) > BULK);
    assert_eq!(kept(), 0, "it has bytes of another connection");
    drop((client_side, server_side));
    breaks(&mut client).await;
    breaks(&mut server).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_at_once_do_not_mix() {
    let _pipes = PIPES.read().await;
    let one = |number: usize| async move {
        let (mut client, mut server, relay) = relayed().await;
        let data: Vec<u8> = pattern(4 * BULK + number).split_off(number % 251);
        let mut back = data.clone();
        back.reverse();
        through(&mut client, &mut server, &data).await;
        through(&mut server, &mut client, &back).await;
        drop(client);
        ends(&mut server).await;
        drop(server);
        soon(relay).await.unwrap();
    };
    join_all((0..64).map(|number| tokio::spawn(one(number)))).await.into_iter().for_each(|done| done.unwrap());
}

#[tokio::test]
async fn without_pipes_it_goes_on_copying() {
    let _pipes = PIPES.write().await;
    let (mut client, mut server, relay) = relayed().await;
    through(&mut client, &mut server, &pattern(MUCH)).await;
    let all: Vec<_> = iter::from_fn(Pipe::take).collect();
    assert!(all.len() > 1 && Pipe::take().is_none(), "{} pipes", all.len());
    through(&mut client, &mut server, &pattern(MUCH)).await;
    through(&mut server, &mut client, &pattern(MUCH)).await;
    drop((client, server));
    soon(relay).await.unwrap();
    assert_eq!(kept(), 0);
    drop(all);
    assert!(Pipe::take().is_some());
}

#[tokio::test]
async fn a_source_that_never_runs_dry_leaves_others_their_turn() {
    let _pipes = PIPES.read().await;
    let ((mut client, client_side), (server_side, mut server)) = (socket().await, socket().await);
    let moved = Cell::new(0);
    let count = |bytes| moved.set(moved.get() + bytes);
    let half = Half { from: &client_side, to: &server_side, names: ["client", "destination"], count };
    let mut relay = pin!(half.run());
    let data = pattern(16 * TURN);
    let mut talk = pin!(through(&mut client, &mut server, &data));
    while moved.get() < data.len() {
        let before = moved.get();
        assert!(poll!(&mut relay).is_pending());
        assert!(moved.get() - before < TURN + CAPACITY, "{} bytes in one turn", moved.get() - before);
        let _ = poll!(&mut talk);
        yield_now().await;
    }
}
