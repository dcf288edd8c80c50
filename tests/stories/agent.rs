//! The node agent dies, comes back, or ends in order.

use std::time::Duration;

use nix::sys::signal::Signal;
use warren::demo::pod::Outcome;
use warren::demo::story::mesh::Port;

use crate::common::sandboxed;
use crate::tools::{
    Held, LIMIT, Traffic, assert_echoed, dump, echo_at, enrolled, listens, metric, metrics, readiness, soon, wait_for_tunnel,
};

#[test]
fn a_killed_agent_costs_no_connection_and_its_successor_catches_up() {
    sandboxed("agent::a_killed_agent_costs_no_connection_and_its_successor_catches_up", |dir| {
        let mut mesh = enrolled(dir);
        wait_for_tunnel(&mut mesh, "local", "server", 1);
        let mut held = Held::open(&mesh, "client", "server");
        let mut within = Held::open(&mesh, "local", "server");
        let traffic = Traffic::start(&mesh, "client", "server");
        for node in 1..=2 {
            mesh.kill(&format!("agent-node{node}")).unwrap();
        }
        let said = soon(&mut mesh, "the proxy says that it is alone", |mesh| {
            Some(readiness(mesh, 1)).filter(|said| said.starts_with("HTTP/1.1 500 "))
        });
        assert!(said.contains("workload proxy manager: ") && said.contains("zds-node1.sock") && said.contains("W5001"), "{said}");
        held.assert_alive("without an agent");
        within.assert_alive("without an agent");
        assert_eq!(dump(&mesh, 1)["workloadState"].as_object().map(serde_json::Map::len), Some(2), "pods go on being served");

        // While nobody looks, one pod leaves the mesh and another joins.
        mesh.edit(|file| {
            for pod in &mut file.pods {
                pod.ambient = ["client", "server", "outside"].contains(&pod.name.as_str());
            }
        })
        .unwrap();
        for node in 1..=2 {
            mesh.start_agent(node, &[]).unwrap();
        }
        for node in 1..=2 {
            soon(&mut mesh, "the proxy is ready again", |mesh| mesh.ready(node).then_some(()));
        }
        soon(&mut mesh, "the new pod is served", |mesh| listens(mesh, "outside", 15008).then_some(()));
        wait_for_tunnel(&mut mesh, "client", "outside", 2);
        soon(&mut mesh, "the pod that left is let go", |mesh| (!listens(mesh, "local", 15001)).then_some(()));
        assert_echoed(&mut mesh, "local", "server");
        held.assert_alive("after the successor has taken over");
        traffic.assert_unharmed();
        let page = metrics(&mesh, 1);
        assert_eq!(metric(&page, "workload_manager_active_proxy_count", &[]), 1.0, "{page}");
    });
}

#[test]
fn an_agent_that_ends_in_order_takes_the_pods_out() {
    sandboxed("agent::an_agent_that_ends_in_order_takes_the_pods_out", |dir| {
        let mut mesh = enrolled(dir);
        for node in 1..=2 {
            let status = mesh.terminate(&format!("agent-node{node}")).unwrap().expect("it ends by itself");
            assert!(status.success(), "{status}");
        }
        mesh.wait_until_left().unwrap();
        soon(&mut mesh, "the proxies let them go", |mesh| (!listens(mesh, "server", 15008)).then_some(()));
        let mark = mesh.log_mark();
        assert_echoed(&mut mesh, "client", "server");
        assert!(mesh.access_log(1, &mark).is_empty() && mesh.access_log(2, &mark).is_empty(), "it went direct");
    });
}

#[test]
fn an_agent_that_is_to_keep_leaves_them_in() {
    sandboxed("agent::an_agent_that_is_to_keep_leaves_them_in", |dir| {
        let mut mesh = enrolled(dir);
        mesh.kill("agent-node1").unwrap();
        mesh.start_agent(1, &["--keep-on-exit"]).unwrap();
        mesh.wait_until_ready(1).unwrap();
        let mut held = Held::open(&mesh, "client", "server");
        let status = mesh.terminate("agent-node1").unwrap().expect("it ends by itself");
        assert!(status.success(), "{status}");
        wait_for_tunnel(&mut mesh, "client", "server", 1);
        held.assert_alive("after the agent has ended");

        // A proxy that starts without an agent takes no pod: what is redirected is refused, not sent in clear text.
        let mut proxy = mesh.take("proxy-node1").unwrap();
        proxy.signal(Signal::SIGKILL);
        drop(proxy);
        let address = echo_at(&mesh, "server");
        let said = mesh.say("client", address, "in clear text?").unwrap();
        assert_eq!(said.outcome, Outcome::Refused, "{said:?}");
        mesh.start_proxy(1, &[]).unwrap();
        soon(&mut mesh, "it waits for an agent", |mesh| {
            mesh.http(1, Port::Ready, "GET", "/healthz/ready").ok().filter(|said| said.contains("W5001"))
        });
        mesh.start_agent(1, &[]).unwrap();
        mesh.until(LIMIT + Duration::from_secs(5), "ready again", |mesh| mesh.ready(1).then_some(())).unwrap();
        wait_for_tunnel(&mut mesh, "client", "server", 1);
    });
}
