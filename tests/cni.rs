//! The CNI plugin as a container runtime runs it: a process of its own, in front of it real namespaces, behind it the
//! agent's server.
#![allow(clippy::expect_used, clippy::panic, reason = "helpers of tests are test code")]

mod common;

use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::{WARREN, sandboxed_async};
use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, listen, socket};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::process::Command;
use warren::agent::cni::{Metrics, NodeState, Report, Server, Settings};
use warren::agent::sandbox::{Sandbox, Sandboxes, Verdict};
use warren::base::{Error, Result, code, drain};
use warren::demo::lab::{Lab, PodSpec};
use warren::net::NetNs;
use warren::net::seqpacket::Connection;

/// How long anything may take; longer than the plugin waits for its agent.
const LIMIT: Duration = Duration::from_secs(20);

const PREVIOUS: &str = r#"{ "interfaces":[{"name":"eth0","sandbox":"/x"}],"ips":[{"interface":0,"address":"10.77.1.10/24"}, {"address":"fd00::a/64"}],"dns":{} }"#;

/// A node's pods, each of which fares as its name says.
#[derive(Default)]
struct Pods {
    added: Mutex<Vec<Sandbox>>,
    deleted: Mutex<Vec<String>>,
}

impl Sandboxes for Pods {
    async fn add(&self, sandbox: Sandbox, limit: Duration) -> Result<Verdict> {
        let name = sandbox.name.clone();
        self.added.lock().push(sandbox);
        match &*name {
            "outside" => Ok(Verdict::NotInMesh("no label asks for it")),
            "broken" => Err(Error::new(&code::REDIRECT_FAILED, "nf_tables is \"not\" there\n")),
            "slow" => {
                tokio::time::sleep(Duration::from_millis(300)).await;
                Ok(Verdict::Enrolled)
            }
            "stuck" => {
                tokio::time::sleep(limit * 2).await;
                Ok(Verdict::Enrolled)
            }
            _ => Ok(Verdict::Enrolled),
        }
    }

    async fn del(&self, uid: &str, container_id: &str) {
        self.deleted.lock().push(format!("{uid} {container_id}"));
    }
}

/// A node with one pod's namespace, a place for the plugin, and no agent.
struct Node {
    directory: PathBuf,
    netns: PathBuf,
    pods: Arc<Pods>,
}

/// How a call ended: what was written, and whether it was well.
type Ended = (String, bool);

impl Node {
    fn new(directory: PathBuf) -> Self {
        let lab = Lab::two_nodes(&directory, &[PodSpec { name: "pod", node: 1, hosts: &[10] }]).expect("a lab");
        let netns = lab.pod("pod").expect("made").path.clone();
        Self { directory, netns, pods: Arc::default() }
    }

    fn socket(&self) -> PathBuf {
        self.directory.join("cni.sock")
    }

    /// An agent that answers until the trigger is used or dropped.
    fn serve(&self) -> drain::Trigger {
        let (trigger, watch) = drain::new();
        let server = Server::bind(&self.socket(), self.pods.clone(), Metrics::default()).expect("bind");
        tokio::spawn(server.run(watch));
        trigger
    }

    fn config(&self, version: &str) -> String {
        let socket = self.socket();
        format!(
            r#"{{"cniVersion":"{version}","name":"pods","type":"warren","socket":{:?},"excludeNamespaces":["kube-system"],"prevResult":{PREVIOUS}}}"#,
            socket.to_str().expect("UTF-8")
        )
    }

    async fn call(&self, command: &str, namespace: &str, name: &str) -> Ended {
        let args = format!(
            "IgnoreUnknown=1;K8S_POD_NAMESPACE={namespace};K8S_POD_NAME={name};K8S_POD_INFRA_CONTAINER_ID=c1;K8S_POD_UID=uid-{name}"
        );
        self.run(Path::new(WARREN), command, &args, &self.config("1.1.0")).await
    }

