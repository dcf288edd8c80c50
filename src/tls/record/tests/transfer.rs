//! Whatever is sent arrives, whoever is at the other end.

use rustls::HandshakeKind;
use rustls::crypto::aws_lc_rs::kx_group;

use super::link::{Engine, Ours, Plan, Rustls, run};
use super::*;

fn ours(secured: Secured) -> (Ours, TcpStream) {
    (Ours { session: secured.session, input: secured.leftover }, secured.socket)
}

fn plans(number: u64, bytes: usize, refresh: u32) -> (Plan, Plan) {
    (Plan { seed: 2 * number, bytes, refresh }, Plan { seed: 2 * number + 1, bytes, refresh })
}

async fn with_rustls(bytes: usize, refresh: u32) {
    let mesh = Mesh::new();
    for (number, (suite, rustls_suite)) in (0..).zip(SUITES) {
        let (near_plan, far_plan) = plans(number, bytes, refresh);
        let (near, far) = tcp();
        let connecting = async {
            let near = mesh.connect(near).await.unwrap();
            assert_eq!(near.session.suite(), suite);
            let (mut near, socket) = ours(near);
            run(&mut near, &socket, near_plan).await.unwrap()
        };
        let mut server = Rustls::server(mesh.rustls_server(one(rustls_suite)));
        let (from_far, from_near) = tokio::join!(connecting, run(&mut server, &far, far_plan));
        assert!(from_far == far_plan.data() && from_near.unwrap() == near_plan.data());

        let (near, far) = tcp();
        let accepting = async {
            let far = mesh.accept(far).await.unwrap();
            assert_eq!(far.session.suite(), suite);
            let (mut far, socket) = ours(far);
            run(&mut far, &socket, far_plan).await.unwrap()
        };
        let mut client = Rustls::client(mesh.rustls_client(one(rustls_suite)));
        let (from_near, from_far) = tokio::join!(accepting, run(&mut client, &near, near_plan));
        assert!(from_far.unwrap() == far_plan.data() && from_near == near_plan.data());
    }
}

#[tokio::test]
async fn with_rustls_at_the_other_end() {
    with_rustls(4 << 20, 0).await;
}

#[tokio::test]
async fn with_rustls_and_keys_that_change_all_the_time() {
    with_rustls(1 << 20, 4).await;
}

#[tokio::test]
async fn between_sessions() {
    let mesh = Mesh::new();
    for (number, refresh) in [(10, 0), (11, 3)] {
        let (near_plan, far_plan) = plans(number, 2 << 20, refresh);
        let (near, far) = tcp();
        let near = async {
            let (mut near, socket) = ours(mesh.connect(near).await.unwrap());
            run(&mut near, &socket, near_plan).await.unwrap()
        };
        let far = async {
            let (mut far, socket) = ours(mesh.accept(far).await.unwrap());
            run(&mut far, &socket, far_plan).await.unwrap()
        };
        let (from_far, from_near) = tokio::join!(near, far);
        assert!(from_far == far_plan.data() && from_near == near_plan.data());
    }
}

#[tokio::test]
async fn after_a_handshake_in_small_records_and_with_another_key_exchange() {
    let mesh = Mesh::new();
    let (near_plan, far_plan) = plans(20, 100_000, 5);
    // Messages in many records; a server that does not take the key share sent first (HelloRetryRequest).
    let mut config =
        mesh.rustls_server(CryptoProvider { kx_groups: vec![kx_group::SECP384R1], ..(*workload::provider(Versions::Tls13)).clone() });
    config.max_fragment_size = Some(64);
    let (near, far) = tcp();
    let near = async {
        let (mut near, socket) = ours(mesh.connect(near).await.unwrap());
        run(&mut near, &socket, near_plan).await.unwrap()
    };
    let mut server = Rustls::server(config);
    let (from_far, from_near) = tokio::join!(near, run(&mut server, &far, far_plan));
    assert!(from_far == far_plan.data() && from_near.unwrap() == near_plan.data());
    assert_eq!(server.connection.handshake_kind(), Some(HandshakeKind::FullWithHelloRetryRequest));

    let mut config = mesh.rustls_client((*workload::provider(Versions::Tls13)).clone());
    config.max_fragment_size = Some(64);
    let (near, far) = tcp();
    let far = async {
        let (mut far, socket) = ours(mesh.accept(far).await.unwrap());
        run(&mut far, &socket, far_plan).await.unwrap()
    };
    let mut client = Rustls::client(config);
    let (from_near, from_far) = tokio::join!(far, run(&mut client, &near, near_plan));
    assert!(from_far.unwrap() == far_plan.data() && from_near == near_plan.data());
}

#[tokio::test]
async fn an_end_without_close_notify_is_no_end() {
    let mesh = Mesh::new();
    let (near, far) = tcp();
    let mut client = Rustls::client(mesh.rustls_client((*workload::provider(Versions::Tls13)).clone()));
    let far = async {
        let (mut far, socket) = ours(mesh.accept(far).await.unwrap());
        let plan = Plan { seed: 1, bytes: 100, refresh: 0 };
        let error = run(&mut far, &socket, plan).await.unwrap_err();
        (error, far.session.end().unwrap_err())
    };
    let near = async {
        let (mut out, mut read, mut buffer) = (Vec::new(), Vec::new(), [0; 4096]);
        while read.len() < 100 {
            client.flush(&mut out);
            near.writable().await.unwrap();
            near.try_write(&std::mem::take(&mut out)).unwrap();
            near.readable().await.unwrap();
            if let Ok(length) = near.try_read(&mut buffer) {
                client.feed(&buffer[..length], &mut read).unwrap();
            }
        }
        drop(near);
    };
    let ((), (error, end)) = tokio::join!(near, far);
    assert_eq!(error.detail(), "end of file");
    assert!(end.to_string().contains("without sending TLS close_notify"), "{end}");
}
