//! Whatever is sent arrives, whoever is at the other end.

use super::link::{Ours, Plan, Rustls, run};
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
        let mut server = Rustls::server(mesh.rustls_server(rustls_suite));
        let (from_far, from_near) = tokio::join!(connecting, run(&mut server, &far, far_plan));
        assert!(from_far == far_plan.data() && from_near.unwrap() == near_plan.data());

        let (near, far) = tcp();
        let accepting = async {
            let far = mesh.accept(far).await.unwrap();
            assert_eq!(far.session.suite(), suite);
            let (mut far, socket) = ours(far);
            run(&mut far, &socket, far_plan).await.unwrap()
        };
        let mut client = Rustls::client(mesh.rustls_client(rustls_suite));
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
