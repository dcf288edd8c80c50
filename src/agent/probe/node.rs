//! The namespaces of the node, and the control group that is the kubelet's own.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

use nix::sched::{CloneFlags, setns};

use super::kubelet::{Instance, pids, read_stat};
use super::plan::Sender;
use crate::base::{Error, Result, code};
use crate::net::NetNs;

/// Inode of the control group namespace that the kernel starts with (`PROC_CGROUP_INIT_INO`).
const FIRST_NAMESPACE: u64 = 0xEFFF_FFFB;

/// How much deeper a group may be than it seems in a namespace of control groups: enough for a node that is a container,
/// also one of a cluster of its own. Kernels before 6.12 count levels from the real root, later ones from the
/// namespace's.
const HIDDEN_LEVELS: u32 = 6;

/// Keeps a container's processes together. They are not the kubelet's children but belong to the same machinery, and
/// open no connections.
const SHIMS: [&str; 2] = ["containerd-shim", "conmon"];

/// Where the node's processes are seen.
#[derive(Clone, Debug)]
pub(super) struct Node {
    pub(super) proc: PathBuf,
    init: u32,
}

/// What the calling thread sees once it is there.
#[derive(Debug)]
pub(super) struct Ids {
    /// Inode of the network namespace.
    pub(super) network: u64,
    /// Whether control groups are seen from the machine's real root; or why they are not seen as the node sees them.
    pub(super) groups: std::result::Result<Root, String>,
}

/// From where the paths of control groups count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Root {
    /// The machine's.
    Real,
    /// That of a node which is itself a container.
    Namespace,
}

impl Node {
    pub(super) fn new(proc: PathBuf, init: u32) -> Self {
        Self { proc, init }
    }

    /// Moves the calling thread into the node's network, and to where control groups are seen as the node sees them.
    pub(super) fn enter(&self) -> Result<Ids> {
        let path = self.path(self.init, "ns/net");
        let failed = |error| Error::caused(&code::NETNS_GONE, format!("enter the node's network namespace {}", path.display()), error);
        let netns = NetNs::open(&path).map_err(failed)?;
        netns.enter().map_err(failed)?;
        let network = fs::metadata(&path).map_err(failed)?.ino();
        Ok(Ids { network, groups: self.enter_groups() })
    }

    fn enter_groups(&self) -> std::result::Result<Root, String> {
        let path = self.path(self.init, "ns/cgroup");
        let failed = |error| format!("the node's control groups cannot be seen ({}: {error})", path.display());
        let inode = fs::metadata(&path).map_err(failed)?.ino();
        let own = fs::metadata("/proc/thread-self/ns/cgroup").map_err(failed)?.ino();
        if inode != own {
            let namespace = fs::File::open(&path).map_err(failed)?;
            setns(namespace, CloneFlags::CLONE_NEWCGROUP).map_err(|errno| failed(errno.into()))?;
        }
        Ok(if inode == FIRST_NAMESPACE { Root::Real } else { Root::Namespace })
    }

    /// The control group that only the kubelet is in, and its path; else why there is none. The calling thread has
    /// entered.
    pub(super) fn group_of(&self, kubelet: &Instance, root: Root) -> std::result::Result<(Sender, String), String> {
        let path = self.group_path(kubelet.pid).ok_or_else(|| "the kubelet is in no control group of version 2".to_owned())?;
        let depth = depth(&path).ok_or_else(|| format!("the kubelet has no control group of its own, it is in {path}"))?;
        self.is_own(&path, kubelet.pid)?;
        let directory = self.directory(&path)?;
        let id = fs::metadata(&directory).map_err(|error| format!("{}: {error}", directory.display()))?.ino();
        let deepest = if root == Root::Real { depth } else { depth + HIDDEN_LEVELS };
        Ok((Sender::Group { id, levels: depth..=deepest }, path))
    }

    /// The control group (version 2) of a process, seen from where the calling thread is.
    fn group_path(&self, pid: u32) -> Option<String> {
        let text = fs::read_to_string(self.path(pid, "cgroup")).ok()?;
        text.lines().find_map(|line| line.strip_prefix("0::")).map(str::to_owned)
    }

    /// Whether nobody but the kubelet, what it started, and shims are in the group or below it.
    fn is_own(&self, path: &str, kubelet: u32) -> std::result::Result<(), String> {
        let unreadable = |error| format!("{}: {error}", self.proc.display());
        let (mut parents, mut inside) = (BTreeMap::new(), BTreeMap::new());
        for pid in pids(&self.proc).map_err(unreadable)? {
            let Ok(stat) = read_stat(&self.proc, pid) else { continue };
            parents.insert(pid, stat.parent);
            if self.group_path(pid).is_some_and(|group| Path::new(&group).starts_with(path)) {
                inside.insert(pid, stat.name);
            }
        }
        let other = |(pid, name): &(&u32, &String)| !descends(&parents, **pid, kubelet) && !SHIMS.iter().any(|shim| name.starts_with(shim));
        let others: BTreeSet<&str> = inside.iter().filter(other).map(|(_, name)| name.as_str()).collect();
        if others.is_empty() {
            return Ok(());
        }
        let names: Vec<&str> = others.into_iter().take(5).collect();
        Err(format!("the kubelet shares its control group {path} with {}", names.join(", ")))
    }

