//! The certificate authority is away, or is asked for what the asking node must not have.

use warren::demo::pod::Outcome;
use warren::demo::story::mesh::{Mesh, text};

use crate::common::sandboxed;
use crate::tools::{
    Held, LIMIT, dump, echo_at, enrolled, line_with_code, listens, metric, metrics, prepared, readiness, soon, wait_for_tunnel,
};

const LOCAL: &str = "spiffe://cluster.local/ns/default/sa/local";

#[test]
fn while_the_authority_is_away_old_identities_work_and_new_ones_are_refused_with_the_reason() {
    sandboxed("certificates::while_the_authority_is_away_old_identities_work_and_new_ones_are_refused_with_the_reason", |dir| {
        let mut mesh = prepared(dir);
        mesh.start_control().unwrap();
        for node in 1..=2 {
            mesh.start_agent(node, &[]).unwrap();
            mesh.start_proxy(node, &[]).unwrap();
        }
        for node in 1..=2 {
            mesh.wait_until_ready(node).unwrap();
        }
        // `local` stays outside: its identity has never been signed.
        enrol(&mut mesh, &["client", "server"]);
        wait_for_tunnel(&mut mesh, "client", "server", 1);
        let serial = serial_of(&mesh, 1, "spiffe://cluster.local/ns/default/sa/client");
        assert!(serial.is_some());

        mesh.kill("control").unwrap();
        enrol(&mut mesh, &["client", "server", "local"]);
        let (address, mark) = (echo_at(&mesh, "server"), mesh.log_mark());
        let line = soon(&mut mesh, "a connection of the new identity is refused", |mesh| {
            let said = mesh.say("local", address, "who am I?").ok()?;
            let line = line_with_code(mesh, 1, &mark, "W3008")?;
            assert_ne!(said.outcome, Outcome::Echoed, "{said:?}");
            Some(line)
        });
        assert_eq!((text(&line, "src.workload"), text(&line, "src.identity")), ("local", LOCAL), "{line}");
        assert!(text(&line, "error").contains("10.77.0.1:15012"), "it says where the authority should be: {line}");
        assert!(text(&line, "error").contains(LOCAL) || text(&line, "src.identity") == LOCAL, "{line}");
        let page = metrics(&mesh, 1);
        assert!(metric(&page, "warren_connections_refused_total", &["code=\"W3008\""]) >= 1.0, "{page}");
        assert!(metric(&page, "istio_tcp_connections_failed_total", &["source_workload=\"local\"", "IDENTITY_ERROR"]) >= 1.0, "{page}");
        let state = state_of(&mesh, 1, LOCAL).unwrap();
        assert!(state.starts_with("Unavailable") && state.contains("W3008"), "{state}");

        // Who has a certificate keeps it, new connections too.
        wait_for_tunnel(&mut mesh, "client", "server", 1);
        assert_eq!(serial_of(&mesh, 1, "spiffe://cluster.local/ns/default/sa/client"), serial);
        assert!(mesh.ready(1));

        mesh.start_control().unwrap();
        wait_for_tunnel(&mut mesh, "local", "server", 1);
        assert_eq!(state_of(&mesh, 1, LOCAL).as_deref(), Some("Available"));
    });
}

#[test]
fn an_authority_at_a_closed_port_does_not_hold_up_discovery() {
    sandboxed("certificates::an_authority_at_a_closed_port_does_not_hold_up_discovery", |dir| {
        let mut mesh = enrolled(dir);
        let mut held = Held::open(&mesh, "client", "local");
        mesh.terminate("proxy-node2").unwrap();
        mesh.start_proxy(2, &[("CA_ADDRESS", "https://10.77.0.1:1")]).unwrap();
        mesh.wait_until_ready(2).unwrap();
        let (address, mark) = (echo_at(&mesh, "server"), mesh.log_mark());
        soon(&mut mesh, "the tunnel cannot be accepted without a certificate", |mesh| {
            let said = mesh.say("client", address, "hello?").ok()?;
            assert_ne!(said.outcome, Outcome::Echoed, "{said:?}");
            line_with_code(mesh, 2, &mark, "W3008")
        });
        held.assert_alive("on the node whose authority works");
    });
}

