//! Which namespace is a pod's: by the node's processes, and by what its mounts keep.

use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::symlink;
use std::path::Path;

use warren::agent::board::Condition;
use warren::agent::cni;
use warren::agent::discovery::Pod;
use warren::agent::find::{Finder, Wanted};
use warren::agent::probe::ProbeTable;
use warren::agent::purge::purge;
use warren::agent::redirect::nft::Nft;
use warren::agent::redirect::{Options, Redirect, State};
use warren::net::NetNs;
use warren::net::netns::NetNsId;

use crate::sandboxes::{Node, Process, UID, cgroup, pod, process};
use crate::world::{Dial, World, accept, both_families, connect, listen};

const OTHER: &str = "7c1d2e3f-0000-4c57-a1b2-0123456789ab";

/// A node's `/proc` that a test writes.
struct Proc {
    directory: tempfile::TempDir,
    finder: Finder,
}

impl Proc {
    fn new() -> Self {
        let directory = tempfile::tempdir().expect("temporary directory");
        process(directory.path(), 1, Path::new("/proc/self"), "0::/init.scope\n", 1);
        let finder = Finder::new(directory.path().to_owned());
        Self { directory, finder }
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }

    fn found(&self, wanted: &Wanted) -> Option<NetNsId> {
        self.finder.find(std::slice::from_ref(wanted)).expect("a /proc").remove(&wanted.uid).map(|found| found.netns.id())
    }
}

fn wanted(uid: &str, ip: IpAddr) -> Wanted {
    Wanted { uid: uid.into(), runtime_uid: uid.into(), ips: vec![ip], known: None, leaves: false }
}

/// Has the node keep namespaces by mounts, and no others.
fn pin(proc: &Path, pinned: &[&NetNs]) {
    let directory = proc.join("1/root/run/netns");
    std::fs::create_dir_all(&directory).expect("directory");
    let mounts = pinned.iter().enumerate().map(|(at, netns)| {
        symlink(format!("/proc/self/fd/{}", netns.as_fd().as_raw_fd()), directory.join(format!("cni-{at}"))).expect("link");
        format!("50{at} 26 0:4 net:[402653{at}] /run/netns/cni-{at} rw shared:7 - nsfs nsfs rw\n")
    });
    std::fs::write(proc.join("1/mountinfo"), mounts.collect::<String>()).expect("mountinfo");
}

#[test]
fn only_what_can_be_verified_is_a_pods_namespace() {
    both_families(|world| {
        let proc = Proc::new();
        let (inside, other) = (Process::inside(&world.pod), Process::inside(&world.host));
        let found = |ip| proc.found(&wanted(UID, ip));
        process(proc.path(), 5, Path::new("/proc/self"), &cgroup(UID), 5);
        process(proc.path(), 6, &other.real(), &cgroup(UID), 6);
        process(proc.path(), 7, &inside.real(), "0::/system.slice/containerd.service\n", 7);
        assert_eq!(found(world.family.pod), None, "the node's own namespace, one without the address, one of no pod");
        process(proc.path(), 8, &inside.real(), &cgroup(UID), 8);
        assert_eq!(found(world.family.pod), Some(world.pod.id()));
        assert_eq!(found("192.0.2.1".parse().expect("an address")), None, "the address is another pod's");

        // Two namespaces with the address: the oldest process was there first, unless the other is known to be the pod's.
        let second = World::new(world.family);
        let newer = Process::inside(&second.pod);
        process(proc.path(), 3, &newer.real(), &cgroup(UID), 9);
        assert_eq!(found(world.family.pod), Some(world.pod.id()));
        let known = |netns: &NetNs| proc.found(&Wanted { known: Some(netns.id()), ..wanted(UID, world.family.pod) });
        assert_eq!((known(&second.pod), known(&world.pod)), (Some(second.pod.id()), Some(world.pod.id())));
        assert_eq!(known(&world.host), Some(world.pod.id()), "what is known must have the address");
        assert_eq!(proc.finder.all().expect("a /proc").count(), 3);
        std::fs::remove_dir_all(proc.path().join("8")).expect("the process ends");
        assert_eq!(found(world.family.pod), Some(second.pod.id()));
    });
}

#[test]
fn a_pod_that_claims_anothers_uid_does_not_hide_it() {
    both_families(|world| {
        let proc = Proc::new();
        let inside = Process::inside(&world.pod);
        process(proc.path(), 8, &inside.real(), &cgroup(UID), 8);
        let victim = wanted(UID, world.family.pod);
        let liar = Wanted { runtime_uid: UID.into(), ..wanted(OTHER, "192.0.2.1".parse().expect("an address")) };
        for both in [[victim.clone(), liar.clone()], [liar, victim]] {
            let found = proc.finder.find(&both).expect("a /proc");
            assert_eq!(found.into_iter().map(|(uid, found)| (uid, found.netns.id())).collect::<Vec<_>>(), [(UID.into(), world.pod.id())]);
        }
    });
}

#[test]
fn a_group_that_a_pod_made_below_its_own_is_no_claim() {
    both_families(|world| {
        let proc = Proc::new();
        let inside = Process::inside(&world.pod);
        let made = format!("{}/kubepods/pod{UID}\n", cgroup(OTHER).trim_end());
        process(proc.path(), 8, &inside.real(), &made, 8);
        assert_eq!(proc.found(&wanted(UID, world.family.pod)), None);
        assert_eq!(proc.found(&wanted(OTHER, world.family.pod)), Some(world.pod.id()));
    });
}

