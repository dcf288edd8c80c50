//! The agent on a node: pods by CNI calls, pods that run already and are found among the processes, and what becomes of
//! connections that are older.

use std::io::Read;
use std::net::IpAddr;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Child, Command};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::watch;
use tokio::task::JoinHandle;
use warren::agent::board::{Board, Condition};
use warren::agent::discovery::{Discovery, Lookup, Pod};
use warren::agent::enrolment::Existing;
use warren::agent::find::{Finder, Wanted};
use warren::agent::kube::Removal;
use warren::agent::reconcile::{self, Front, Settings};
use warren::agent::redirect::nft::Nft;
use warren::agent::redirect::{Redirect, State};
use warren::agent::sandbox::{Sandbox, Sandboxes, Verdict};
use warren::agent::{self, Surroundings};
use warren::base::drain::{self, Trigger};
use warren::base::{Error, Result, code};
use warren::net::NetNs;
use warren::zds::WorkloadInfo;
use warren::zds::client::Client;

use crate::agent::Listening;
use crate::world::{Dial, LIMIT, World, accept, both_families, connect, listen, talk};

const UID: &str = "2ba3f1c0-9d4e-4c57-a1b2-0123456789ab";

/// A source of pods that a test writes.
#[derive(Clone)]
struct Source(Arc<watch::Sender<Vec<Pod>>>);

struct Listed(watch::Receiver<Vec<Pod>>, bool);

impl Discovery for Listed {
    async fn next(&mut self) -> Vec<Pod> {
        if std::mem::replace(&mut self.1, true) && self.0.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
        self.0.borrow_and_update().clone()
    }
}

impl Lookup for Source {
    async fn pod(&self, _: &str, _: &str, name: &str, _: Duration) -> Result<Pod> {
        let pods = self.0.borrow();
        let pod = pods.iter().find(|pod| pod.info.name == name);
        pod.cloned().ok_or_else(|| Error::new(&code::API_UNAVAILABLE, "no such pod"))
    }
}

fn pod(world: &World, ambient: bool) -> Pod {
    Pod {
        uid: UID.into(),
        runtime_uid: UID.into(),
        info: WorkloadInfo { name: "app".into(), namespace: "shop".into(), service_account: "clerk".into() },
        ips: vec![world.family.pod],
        netns: None,
        ambient,
        why: "the test says so",
        existing: Existing::Keep,
        running_since: None,
        marked: false,
    }
}

/// An agent with all that a node has, and perhaps a proxy.
struct Node<'a> {
    world: &'a World,
    directory: tempfile::TempDir,
    source: Source,
    front: Arc<Front<Source>>,
    board: Arc<Board>,
    served: Listening,
    agent: JoinHandle<Result<bool>>,
    end: Trigger,
    _proxy: Option<Trigger>,
}

impl<'a> Node<'a> {
    fn new(world: &'a World, pods: Vec<Pod>) -> Self {
        Self::with(world, pods, true, |_| ())
    }

    /// With processes that `prepare` puts below the node's `/proc`.
    fn with(world: &'a World, pods: Vec<Pod>, proxy: bool, prepare: impl FnOnce(&Path)) -> Self {
        let directory = tempfile::tempdir().expect("temporary directory");
        let (socket, proc) = (directory.path().join("zds.sock"), directory.path().join("proc"));
        process(&proc, 1, Path::new("/proc/self"), "0::/init.scope\n", 1);
        prepare(&proc);
        let source = Source(Arc::new(watch::channel(pods).0));
        let listed = Listed(source.0.subscribe(), false);
        let (board, _) = Board::new();
        let board = Arc::new(board);
        let (front, calls) = reconcile::front(source.clone());
        let finder = Some(Finder::new(proc));
        let around = Surroundings { board: board.clone(), ready: Arc::default(), calls, finder, removal: Removal::at_end() };
        let settings = Settings { audit: Duration::from_millis(100), ..Settings::default() };
        let (end, drain) = drain::new();
        let path = socket.clone();
        let agent = world.spawn(async move { agent::run(listed, Nft::default(), &path, settings, around, drain).await });
        let served = Listening::default();
        let proxy = proxy.then(|| {
            let (client, _) = Client::new(socket, served.clone());
            let (proxy, drain) = drain::new();
            world.spawn(async move { client.run(drain).await });
            proxy
        });
        Self { world, directory, source, front: Arc::new(front), board, served, agent, end, _proxy: proxy }
    }

