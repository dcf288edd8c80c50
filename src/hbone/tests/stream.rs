use super::*;

#[tokio::test]
async fn each_direction_ends_by_itself() {
    let mut pair = pair(Settings::client(), Settings::server()).await;
    let ((mut from_server, mut to_server), (mut from_client, mut to_client)) = pair.stream().await;
    to_server.data(Bytes::from_static(b"question")).await.unwrap();
    to_server.finish().unwrap();
    let serve = async { while pair.server.next().await.is_some() {} };
    let talk = async {
        assert_eq!(all(&mut from_client).await.unwrap(), b"question");
        to_client.data(Bytes::from_static(b"answer")).await.unwrap();
        to_client.finish().unwrap();
        assert_eq!(all(&mut from_server).await.unwrap(), b"answer");
        assert!(soon(from_server.data()).await.is_none(), "the end stays the end");
    };
    tokio::select! { () = serve => panic!("the tunnel ended"), () = talk => {} }
}

#[tokio::test]
async fn the_server_may_end_first() {
    let mut pair = pair(Settings::client(), Settings::server()).await;
    let ((mut from_server, mut to_server), (mut from_client, mut to_client)) = pair.stream().await;
    to_client.finish().unwrap();
    assert_eq!(all(&mut from_server).await.unwrap(), b"");
    to_server.data(megabytes(1)).await.unwrap();
    to_server.finish().unwrap();
    assert_eq!(all(&mut from_client).await.unwrap().len(), 1 << 20);
}

#[tokio::test]
async fn a_truncated_stream_is_an_error_not_an_end() {
    let mut pair = pair(Settings::client(), Settings::server()).await;
    let ((mut from_server, to_server), (mut from_client, mut to_client)) = pair.stream().await;
    to_client.data(Bytes::from_static(b"part")).await.unwrap();
    assert_eq!(soon(from_server.data()).await.unwrap().unwrap(), "part");
    drop(to_client);
    let error = soon(from_server.data()).await.unwrap().unwrap_err();
    assert_eq!(code_of(&error), code::STREAM_RESET.id);

    let ((_, mut other), (mut received, _kept)) = pair.stream().await;
    other.reset();
    assert_eq!(code_of(&soon(received.data()).await.unwrap().unwrap_err()), code::STREAM_RESET.id);
    drop(to_server);
    assert!(soon(from_client.data()).await.unwrap().is_err());
}

#[tokio::test]
async fn a_reset_after_the_end_is_no_error() {
    let mut pair = pair(Settings::client(), Settings::server()).await;
    let ((mut from_server, _to_server), (from_client, mut to_client)) = pair.stream().await;
    to_client.data(megabytes(1)).await.unwrap();
    to_client.finish().unwrap();
    // The server wants nothing more: END_STREAM, then RST_STREAM(NO_ERROR).
    drop((from_client, to_client));
    assert_eq!(all(&mut from_server).await.unwrap().len(), 1 << 20);
}

#[tokio::test]
async fn an_idle_sender_learns_of_a_reset() {
    let mut pair = pair(Settings::client(), Settings::server()).await;
    let ((_from_server, mut to_server), (_from_client, mut to_client)) = pair.stream().await;
    to_client.reset();
    let error = soon(to_server.closed()).await;
    assert_eq!(code_of(&error), code::STREAM_RESET.id);
    assert!(to_server.data(megabytes(1)).await.is_err());
}

#[tokio::test]
async fn a_lost_tunnel_is_an_error_on_every_stream() {
    let mut pair = pair(Settings::client(), Settings::server()).await;
    let ((mut from_server, _to_server), _far) = pair.stream().await;
    drop(pair.server);
    let error = soon(from_server.data()).await.unwrap().unwrap_err();
    assert_eq!(code_of(&error), code::TUNNEL_BROKEN.id, "{error}");
    soon(pair.client.closed()).await;
    assert!(!pair.client.is_usable());
}

