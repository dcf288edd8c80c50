//! Those who wait for a tunnel's task hear of its end, whatever ends it.

use super::*;

async fn is_reset(mut application: TcpStream) {
    let error = soon(application.read(&mut [0; 1])).await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn an_answer_that_meets_the_end_of_its_tunnel_is_settled() {
    let Pair { client, mut host, .. } = usual().await;
    let (_application, near, _) = app(Side::Client).await;
    let shared = client.shared.clone();
    let opened = tokio::spawn(async move { over(carry(&shared, near).await) });
    let arrival = soon(host.next()).await.unwrap();
    let (server, far, _) = app(Side::Server).await;
    // On one thread: the task sees both at once, and the end comes first.
    let answered = arrival.carry(HeaderMap::new(), far).unwrap();
    drop(host);
    assert_eq!(over(soon(answered).await).unwrap_err().code().id, code::DRAINED.id);
    is_reset(server).await;
    assert!(soon(opened).await.unwrap().is_err());
}

#[test]
fn a_task_that_is_gone_keeps_nobody_waiting() {
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (tunnels, tests) = (runtime(), runtime());
    let mut pair = tunnels.block_on(usual());
    let client = tunnels.block_on(async {
        let mut through = pair.through().await;
        through.client.write_all(b"hello").await.unwrap();
        soon(through.server.read_exact(&mut [0; 5])).await.unwrap();
        through.client.into_std().unwrap()
    });
    // The task does not run any more: this is on its way for ever.
    let (waiting, sent) = tests.block_on(async {
        let (waiting, near, _) = app(Side::Client).await;
        (waiting, pair.client.carry(wanted("10.0.0.1:80"), near))
    });
    drop(tunnels);
    tests.block_on(async {
        soon(pair.client.closed()).await;
        assert!(!pair.client.is_usable());
        assert_eq!(over(soon(sent).await).unwrap_err().code().id, code::INTERNAL.id);
        is_reset(waiting).await;
        is_reset(TcpStream::from_std(client).unwrap()).await;
        let (_late, near, _) = app(Side::Client).await;
        assert!(matches!(soon(pair.client.carry(wanted("10.0.0.1:80"), near)).await, Outcome::Again(..)));
    });
}
