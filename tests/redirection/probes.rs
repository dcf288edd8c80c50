//! Probes: what the kubelet sends to an enrolled pod reaches the application; what others on the node send does not.

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read, Write};
use std::net::{IpAddr, TcpListener};
use std::os::unix::fs::symlink;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use warren::agent::probe::{ProbeTable, Sender};
use warren::agent::redirect::{Options, Redirect, State};
use warren::base::code;
use warren::net::NetNs;

use crate::world::{Accepted, LIMIT, World, accept, both_families, listen};

/// A shell in the host's namespace that waits for commands. It ends with its handle.
struct Shell(Child);

impl Shell {
    fn start(netns: &NetNs, command: &mut Command) -> Self {
        command.stdin(Stdio::piped()).stdout(Stdio::null());
        Self(netns.run(|| command.spawn()).expect("enter").expect("a shell starts"))
    }

    fn pid(&self) -> u32 {
        self.0.id()
    }

    /// Has it connect and say something. Says nothing about how that went.
    fn call(&mut self, to: IpAddr, port: u16) {
        let address = std::net::SocketAddr::new(to, port);
        let warren = env!("CARGO_BIN_EXE_warren");
        writeln!(self.0.stdin.as_mut().expect("piped"), "{warren} demo-pod say {address} ping &").expect("the shell listens");
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn patiently(what: &str, mut done: impl FnMut() -> bool) {
    let begun = std::time::Instant::now();
    while !done() {
        assert!(begun.elapsed() < LIMIT, "{what}");
        std::thread::park_timeout(Duration::from_millis(10));
    }
}

/// A control group of version 2 of the test's own.
struct Group(PathBuf);

impl Group {
    /// Or why there cannot be one.
    fn new() -> Result<Self, String> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let mounts = fs::read_to_string("/proc/self/mountinfo").expect("mounts");
        let mount = mounts.lines().find(|line| line.contains(" - cgroup2 ")).ok_or("no control groups of version 2 are mounted")?;
        let mount = mount.split(' ').nth(4).expect("a mount point");
        let path = Path::new(mount).join(format!("warren-test-{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed)));
        fs::create_dir(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        let group = Self(path);
        // Whether processes may be moved is known only when one was.
        let moved = Command::new("sh").arg("-c").arg("echo $$ > \"$0/cgroup.procs\"").arg(&group.0).status();
        match moved {
            Ok(status) if status.success() => Ok(group),
            other => Err(format!("{}: no process can be moved into it ({other:?})", group.0.display())),
        }
    }

    /// Removes it and makes it anew, as it happens to a service that is started anew.
    fn renew(&self) {
        self.remove();
        fs::create_dir(&self.0).expect("made before");
    }

    fn remove(&self) {
        // Processes that were killed are in it until they are buried.
        patiently("the control group can be removed", || fs::remove_dir(&self.0).is_ok());
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if self.0.exists() {
            self.remove();
        }
    }
}

/// A node with an enrolled pod.
struct Node<'a> {
    world: &'a World,
    directory: tempfile::TempDir,
    /// A process that is not the kubelet.
    other: Shell,
    table: ProbeTable,
    application: TcpListener,
    proxy: TcpListener,
}

impl<'a> Node<'a> {
    fn new(world: &'a World) -> Self {
        let other = Shell::start(&world.host, &mut Command::new("sh"));
        let table = ProbeTable::new(Options::default(), "/proc".into(), other.pid());
        world.enrol();
        let (application, proxy) = (listen(&world.pod, 80), listen(&world.pod, 15006));
        let directory = tempfile::tempdir().expect("temporary directory");
        // A program goes by the name of its file.
        symlink("/bin/sh", directory.path().join("kubelet")).expect("link");
        Self { world, directory, other, table, application, proxy }
    }

    fn kubelet(&self, group: Option<&Group>) -> Shell {
        let program = self.directory.path().join("kubelet");
        let mut command = Command::new("sh");
        match group {
            Some(group) => command.arg("-c").arg("echo $$ > \"$0/cgroup.procs\" && exec \"$1\"").arg(&group.0).arg(program),
            None => command.arg("-c").arg("exec \"$0\"").arg(program),
        };
        let shell = Shell::start(&self.world.host, &mut command);
        let name = format!("/proc/{}/comm", shell.pid());
        patiently("the shell becomes the kubelet", || fs::read_to_string(&name).expect("it runs").trim() == "kubelet");
        shell
    }

    fn set(&self) {
        self.world.wait(self.table.set(self.pods())).expect("set");
    }

    fn pods(&self) -> BTreeSet<IpAddr> {
        // More than one message's worth, of both families.
        let many =
            (0..1500_u32).flat_map(|at| [IpAddr::from((0x0a63_0000 + at).to_be_bytes()), IpAddr::from(u128::from(at).to_be_bytes())]);
        many.chain([self.world.family.pod]).collect()
    }

    fn sender(&self) -> Sender {
        self.table.known().expect("the kubelet is known").sender
    }

    fn reaches_application(&self, shell: &mut Shell) {
        shell.call(self.world.family.pod, 80);
        assert_eq!(answer(&self.application).peer, self.world.family.probe, "with the address that pods let in");
    }

    fn reaches_proxy(&self, shell: &mut Shell) {
        shell.call(self.world.family.pod, 80);
        assert_eq!(answer(&self.proxy).peer, self.world.family.host, "as what it is");
    }
}

/// Takes the next connection and sends back what it says.
fn answer(listener: &TcpListener) -> Accepted {
    let mut accepted = accept(listener);
    let mut buffer = [0; 4];
    accepted.stream.read_exact(&mut buffer).expect("something is said");
    accepted.stream.write_all(&buffer).expect("and sent back");
    accepted
}

#[test]
fn only_the_kubelet_passes_where_it_has_a_control_group_of_its_own() {
    both_families(|world| {
        let mut node = Node::new(world);
        let group = match Group::new() {
            Ok(group) => group,
            // The story of the other way to know the kubelet is told below; here it has to be taken.
            Err(why) => {
                eprintln!("no control group can be made here: {why}");
                let _kubelet = node.kubelet(None);
                node.set();
                assert!(matches!(node.sender(), Sender::User(_)));
                return;
            }
        };
        let mut kubelet = node.kubelet(Some(&group));
        node.set();
        assert!(matches!(node.sender(), Sender::Group { .. }), "{:?}", node.table.known());
        node.reaches_application(&mut kubelet);
        let mut other = std::mem::replace(&mut node.other, Shell::start(&world.host, &mut Command::new("sh")));
        node.reaches_proxy(&mut other);

        // A pod that left is no longer probed; the rest goes on.
        world.wait(node.table.set(BTreeSet::new())).expect("set");
        node.reaches_proxy(&mut kubelet);
        node.set();
        node.reaches_application(&mut kubelet);
        world.wait(node.table.remove()).expect("remove");
        node.reaches_proxy(&mut kubelet);
    });
}

#[test]
fn a_node_that_is_a_container_sees_its_own_control_groups() {
    both_families(|world| {
        let mut node = Node::new(world);
        let (outer, mount) = match Group::new() {
            Ok(outer) => (outer, tempfile::tempdir().expect("temporary directory")),
            Err(why) => {
                eprintln!("no control group can be made here, so that a node has none either: {why}");
                return;
            }
        };
        // Its processes see their paths from the group in which it was started.
        let script =
            "echo $$ > \"$0/cgroup.procs\" && exec unshare --cgroup --mount sh -c 'mount -t cgroup2 none \"$0\" && exec sh' \"$1\"";
        let init = Shell::start(&world.host, Command::new("sh").arg("-c").arg(script).arg(&outer.0).arg(mount.path()));
        let mounts = format!("/proc/{}/mountinfo", init.pid());
        patiently("the node has mounted its control groups", || {
            fs::read_to_string(&mounts).is_ok_and(|mounts| mounts.contains(&mount.path().display().to_string()))
        });
        node.table = ProbeTable::new(Options::default(), "/proc".into(), init.pid());
        let inner = Group(outer.0.join("kubelet"));
        fs::create_dir(&inner.0).expect("make");
        let mut kubelet = node.kubelet(Some(&inner));
        node.set();
        let known = node.table.known().expect("the kubelet is known");
        assert_eq!(known.why, "/kubelet", "{known:?}");
        assert!(matches!(known.sender, Sender::Group { .. }), "{known:?}");
        node.reaches_application(&mut kubelet);
        let mut other = std::mem::replace(&mut node.other, Shell::start(&world.host, &mut Command::new("sh")));
        node.reaches_proxy(&mut other);
        // The inner group goes before the outer one.
        drop((kubelet, inner, init));
    });
}

#[test]
fn a_kubelet_that_was_started_anew_is_found_again() {
    both_families(|world| {
        let node = Node::new(world);
        let group = Group::new().ok();
        let kubelet = node.kubelet(group.as_ref());
        node.set();
        let before = node.sender();
        let table = node.table.clone();
        let keeper = world.spawn(async move { table.keep().await });
        drop(kubelet);
        if let Some(group) = &group {
            group.renew();
        }
        let mut kubelet = node.kubelet(group.as_ref());
        if group.is_some() {
            world.wait(async {
                let mut look = tokio::time::interval(Duration::from_millis(10));
                while node.sender() == before {
                    look.tick().await;
                }
            });
        }
        node.reaches_application(&mut kubelet);
        keeper.abort();
    });
}

#[test]
fn a_kubelet_without_a_control_group_of_its_own_is_known_by_its_user_id() {
    both_families(|world| {
        let mut node = Node::new(world);
        let mut kubelet = node.kubelet(None);
        node.set();
        let known = node.table.known().expect("the kubelet is known");
        assert_eq!(known.sender, Sender::User(nix::unistd::geteuid().as_raw()), "{known:?}");
        assert!(known.why.contains("control group"), "{known:?}");
        node.reaches_application(&mut kubelet);
        let mut same = std::mem::replace(&mut node.other, Shell::start(&world.host, &mut Command::new("sh")));
        node.reaches_application(&mut same);

        const NOBODY: u32 = 65534;
        let mapped = fs::read_to_string("/proc/self/uid_map").expect("the map of user ids");
        if mapped.split_ascii_whitespace().nth(2) == Some("1") {
            eprintln!("no other user id is mapped here: that one of another user id is not let through was not tried");
            return;
        }
        let mut stranger = Shell::start(&world.host, Command::new("sh").uid(NOBODY));
        node.reaches_proxy(&mut stranger);
    });
}

#[test]
fn rules_that_somebody_changed_are_made_again_and_no_kubelet_is_an_error() {
    both_families(|world| {
        let node = Node::new(world);
        let error = world.wait(node.table.set(node.pods())).expect_err("there is no kubelet");
        assert_eq!(error.code().id, code::PROBER_UNKNOWN.id);

        let mut kubelet = node.kubelet(None);
        world.wait(node.table.audit()).expect("audit");
        node.reaches_application(&mut kubelet);
        let other = ProbeTable::new(Options::default(), "/proc".into(), node.other.pid());
        world.wait(other.set(BTreeSet::new())).expect("somebody removes the pods");
        world.wait(node.table.audit()).expect("audit");
        node.reaches_application(&mut kubelet);
        world.wait(other.remove()).expect("somebody removes all");
        world.wait(node.table.audit()).expect("audit");
        node.reaches_application(&mut kubelet);

        for _ in 0..2 {
            world.wait(node.table.remove()).expect("remove");
        }
        assert_eq!(world.wait(world.redirect().state(&world.pod)).expect("state"), State::Redirecting, "pods are left alone");
    });
}
