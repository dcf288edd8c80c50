//! Which connections reach the proxy, and with what they arrive there.

use crate::world::{Dial, accept, both_families, connect, listen, talk};

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
