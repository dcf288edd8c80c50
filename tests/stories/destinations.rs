//! Destinations that refuse or are silent: the application learns it in time, the operator reads why.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use warren::agent::redirect::port;
use warren::config::meshfile::Service;
use warren::demo::pod::{ECHO_PORT, Outcome};
use warren::demo::story::mesh::{Mesh, text};

use crate::apps::*;

/// Nobody listens there.
const CLOSED: u16 = 9999;
/// For what is refused and not waited for.
const AT_ONCE: Duration = Duration::from_secs(2);
/// Deadlines are ten seconds: two of them one after the other would be later.
const ONE_DEADLINE: Duration = Duration::from_secs(15);

#[test]
fn a_closed_port_is_told_by_both_ends() {
    enrolled("destinations::a_closed_port_is_told_by_both_ends", |mesh| {
        for (pod, node) in [("server", 2), ("local", 1)] {
            let mark = mesh.log_mark();
            refused_at_once(mesh, at(mesh, pod, CLOSED));
            let outbound = line(mesh, 1, &mark, "W1010");
            assert!(text(&outbound, "error").contains("503") && text(&outbound, "direction") == "outbound", "{outbound}");
            let inbound = line(mesh, node, &mark, "W2007");
            assert_eq!(text(&inbound, "dst.hbone_addr"), at(mesh, pod, CLOSED).to_string(), "{inbound}");
        }
        let mark = mesh.log_mark();
        refused_at_once(mesh, at(mesh, "outside", CLOSED));
        line(mesh, 1, &mark, "W1002");
    });
}

#[test]
fn a_service_without_endpoints_refuses() {
    const VIP: Ipv4Addr = Ipv4Addr::new(10, 77, 99, 3);
    enrolled("destinations::a_service_without_endpoints_refuses", |mesh| {
        let service = Service {
            name: "deserted".to_owned(),
            namespace: "default".to_owned(),
            hostname: None,
            vips: vec![IpAddr::V4(VIP)],
            ports: [(80, ECHO_PORT)].into(),
            selector: [("app".to_owned(), "nobody".to_owned())].into(),
        };
        mesh.edit(|file| file.services.push(service)).expect("the file can be written");
        knows(mesh, "deserted.default.svc.cluster.local");
        let mark = mesh.log_mark();
        refused_at_once(mesh, SocketAddr::from((VIP, 80)));
        line(mesh, 1, &mark, "W1004");
    });
}

#[test]
fn the_proxys_own_ports_are_not_for_applications() {
    enrolled("destinations::the_proxys_own_ports_are_not_for_applications", |mesh| {
        for (to, node) in [
            (SocketAddr::from((Ipv4Addr::LOCALHOST, port::OUTBOUND)), 1),
            (SocketAddr::from((Ipv4Addr::LOCALHOST, port::INBOUND)), 1),
            (at(mesh, "server", port::OUTBOUND), 2),
            (at(mesh, "server", port::INBOUND), 2),
            (at(mesh, "server", port::TUNNEL), 2),
            (at(mesh, "local", port::TUNNEL), 1),
        ] {
            let mark = mesh.log_mark();
            refused_at_once(mesh, to);
            let line = line(mesh, node, &mark, "W1006");
            assert!(text(&line, "error").contains(&to.to_string()), "{line}");
        }
        // Also without a tunnel.
        for own in [port::OUTBOUND, port::INBOUND] {
            let mark = mesh.log_mark();
            let to = at(mesh, "server", own);
            is_reset(mesh, "outside", to);
            line(mesh, 2, &mark, "W1006");
        }
        assert_eq!(talks(mesh, "client", at(mesh, "server", ECHO_PORT)), Outcome::Echoed);
    });
}

#[test]
fn a_pod_that_is_not_captured_refuses_the_tunnel() {
    enrolled("destinations::a_pod_that_is_not_captured_refuses_the_tunnel", |mesh| {
        let vault = stage_vault(mesh);
        let mark = mesh.log_mark();
        refused_at_once(mesh, vault);
        line(mesh, 1, &mark, "W1008");
    });
}

#[test]
fn an_application_that_is_silent_costs_one_deadline() {
    enrolled("destinations::an_application_that_is_silent_costs_one_deadline", |mesh| {
        let (server, node) = (mesh.lab().pod("server").expect("a pod").clone(), mesh.lab().node(2).expect("a node").clone());
        let on = SocketAddr::from((Ipv4Addr::UNSPECIFIED, PORT));
        let ((tunnelled, _a), (plain, _b)) = (Server::full(&server, on), Server::full(&node, on));
        let mark = mesh.log_mark();
        all_end_after_one_deadline(mesh, &[tunnelled.addr, plain.addr, tunnelled.addr, plain.addr]);
        assert!(text(&line(mesh, 1, &mark, "W1010"), "error").contains("503"));
        count(mesh, 2, &mark, "W2006", 2);
        count(mesh, 1, &mark, "W1001", 2);
        assert_eq!(talks(mesh, "client", at(mesh, "server", ECHO_PORT)), Outcome::Echoed);
    });
}

#[test]
fn a_proxy_that_is_silent_costs_all_its_clients_one_deadline() {
    const CLIENTS: usize = 20;
    enrolled("destinations::a_proxy_that_is_silent_costs_all_its_clients_one_deadline", |mesh| {
        // Takes connections and says nothing.
        let mute = stage_vault(mesh);
        let _mute = Server::start_at(mesh, "outside", SocketAddr::new(mute.ip(), port::TUNNEL));
        // Does not even take them.
        let outside = mesh.lab().pod("outside").expect("a pod").clone();
        let deaf = at(mesh, "outside", ECHO_PORT);
        let full = Server::full(&outside, SocketAddr::new(deaf.ip(), port::TUNNEL));
        mesh.edit(|file| {
            let pod = pod(file, "outside");
            pod.ambient = true;
            pod.node = "node4".to_owned();
        })
        .expect("the file can be written");
        knows(mesh, "node4");
        let mark = mesh.log_mark();
        let all: Vec<_> = [mute, deaf].into_iter().cycle().take(2 * CLIENTS).collect();
        all_end_after_one_deadline(mesh, &all);
        count(mesh, 1, &mark, "W3002", CLIENTS);
        count(mesh, 1, &mark, "W1007", CLIENTS);
        drop(full);
    });
}

/// The client gets a reset at once.
fn refused_at_once(mesh: &Mesh, to: SocketAddr) {
    let start = Instant::now();
    is_reset(mesh, "client", to);
    assert!(start.elapsed() < AT_ONCE, "{to}: {:?}", start.elapsed());
}

/// Connections to all of these, opened at once, are reset after a deadline that they wait for together.
fn all_end_after_one_deadline(mesh: &Mesh, to: &[SocketAddr]) {
    let start = Instant::now();
    std::thread::scope(|scope| {
        for to in to {
            scope.spawn(move || is_reset(mesh, "client", *to));
        }
    });
    assert!(start.elapsed() < ONE_DEADLINE, "{:?}", start.elapsed());
}