#[test]
fn a_node_does_not_get_the_identities_of_another() {
    sandboxed("certificates::a_node_does_not_get_the_identities_of_another", |dir| {
        let mut mesh = enrolled(dir);
        // It has to have been served before, or what is let go here may still be on its way in.
        soon(&mut mesh, "local is served", |mesh| listens(mesh, "local", 15001).then_some(()));
        enrol(&mut mesh, &["client", "server"]);
        soon(&mut mesh, "local is let go", |mesh| (!listens(mesh, "local", 15001)).then_some(()));
        mesh.terminate("proxy-node1").unwrap();
        let token = dir.join("token");
        std::fs::copy(mesh.token(1), &token).unwrap();
        mesh.start_proxy(1, &[("AUTH_TOKEN", token.to_str().unwrap())]).unwrap();
        mesh.wait_until_ready(1).unwrap();
        wait_for_tunnel(&mut mesh, "client", "server", 1);

        // From now on it speaks with what it found on the other node: it gets no identity that does not run there.
        std::fs::copy(mesh.token(2), &token).unwrap();
        enrol(&mut mesh, &["client", "server", "local"]);
        let (address, mark) = (echo_at(&mesh, "server"), mesh.log_mark());
        let line = soon(&mut mesh, "the connection is refused", |mesh| {
            let said = mesh.say("local", address, "let me in").ok()?;
            let line = line_with_code(mesh, 1, &mark, "W3009")?;
            assert_ne!(said.outcome, Outcome::Echoed, "{said:?}");
            Some(line)
        });
        let error = text(&line, "error");
        assert!(error.contains("sa/local") && error.contains("W7004") && error.contains("node2"), "{line}");
        mesh.child("control").unwrap().wait_for_output("W7004", LIMIT).unwrap();

        // With its own token again it recovers by itself.
        std::fs::copy(mesh.token(1), &token).unwrap();
        wait_for_tunnel(&mut mesh, "local", "server", 1);
    });
}

#[test]
fn a_proxy_with_another_nodes_token_is_told_so_and_serves_nothing() {
    sandboxed("certificates::a_proxy_with_another_nodes_token_is_told_so_and_serves_nothing", |dir| {
        let mut mesh = enrolled(dir);
        mesh.terminate("proxy-node1").unwrap();
        let stolen = mesh.token(2).display().to_string();
        mesh.start_proxy(1, &[("AUTH_TOKEN", &stolen)]).unwrap();
        let said = soon(&mut mesh, "readiness names the refusal", |mesh| Some(readiness(mesh, 1)).filter(|said| said.contains("W7004")));
        assert!(said.starts_with("HTTP/1.1 500 ") && said.contains("node2") && said.contains("node1"), "{said}");
        assert!(!listens(&mesh, "client", 15001));
    });
}

fn enrol(mesh: &mut Mesh, pods: &[&str]) {
    let set = |file: &mut warren::config::meshfile::MeshFile| {
        file.pods.iter_mut().for_each(|pod| pod.ambient = pods.contains(&pod.name.as_str()));
    };
    mesh.edit(set).expect("the file is written");
}

fn listed(mesh: &Mesh, node: u8, id: &str) -> Option<serde_json::Value> {
    dump(mesh, node)["certificates"].as_array()?.iter().find(|listed| listed["identity"] == id).cloned()
}

fn state_of(mesh: &Mesh, node: u8, id: &str) -> Option<String> {
    listed(mesh, node, id)?["state"].as_str().map(ToOwned::to_owned)
}

fn serial_of(mesh: &Mesh, node: u8, id: &str) -> Option<String> {
    listed(mesh, node, id)?["certChain"][0]["serialNumber"].as_str().map(ToOwned::to_owned)
}
