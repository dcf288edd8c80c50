//! Finds the kubelet among the processes of the node.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::base::{Error, Result, code};

/// What the program that runs pods is called: Kubernetes and most distributions, MicroK8s, K3s.
const NAMES: [&str; 4] = ["kubelet", "kubelite", "k3s-server", "k3s-agent"];

/// Part of the path of every control group that belongs to a pod: a program in a container may have any name.
const OF_PODS: &str = "kubepods";

/// More processes than are looked at are none of an honest node's: the kernel's own limit for 64-bit machines.
const MAX_PROCESSES: usize = 4 << 20;

/// A running process. Process ids come again, with another start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Instance {
    pub(super) pid: u32,
    /// Clock ticks after the machine's start.
    start: u64,
    /// Effective user id.
    pub(super) user: u32,
}

impl Instance {
    /// Whether it still runs.
    pub(super) fn runs(&self, proc: &Path) -> bool {
        read_stat(proc, self.pid).is_ok_and(|stat| stat.start == self.start)
    }
}

/// The kubelet of the network namespace with this inode.
///
/// # Errors
/// `PROBER_UNKNOWN` when there is none.
pub(super) fn find(proc: &Path, network: u64) -> Result<Instance> {
    let unreadable = |error| Error::caused(&code::PROBER_UNKNOWN, format!("read {}", proc.display()), error);
    let mut refused = None;
    for pid in pids(proc).map_err(unreadable)? {
        let Ok(stat) = read_stat(proc, pid) else { continue };
        let directory = proc.join(pid.to_string());
        let is_named = NAMES.contains(&stat.name.as_str()) || called(&directory).is_some_and(|name| NAMES.contains(&name.as_str()));
        if !is_named || fs::read_to_string(directory.join("cgroup")).is_ok_and(|text| text.contains(OF_PODS)) {
            continue;
        }
        match (fs::metadata(directory.join("ns/net")), fs::metadata(directory.join("stat"))) {
            (Ok(net), Ok(meta)) if net.ino() == network => return Ok(Instance { pid, start: stat.start, user: meta.uid() }),
            (Err(error), _) if error.kind() == io::ErrorKind::PermissionDenied => refused = Some(pid),
            _ => {}
        }
    }
    Err(match refused {
        Some(pid) => Error::new(&code::PROBER_UNKNOWN, format!("process {pid} is called like it, but its namespaces may not be looked at")),
        None => Error::new(&code::PROBER_UNKNOWN, format!("no process is called {}", NAMES.join(", "))),
    })
}

/// Ids of all processes, the oldest (by number) first.
pub(super) fn pids(proc: &Path) -> io::Result<Vec<u32>> {
    let entries = fs::read_dir(proc)?.take(MAX_PROCESSES);
    let mut pids: Vec<u32> = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect();
    pids.sort_unstable();
    Ok(pids)
}

/// What is said of a process in its `stat`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Stat {
    pub(super) name: String,
    pub(super) parent: u32,
    start: u64,
}

pub(super) fn read_stat(proc: &Path, pid: u32) -> io::Result<Stat> {
    let text = fs::read_to_string(proc.join(pid.to_string()).join("stat"))?;
    parse_stat(&text).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "not a line of stat"))
}

/// `pid (name) state parent …`, where the name may hold anything, also blanks and brackets. The start is field 22.
fn parse_stat(text: &str) -> Option<Stat> {
    let (head, tail) = text.rsplit_once(')')?;
    let (_, name) = head.split_once('(')?;
    let mut fields = tail.split_ascii_whitespace().skip(1);
    let parent = fields.next()?.parse().ok()?;
    let start = fields.nth(17)?.parse().ok()?;
    Some(Stat { name: name.to_owned(), parent, start })
}