    fn proc(&self) -> std::path::PathBuf {
        self.directory.path().join("proc")
    }

    fn list(&self, pods: Vec<Pod>) {
        self.source.0.send_replace(pods);
    }

    fn add(&self, container: &str, netns: &NetNs, limit: Duration) -> Result<Verdict> {
        let sandbox = Sandbox {
            uid: UID.into(),
            namespace: "shop".into(),
            name: "app".into(),
            container_id: container.into(),
            netns: netns.clone(),
            ips: vec![self.world.family.pod],
        };
        self.world.wait(self.front.add(sandbox, limit))
    }

    fn served(&self) -> bool {
        !self.served.accounts().is_empty()
    }

    fn until(&self, what: &str, holds: impl Fn() -> bool) {
        let end = Instant::now() + LIMIT;
        self.world.wait(async {
            let mut look = tokio::time::interval(Duration::from_millis(5));
            while !holds() {
                assert!(Instant::now() < end, "{what}");
                look.tick().await;
            }
        });
    }

    fn end(self) {
        assert!(self.world.wait(self.end.drain(Duration::from_secs(8))), "the agent ends by itself");
        self.world.wait(self.agent).expect("no panic").expect("no error");
    }
}

/// What `/proc` shows of a process: that of `real`, with other control groups and start.
pub(crate) fn process(proc: &Path, pid: u32, real: &Path, cgroup: &str, started: u64) {
    let directory = proc.join(pid.to_string());
    std::fs::create_dir_all(directory.join("ns")).expect("directory");
    symlink(real.join("ns/net"), directory.join("ns/net")).expect("link");
    std::fs::write(directory.join("cgroup"), cgroup).expect("cgroup");
    let fields: Vec<_> = (4..22).map(|_| "0").collect();
    std::fs::write(directory.join("stat"), format!("{pid} (a) b) S {} {started} 0\n", fields.join(" "))).expect("stat");
}

fn cgroup(uid: &str) -> String {
    format!("0::/kubepods.slice/kubepods-besteffort-pod{}.slice/cri-containerd-1.scope\n", uid.replace('-', "_"))
}

/// A process that lives in a namespace until it is dropped.
pub(crate) struct Process(Child);

impl Process {
    pub(crate) fn inside(netns: &NetNs) -> Self {
        Self(netns.run(|| Command::new("sleep").arg("600").spawn()).expect("enter").expect("sleep runs"))
    }

