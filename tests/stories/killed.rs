//! The proxy is killed: it is back at once, as often as that happens.

use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use warren::demo::story::mesh::Mesh;

use crate::common::sandboxed;
use crate::tools::{LIMIT, prepared, soon, wait_for_tunnel};

#[test]
fn a_killed_proxy_is_started_again_at_once_and_ends_when_asked() {
    sandboxed("killed::a_killed_proxy_is_started_again_at_once_and_ends_when_asked", |dir| {
        let mut mesh = prepared(dir);
        mesh.start_control().unwrap();
        for node in 1..=2 {
            mesh.start_agent(node, &[]).unwrap();
            mesh.start_proxy(node, &[("WARREN_SUPERVISE", "true")]).unwrap();
            mesh.wait_until_ready(node).unwrap();
        }
        mesh.enrol(true).unwrap();
        mesh.wait_until_enrolled().unwrap();
        let parent = mesh.child("proxy-node1").unwrap().pid();
        for _ in 0..3 {
            let worker = worker(&mut mesh, parent);
            kill(worker, Signal::SIGKILL).unwrap();
            let begun = Instant::now();
            soon(&mut mesh, "another process", |_| (children(parent) != [worker]).then_some(()));
            wait_for_tunnel(&mut mesh, "client", "server", 1);
            assert!(begun.elapsed() < LIMIT / 4, "{:?}", begun.elapsed());
        }
        assert_eq!(mesh.child("proxy-node1").unwrap().pid(), parent);
        let last = worker(&mut mesh, parent);
        let status = mesh.terminate("proxy-node1").unwrap().expect("it ends by itself");
        assert!(status.success(), "{status}");
        assert!(!std::path::Path::new(&format!("/proc/{last}")).exists(), "nothing is left");
    });
}

#[test]
fn a_proxy_that_cannot_start_is_not_started_for_ever() {
    sandboxed("killed::a_proxy_that_cannot_start_is_not_started_for_ever", |dir| {
        let mut mesh = prepared(dir);
        mesh.start_proxy(1, &[("WARREN_SUPERVISE", "true"), ("XDS_ADDRESS", "http://not.encrypted")]).unwrap();
        let mut proxy = mesh.take("proxy-node1").unwrap();
        let begun = Instant::now();
        let status = loop {
            if let Some(status) = proxy.ended() {
                break status;
            }
            assert!(begun.elapsed() < Duration::from_secs(9), "it gives up");
            std::thread::park_timeout(Duration::from_millis(10));
        };
        assert_eq!(status.code(), Some(1));
        assert_eq!(proxy.output().matches("(W0002)").count(), 1, "{}", proxy.output());
    });
}

fn worker(mesh: &mut Mesh, parent: u32) -> Pid {
    soon(mesh, "a worker", |_| children(parent).first().copied())
}

fn children(parent: u32) -> Vec<Pid> {
    let text = std::fs::read_to_string(format!("/proc/{parent}/task/{parent}/children")).unwrap_or_default();
    text.split_ascii_whitespace().filter_map(|pid| pid.parse().ok()).map(Pid::from_raw).collect()
}
