//! Pods that the control plane does not know: their first instruction runs before it can.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::Value;
use warren::demo::pod::Outcome;
use warren::demo::story::mesh::{Mesh, text};

use crate::common::sandboxed;
use crate::tools::{dump, echo_at, line_with_code, metric, metrics, prepared, soon, wait_for_tunnel};

const CLIENT: &str = "spiffe://cluster.local/ns/default/sa/client";

/// Far less than a connection waits for anything that does not come.
const AT_ONCE: Duration = Duration::from_secs(3);

/// A mesh in which only the agent of node 1 knows the pod `local`: it reads a file of its own.
struct Newcomer {
    mesh: Mesh,
    file: PathBuf,
}

impl Newcomer {
    fn new(dir: &Path) -> Self {
        let mut mesh = prepared(dir);
        mesh.edit(|file| {
            file.pods.retain(|pod| pod.name != "local");
            file.pods.iter_mut().for_each(|pod| pod.ambient = ["client", "server"].contains(&pod.name.as_str()));
        })
        .unwrap();
        mesh.start_control().unwrap();
        let mut newcomer = Self { file: dir.join("pods-of-node1.yaml"), mesh };
        newcomer.serve(None);
        let mesh = &mut newcomer.mesh;
        let (source, socket) = (format!("file:{}", newcomer.file.display()), mesh.zds_socket(1).display().to_string());
        let node = mesh.lab().node(1).unwrap().clone();
        let arguments = ["agent", "--source", &source, "--node", "node1", "--zds-socket", &socket, "--drain", "1"];
        mesh.start_child(&node, "agent-node1", &arguments, &[]).unwrap();
        mesh.start_agent(2, &[]).unwrap();
        for node in 1..=2 {
            mesh.start_proxy(node, &[]).unwrap();
            mesh.wait_until_ready(node).unwrap();
        }
        wait_for_tunnel(mesh, "client", "server", 1);
        newcomer
    }

    /// Has the agent serve `client`, and `local` with that service account if one is given.
    fn serve(&self, local: Option<&str>) {
        let pod = |name: &str, account: &str| {
            let place = self.mesh.lab().pod(name).unwrap();
            let (ip, netns) = (place.ip(), place.path.display());
            format!("- {{name: {name}, node: node1, serviceAccount: {account}, ips: [{ip}], netns: {netns}, ambient: true}}\n")
        };
        let local = local.map(|account| pod("local", account)).unwrap_or_default();
        let new = self.file.with_extension("new");
        std::fs::write(&new, format!("pods:\n{}{local}", pod("client", "client"))).unwrap();
        std::fs::rename(new, &self.file).unwrap();
    }

    /// Serves `local`, for the `turn`th time, and returns when its connections go through the proxy.
    fn join(&mut self, account: &str, turn: usize) {
        self.serve(Some(account));
        self.agent_says("enrolled: new connections go through the proxy", turn);
    }

    fn leave(&mut self, turn: usize) {
        self.serve(None);
        self.agent_says("un-enrolled", turn);
    }

    fn agent_says(&mut self, what: &str, turn: usize) {
        soon(&mut self.mesh, &format!("the agent says {what:?} of local"), |mesh| {
            let output = mesh.child("agent-node1").ok()?.output();
            let said = output.lines().filter(|line| line.contains("default/local") && line.contains(what));
            (said.count() >= turn).then_some(())
        });
    }

    /// `local` talks to `server`; gives what node 2 has in its log about it.
    fn talk(&mut self) -> Value {
        let (address, mark) = (echo_at(&self.mesh, "server"), self.mesh.log_mark());
        let started = Instant::now();
        let said = self.mesh.say("local", address, "my first words").unwrap();
        assert_eq!(said.outcome, Outcome::Echoed, "{said:?}");
        assert!(started.elapsed() < AT_ONCE, "nothing was waited for: {said:?}");
        let from = self.mesh.lab().pod("local").unwrap().ip().to_string();
        soon(&mut self.mesh, "the other node has a line about it", |mesh| {
            let lines = mesh.access_log(2, &mark);
            lines.into_iter().find(|line| text(line, "src.addr").starts_with(&from) && !text(line, "dst.hbone_addr").is_empty())
        })
    }

