//! How a server may end a stream whose client is not done, told by the `h2` crate.

use h2::Reason as Why;
use h2::server::SendResponse;

use super::*;

/// A tunnel of ours to a server that does with the first request what it is told.
pub(super) async fn served<F: Future<Output = ()> + Send + 'static>(
    serve: impl FnOnce(h2::RecvStream, SendResponse<Bytes>) -> F + Send + 'static,
) -> Client {
    let ca = scratch();
    let (near, far) = sockets().await;
    let (mine, theirs) = (ca.mint(&id("client")).unwrap(), ca.mint(&id("server")).unwrap());
    tokio::spawn(async move {
        let (io, _) = tls::accept(far, &theirs, tls::Versions::Tls13, tls::HANDSHAKE_LIMIT).await.unwrap();
        let mut server = h2::server::handshake(io).await.unwrap();
        let (request, respond) = server.accept().await.unwrap().unwrap();
        tokio::spawn(serve(request.into_body(), respond));
        while server.accept().await.is_some() {}
    });
    let (secured, _) = tls::secured::connect(near, &mine, &[id("server")], tls::HANDSHAKE_LIMIT).await.unwrap();
    Client::start(secured, &own(Settings::client()), CancellationToken::new())
}

const ANSWER: usize = 200_000;

/// An application that has not looked yet at the complete answer to the first of its bytes, and talks on.
async fn answered_early() -> (TcpStream, tokio::task::JoinHandle<Outcome>) {
    let client = served(|mut body, mut respond| async move {
        body.data().await.unwrap().unwrap();
        let mut send = respond.send_response(http::Response::new(()), false).unwrap();
        send.reserve_capacity(ANSWER);
        send.send_data(noise(ANSWER).into(), true).unwrap();
        // Dropped: RST_STREAM(NO_ERROR) behind the end.
    })
    .await;
    let (mut application, near, _) = app(Side::Client).await;
    socket2::SockRef::from(&application).set_recv_buffer_size(8_192).unwrap();
    let carried = tokio::spawn(client.carry(wanted("10.0.0.1:80"), near));
    // As much as the proxy takes: none any more when it knows of the end.
    assert!(tokio::time::timeout(Duration::from_millis(300), talk(&mut application)).await.is_err(), "it is torn before it has heard all");
    assert!(!carried.is_finished(), "it is waited for");
    (application, carried)
}

/// Until it is told that nobody listens.
async fn talk(application: &mut TcpStream) {
    while application.write_all(&[0; 100_000]).await.is_ok() {}
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_application_that_goes_on_talking_hears_all_of_a_complete_answer() {
    let (mut application, carried) = answered_early().await;
    let mut heard = vec![0; ANSWER];
    soon(application.read_exact(&mut heard)).await.unwrap();
    assert!(heard == noise(ANSWER));
    soon(talk(&mut application)).await;
    over(soon(carried).await.unwrap()).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_application_that_does_not_take_its_answer_can_be_cut() {
    let (mut application, carried) = answered_early().await;
    carried.abort();
    soon(talk(&mut application)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reset_of_the_application_behind_the_peer_is_no_failure() {
    // (how the peer tells it, how the connection ended)
    for (reason, expected) in [(Why::CANCEL, None), (Why::CONNECT_ERROR, None), (Why::INTERNAL_ERROR, Some(code::RELAY_FAILED.id))] {
        let client = served(move |mut body, mut respond| async move {
            let mut send = respond.send_response(http::Response::new(()), false).unwrap();
            send.send_data("go on".into(), false).unwrap();
            body.data().await.unwrap().unwrap();
            send.send_reset(reason);
        })
        .await;
        let (mut application, near, _) = app(Side::Client).await;
        let carried = tokio::spawn(client.carry(wanted("10.0.0.1:80"), near));
        soon(application.read_exact(&mut [0; 5])).await.unwrap();
        application.write_all(b"question").await.unwrap();
        soon(application.read(&mut [0; 1])).await.expect_err("it is reset");
        let ended = over(soon(carried).await.unwrap()).err().map(|error| error.code().id);
        assert_eq!(ended, expected, "{reason:?}");
    }
}
