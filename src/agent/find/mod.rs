//! Finds the network namespaces of running pods among the processes of the node.
//!
//! A process says by its control group which pod it belongs to. That is a claim: what it names is believed only when an
//! interface in its namespace carries one of the pod's addresses, and when it is not the node's own namespace.

mod cgroup;

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
}

/// The namespaces of each pod that was found, that of its oldest process first.
pub type Found = BTreeMap<Str, Vec<Located>>;

/// A pod's namespace.
#[derive(Clone, Debug)]
pub struct Located {
    /// The namespace.
    pub netns: NetNs,
    /// How long the pod's oldest process in it has run.
    pub age: Duration,
}

/// A process in a namespace that may be a pod's.
struct Candidate {
    netns: NetNsId,
    pid: u32,
    started: u64,
}

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
        let by_uid: HashMap<&str, &Wanted> = wanted.iter().filter(|pod| !pod.ips.is_empty()).map(|pod| (&*pod.runtime_uid, pod)).collect();
        let host = self.host()?;
        let mut candidates: BTreeMap<&str, Vec<Candidate>> = BTreeMap::new();
        for (pid, netns) in self.processes(&host)? {
            // It may have ended meanwhile: then it is no candidate.
            let Some(uid) = self.claimed(pid, &by_uid) else { continue };
            let Some(started) = self.started(pid) else { continue };
            let known = candidates.entry(uid).or_default();
            match known.iter_mut().find(|candidate| candidate.netns == netns) {
                Some(candidate) if candidate.started <= started => {}
                Some(candidate) => (candidate.pid, candidate.started) = (pid, started),
                None => known.push(Candidate { netns, pid, started }),
            }
        }
        let mut found = Found::new();
        for (uid, mut candidates) in candidates {
            let Some(pod) = by_uid.get(uid) else { continue };
            candidates.sort_by_key(|candidate| candidate.started);
            let verified = candidates.iter().filter_map(|candidate| {
                let netns = self.verified(candidate, pod, &host)?;
                Some(Located { netns, age: age(candidate.started) })
            });
            let verified: Vec<_> = verified.collect();
            if !verified.is_empty() {
                found.insert(pod.uid.clone(), verified);
            }
        }
        Ok(found)
    }

    /// Every network namespace that a process of the node is in, but the node's own.
    ///
    /// # Errors
    /// The node's `/proc` cannot be read.
    pub fn all(&self) -> Result<Vec<NetNs>> {
        let host = self.host()?;
        let mut seen = BTreeSet::new();
        let mut all = Vec::new();
        for (pid, netns) in self.processes(&host)? {
            if seen.insert(netns)
                && let Ok(netns) = NetNs::open(self.namespace_file(pid))
            {
                all.push(netns);
            }
        }
        Ok(all)
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

    /// The wanted pod that the process says it belongs to.
    fn claimed<'a>(&self, pid: u32, by_uid: &HashMap<&'a str, &'a Wanted>) -> Option<&'a str> {
        use io::Read;
        let mut text = String::new();
        fs::File::open(self.process(pid).join("cgroup")).ok()?.take(MAX_CGROUP).read_to_string(&mut text).ok()?;
        cgroup::pods(&text).find_map(|uid| by_uid.get_key_value(uid.as_str()).map(|(uid, _)| *uid))
    }

    /// When the process started, in the kernel's ticks since the node's start.
    fn started(&self, pid: u32) -> Option<u64> {
        let stat = fs::read_to_string(self.process(pid).join("stat")).ok()?;
        // The name, in parentheses, may hold anything. After it come the fields from the third on; this is the 22nd.
        stat.rsplit_once(')')?.1.split_ascii_whitespace().nth(19)?.parse().ok()
    }

    fn verified(&self, candidate: &Candidate, pod: &Wanted, host: &NetNs) -> Option<NetNs> {
        let netns = NetNs::open(self.namespace_file(candidate.pid)).ok()?;
        // The process may be another one by now.
        (netns.id() == candidate.netns && netns.id() != host.id() && carries(&netns, &pod.ips)).then_some(netns)
    }

    fn process(&self, pid: u32) -> PathBuf {
        self.proc.join(pid.to_string())
    }

    fn namespace_file(&self, pid: u32) -> PathBuf {
        self.proc.join(format!("{pid}/ns/net"))
    }
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