    fn refused(&mut self, code: &str) -> Value {
        let (address, mark) = (echo_at(&self.mesh, "server"), self.mesh.log_mark());
        let said = self.mesh.say("local", address, "who am I?").unwrap();
        assert_eq!(said.outcome, Outcome::Refused, "{said:?}");
        soon(&mut self.mesh, "the refusal is in the log", |mesh| line_with_code(mesh, 1, &mark, code))
    }
}

#[test]
fn a_pod_that_the_control_plane_does_not_know_opens_connections_at_once() {
    sandboxed("newcomers::a_pod_that_the_control_plane_does_not_know_opens_connections_at_once", |dir| {
        let mut newcomer = Newcomer::new(dir);
        newcomer.join("client", 1);
        let mark = newcomer.mesh.log_mark();
        let line = newcomer.talk();
        // The other end knows the pod as little: who it is, TLS says.
        assert_eq!((text(&line, "src.identity"), text(&line, "src.namespace")), (CLIENT, "default"), "{line}");
        let line = soon(&mut newcomer.mesh, "its own node has a line too", |mesh| mesh.access_log(1, &mark).pop());
        assert_eq!(
            (text(&line, "src.workload"), text(&line, "src.namespace"), text(&line, "src.identity")),
            ("local", "default", CLIENT),
            "{line}"
        );
        let page = metrics(&newcomer.mesh, 1);
        let labels = ["reporter=\"source\"", "source_workload_namespace=\"default\"", "sa/client\""];
        assert!(metric(&page, "istio_tcp_connections_opened_total", &labels) >= 1.0, "{page}");

        // What comes in has to wait: policies may be attached to it.
        let address = echo_at(&newcomer.mesh, "local");
        let mark = newcomer.mesh.log_mark();
        let said = newcomer.mesh.say("outside", address, "let me in").unwrap();
        // The client waits about as long as the proxy does before it refuses.
        assert_ne!(said.outcome, Outcome::Echoed, "{said:?}");
        soon(&mut newcomer.mesh, "why is in the log", |mesh| line_with_code(mesh, 1, &mark, "W2010"));
    });
}

#[test]
fn without_the_control_plane_a_new_pod_of_a_known_account_works_and_another_is_told_why_not() {
    sandboxed("newcomers::without_the_control_plane_a_new_pod_of_a_known_account_works_and_another_is_told_why_not", |dir| {
        let mut newcomer = Newcomer::new(dir);
        newcomer.mesh.kill("control").unwrap();
        newcomer.join("client", 1);
        assert_eq!(text(&newcomer.talk(), "src.identity"), CLIENT);

        newcomer.leave(1);
        newcomer.join("stranger", 2);
        let line = newcomer.refused("W3008");
        assert_eq!((text(&line, "src.workload"), text(&line, "src.namespace")), ("local", "default"), "{line}");
        assert_eq!(text(&line, "src.identity"), "spiffe://cluster.local/ns/default/sa/stranger", "{line}");
    });
}

#[test]
fn an_account_whose_last_pod_has_left_is_remembered_for_the_next() {
    sandboxed("newcomers::an_account_whose_last_pod_has_left_is_remembered_for_the_next", |dir| {
        let mut newcomer = Newcomer::new(dir);
        // The control plane lets node 1 have the identity, and never hears of this pod.
        newcomer
            .mesh
            .edit(|file| {
                let mut other = file.pods.iter().find(|pod| pod.name == "client").unwrap().clone();
                (other.name, other.service_account, other.ambient) = ("other".into(), "job".into(), false);
                (other.ips, other.netns) = (vec!["10.77.1.99".parse().unwrap()], None);
                file.pods.push(other);
            })
            .unwrap();
        soon(&mut newcomer.mesh, "the control plane knows the account", |mesh| {
            let all = dump(mesh, 1)["workloads"].as_array().cloned().unwrap_or_default();
            all.iter().any(|workload| workload["name"] == "other").then_some(())
        });
        newcomer.join("job", 1);
        let identity = "spiffe://cluster.local/ns/default/sa/job";
        assert_eq!(text(&newcomer.talk(), "src.identity"), identity);
        newcomer.leave(1);
        newcomer.mesh.kill("control").unwrap();
        newcomer.join("job", 2);
        assert_eq!(text(&newcomer.talk(), "src.identity"), identity);
    });
}