    /// The group's directory, by the node's own mount.
    fn directory(&self, path: &str) -> std::result::Result<PathBuf, String> {
        let mounts = self.path(self.init, "mountinfo");
        let text = fs::read_to_string(&mounts).map_err(|error| format!("{}: {error}", mounts.display()))?;
        // A node that is a container may see the machine's mount beside its own.
        let below = |(root, mount)| Some((mount, Path::new(path).strip_prefix(root).ok()?));
        let found = text.lines().filter_map(group_mount).find_map(below);
        let (mount, below) = found.ok_or_else(|| format!("the node has no control groups of version 2 mounted that show {path}"))?;
        let mount = Path::new(mount).strip_prefix("/").unwrap_or(Path::new(mount));
        Ok(self.path(self.init, "root").join(mount).join(below))
    }

    fn path(&self, pid: u32, file: &str) -> PathBuf {
        self.proc.join(pid.to_string()).join(file)
    }
}

/// How far below the root; nothing for the root itself and for what cannot be seen from here (`/../x`) or is removed.
fn depth(path: &str) -> Option<u32> {
    if path.ends_with(" (deleted)") {
        return None;
    }
    let mut parts = Path::new(path).components();
    if parts.next() != Some(Component::RootDir) {
        return None;
    }
    let mut depth = 0;
    for part in parts {
        if !matches!(part, Component::Normal(_)) {
            return None;
        }
        depth += 1;
    }
    (depth > 0).then_some(depth)
}

/// `id parent device root mount-point options [tags] - type source options`: root and mount point, when the type is
/// cgroup2.
fn group_mount(line: &str) -> Option<(&str, &str)> {
    let (left, right) = line.split_once(" - ")?;
    if right.split(' ').next()? != "cgroup2" {
        return None;
    }
    let mut fields = left.split(' ').skip(3);
    Some((fields.next()?, fields.next()?))
}

/// Whether `pid` is `ancestor` or was started by it or what it started.
fn descends(parents: &BTreeMap<u32, u32>, mut pid: u32, ancestor: u32) -> bool {
    // As deep as there are processes: what is read while processes come and go need not be a tree.
    for _ in 0..=parents.len() {
        if pid == ancestor {
            return true;
        }
        match parents.get(&pid) {
            Some(&parent) if parent != 0 => pid = parent,
            _ => return false,
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_groups_below_the_root_that_are_seen_whole_have_a_depth() {
        let cases = [
            ("/", None),
            ("/kubelet", Some(1)),
            ("/system.slice/kubelet.service", Some(2)),
            ("/../other", None),
            ("/system.slice/kubelet.service (deleted)", None),
            ("", None),
        ];
        for (path, expected) in cases {
            assert_eq!(depth(path), expected, "{path}");
        }
    }

    #[test]
    fn the_mount_of_version_2_is_found_among_others() {
        let unified = "31 23 0:27 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate";
        let hybrid = "40 24 0:35 /a /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw";
        let old = "33 24 0:28 / /sys/fs/cgroup/cpu rw shared:10 - cgroup cgroup rw,cpu";
        assert_eq!(group_mount(unified), Some(("/", "/sys/fs/cgroup")));
        assert_eq!(group_mount(hybrid), Some(("/a", "/sys/fs/cgroup/unified")));
        assert_eq!((group_mount(old), group_mount("")), (None, None));
    }

    #[test]
    fn a_group_is_the_kubelets_own_when_only_its_family_is_in_it() {
        let kubelet = "/system.slice/kubelet.service";
        let cases = [
            ("alone", vec![(50, 1, "kubelet", kubelet)], Ok(())),
            ("with a child", vec![(50, 1, "kubelet", kubelet), (60, 50, "mount", kubelet), (61, 60, "sh", kubelet)], Ok(())),
            ("with a shim", vec![(50, 1, "kubelet", kubelet), (60, 1, "containerd-shim", kubelet)], Ok(())),
            ("others elsewhere", vec![(50, 1, "kubelet", kubelet), (60, 1, "sshd", "/system.slice/kubelet.service2")], Ok(())),
            ("with another", vec![(50, 1, "kubelet", kubelet), (60, 1, "containerd", kubelet)], Err("containerd")),
            ("with a pod below", vec![(50, 1, "kubelet", kubelet), (60, 40, "nginx", "/system.slice/kubelet.service/pod")], Err("nginx")),
        ];
        for (name, processes, expected) in cases {
            let proc = tempfile::tempdir().expect("temporary directory");
            for (pid, parent, name, group) in processes {
                let directory = proc.path().join(pid.to_string());
                fs::create_dir_all(&directory).expect("make");
                let zeros = "0 ".repeat(30);
                fs::write(directory.join("stat"), format!("{pid} ({name}) S {parent} {zeros}")).expect("write");
                fs::write(directory.join("cgroup"), format!("4:memory:/x\n0::{group}\n")).expect("write");
            }
            let own = Node::new(proc.path().to_owned(), 1).is_own(kubelet, 50);
            assert_eq!(own, expected.map_err(|with| format!("the kubelet shares its control group {kubelet} with {with}")), "{name}");
        }
    }
}