#[test]
fn a_pod_that_leaves_is_found_by_what_a_mount_keeps() {
    both_families(|world| {
        let proc = Proc::new();
        let stays = wanted(UID, world.family.pod);
        let leaves = Wanted { leaves: true, ..stays.clone() };
        pin(proc.path(), &[&world.host, &world.pod]);
        assert_eq!(proc.found(&leaves), Some(world.pod.id()));
        assert_eq!(proc.found(&stays), None, "addresses alone say not enough to serve it");
        assert_eq!(proc.finder.all().expect("a /proc").count(), 2);

        let inside = Process::inside(&world.pod);
        process(proc.path(), 8, &inside.real(), &cgroup(OTHER), 8);
        assert_eq!(proc.found(&leaves), None, "another pod runs there");
        assert_eq!(proc.finder.all().expect("a /proc").count(), 2, "each once");
        std::fs::remove_dir_all(proc.path().join("8")).expect("the process ends");

        let second = World::new(world.family);
        std::fs::remove_dir_all(proc.path().join("1/root")).expect("unmount");
        pin(proc.path(), &[&world.pod, &second.pod]);
        assert_eq!(proc.found(&leaves), None, "it may be either");
    });
}

#[test]
fn purge_cleans_where_no_process_runs() {
    both_families(|world| {
        world.enrol();
        let proc = Proc::new();
        let init = Process::inside(&world.host);
        std::fs::remove_dir_all(proc.path().join("1")).expect("directory");
        process(proc.path(), 1, &init.real(), "0::/init.scope\n", 1);
        pin(proc.path(), &[&world.pod]);
        let at = |name: &str| proc.path().join(name);
        std::fs::create_dir(at("conf")).expect("directory");
        let plugin = cni::Settings::new(at("cni.sock"), at("conf"), at("bin"), Vec::new());
        let probes = ProbeTable::new(Options::default(), proc.path().to_owned(), 1);
        assert_eq!(world.wait(purge(&proc.finder, &Nft::default(), &probes, &plugin, &at("zds.sock"))).expect("purged"), 1);
        world.until(State::Absent);
    });
}

/// Out of the mesh by now, and an earlier agent has said that it is captured.
fn left_behind(world: &World) -> Pod {
    Pod { marked: true, ..pod(world, false) }
}

#[test]
fn what_an_earlier_agent_enrolled_is_left_also_where_no_process_runs() {
    both_families(|world| {
        world.enrol();
        let node = Node::with(world, vec![left_behind(world)], true, |proc| pin(proc, &[&world.pod]));
        world.until(State::Absent);
        node.until("nothing is kept about it", || node.board.entries().is_empty());
        node.end();
    });
}

#[test]
fn what_an_earlier_agent_enrolled_is_looked_for_until_it_is_found() {
    both_families(|world| {
        world.enrol();
        let node = Node::with(world, vec![left_behind(world)], true, |_| ());
        node.until("it is looked for", || node.board.metrics.searches.get() > 1);
        assert_eq!(node.board.entries()[UID].condition, Condition::Unknown, "what is written about it stands");
        let inside = Process::inside(&world.pod);
        process(&node.proc(), 8, &inside.real(), &cgroup(UID), 8);
        world.until(State::Absent);
        node.until("nothing is kept about it", || node.board.entries().is_empty());
        node.end();
    });
}

#[test]
fn a_pod_in_which_nothing_runs_is_left_when_the_agent_ends() {
    both_families(|world| {
        world.enrol();
        let node = Node::with(world, vec![Pod { marked: true, ..pod(world, true) }], true, |proc| pin(proc, &[&world.pod]));
        node.until("it is looked for", || node.board.metrics.searches.get() > 1);
        world.until(State::Redirecting);
        node.end();
        world.until(State::Absent);
    });
}

#[test]
fn a_pod_that_comes_back_is_not_served_where_no_process_runs() {
    both_families(|world| {
        world.enrol();
        let proxy = listen(&world.pod, 15001);
        let open = (connect(&world.pod, world.family.host, 8080, Dial::default()), accept(&proxy));
        drop(proxy);
        let node = Node::with(world, vec![left_behind(world)], true, |proc| pin(proc, &[&world.pod]));
        world.until(State::Holding);
        node.list(vec![Pod { marked: true, ..pod(world, true) }]);
        let searches = node.board.metrics.searches.get();
        node.until("it is looked for", || node.board.metrics.searches.get() > searches + 1);
        assert_eq!(node.board.entries()[UID].condition, Condition::Unknown);
        assert_eq!(world.wait(Nft::default().state(&world.pod)).expect("state"), State::Holding);
        assert!(!node.served());

        let inside = Process::inside(&world.pod);
        process(&node.proc(), 8, &inside.real(), &cgroup(UID), 8);
        world.until(State::Redirecting);
        drop(open);
        node.end();
    });
}

#[test]
fn a_pod_that_is_nowhere_does_not_hold_up_the_end() {
    both_families(|world| {
        let node = Node::with(world, vec![left_behind(world)], true, |_| ());
        node.until("it is looked for", || node.board.metrics.searches.get() > 0);
        node.end();
    });
}
