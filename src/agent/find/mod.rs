//! Finds the network namespaces of running pods among the processes of the node.
//!
//! A process says by its control group which pod it belongs to. That is a claim: what it names is believed only when an
//! interface in its namespace carries one of the pod's addresses, and when it is not the node's own namespace.
//!
//! A namespace in which no process runs, but that a mount keeps, has its addresses only, which those who ran in it may have
//! chosen: that is enough to leave it, not to serve it as the pod.

mod cgroup;
mod pinned;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::base::{Error, Result, Str, code};
use crate::net::NetNs;
use crate::net::netns::NetNsId;

/// Processes that are looked at. More are no node that runs.
const MAX_PROCESSES: usize = 262_144;

/// The longest text of control groups that is read, bytes.
const MAX_CGROUP: u64 = 64 * 1024;

/// The longest list of the node's mounts that is read, bytes.
const MAX_MOUNTS: u64 = 16 * 1024 * 1024;

/// Namespaces of one pod that are looked into, oldest first. Its sandbox is older than what it makes itself.
const MAX_CANDIDATES: usize = 64;

/// Looks through the processes below a `/proc`.
#[derive(Clone, Debug)]
pub struct Finder {
    proc: PathBuf,
}

/// A pod that is looked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Its UID in the API.
    pub uid: Str,
    /// Its UID in the names of control groups; another one for static pods.
    pub runtime_uid: Str,
    /// Its addresses. Without any it is not found: nothing could be verified.
    pub ips: Vec<IpAddr>,
    /// The namespace that is known to be its own, which goes before others.
    pub known: Option<NetNsId>,
    /// It is not to be in the mesh: a namespace in which no process runs will do.
    pub leaves: bool,
}

/// The namespace of each pod that was found: the one that was known, else that of its oldest process.
pub type Found = BTreeMap<Str, Located>;

/// A pod's namespace.
#[derive(Clone, Debug)]
pub struct Located {
    /// The namespace.
    pub netns: NetNs,
    /// How long the pod's oldest process in it has run.
    pub age: Duration,
    /// No process runs in it: its addresses are all that speaks for it, and it is good for leaving only.
    pub empty: bool,
}

/// When the oldest process of a namespace started, and its id.
type Oldest = (u64, u32);

impl Finder {
    /// Below `proc`, the node's `/proc`.
    pub fn new(proc: PathBuf) -> Self {
        Self { proc }
    }

    /// The node's own network namespace.
    ///
    /// # Errors
    /// The node's `/proc` cannot be read.
    pub fn host(&self) -> Result<NetNs> {
        let path = self.proc.join("1/ns/net");
        NetNs::open(&path).map_err(|error| unreadable(&path, error))
    }

    /// Looks for all of `wanted` in one pass. Blocks: some milliseconds for each thousand processes.
    ///
    /// # Errors
    /// The node's `/proc` cannot be read.
    pub fn find(&self, wanted: &[Wanted]) -> Result<Found> {
        // Several may claim one UID: their addresses tell them apart.
        let mut by_uid: HashMap<&str, Vec<&Wanted>> = HashMap::new();
        for pod in wanted.iter().filter(|pod| !pod.ips.is_empty()) {
            by_uid.entry(&*pod.runtime_uid).or_default().push(pod);
        }
        let host = self.host()?;
        let node = self.groups(1).unwrap_or_default();
        let processes = self.processes(&host)?;
        // The oldest process in each.
        let mut candidates: HashMap<&str, BTreeMap<NetNsId, Oldest>> = HashMap::new();
        for (pid, netns) in &processes {
            // It may have ended meanwhile: then it is no candidate.
            let Some(claimed) = self.groups(*pid).and_then(|groups| cgroup::pod(&groups, &node)) else { continue };
            let Some((uid, _)) = by_uid.get_key_value(claimed.as_str()) else { continue };
            let Some(started) = self.started(*pid) else { continue };
            let oldest = candidates.entry(uid).or_default().entry(*netns).or_insert((started, *pid));
            *oldest = (*oldest).min((started, *pid));
        }
        let mut found = Found::new();
        for (uid, pods) in &by_uid {
            let Some(candidates) = candidates.get(uid) else { continue };
            let mut candidates: Vec<_> = candidates.iter().map(|(netns, oldest)| (*oldest, *netns)).collect();
            candidates.sort_unstable();
            for pod in pods {
                if let Some(located) = self.located(pod, &candidates) {
                    found.insert(pod.uid.clone(), located);
                }
            }
        }
        let missing: Vec<_> = by_uid.values().flatten().filter(|pod| pod.leaves && !found.contains_key(&pod.uid)).collect();
        if !missing.is_empty() {
            let inhabited: BTreeSet<_> = processes.iter().map(|(_, netns)| *netns).collect();
            let mut pinned = self.pinned(&host);
            pinned.retain(|netns, _| !inhabited.contains(netns));
            for pod in missing {
                let mut carriers = pinned.iter().filter_map(|(id, path)| open(path, *id).filter(|netns| carries(netns, &pod.ips)));
                // Of two that carry the address nothing says which is the pod's.
                if let (Some(netns), None) = (carriers.next(), carriers.next()) {
                    found.insert(pod.uid.clone(), Located { netns, age: Duration::ZERO, empty: true });
                }
            }
        }
        Ok(found)
    }

