//! A proxy is told to end: what is open finishes, nothing new comes in, and the end comes in time.

use std::process::ExitStatus;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use warren::demo::lab::Child;
use warren::demo::story::mesh::{Mesh, Port, text};
use warren::demo::wait::wait_for;

use crate::common::sandboxed;
use crate::tools::{Held, LIMIT, Traffic, body, enrolled, listens, soon, wait_for_tunnel};

const DEADLINE: &str = "CONNECTION_TERMINATION_DEADLINE";

#[test]
fn open_connections_finish_and_nothing_new_comes_in() {
    sandboxed("shutdown::open_connections_finish_and_nothing_new_comes_in", |dir| {
        // At both ends of a tunnel: the proxy that opened it, and the one that accepted it.
        for (node, pod, port) in [(1, "client", 15001), (2, "server", 15008)] {
            let dir = dir.join(format!("node{node}"));
            std::fs::create_dir(&dir).unwrap();
            let mut mesh = enrolled_with(&dir, node, "60s");
            let mut held = Held::open(&mesh, "client", "server");
            let mut proxy = terminate(&mut mesh, node);
            let begun = Instant::now();
            soon(&mut mesh, "readiness and listeners close", |mesh| {
                (mesh.http(node, Port::Ready, "GET", "/healthz/ready").is_err() && !listens(mesh, pod, port)).then_some(())
            });
            assert!(begun.elapsed() < Duration::from_secs(2), "at once: {:?}", begun.elapsed());
            held.assert_alive("while the proxy drains");
            assert!(proxy.ended().is_none());
            drop(held);
            let status = end_of(&mut proxy);
            assert!(status.success(), "{status}");
            assert!(begun.elapsed() < Duration::from_secs(10), "it ends with its last connection: {:?}", begun.elapsed());
            assert!(!proxy.output().contains("W0007"), "nothing was cut");
            mesh.stop();
        }
    });
}

#[test]
fn a_connection_that_does_not_end_is_cut_at_the_deadline() {
    sandboxed("shutdown::a_connection_that_does_not_end_is_cut_at_the_deadline", |dir| {
        let mut mesh = enrolled_with(dir, 1, "1s");
        let mut held = Held::open(&mesh, "client", "server");
        let mut proxy = terminate(&mut mesh, 1);
        let begun = Instant::now();
        let status = end_of(&mut proxy);
        assert!(status.success(), "{status}");
        let took = begun.elapsed();
        assert!(took >= Duration::from_secs(1) && took < Duration::from_secs(5), "{took:?}");
        assert!(held.echo("too late").is_err(), "the application sees the end");
        let output = proxy.output();
        let cut = output.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
        let cut = cut.into_iter().find(|line| text(line, "code") == "W0007").unwrap_or_else(|| panic!("the access log has it: {output}"));
        assert_eq!((text(&cut, "src.workload"), text(&cut, "dst.workload")), ("client", "server"), "{cut}");
    });
}

#[test]
fn a_second_interrupt_ends_at_once() {
    sandboxed("shutdown::a_second_interrupt_ends_at_once", |dir| {
        let mut mesh = enrolled_with(dir, 1, "60s");
        let _held = Held::open(&mesh, "client", "server");
        let mut proxy = mesh.take("proxy-node1").unwrap();
        proxy.signal(Signal::SIGINT);
        proxy.wait_for_output("\"draining\"", LIMIT).unwrap();
        soon(&mut mesh, "listeners close", |mesh| (!listens(mesh, "client", 15001)).then_some(()));
        // A repeated SIGTERM is what a supervisor does: it changes nothing.
        proxy.signal(Signal::SIGTERM);
        assert!(proxy.ended().is_none());
        let begun = Instant::now();
        proxy.signal(Signal::SIGINT);
        let status = end_of(&mut proxy);
        assert_eq!(status.code(), Some(130), "{status}");
        assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
    });
}

#[test]
fn the_admin_api_ends_it_too() {
    sandboxed("shutdown::the_admin_api_ends_it_too", |dir| {
        let mut mesh = enrolled(dir);
        let refused = mesh.http(1, Port::Admin, "GET", "/quitquitquit").unwrap();
        assert!(refused.starts_with("HTTP/1.1 405 "), "{refused}");
        assert!(mesh.ready(1));
        let mut proxy = mesh.take("proxy-node1").unwrap();
        let said = mesh.http(1, Port::Admin, "POST", "/quitquitquit").unwrap();
        assert_eq!(body(&said), "shutdown now\n");
        let status = end_of(&mut proxy);
        assert!(status.success(), "{status}");
    });
}

#[test]
fn two_proxies_overlap_without_a_refused_connection() {
    sandboxed("shutdown::two_proxies_overlap_without_a_refused_connection", |dir| {
        let mut mesh = enrolled(dir);
        for node in [1, 2] {
            let old = format!("proxy-node{node}");
            let mut held = Held::open(&mesh, "client", "server");
            let traffic = [Traffic::start(&mesh, "client", "server"), Traffic::start(&mesh, "local", "server")];
            mesh.start_proxy_as("next", node, &[]).unwrap();
            let next = mesh.child("next").unwrap();
            // Both answer on the readiness port now: its own word is needed.
            let ready = r#""message":"ready","part":"workload proxy manager""#;
            next.wait_for_output(ready, LIMIT).unwrap();
            let mut ending = terminate(&mut mesh, node);
            soon(&mut mesh, "the old one has let go of the pods", |_| ending.output().contains("draining").then_some(()));
            held.assert_alive("while the old proxy drains");
            drop(held);
            let status = end_of(&mut ending);
            assert!(status.success(), "{status}");
            for traffic in &traffic {
                traffic.wait_for_more(50);
            }
            for traffic in traffic {
                traffic.assert_unharmed();
            }
            soon(&mut mesh, "connections go through the new one", |mesh| {
                mesh.child("next").unwrap().output().contains("connection complete").then_some(())
            });
            mesh.rename("next", &old).unwrap();
            wait_for_tunnel(&mut mesh, "client", "server", node);
        }
    });
}

fn enrolled_with(dir: &std::path::Path, node: u8, deadline: &str) -> Mesh {
    let mut mesh = crate::tools::started(dir);
    mesh.terminate(&format!("proxy-node{node}")).unwrap();
    mesh.start_proxy(node, &[(DEADLINE, deadline)]).unwrap();
    mesh.wait_until_ready(node).unwrap();
    mesh.enrol(true).unwrap();
    mesh.wait_until_enrolled().unwrap();
    mesh
}

fn terminate(mesh: &mut Mesh, node: u8) -> Child {
    let mut proxy = mesh.take(&format!("proxy-node{node}")).unwrap();
    proxy.signal(Signal::SIGTERM);
    proxy
}

fn end_of(child: &mut Child) -> ExitStatus {
    wait_for(LIMIT, "it ends", || child.ended()).unwrap_or_else(|error| panic!("{error}:\n{}", child.output()))
}
