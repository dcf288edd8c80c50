//! The control plane is not there yet, goes away, and comes back.

use serde_json::Value;
use warren::demo::story::mesh::{MESHED, Mesh, text};

use crate::common::sandboxed;
use crate::tools::{Held, LIMIT, assert_echoed, dump, enrolled, listens, metric, metrics, prepared, readiness, soon, wait_for_tunnel};

#[test]
fn a_proxy_that_starts_first_waits_and_serves_when_it_comes() {
    sandboxed("control_plane::a_proxy_that_starts_first_waits_and_serves_when_it_comes", |dir| {
        let mut mesh = prepared(dir);
        // It has run before: tokens and root certificate are there, nobody listens.
        mesh.start_control().unwrap();
        mesh.kill("control").unwrap();
        wait_then_serve(mesh, "W4001", "onnection refused");
    });
}

#[test]
fn a_proxy_waits_for_a_control_plane_that_never_ran() {
    sandboxed("control_plane::a_proxy_waits_for_a_control_plane_that_never_ran", |dir| {
        wait_then_serve(prepared(dir), "W3011", "tokens/node1: No such file");
    });
}

fn wait_then_serve(mut mesh: Mesh, code: &str, reason: &str) {
    mesh.enrol(true).unwrap();
    for node in 1..=2 {
        mesh.start_agent(node, &[]).unwrap();
        mesh.start_proxy(node, &[]).unwrap();
    }
    let address = mesh.control_address().unwrap();
    let said = soon(&mut mesh, "the proxy says what it misses", |mesh| Some(readiness(mesh, 1)).filter(|said| said.contains(code)));
    assert!(said.starts_with("HTTP/1.1 500 "), "{said}");
    assert!(said.contains("state manager: waits for addresses and policies") && said.contains("workload proxy manager: waits"), "{said}");
    assert!(said.contains(&address) && said.contains(reason), "{said}");
    // The agent has the pods on offer, the proxy must not take them: without policies they would be open.
    for node in 1..=2 {
        mesh.child(&format!("agent-node{node}")).unwrap().wait_for_output("no proxy is connected", LIMIT).unwrap();
    }
    for pod in MESHED {
        assert!(!listens(&mesh, pod, 15001) && !listens(&mesh, pod, 15008), "{pod}");
    }
    // And nothing is redirected into the void.
    assert_echoed(&mut mesh, "client", "server");
    let pids = |mesh: &Mesh| mesh.children().iter().map(|child| child.pid()).collect::<Vec<_>>();
    let before = pids(&mesh);

    mesh.start_control().unwrap();
    for node in 1..=2 {
        soon(&mut mesh, "the proxy is ready", |mesh| mesh.ready(node).then_some(()));
    }
    wait_for_tunnel(&mut mesh, "client", "server", 1);
    assert!(listens(&mesh, "server", 15008));
    assert!(pids(&mesh).starts_with(&before), "nobody was restarted");
}

#[test]
fn without_it_the_mesh_goes_on_and_catches_up_later() {
    sandboxed("control_plane::without_it_the_mesh_goes_on_and_catches_up_later", |dir| {
        let mut mesh = enrolled(dir);
        let mut held = Held::open(&mesh, "client", "server");
        mesh.kill("control").unwrap();
        let terminations = |mesh: &_, reason: &str| metric(&metrics(mesh, 1), "istio_xds_connection_terminations_total", &[reason]);
        soon(&mut mesh, "the loss is counted", |mesh| (terminations(mesh, "") >= 1.0).then_some(()));
        soon(&mut mesh, "attempts are counted", |mesh| (terminations(mesh, "reason=\"ConnectionError\"") >= 1.0).then_some(()));

        held.assert_alive("after the control plane is gone");
        let mark = mesh.log_mark();
        assert_echoed(&mut mesh, "client", "server");
        let tunnelled = |lines: Vec<Value>| lines.iter().any(|line| !text(line, "dst.hbone_addr").is_empty());
        soon(&mut mesh, "a new connection takes the tunnel", |mesh| tunnelled(mesh.access_log(1, &mark)).then_some(()));
        assert!(mesh.ready(1) && mesh.ready(2), "{}", readiness(&mesh, 1));

        // A change that it has to find by itself when it is back: the service gets another name.
        mesh.edit(|file| file.services[0].name = "renamed".to_owned()).unwrap();
        mesh.start_control().unwrap();
        for node in 1..=2 {
            soon(&mut mesh, "the proxies hear of the change", |mesh| {
                let services = dump(mesh, node)["services"].as_array().cloned().unwrap_or_default();
                (services.len() == 1 && services[0]["name"] == "renamed").then_some(())
            });
        }
        held.assert_alive("after the control plane is back");
        wait_for_tunnel(&mut mesh, "client", "server", 1);
    });
}