    /// Every network namespace but the node's own that a process of the node is in, or a mount of it keeps. Each is
    /// opened when it is its turn: there may be more than descriptors.
    ///
    /// # Errors
    /// The node's `/proc` cannot be read.
    pub fn all(&self) -> Result<impl Iterator<Item = NetNs> + use<>> {
        let host = self.host()?;
        let mut places: BTreeMap<NetNsId, Vec<PathBuf>> = BTreeMap::new();
        for (netns, path) in self.pinned(&host) {
            places.entry(netns).or_default().push(path);
        }
        for (pid, netns) in self.processes(&host)? {
            places.entry(netns).or_default().push(self.namespace_file(pid));
        }
        // A process that has ended meanwhile leaves the others.
        Ok(places.into_iter().filter_map(|(id, paths)| paths.iter().find_map(|path| open(path, id))))
    }

    /// The processes outside of the node's own namespace, each with its namespace.
    fn processes(&self, host: &NetNs) -> Result<Vec<(u32, NetNsId)>> {
        let entries = fs::read_dir(&self.proc).map_err(|error| unreadable(&self.proc, error))?;
        let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
        let outside = pids.take(MAX_PROCESSES).filter_map(|pid| {
            // Kernel threads and processes that have ended have no namespace.
            let netns = NetNsId::of(self.namespace_file(pid)).ok()?;
            (netns != host.id()).then_some((pid, netns))
        });
        Ok(outside.collect())
    }

    /// The namespaces that mounts of the node keep, each with one of its paths.
    fn pinned(&self, host: &NetNs) -> BTreeMap<NetNsId, PathBuf> {
        let init = self.process(1);
        let text = read(&init.join("mountinfo"), MAX_MOUNTS).unwrap_or_default();
        let paths = pinned::pinned(&text).map(|path| init.join("root").join(path));
        // One may have been unmounted meanwhile.
        let all = paths.filter_map(|path| Some((NetNsId::of(&path).ok()?, path)));
        all.filter(|(netns, _)| *netns != host.id()).collect()
    }

    /// The text of a process's control groups.
    fn groups(&self, pid: u32) -> Option<String> {
        read(&self.process(pid).join("cgroup"), MAX_CGROUP)
    }

    /// When the process started, in the kernel's ticks since the node's start.
    fn started(&self, pid: u32) -> Option<u64> {
        let stat = fs::read_to_string(self.process(pid).join("stat")).ok()?;
        // The name, in parentheses, may hold anything. After it come the fields from the third on; this is the 22nd.
        stat.rsplit_once(')')?.1.split_ascii_whitespace().nth(19)?.parse().ok()
    }

    /// The pod's namespace among `candidates`, oldest first: the one that is known if it is still there, else the oldest.
    /// Only one is open at a time: a pod may have as many as it likes.
    fn located(&self, pod: &Wanted, candidates: &[(Oldest, NetNsId)]) -> Option<Located> {
        let known = candidates.iter().filter(|(_, netns)| Some(*netns) == pod.known);
        known.chain(candidates.iter().take(MAX_CANDIDATES)).find_map(|((started, pid), id)| {
            // The process may be another one by now.
            let netns = open(&self.namespace_file(*pid), *id).filter(|netns| carries(netns, &pod.ips))?;
            Some(Located { netns, age: age(*started), empty: false })
        })
    }

    fn process(&self, pid: u32) -> PathBuf {
        self.proc.join(pid.to_string())
    }

    fn namespace_file(&self, pid: u32) -> PathBuf {
        self.proc.join(format!("{pid}/ns/net"))
    }
}

/// The namespace at `path`, if it is still that one.
fn open(path: &Path, id: NetNsId) -> Option<NetNs> {
    NetNs::open(path).ok().filter(|netns| netns.id() == id)
}

/// A file's text, or as much of it as is read.
fn read(path: &Path, limit: u64) -> Option<String> {
    use io::Read;
    let mut bytes = Vec::new();
    fs::File::open(path).ok()?.take(limit).read_to_end(&mut bytes).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

/// Whether an interface of the namespace has one of the addresses.
pub(super) fn carries(netns: &NetNs, ips: &[IpAddr]) -> bool {
    let addresses = netns.run(nix::ifaddrs::getifaddrs).and_then(|addresses| addresses.map_err(io::Error::from));
    let Ok(mut addresses) = addresses else { return false };
    addresses.any(|interface| {
        let Some(address) = interface.address else { return false };
        let v4 = address.as_sockaddr_in().map(|address| IpAddr::V4(address.ip()));
        let ip = v4.or_else(|| address.as_sockaddr_in6().map(|address| IpAddr::V6(address.ip())));
        ip.is_some_and(|ip| ips.iter().any(|wanted| wanted.to_canonical() == ip))
    })
}

/// How long a process has run that started so many ticks after the machine. Unknown is not at all.
fn age(started: u64) -> Duration {
    let ticks = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK).ok().flatten();
    let uptime = fs::read_to_string("/proc/uptime").ok();
    let uptime = uptime.and_then(|text| Duration::try_from_secs_f64(text.split(' ').next()?.parse().ok()?).ok());
    let (Some(uptime), Some(ticks)) = (uptime, ticks.and_then(|ticks| u64::try_from(ticks).ok()).filter(|ticks| *ticks > 0)) else {
        return Duration::ZERO;
    };
    uptime.saturating_sub(Duration::from_millis(started.saturating_mul(1000) / ticks))
}

fn unreadable(path: &Path, error: io::Error) -> Error {
    Error::caused(&code::NETNS_GONE, format!("the node's processes: {}", path.display()), error)
}
