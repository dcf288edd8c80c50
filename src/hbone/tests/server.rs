use http::StatusCode;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;

#[tokio::test]
async fn a_request_has_authority_and_headers_and_so_has_the_answer() {
    let mut pair = pair(Settings::client(), Settings::server()).await;
    let mut wanted = request("[2001:db8::1]:80");
    wanted.headers.insert("forwarded", "for=10.0.0.9".parse().unwrap());
    let serve = async {
        let incoming = pair.server.next().await.unwrap();
        assert_eq!(incoming.method, http::Method::CONNECT);
        assert_eq!(incoming.authority, "[2001:db8::1]:80");
        assert_eq!(incoming.headers["forwarded"], "for=10.0.0.9");
        let mut headers = HeaderMap::new();
        headers.insert("baggage", "service.name=a".parse().unwrap());
        incoming.accept(headers).unwrap()
    };
    let (opened, _stream) = soon(async { tokio::join!(pair.client.open(&wanted, Arc::new(())), serve) }).await;
    assert_eq!(done(opened).unwrap().0["baggage"], "service.name=a");
}

#[tokio::test]
async fn a_refusal_tells_its_status_and_the_tunnel_stays() {
    let mut pair = pair(Settings::client(), Settings::server()).await;
    let wanted = request("10.0.0.1:80");
    let refuse = async { pair.server.next().await.unwrap().refuse(StatusCode::UNAUTHORIZED) };
    let (opened, ()) = soon(async { tokio::join!(pair.client.open(&wanted, Arc::new(())), refuse) }).await;
    let error = done(opened).err().unwrap();
    assert_eq!(code_of(&error), code::CONNECT_REJECTED.id);
    assert!(error.to_string().contains("401"), "{error}");
    pair.stream().await;
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_never_comes_costs_twenty_seconds() {
    let mut pair = pair(Settings::client(), Settings::server()).await;
    let start = tokio::time::Instant::now();
    let wanted = request("10.0.0.1:80");
    let hold = async {
        let mut incoming = pair.server.next().await.unwrap();
        incoming.abandoned().await
    };
    let (opened, gave_up) = soon(async { tokio::join!(pair.client.open(&wanted, Arc::new(())), hold) }).await;
    assert_eq!(code_of(&done(opened).err().unwrap()), code::CONNECT_SILENT.id);
    assert_eq!(start.elapsed().as_secs(), 20);
    assert_eq!(code_of(&gave_up), code::PEER_CLOSED.id);
}

#[tokio::test]
async fn a_drain_finishes_open_streams_and_takes_no_new_ones() {
    let mut pair = pair(Settings::client(), Settings::server()).await;
    let ((mut from_server, mut to_server), (mut from_client, mut to_client)) = pair.stream().await;
    pair.server.graceful_shutdown();
    let mut server = pair.server;
    let ended = tokio::spawn(async move {
        assert!(server.next().await.is_none());
        server.reason()
    });
    to_server.data(megabytes(1)).await.unwrap();
    to_server.finish().unwrap();
    assert_eq!(all(&mut from_client).await.unwrap().len(), 1 << 20);
    to_client.data(megabytes(1)).await.unwrap();
    to_client.finish().unwrap();
    assert_eq!(all(&mut from_server).await.unwrap().len(), 1 << 20);
    assert!(soon(ended).await.unwrap().is_none(), "it ends in good order");
    assert!(!pair.client.is_usable());
    let refused = soon(pair.client.open(&request("10.0.0.1:80"), Arc::new(()))).await;
    assert!(matches!(refused, Err(OpenError::Spent(_))));
}

#[tokio::test(start_paused = true)]
async fn a_silent_peer_costs_ten_seconds_and_garbage_none() {
    let (near, far) = duplex(1 << 16);
    let start = tokio::time::Instant::now();
    let error = Server::handshake(far, &Settings::server()).await.err().unwrap();
    assert_eq!((code_of(&error), start.elapsed().as_secs()), (code::TUNNEL_BROKEN.id, 10));
    drop(near);

    let (mut near, far) = duplex(1 << 16);
    near.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\nmore than a preface").await.unwrap();
    let error = Server::handshake(far, &Settings::server()).await.err().unwrap();
    assert_eq!((code_of(&error), start.elapsed().as_secs()), (code::TUNNEL_BROKEN.id, 10));
}

#[tokio::test]
async fn garbage_from_a_server_ends_the_tunnel() {
    let (near, mut far) = duplex(1 << 16);
    far.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\nthat is no frame at all").await.unwrap();
    let client = Connection::handshake(near, &Settings::client(), CancellationToken::new()).await.unwrap();
    let error = soon(client.settled()).await.unwrap_err();
    assert_eq!(code_of(&error), code::TUNNEL_BROKEN.id);
}

/// Carries bytes both ways until told to swallow them: the peer seems to be gone without a word.
async fn gone(when: CancellationToken, mut a: DuplexStream, mut b: DuplexStream) {
    let _ = when.run_until_cancelled(tokio::io::copy_bidirectional(&mut a, &mut b)).await;
    let (mut x, mut y) = (vec![0; 1 << 16], vec![0; 1 << 16]);
    loop {
        let read = tokio::select! { read = a.read(&mut x) => read, read = b.read(&mut y) => read };
        if matches!(read, Ok(0) | Err(_)) {
            return;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn both_ends_notice_that_the_other_is_gone() {
    let ((near, a), (b, far)) = (duplex(1 << 16), duplex(1 << 16));
    let swallow = CancellationToken::new();
    tokio::spawn(gone(swallow.clone(), a, b));
    let mut pair = join(near, far, Settings::client(), Settings::server()).await;
    let ((mut from_server, _to_server), (mut from_client, _to_client)) = pair.stream().await;
    tokio::time::sleep(Duration::from_secs(100)).await;
    swallow.cancel();
    let start = tokio::time::Instant::now();
    let (near, far) = soon(async { tokio::join!(from_server.data(), from_client.data()) }).await;
    for error in [near.unwrap().unwrap_err(), far.unwrap().unwrap_err()] {
        assert_eq!(code_of(&error), code::TUNNEL_BROKEN.id);
        assert!(error.to_string().contains("PING"), "{error}");
    }
    assert!((20..=32).contains(&start.elapsed().as_secs()), "{:?}", start.elapsed());
}

#[tokio::test]
async fn headers_beyond_the_limit_are_refused() {
    // A little too much is answered, far too much ends the tunnel: in neither case does anybody see the request.
    for (bytes, want) in [(1500, &code::CONNECT_REJECTED), (200 << 10, &code::TUNNEL_BROKEN)] {
        let mut pair = pair(Settings::client(), Settings { header_list: 1024, ..Settings::server() }).await;
        soon(pair.client.settled()).await.unwrap();
        let mut large = request("10.0.0.1:80");
        large.headers.insert("baggage", "x".repeat(bytes).parse().unwrap());
        let taken = tokio::spawn(async move { pair.server.next().await.map(|incoming| incoming.authority) });
        let error = done(soon(pair.client.open(&large, Arc::new(()))).await).err().unwrap();
        assert_eq!(code_of(&error), want.id, "{bytes}: {error}");
        drop(pair.client);
        assert_eq!(soon(taken).await.unwrap(), None);
    }
}

#[tokio::test]
async fn a_flood_of_resets_ends_the_tunnel() {
    let mut pair = pair(Settings::client(), Settings::server()).await;
    let mut taken = 0;
    let flood = async {
        let wanted = request("10.0.0.1:80");
        while pair.client.is_usable() {
            // Given up after the request went out and before the answer.
            tokio::select! {
                biased;
                _ = pair.client.open(&wanted, Arc::new(())) => {}
                () = tokio::task::yield_now() => {}
            }
        }
    };
    let serve = async {
        while let Some(mut incoming) = pair.server.next().await {
            taken += 1;
            tokio::spawn(async move { incoming.abandoned().await });
        }
    };
    soon(async { tokio::join!(flood, serve) }).await;
    let reason = pair.server.reason().unwrap();
    assert!(reason.to_string().contains("too fast"), "{reason}");
    assert!((1000..3000).contains(&taken), "{taken}");
}
