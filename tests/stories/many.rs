//! Very many connections of one pod at once.

use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use serde_json::Value;
use warren::demo::pod::{ECHO_PORT, Idle, Outcome};
use warren::demo::story::mesh::Mesh;

use crate::apps::*;

const COUNT: usize = 10_000;
/// Both proxies together, bytes for each connection.
const COST: u64 = 64 * 1024;
const LIMIT: Duration = Duration::from_secs(60);

#[test]
fn ten_thousand_idle_connections() {
    let count = allowed();
    enrolled("many::ten_thousand_idle_connections", |mesh| {
        let to = at(mesh, "server", ECHO_PORT);
        let before = memories(mesh);
        let arguments = ["idle", &to.to_string(), "--count", &count.to_string()];
        let mut client = mesh.start_application("client", "idle", &arguments).expect("the application starts");
        client.wait_for_output("\n", LIMIT).expect("it reports");
        let report: Idle = serde_json::from_str(client.output().trim()).expect("a report");
        mesh.check().expect("nothing has ended");

        println!("{report:?}");
        assert_eq!((report.open, report.failed), (count, 0), "{report:?}");
        let open = report.open;
        let cost = memories(mesh).saturating_sub(before) / open as u64;
        println!("{open} idle connections cost {cost} bytes each in both proxies together");
        assert!(cost <= COST, "{cost} bytes for each connection");
        for node in 1..=2 {
            let reported = gauge(mesh, node, "process_resident_memory_bytes ");
            assert!(reported.abs_diff(memory(mesh, node)) < 16 << 20, "node{node} reports {reported} bytes");
        }
        assert_eq!(connections(mesh, 1, "outbound"), open);
        assert_eq!(connections(mesh, 2, "inbound"), open);
        assert_eq!(talks(mesh, "client", to), Outcome::Echoed, "new connections are served");
        assert_eq!(talks(mesh, "local", to), Outcome::Echoed, "other pods are served");

        // Its standard input ends with it.
        drop(client);
        let gone = mesh.until(LIMIT, "all connections are closed", |mesh| {
            let left = connections(mesh, 1, "outbound") + connections(mesh, 2, "inbound");
            let held = gauge(mesh, 1, "istio_tcp_sockets_open{reporter=\"source\"} ");
            (left == 0 && held == 0).then_some(())
        });
        gone.unwrap_or_else(|error| {
            panic!("{error}: {} outbound, {} inbound", connections(mesh, 1, "outbound"), connections(mesh, 2, "inbound"))
        });
        assert_eq!(talks(mesh, "client", to), Outcome::Echoed);
        let after = memories(mesh);
        println!("memory: {before} before, {after} after they are closed");
        assert!(after < before + COST * open as u64, "{after} bytes");
        // What is left are tunnels, which wait for the next connections.
        let tunnels = gauge(mesh, 2, "istio_tcp_sockets_open{reporter=\"destination\"} ");
        assert!(tunnels <= open as u64 / 50, "{tunnels} sockets are held");
    });
}

/// How many connections this machine allows: a proxy keeps a part of its descriptors from a single pod. The soft limit is
/// raised, and children inherit it.
fn allowed() -> usize {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("a limit");
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).expect("up to the hard limit anybody may");
    let allowed = usize::try_from(hard).unwrap_or(usize::MAX).saturating_sub(256) / 3 * 2;
    if allowed < COUNT {
        println!("{hard} descriptors: {allowed} connections instead of {COUNT}");
    }
    allowed.min(COUNT)
}

/// A value of a node's metrics page, 0 when it is not there.
fn gauge(mesh: &Mesh, node: u8, name: &str) -> u64 {
    let page = metrics(mesh, node);
    page.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok()).unwrap_or_default()
}

/// How many open connections a node's proxy lists.
fn connections(mesh: &Mesh, node: u8, direction: &str) -> usize {
    let answer = mesh.admin(node, "/config_dump").expect("the proxy answers");
    let dump: Value = serde_json::from_str(body(&answer)).expect("JSON");
    let pods = dump["workloadState"].as_object().expect("pods by uid");
    pods.values().map(|pod| pod["connections"][direction].as_array().expect("a list").len()).sum()
}

fn body(answer: &str) -> &str {
    answer.split_once("\r\n\r\n").expect("a head").1
}
