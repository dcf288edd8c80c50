//! Which connections reach the proxy, and with what they arrive there.

use std::net::SocketAddr;
use std::time::Duration;

use socket2::{Domain, Socket, Type};

use crate::world::{Dial, World, accept, both_families, connect, listen, send_ack, talk};

#[test]
fn what_the_application_opens_arrives_at_the_proxy_with_its_destination() {
    both_families(|world| {
        let proxy = listen(&world.pod, 15001);
        world.enrol();
        let mut client = connect(&world.pod, world.family.host, 8080, Dial::default());
        let mut arrived = accept(&proxy);
        assert_eq!(arrived.original, Some((world.family.host, 8080)));
        assert_eq!(arrived.peer, world.family.pod);
        talk(&mut client, &mut arrived.stream);
    });
}

#[test]
fn plaintext_for_the_application_arrives_at_the_proxy() {
    both_families(|world| {
        let proxy = listen(&world.pod, 15006);
        world.enrol();
        let mut client = connect(&world.host, world.family.pod, 80, Dial::default());
        let mut arrived = accept(&proxy);
        assert_eq!(arrived.original, Some((world.family.pod, 80)));
        assert_eq!(arrived.peer, world.family.host);
        talk(&mut client, &mut arrived.stream);
    });
}

#[test]
fn a_stranger_cannot_open_a_way_past_the_proxy_with_a_stray_segment() {
    both_families(|world| {
        let application = listen(&world.pod, 80);
        world.enrol();
        // The kernel takes a stray segment for the middle of a connection, and from then on translates nothing of it.
        send_ack(world, (world.family.host, 40_000), (world.family.pod, 80));
        assert!(!opens(world, 40_000), "the connection was opened");
        application.set_nonblocking(true).expect("option");
        let error = application.accept().expect_err("the application was reached in plaintext");
        assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock);
    });
}

/// Whether a connection from that port of the host to the application is taken by anybody.
fn opens(world: &World, port: u16) -> bool {
    let socket = world.host.run(|| Socket::new(Domain::for_address((world.family.pod, 80).into()), Type::STREAM, None)).expect("enter");
    let socket = socket.expect("socket");
    socket.bind(&SocketAddr::new(world.family.host, port).into()).expect("bind");
    socket.connect_timeout(&SocketAddr::new(world.family.pod, 80).into(), Duration::from_millis(500)).is_ok()
}

#[test]
fn tunnels_and_probes_are_not_captured() {
    both_families(|world| {
        let (tunnels, application) = (listen(&world.pod, 15008), listen(&world.pod, 80));
        world.enrol();
        let mut tunnel = connect(&world.host, world.family.pod, 15008, Dial::default());
        talk(&mut tunnel, &mut accept(&tunnels).stream);
        let mut probe = connect(&world.host, world.family.pod, 80, Dial { from: Some(world.family.probe), ..Dial::default() });
        let mut arrived = accept(&application);
        assert_eq!(arrived.peer, world.family.probe);
        talk(&mut probe, &mut arrived.stream);
    });
}

#[test]
fn what_the_proxy_opens_is_not_captured() {
    both_families(|world| {
        let server = listen(&world.host, 8080);
        world.enrol();
        let mut upstream = connect(&world.pod, world.family.host, 8080, Dial { marked: true, ..Dial::default() });
        talk(&mut upstream, &mut accept(&server).stream);
    });
}

#[test]
fn the_pod_reaches_itself_directly() {
    both_families(|world| {
        let application = listen(&world.pod, 80);
        world.enrol();
        for own in [world.family.pod, world.family.localhost] {
            let mut client = connect(&world.pod, own, 80, Dial::default());
            let mut arrived = accept(&application);
            assert_eq!(arrived.peer, own);
            talk(&mut client, &mut arrived.stream);
        }
    });
}

#[test]
fn the_proxy_may_call_the_application_in_the_clients_name() {
    both_families(|world| {
        let application = listen(&world.pod, 80);
        world.enrol();
        let dial = Dial { marked: true, from: Some(world.family.host) };
        let mut leg = connect(&world.pod, world.family.pod, 80, dial);
        let mut arrived = accept(&application);
        assert_eq!(arrived.peer, world.family.host, "the application sees the client");
        talk(&mut leg, &mut arrived.stream);
    });
}
