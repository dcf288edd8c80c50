//! What a tunnel and its connections may be in the middle of.

use super::super::parting::served;
use super::*;
use crate::hbone::engine::frozen::Stream;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn half_closed_connections_stay_half_closed() {
    let mut elsewhere = Elsewhere::new();
    let Pair { mut client, mut host, .. } = usual().await;
    for server_first in [false, true] {
        let (near, far) = elsewhere.through(&client, &mut host).await;
        let (mut first, mut second) = if server_first { (far, near) } else { (near, far) };
        first.write_all(b"all of it").await.unwrap();
        first.shutdown().await.unwrap();
        (client, host) = (elsewhere.client(client).await, elsewhere.host(host).await);
        let mut got = Vec::new();
        soon(second.read_to_end(&mut got)).await.unwrap();
        assert_eq!(got, b"all of it");
        // Once more, now that both ends know.
        (client, host) = (elsewhere.client(client).await, elsewhere.host(host).await);
        second.write_all(b"the answer").await.unwrap();
        let mut answer = [0; 10];
        soon(first.read_exact(&mut answer)).await.unwrap();
        assert_eq!(&answer, b"the answer");
        drop(second);
        assert_eq!(soon(first.read(&mut [0; 1])).await.unwrap(), 0);
        elsewhere.ends(2).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reset_reaches_the_other_side_whenever_it_comes() {
    let mut elsewhere = Elsewhere::new();
    let Pair { mut client, mut host, .. } = usual().await;
    for half_closed in [false, true] {
        for while_frozen in [false, true] {
            let (mut near, mut far) = elsewhere.through(&client, &mut host).await;
            near.write_all(b"hello").await.unwrap();
            soon(far.read_exact(&mut [0; 5])).await.unwrap();
            if half_closed {
                near.shutdown().await.unwrap();
                assert_eq!(soon(far.read(&mut [0; 1])).await.unwrap(), 0);
            }
            near.set_zero_linger().unwrap();
            if while_frozen {
                let frozen = soon(client.freeze()).await.unwrap();
                drop(near);
                client = elsewhere.thaw_client(frozen).await.unwrap();
            } else {
                drop(near);
                client = elsewhere.client(client).await;
            }
            host = elsewhere.host(host).await;
            let error = soon(async {
                loop {
                    if let Err(error) = far.write_all(b"more").await {
                        break error;
                    }
                    tokio::task::yield_now().await;
                }
            });
            assert!(matches!(error.await.kind(), std::io::ErrorKind::ConnectionReset | std::io::ErrorKind::BrokenPipe));
            elsewhere.ends(2).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_was_let_go_of_before_does_not_go_on() {
    let elsewhere = Elsewhere::new();
    let Pair { client, mut host, .. } = usual().await;
    let (mut near, ours) = elsewhere.app(Side::Client).await;
    let carrying = client.carry(wanted("10.0.0.1:80"), ours);
    let arrival = soon(host.next()).await.unwrap();
    let (mut far, theirs) = elsewhere.app(Side::Server).await;
    elsewhere.wait_for(arrival.carry(HeaderMap::new(), theirs).unwrap());
    near.write_all(b"hello").await.unwrap();
    soon(far.read_exact(&mut [0; 5])).await.unwrap();
    drop(carrying);
    let _client = elsewhere.client(client).await;
    for end in [&mut near, &mut far] {
        assert_eq!(soon(end.read(&mut [0; 1])).await.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_waits_for_a_slow_application_goes_along() {
    let mut elsewhere = Elsewhere::new();
    let Pair { client, mut host, .. } = pair(Settings::client(), Settings { stream_window: 300_000, ..Settings::server() }).await;
    let (mut near, mut far) = elsewhere.through(&client, &mut host).await;
    let sender = tokio::spawn(async move {
        near.write_all(&noise(20_000_000)).await.unwrap();
        near
    });
    let queued = |frozen: &Frozen| state(frozen).streams.iter().flatten().map(|stream| stream.queue).sum::<usize>();
    // All of the window waits here but what is too little to be told to the peer. Some leaves until the kernel's buffers have grown.
    let mut full = 0;
    while full < 5 {
        let frozen = soon(host.freeze()).await.unwrap();
        full += usize::from(queued(&frozen) > 225_000);
        host = elsewhere.thaw_host(frozen).await.unwrap();
    }
    let mut got = vec![0; 20_000_000];
    soon(far.read_exact(&mut got)).await.unwrap();
    assert!(got == noise(20_000_000));
    drop((soon(sender).await.unwrap(), far));
    elsewhere.ends(2).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_without_an_answer_is_asked_anew() {
    let mut elsewhere = Elsewhere::new();
    let Pair { client, mut host, .. } = usual().await;
    let (mut near, ours) = elsewhere.app(Side::Client).await;
    near.write_all(b"early").await.unwrap();
    let mut headers = HeaderMap::new();
    headers.append("forwarded", http::HeaderValue::from_bytes(b"for=\xfa").unwrap());
    headers.append("forwarded", http::HeaderValue::from_static("for=b"));
    let mut asking = wanted("10.0.0.1:80");
    asking.request.headers = headers.clone();
    elsewhere.wait_for(client.carry(asking, ours));
    let mut old = soon(host.next()).await.unwrap();
    let mut host = elsewhere.host(host).await;
    // Whoever still works on it learns that it is in vain.
    assert_eq!(soon(old.abandoned()).await.code().id, code::DRAINED.id);
    let (mut in_vain, theirs) = elsewhere.app(Side::Server).await;
    assert!(old.carry(HeaderMap::new(), theirs).is_err());
    assert!(soon(in_vain.read(&mut [0; 1])).await.is_err(), "it was reset");

    let mut arrival = soon(host.next()).await.unwrap();
    assert_eq!((arrival.head.method.as_str(), arrival.head.authority.as_str()), ("CONNECT", "10.0.0.1:80"));
    assert_eq!(arrival.head.headers, headers);
    // And if nobody has taken it up before the next move.
    host = elsewhere.host(host).await;
    drop(arrival);
    arrival = soon(host.next()).await.unwrap();
    let (mut far, theirs) = elsewhere.app(Side::Server).await;
    elsewhere.wait_for(arrival.carry(HeaderMap::new(), theirs).unwrap());
    let mut got = [0; 5];
    soon(far.read_exact(&mut got)).await.unwrap();
    assert_eq!(&got, b"early");
    drop((near, far));
    elsewhere.ends(2).await;

    // A client that gives up is heard of there, too.
    let (_near, ours) = elsewhere.app(Side::Client).await;
    let carrying = client.carry(wanted("10.0.0.1:80"), ours);
    drop(soon(host.next()).await);
    let (_near, ours) = elsewhere.app(Side::Client).await;
    let waits = client.carry(wanted("10.0.0.1:81"), ours);
    drop(carrying);
    let old = soon(host.next()).await.unwrap();
    let mut host = elsewhere.host(host).await;
    drop((old, waits));
    soon(soon(host.next()).await.unwrap().abandoned()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_has_the_time_that_was_left() {
    const LIMIT: Duration = Duration::from_secs(3600);
    let mut elsewhere = Elsewhere::new();
    let Pair { client, mut host, .. } = pair(Settings { answer_limit: LIMIT, ..Settings::client() }, Settings::server()).await;
    let (_near, ours) = elsewhere.app(Side::Client).await;
    elsewhere.wait_for(client.carry(wanted("10.0.0.1:80"), ours));
    let _unanswered = soon(host.next()).await.unwrap();
    let first = soon(client.freeze()).await.unwrap();
    let left = |frozen: &Frozen| state(frozen).waiting.iter().map(|(_, _, left)| *left).collect::<Vec<_>>();
    let (before, age) = (left(&first), state(&first).age);
    let client = elsewhere.thaw_client(first).await.unwrap();
    let second = soon(client.freeze()).await.unwrap();
    let after = left(&second);
    assert!(after.len() == 1 && after < before && before < vec![LIMIT], "{before:?} {after:?}");
    assert!(LIMIT - after[0] < Duration::from_secs(60));
    // Its own clock, which keepalive goes by, goes on as well.
    assert!(state(&second).age > age && age > Duration::ZERO);
    // As if it were almost over.
    let second = changed(second, |mut tunnel| {
        tunnel.waiting[0].2 = Duration::from_millis(1);
        tunnel
    });
    let _client = elsewhere.thaw_client(second).await.unwrap();
    let outcome = async {
        loop {
            match elsewhere.ended.recv().await.unwrap() {
                Outcome::Done(Err(error)) if error.code().id == code::DRAINED.id => {}
                outcome => break outcome,
            }
        }
    };
    let Outcome::Done(Err(error)) = soon(outcome).await else { panic!("nobody has answered") };
    assert_eq!(error.code().id, code::CONNECT_SILENT.id);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_sent_early_can_still_be_sent_elsewhere() {
    let mut elsewhere = Elsewhere::new();
    let Pair { client, mut host, .. } = usual().await;
    let (mut near, ours) = elsewhere.app(Side::Client).await;
    near.write_all(b"early").await.unwrap();
    elsewhere.wait_for(client.carry(wanted("10.0.0.1:80"), ours));
    let arrival = soon(host.next()).await.unwrap();
    soon(elsewhere.client.are(5)).await;
    let client = elsewhere.client(client).await;
    arrival.reject();
    let again = async {
        loop {
            if let Outcome::Again(app, wanted, _) = elsewhere.ended.recv().await.unwrap() {
                break (app, wanted);
            }
        }
    };
    let (again, sought) = soon(again).await;
    // It moves also before it has sent them anew.
    elsewhere.wait_for(client.carry(sought, *again));
    let _client = elsewhere.client(client).await;
    let (mut far, theirs) = elsewhere.app(Side::Server).await;
    elsewhere.wait_for(soon(host.next()).await.unwrap().carry(HeaderMap::new(), theirs).unwrap());
    near.write_all(b" and late").await.unwrap();
    let mut got = [0; 14];
    soon(far.read_exact(&mut got)).await.unwrap();
    assert_eq!(&got, b"early and late");
    drop((near, far));
    elsewhere.ends(2).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_farewell_is_not_forgotten() {
    let mut elsewhere = Elsewhere::new();
    let Pair { client, mut host, .. } = usual().await;
    let (near, far) = elsewhere.through(&client, &mut host).await;
    host.graceful_shutdown();
    let mut host = elsewhere.host(host).await;
    let client = elsewhere.client(client).await;
    let (at_client, at_server) = soon(async { tokio::join!(exchange(near, noise(1_000_000)), exchange(far, noise(5))) }).await;
    assert!(at_client == noise(5) && at_server == noise(1_000_000));
    elsewhere.ends(2).await;
    assert!(soon(host.next()).await.is_none() && host.reason().is_none());
    soon(client.closed()).await;
    assert!(!client.is_usable() && client.freeze().await.is_err(), "there is nothing to go on with");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_complete_answer_whose_application_nobody_hears_any_more_still_ends() {
    const ANSWER: usize = 300_000;
    let mut elsewhere = Elsewhere::new();
    let mut client = served(|mut body, mut respond| async move {
        body.data().await.unwrap().unwrap();
        let mut send = respond.send_response(http::Response::new(()), false).unwrap();
        send.reserve_capacity(ANSWER);
        send.send_data(noise(ANSWER).into(), true).unwrap();
        // Dropped: RST_STREAM(NO_ERROR) behind the end.
    })
    .await;
    let (mut near, ours) = elsewhere.app(Side::Client).await;
    socket2::SockRef::from(&near).set_recv_buffer_size(8_192).unwrap();
    socket2::SockRef::from(&ours.socket).set_send_buffer_size(8_192).unwrap();
    near.write_all(b"asks").await.unwrap();
    elsewhere.wait_for(client.carry(wanted("10.0.0.1:80"), ours));
    let moved = async {
        loop {
            let frozen = elsewhere.on_its_way(client.freeze().await.unwrap());
            let streams = state(&frozen).streams;
            client = elsewhere.thaw_client(frozen).await.unwrap();
            let unwanted = |stream: &Stream| matches!(stream.kind, What::Carried { reading: Reading::Unwanted, .. }) && stream.queue > 0;
            if streams.iter().flatten().any(unwanted) {
                break client;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let _client = soon(moved).await;
    let mut heard = vec![0; ANSWER];
    soon(near.read_exact(&mut heard)).await.unwrap();
    assert!(heard == noise(ANSWER));
    elsewhere.ends(1).await;
}