    async fn run(&self, program: &Path, command: &str, args: &str, config: &str) -> Ended {
        let mut child = Command::new(program)
            .env_clear()
            .envs([("CNI_COMMAND", command), ("CNI_CONTAINERID", "c1"), ("CNI_IFNAME", "eth0"), ("CNI_ARGS", args), ("CNI_PATH", "/none")])
            .env("CNI_NETNS", &self.netns)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("the plugin starts");
        let mut stdin = child.stdin.take().expect("piped");
        // A plugin that has read too much already reads no more.
        let _ = stdin.write_all(config.as_bytes()).await;
        drop(stdin);
        let output = tokio::time::timeout(LIMIT, child.wait_with_output()).await.expect("in time").expect("it ends");
        (String::from_utf8(output.stdout).expect("text"), output.status.success())
    }
}

fn failure(ended: &Ended) -> Value {
    assert!(!ended.1, "it fails: {}", ended.0);
    let told: Value = serde_json::from_str(&ended.0).expect("as the specification has it");
    assert!(told["cniVersion"].is_string() && told["code"].is_u64() && told["details"].is_string(), "{told}");
    told
}

fn message(told: &Value) -> &str {
    told["msg"].as_str().expect("a message")
}

#[test]
fn a_new_pod_is_handed_to_the_agent_and_its_network_stays_as_it_was_made() {
    sandboxed_async("a_new_pod_is_handed_to_the_agent_and_its_network_stays_as_it_was_made", |directory| async move {
        let node = Node::new(directory);
        let agent = node.serve();
        for version in ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
            let args = "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web;K8S_POD_UID=u-1";
            let ended = node.run(Path::new(WARREN), "ADD", args, &node.config(version)).await;
            assert_eq!(ended, (PREVIOUS.to_owned(), true), "{version}");
            let seen = node.pods.added.lock().pop().expect("the agent was asked");
            assert_eq!((&*seen.namespace, &*seen.name, &*seen.uid, &*seen.container_id), ("shop", "web", "u-1", "c1"));
            assert_eq!(seen.netns.id(), NetNs::open(&node.netns).expect("the pod's").id());
            assert_eq!(seen.ips.iter().map(ToString::to_string).collect::<Vec<_>>(), ["10.77.1.10", "fd00::a"]);
        }
        assert_eq!(node.call("ADD", "shop", "outside").await, (PREVIOUS.to_owned(), true));
        let slow = Instant::now();
        assert_eq!(node.call("ADD", "shop", "slow").await, (PREVIOUS.to_owned(), true));
        assert!(slow.elapsed() >= Duration::from_millis(300), "it waits for the verdict");
        node.pods.added.lock().clear();
        // Nobody is asked about these: a pod of an excluded namespace, and what is no pod of the kubelet.
        assert_eq!(node.call("ADD", "kube-system", "stuck").await, (PREVIOUS.to_owned(), true));
        assert_eq!(node.run(Path::new(WARREN), "ADD", "IgnoreUnknown=1", &node.config("1.0.0")).await, (PREVIOUS.to_owned(), true));
        assert!(node.pods.added.lock().is_empty());

        for command in ["CHECK", "GC", "STATUS", "DEL"] {
            assert_eq!(node.call(command, "shop", "web").await, (String::new(), true), "{command}");
        }
        assert_eq!(*node.pods.deleted.lock(), ["uid-web c1"]);
        let (version, well) = node.run(Path::new(WARREN), "VERSION", "", r#"{"cniVersion":"1.0.0"}"#).await;
        let expected = json!({"cniVersion": "1.0.0", "supportedVersions": ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"]});
        assert_eq!((serde_json::from_str::<Value>(&version).expect("JSON"), well), (expected, true));
        agent.stop().await;
    });
}

#[test]
fn a_pod_that_cannot_be_enrolled_is_not_started_and_it_is_said_why() {
    sandboxed_async("a_pod_that_cannot_be_enrolled_is_not_started_and_it_is_said_why", |directory| async move {
        let node = Node::new(directory);
        let agent = node.serve();
        let told = failure(&node.call("ADD", "shop", "broken").await);
        assert!(message(&told).starts_with("warren: pod shop/broken: nf_tables is \"not\" there"), "{told}");
        assert!(message(&told).contains("(W6002)") && message(&told).ends_with("(W9002)"), "{told}");
        assert_eq!((&told["code"], &told["cniVersion"]), (&json!(11), &json!("1.1.0")), "it may work later");

        let args = "K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web;K8S_POD_UID=u";
        let cases = [
            ("ADD", args, node.config("1.2.0"), 1, "cniVersion \"1.2.0\""),
            ("ADD", args, node.config("0.2.0"), 1, "cniVersion \"0.2.0\""),
            ("ADD", args, "{".to_owned(), 6, "standard input"),
            ("ADD", args, String::new(), 6, "standard input"),
            ("ADD", args, r#"{"cniVersion":"1.0.0"}"#.to_owned(), 7, "prevResult"),
            ("CHECK", args, r#"{"cniVersion":"1.0.0"}"#.to_owned(), 7, "prevResult"),
            ("ADD", args, r#"{"cniVersion":"1.0.0","prevResult":{"ips":[{"address":"x"}]}}"#.to_owned(), 7, "prevResult"),
            ("ADD", "K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web", node.config("1.0.0"), 4, "K8S_POD_UID"),
            ("EAT", args, node.config("1.0.0"), 4, "EAT"),
            ("ADD", args, " ".repeat(2 << 20), 6, "standard input"),
        ];
        for (command, args, config, number, text) in cases {
            let told = failure(&node.run(Path::new(WARREN), command, args, &config).await);
            assert_eq!(told["code"], number, "{told}");
            assert!(message(&told).contains(text) && message(&told).ends_with("(W9003)"), "{told}");
        }
        let nowhere = Node { netns: "/nowhere".into(), directory: node.directory.clone(), pods: node.pods.clone() };
        assert_eq!(failure(&nowhere.call("ADD", "shop", "web").await)["code"], 4);
        let no_netns = Node { netns: "/proc/self/status".into(), ..nowhere };
        assert_eq!(failure(&no_netns.call("ADD", "shop", "web").await)["code"], 4);
        // The end of a pod is never held up, whatever is wrong.
        let empty = Node { netns: PathBuf::new(), ..no_netns };
        for config in ["", "{", &node.config("9.9.9"), &node.config("1.0.0")] {
            assert_eq!(empty.run(Path::new(WARREN), "DEL", args, config).await, (String::new(), true));
        }
        agent.stop().await;
    });
}

#[test]
fn while_the_agent_is_away_only_pods_start_that_are_known_to_be_outside() {
    sandboxed_async("while_the_agent_is_away_only_pods_start_that_are_known_to_be_outside", |directory| async move {
        let node = Node::new(directory.clone());
        // The plugin as it is on a node, with what an agent left beside it.
        let bin = directory.join("bin");
        std::fs::create_dir(&bin).expect("directory");
        let program = bin.join("warren");
        std::fs::copy(WARREN, &program).expect("copy");
        let state = NodeState { outside: ["default".into()].into() };
        std::fs::write(bin.join("warren.state"), state.text().expect("short")).expect("write");
        let add = |namespace: &str| format!("K8S_POD_NAMESPACE={namespace};K8S_POD_NAME=web;K8S_POD_UID=u");
        let (shop, default, excluded) = (add("shop"), add("default"), add("kube-system"));
        let config = node.config("1.0.0");
        let passed = (PREVIOUS.to_owned(), true);

        // Nobody listens, then somebody does who never answers.
        let absent = node.run(&program, "ADD", &shop, &config);
        let silent = async {
            let quiet = Node { directory: directory.join("quiet"), netns: node.netns.clone(), pods: Arc::default() };
            std::fs::create_dir(&quiet.directory).expect("directory");
            let fd = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None).expect("socket");
            bind(fd.as_raw_fd(), &UnixAddr::new(&quiet.socket()).expect("path")).expect("bind");
            listen(&fd, Backlog::new(8).expect("backlog")).expect("listen");
            let started = Instant::now();
            let config = quiet.config("1.0.0");
            let (waiting, end) = tokio::join!(quiet.run(&program, "ADD", &shop, &config), async {
                let ended = quiet.run(&program, "DEL", &shop, &config).await;
                (ended, started.elapsed())
            });
            assert_eq!(end.0, (String::new(), true));
            assert!(end.1 < Duration::from_secs(5), "the end of a pod waits a second: {:?}", end.1);
            waiting
        };
        let started = Instant::now();
        assert_eq!(node.run(&program, "ADD", &default, &config).await, passed);
        assert_eq!(node.run(&program, "ADD", &excluded, &config).await, passed);
        assert_eq!(node.run(&program, "DEL", &shop, &config).await, (String::new(), true));
        assert_eq!(node.run(&program, "STATUS", "", &config).await, (String::new(), true));
        assert!(started.elapsed() < Duration::from_secs(4), "none of these waits: {:?}", started.elapsed());
        // Without what an agent left, nothing is known to be outside.
        let unknown = node.run(Path::new(WARREN), "ADD", &default, &config);
        let (absent, silent, unknown) = tokio::join!(absent, silent, unknown);
        for (ended, pod) in [(absent, "shop/web"), (silent, "shop/web"), (unknown, "default/web")] {
            let told = failure(&ended);
            assert_eq!(told["code"], 11, "{told}");
            assert!(message(&told).starts_with("warren: the node agent does not answer on /"), "{told}");
            assert!(message(&told).contains(pod) && message(&told).ends_with("(W9001)"), "{told}");
            assert!(told["details"].as_str().is_some_and(|details| details.contains("app=warren-agent")), "{told}");
        }

        // A pod that came too early is served as soon as the agent is there, and one agent after another.
        let early = node.run(&program, "ADD", &shop, &config);
        let (early, first) = tokio::join!(early, async {
            tokio::time::sleep(Duration::from_millis(200)).await;
            node.serve()
        });
        assert_eq!(early, passed);
        let args = "K8S_POD_NAMESPACE=shop;K8S_POD_NAME=stuck;K8S_POD_UID=u";
        let (stuck, second) = tokio::join!(node.run(&program, "ADD", args, &config), async {
            while !node.pods.added.lock().iter().any(|sandbox| &*sandbox.name == "stuck") {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            first.stop().await;
            let heir = Node { directory: node.directory.clone(), netns: node.netns.clone(), pods: Arc::default() };
            let (trigger, watch) = drain::new();
            let server = Server::bind(&heir.socket(), Arc::new(Willing), Metrics::default()).expect("bind");
            tokio::spawn(server.run(watch));
            trigger
        });
        assert_eq!(stuck, passed, "the successor answers");
        second.stop().await;
    });
}

/// Takes every pod at once.
struct Willing;

impl Sandboxes for Willing {
    async fn add(&self, _: Sandbox, _: Duration) -> Result<Verdict> {
        Ok(Verdict::Enrolled)
    }

    async fn del(&self, _: &str, _: &str) {}
}

#[test]
fn fifty_pods_at_once_are_answered_beside_callers_that_mean_harm() {
    sandboxed_async("fifty_pods_at_once_are_answered_beside_callers_that_mean_harm", |directory| async move {
        let node = Arc::new(Node::new(directory));
        let agent = node.serve();
        let mut harm = Vec::new();
        let file = std::fs::File::open("/proc/self/status").expect("a file that is no namespace");
        for _ in 0..8 {
            for (bytes, fd) in [(&b"\x00\xff"[..], None), (&[b'{'; 1024], None), (br#"{"call":"add"}"#, Some(file.as_fd()))] {
                let connection = Connection::connect(&node.socket()).await.expect("connect");
                connection.send(bytes, fd).await.expect("send");
                harm.push(connection);
            }
            // And some that say nothing at all.
            harm.push(Connection::connect(&node.socket()).await.expect("connect"));
        }
        let calls: Vec<_> = (0..50)
            .map(|_| {
                let node = node.clone();
                tokio::spawn(async move { node.call("ADD", "shop", "slow").await })
            })
            .collect();
        for call in calls {
            assert_eq!(call.await.expect("no panic"), (PREVIOUS.to_owned(), true));
        }
        assert_eq!(node.pods.added.lock().len(), 50, "each pod once, and nothing else");
        for connection in harm {
            let answer = tokio::time::timeout(LIMIT, connection.receive()).await.expect("the agent hangs up");
            assert!(!matches!(answer, Ok(Some(_))), "no answer to nonsense: {answer:?}");
        }
        agent.stop().await;
    });
}

#[test]
fn what_the_agent_installs_is_what_the_runtime_runs_until_it_is_taken_away() {
    sandboxed_async("what_the_agent_installs_is_what_the_runtime_runs_until_it_is_taken_away", |directory| async move {
        let node = Node::new(directory.clone());
        let (net, bin) = (directory.join("net.d"), directory.join("bin"));
        std::fs::create_dir(&net).expect("directory");
        std::fs::create_dir(&bin).expect("directory");
        let list = net.join("10-pods.conflist");
        let before = "{\"cniVersion\":\"1.0.0\",\"name\":\"pods\",\"plugins\":[{\"type\":\"bridge\"}]}\n";
        std::fs::write(&list, before).expect("write");
        let settings =
            Settings { program: WARREN.into(), ..Settings::new(node.socket(), net, bin.clone(), vec!["kube-system".to_owned()]) };
        let (trigger, watch) = drain::new();
        let (state, follow) = tokio::sync::watch::channel(NodeState::default());
        let report = Report::default();
        let agent = tokio::spawn(warren::agent::cni::run(settings.clone(), node.pods.clone(), follow, report.clone(), watch));
        state.send(NodeState { outside: ["default".into()].into() }).expect("followed");
        let ready = async {
            while !bin.join("warren.state").exists() || !std::fs::read_to_string(&list).expect("read").contains("warren") {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(LIMIT, ready).await.expect("installed");

        // As libcni does: the entry, with what the list and the plugins before say.
        let conflist: Value = serde_json::from_str(&std::fs::read_to_string(&list).expect("read")).expect("JSON");
        let mut config = conflist["plugins"][1].clone();
        config["cniVersion"] = conflist["cniVersion"].clone();
        config["name"] = conflist["name"].clone();
        config["prevResult"] = serde_json::from_str(PREVIOUS).expect("JSON");
        let add = |namespace: &str| format!("K8S_POD_NAMESPACE={namespace};K8S_POD_NAME=web;K8S_POD_UID=u");
        let ended = node.run(&bin.join("warren"), "ADD", &add("shop"), &config.to_string()).await;
        assert!(ended.1 && node.pods.added.lock().len() == 1, "{ended:?}");
        assert!(trigger.drain(LIMIT).await, "the drain ends the agent");
        agent.await.expect("no panic").expect("ends well");
        // The agent is gone and everything is in place: what is known to be outside starts.
        let ended = node.run(&bin.join("warren"), "ADD", &add("default"), &config.to_string()).await;
        assert!(ended.1, "{ended:?}");

        warren::agent::cni::uninstall(&settings).expect("taken away");
        assert_eq!(std::fs::read_to_string(&list).expect("read"), before);
        assert_eq!(std::fs::read_dir(&bin).expect("list").count(), 0);
        assert!(!node.socket().exists());
    });
}