/// The name by which a process was called: a program that is several at once goes by it.
fn called(directory: &Path) -> Option<String> {
    let line = fs::read(directory.join("cmdline")).ok()?;
    let first = line.split(|byte| *byte == 0).next()?;
    let name = first.rsplit(|byte| *byte == b'/').next()?;
    Some(String::from_utf8_lossy(name).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    struct Process<'a> {
        pid: u32,
        name: &'a str,
        call: &'a str,
        group: &'a str,
        net: &'a str,
    }

    const HOST: &str = "host";

    /// A directory that looks like `/proc`; gives the inode of the host's namespace.
    fn fake(processes: &[Process<'_>]) -> (tempfile::TempDir, u64) {
        let proc = tempfile::tempdir().expect("temporary directory");
        for net in [HOST, "pod"] {
            fs::write(proc.path().join(net), "").expect("write");
        }
        for process in processes {
            let directory = proc.path().join(process.pid.to_string());
            fs::create_dir_all(directory.join("ns")).expect("make");
            let numbers = (5..=30).map(|field| field.to_string()).collect::<Vec<_>>().join(" ");
            fs::write(directory.join("stat"), format!("{} ({}) S 1 {numbers}\n", process.pid, process.name)).expect("write");
            fs::write(directory.join("cmdline"), format!("{}\0--flag\0", process.call)).expect("write");
            fs::write(directory.join("cgroup"), format!("0::{}\n", process.group)).expect("write");
            symlink(proc.path().join(process.net), directory.join("ns/net")).expect("link");
        }
        let inode = fs::metadata(proc.path().join(HOST)).expect("made above").ino();
        (proc, inode)
    }

    #[test]
    fn the_kubelet_is_known_by_its_name_and_its_place() {
        let kubelet = Process { pid: 50, name: "kubelet", call: "/usr/bin/kubelet", group: "/system.slice/kubelet.service", net: HOST };
        let cases = [
            ("a kubelet", Process { ..kubelet }, true),
            ("K3s", Process { name: "k3s-server", call: "/usr/local/bin/k3s server", ..kubelet }, true),
            ("one that is several programs at once", Process { name: "kube", call: "kubelet", ..kubelet }, true),
            ("another program", Process { name: "sshd", call: "/usr/sbin/sshd", ..kubelet }, false),
            ("a program in a pod", Process { group: "/kubepods.slice/pod1/x", ..kubelet }, false),
            ("a program of another network", Process { net: "pod", ..kubelet }, false),
        ];
        for (name, process, expected) in cases {
            let other = Process { pid: 7, name: "init", call: "/sbin/init", group: "/init.scope", net: HOST };
            let (proc, host) = fake(&[other, process]);
            let found = find(proc.path(), host);
            assert_eq!(found.as_ref().ok().map(|found| found.pid), expected.then_some(50), "{name}");
            match found {
                Ok(found) => assert!(found.runs(proc.path())),
                Err(error) => assert_eq!(error.code().id, code::PROBER_UNKNOWN.id),
            }
        }
    }

    #[test]
    fn a_process_id_that_came_again_is_another_process() {
        let (proc, host) = fake(&[Process { pid: 9, name: "kubelet", call: "", group: "/", net: HOST }]);
        let found = find(proc.path(), host).expect("found");
        let line = fs::read_to_string(proc.path().join("9/stat")).expect("read");
        fs::write(proc.path().join("9/stat"), line.replace(" 22 ", " 2222 ")).expect("write");
        assert!(!found.runs(proc.path()));
        fs::remove_dir_all(proc.path().join("9")).expect("remove");
        assert!(!found.runs(proc.path()));
    }

    #[test]
    fn names_may_hold_anything() {
        let fields = (5..=30).map(|field| field.to_string()).collect::<Vec<_>>().join(" ");
        let stat = parse_stat(&format!("12 (a) b (c) R 4 {fields}")).expect("a line");
        assert_eq!(stat, Stat { name: "a) b (c".to_owned(), parent: 4, start: 22 });
        for broken in ["", "12 (a", "12 (a) S", "12 (a) S 4 5 6"] {
            assert_eq!(parse_stat(broken), None, "{broken}");
        }
    }
}