#[tokio::test]
async fn cutting_a_tunnel_ends_its_streams_with_the_reason() {
    let mut pair = pair(Settings::client(), Settings::server()).await;
    let ((mut from_server, _to_server), (mut from_client, _to_client)) = pair.stream().await;
    pair.cut.cancel();
    assert_eq!(code_of(&soon(from_server.data()).await.unwrap().unwrap_err()), code::DRAINED.id);
    assert!(soon(from_client.data()).await.unwrap().is_err());
}

/// Sends until nothing more fits.
async fn fill(send: &mut Send) -> usize {
    let mut sent = 0;
    // Time is paused: the deadline passes when everything else is stuck.
    while tokio::time::timeout(Duration::from_secs(1), send.data(Bytes::from(vec![0; 16 << 10]))).await.is_ok_and(|sent| sent.is_ok()) {
        sent += 16 << 10;
    }
    sent
}

#[tokio::test(start_paused = true)]
async fn a_slow_reader_holds_one_window_and_others_go_on() {
    let small = Settings { stream_window: 256 << 10, send_buffer: 64 << 10, ..Settings::server() };
    let mut pair = pair(Settings { send_buffer: 64 << 10, ..Settings::client() }, small).await;
    let ((_, mut to_slow), (mut slow, _slow_back)) = pair.stream().await;
    let ((_, mut to_quick), (mut quick, _quick_back)) = pair.stream().await;
    let sent = fill(&mut to_slow).await;
    assert!((256 << 10..=400 << 10).contains(&sent), "window and buffer, not more: {sent}");

    // What was handed out but not written yet holds its credit.
    soon(slow.data()).await.unwrap().unwrap();
    assert_eq!(fill(&mut to_slow).await, 0);

    let send = async {
        to_quick.data(megabytes(4)).await.unwrap();
        to_quick.finish().unwrap();
    };
    let (_, received) = tokio::join!(send, all(&mut quick));
    assert_eq!(received.unwrap().len(), 4 << 20);

    soon(slow.data()).await.unwrap().unwrap();
    let drained = async {
        let mut bytes = 0;
        while let Ok(Some(chunk)) = tokio::time::timeout(Duration::from_secs(1), slow.data()).await {
            bytes += chunk.unwrap().len();
        }
        bytes
    };
    assert!(drained.await > 128 << 10);
    assert!(fill(&mut to_slow).await >= 256 << 10, "the credit is back");
}

/// Over real sockets: a close with unread bytes makes the kernel send a reset, which destroys what is on its way.
#[tokio::test]
async fn an_upload_survives_the_end_of_its_tunnel() {
    let sockets = crate::net::socket::SocketFactory::default();
    let (listener, _) = sockets.listen("127.0.0.1:0".parse().unwrap(), false).unwrap();
    let address = crate::base::addr::NextHop::new(listener.local_addr().unwrap());
    for _ in 0..20 {
        let (near, far) = tokio::join!(sockets.connect(address, None), listener.accept());
        let (near, far) = (near.unwrap(), far.unwrap().0);
        let upload = tokio::spawn(async move {
            let client = Connection::handshake(near, &Settings::client(), CancellationToken::new()).await.unwrap();
            let (_, stream) = done(client.open(&request("10.0.0.1:80"), Arc::new(())).await).unwrap();
            let (mut receive, mut send) = stream.into_split();
            send.data(megabytes(3)).await.unwrap();
            send.finish().unwrap();
            // The server ends its direction before it has read; everything of the client is dropped right after.
            assert!(receive.data().await.is_none());
        });
        let mut server = Server::handshake(far, &Settings::server()).await.unwrap();
        let stream = soon(server.next()).await.unwrap().accept(HeaderMap::new()).unwrap();
        let serve = tokio::spawn(async move { while server.next().await.is_some() {} });
        let (mut receive, mut send) = stream.into_split();
        send.data(Bytes::from_static(b"")).await.unwrap();
        send.finish().unwrap();
        soon(upload).await.unwrap();
        assert_eq!(all(&mut receive).await.unwrap().len(), 3 << 20);
        soon(serve).await.unwrap();
    }
}