    pub(crate) fn real(&self) -> std::path::PathBuf {
        format!("/proc/{}", self.0.id()).into()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_cni_call_returns_when_the_pod_is_captured() {
    both_families(|world| {
        let node = Node::new(world, vec![pod(world, true)]);
        assert_eq!(node.add("one", &world.pod, LIMIT).expect("enrolled"), Verdict::Enrolled);
        assert_eq!(world.wait(Nft::default().state(&world.pod)).expect("state"), State::Redirecting);
        assert!(node.served(), "before the call returned");
        assert_eq!(node.add("one", &world.pod, LIMIT).expect("again"), Verdict::Enrolled);
        let own = node.add("own", &NetNs::current().expect("own"), LIMIT).expect_err("the node's own namespace");
        assert_eq!(own.code().id, code::NETNS_GONE.id);

        // The sandbox goes, another one comes.
        world.wait(node.front.del(UID, "other"));
        world.wait(node.front.del(UID, "one"));
        node.until("the proxy lets it go", || !node.served());
        let second = World::new(world.family);
        assert_eq!(node.add("two", &second.pod, LIMIT).expect("enrolled"), Verdict::Enrolled);
        assert_eq!(world.wait(Nft::default().state(&second.pod)).expect("state"), State::Redirecting);
        world.wait(node.front.del(UID, "one"));
        assert!(node.served(), "the end of the first says nothing about the second");
        node.list(Vec::new());
        node.until("a pod that is gone is forgotten", || !node.served() && node.board.entries().is_empty());
        node.end();
    });
}

#[test]
fn a_pod_that_is_not_listed_yet_is_asked_about_and_one_outside_of_the_mesh_can_join_later() {
    both_families(|world| {
        let node = Node::new(world, vec![pod(world, false)]);
        assert_eq!(node.add("one", &world.pod, LIMIT).expect("a verdict"), Verdict::NotInMesh("the test says so"));
        assert_eq!(world.wait(Nft::default().state(&world.pod)).expect("state"), State::Absent);
        node.list(vec![pod(world, true)]);
        world.until(State::Redirecting);
        node.until("served", || node.served());
        node.list(vec![pod(world, false)]);
        world.until(State::Absent);
        node.list(Vec::new());
        let unknown = node.add("two", &world.pod, LIMIT).expect_err("there is no such pod");
        assert_eq!(unknown.code().id, code::API_UNAVAILABLE.id);
        node.end();
    });
}

#[test]
fn without_a_proxy_the_call_fails_in_time_and_says_why() {
    both_families(|world| {
        let node = Node::with(world, vec![pod(world, true)], false, |_| ());
        let started = Instant::now();
        let error = node.add("one", &world.pod, Duration::from_millis(400)).expect_err("nobody serves it");
        assert!(started.elapsed() < Duration::from_secs(1));
        assert_eq!(error.code().id, code::NOT_CAPTURED.id);
        assert!(error.to_string().contains("no proxy is connected"), "{error}");
        assert_ne!(node.board.entries()[UID].condition, Condition::Captured);
        node.end();
    });
}

#[test]
fn a_pod_that_runs_is_found_by_its_processes_and_found_again_in_another_sandbox() {
    both_families(|world| {
        let (first, second) = (Process::inside(&world.pod), World::new(world.family));
        let node = Node::with(world, vec![pod(world, true)], true, |proc| process(proc, 7, &first.real(), &cgroup(UID), 7));
        world.until(State::Redirecting);
        node.until("served", || node.served());

        // The same pod in a new namespace, and nobody says so.
        let third = Process::inside(&second.pod);
        process(&node.proc(), 8, &third.real(), &cgroup(UID), 8);
        std::fs::remove_dir_all(node.proc().join("7")).expect("the first process ends");
        second.until(State::Redirecting);
        assert_eq!(node.board.metrics.sandboxes_replaced.get(), 1);
        node.until("still served", || node.served());

        // Somebody removes the rules, after they were seen to stand.
        let audits = node.board.metrics.audits.get();
        node.until("looked at", || node.board.metrics.audits.get() > audits + 1);
        world.wait(Nft::default().remove(&second.pod)).expect("remove");
        second.until(State::Redirecting);
        node.until("counted", || node.board.metrics.repairs.get() == 1);
        node.end();
        second.until(State::Absent);
    });
}

#[test]
fn only_what_can_be_verified_is_a_pods_namespace() {
    both_families(|world| {
        let directory = tempfile::tempdir().expect("temporary directory");
        let proc = directory.path();
        let (inside, other) = (Process::inside(&world.pod), Process::inside(&world.host));
        let finder = Finder::new(proc.to_owned());
        let wanted = |ip: IpAddr| [Wanted { uid: UID.into(), runtime_uid: UID.into(), ips: vec![ip] }];
        let found = |ip| finder.find(&wanted(ip)).expect("a /proc").remove(UID).unwrap_or_default();
        process(proc, 1, Path::new("/proc/self"), "0::/init.scope\n", 1);
        process(proc, 5, Path::new("/proc/self"), &cgroup(UID), 5);
        process(proc, 6, &other.real(), &cgroup(UID), 6);
        process(proc, 7, &inside.real(), "0::/system.slice/containerd.service\n", 7);
        assert!(found(world.family.pod).is_empty(), "the node's own namespace, one without the address, one of no pod");
        process(proc, 8, &inside.real(), &cgroup(UID), 8);
        assert_eq!(found(world.family.pod).iter().map(|found| found.netns.id()).collect::<Vec<_>>(), [world.pod.id()]);
        assert!(found("192.0.2.1".parse().expect("an address")).is_empty(), "the address is another pod's");

        // Two namespaces with the address: the oldest process was there first.
        let second = World::new(world.family);
        let newer = Process::inside(&second.pod);
        process(proc, 3, &newer.real(), &cgroup(UID), 9);
        assert_eq!(found(world.family.pod).iter().map(|found| found.netns.id()).collect::<Vec<_>>(), [world.pod.id(), second.pod.id()]);
        assert_eq!(finder.all().expect("a /proc").len(), 3);
        std::fs::remove_dir_all(proc.join("8")).expect("the process ends");
        assert_eq!(found(world.family.pod).iter().map(|found| found.netns.id()).collect::<Vec<_>>(), [second.pod.id()]);
    });
}

#[test]
fn connections_that_are_older_are_counted_and_reset_when_that_is_asked_for() {
    both_families(|world| {
        for existing in [Existing::Keep, Existing::Reset] {
            let (server, inner) = (listen(&world.host, 8080), listen(&world.pod, 9090));
            let mut out = connect(&world.pod, world.family.host, 8080, Dial::default());
            let mut out_end = accept(&server).stream;
            let mut into = connect(&world.host, world.family.pod, 9090, Dial::default());
            let mut into_end = accept(&inner).stream;
            let inside = Process::inside(&world.pod);
            let running = Pod { existing, running_since: Some(SystemTime::now()), ..pod(world, true) };
            let node = Node::with(world, vec![running], true, |proc| process(proc, 7, &inside.real(), &cgroup(UID), 7));
            node.until("captured", || node.board.entries().get(UID).is_some_and(|entry| entry.condition == Condition::Captured));
            let left = || node.board.entries().get(UID).map(|entry| entry.left);
            if existing == Existing::Keep {
                node.until("counted", || left() == Some(2));
                talk(&mut out, &mut out_end);
                talk(&mut into, &mut into_end);
                drop((out, out_end, into, into_end));
                node.until("ended by themselves", || left() == Some(0));
            } else {
                node.until("reset", || node.board.metrics.connections_reset.get() == 2);
                for stream in [&mut out, &mut out_end, &mut into, &mut into_end] {
                    assert!(!matches!(stream.read(&mut [0; 4]), Ok(1..)), "nothing comes any more");
                }
                assert_eq!(left(), Some(0));
            }
            // What is redirected is none of them.
            let _redirected = connect(&world.pod, world.family.host, 8080, Dial::default());
            node.served.accept();
            assert_eq!(left(), Some(0));
            node.end();
            world.until(State::Absent);
        }
    });
}

#[test]
fn the_time_without_capture_is_told() {
    both_families(|world| {
        let since = SystemTime::now().checked_sub(Duration::from_secs(50)).expect("after 1970");
        let inside = Process::inside(&world.pod);
        let running = Pod { running_since: Some(since), marked: true, ..pod(world, true) };
        let node = Node::with(world, vec![running], true, |proc| process(proc, 7, &inside.real(), &cgroup(UID), 7));
        node.until("captured", || node.board.entries().get(UID).is_some_and(|entry| entry.condition == Condition::Captured));
        let counted = node.board.metrics.uncaptured_seconds.get();
        assert!((50.0..60.0).contains(&counted), "captured once, then started without: {counted}");
        node.end();
    });
}
