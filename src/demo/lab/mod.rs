//! Two nodes joined by one wire, pods on each, every one a network namespace; processes run inside them.
//!
//! ```text
//!  client .10  local .20                 server .10  outside .20
//!       \      /                              \      /
//!   pods0 10.77.1.1                       pods0 10.77.2.1
//!        node1 ──── wire0 10.77.0.1 ⇄ 10.77.0.2 wire0 ──── node2
//! ```
//! Lives in a [`Sandbox`](super::sandbox::Sandbox): nothing has to be taken down.

pub mod link;
pub mod process;

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

pub use self::process::{Child, Spawner};
use crate::base::{Error, Result, code};
use crate::net::NetNs;

/// The interface of each node that leads to the other.
pub const WIRE: &str = "wire0";

/// A pod to be made.
#[derive(Clone, Debug)]
pub struct PodSpec<'a> {
    /// Unique, at most ten characters: its host-side interface is named after it.
    pub name: &'a str,
    /// 1 or 2.
    pub node: u8,
    /// Last octets of its addresses in 10.77.NODE.0/24; the first is its main address.
    pub hosts: &'a [u8],
}

/// A network namespace of the lab: a node or a pod.
#[derive(Clone, Debug)]
pub struct Place {
    /// `node1`, `node2` or the pod's name.
    pub name: String,
    /// Its namespace.
    pub netns: NetNs,
    /// A bind mount of it, as container runtimes leave one.
    pub path: PathBuf,
    /// Its addresses, the main one first; of a node, the one on the wire.
    pub ips: Vec<Ipv4Addr>,
    /// 1 or 2.
    pub node: u8,
}

impl Place {
    /// The main address.
    pub fn ip(&self) -> Ipv4Addr {
        self.ips.first().copied().unwrap_or(Ipv4Addr::UNSPECIFIED)
    }
}

/// The whole of it.
#[derive(Debug)]
pub struct Lab {
    dir: PathBuf,
    nodes: Vec<Place>,
    pods: BTreeMap<String, Place>,
    spawner: Arc<Spawner>,
}

impl Lab {
    /// Builds nodes, wire, bridges and pods; `dir` takes the bind mounts and log files.
    ///
    /// # Errors
    /// `DEMO_UNSUPPORTED` with the step that the kernel refused.
    pub fn two_nodes(dir: &Path, pods: &[PodSpec<'_>]) -> Result<Self> {
        for sub in ["netns", "logs"] {
            let sub = dir.join(sub);
            std::fs::create_dir_all(&sub)
                .map_err(|error| Error::caused(&code::DEMO_UNSUPPORTED, format!("create {}", sub.display()), error))?;
        }
        let nodes: Vec<Place> = (1..=2).map(|node| make_node(dir, node)).collect::<Result<_>>()?;
        let [one, two] = nodes.as_slice() else {
            return Err(Error::internal("two nodes"));
        };
        link::wire(one, two)?;
        let mut made = BTreeMap::new();
        for spec in pods {
            let node = if spec.node == 1 { one } else { two };
            made.insert(spec.name.to_owned(), make_pod(dir, node, spec)?);
        }
        Ok(Self { dir: dir.to_owned(), nodes, pods: made, spawner: Arc::new(Spawner::new()?) })
    }

    /// The directory given to [`Lab::two_nodes`].
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Node 1 or 2.
    ///
    /// # Errors
    /// There is no other.
    pub fn node(&self, number: u8) -> Result<&Place> {
        self.nodes.iter().find(|node| node.node == number).ok_or_else(|| Error::internal(format!("the lab has no node {number}")))
    }

    /// The pod of that name.
    ///
    /// # Errors
    /// It was not asked for.
    pub fn pod(&self, name: &str) -> Result<&Place> {
        self.pods.get(name).ok_or_else(|| Error::internal(format!("the lab has no pod {name}")))
    }

    /// All pods, by name.
    pub fn pods(&self) -> impl Iterator<Item = &Place> {
        self.pods.values()
    }

    /// Starts `command` inside `place`; stdout and stderr go to `logs/NAME.log`. It dies with this process.
    ///
    /// # Errors
    /// `DEMO_CHILD`: it cannot be started.
    pub fn start(&self, place: &Place, name: &str, command: Command) -> Result<Child> {
        Child::start(&self.spawner, &place.netns, &self.log(name), name, command)
    }

    /// The log file of a child of that name.
    pub fn log(&self, name: &str) -> PathBuf {
        self.dir.join("logs").join(format!("{name}.log"))
    }
}

fn make_node(dir: &Path, node: u8) -> Result<Place> {
    let place = make_netns(dir, format!("node{node}"), node, vec![Ipv4Addr::new(10, 77, 0, node)])?;
    place
        .netns
        .run(|| {
            for (setting, value) in [("ip_forward", "1"), ("conf/all/rp_filter", "0"), ("conf/default/rp_filter", "0")] {
                let path = Path::new("/proc/sys/net/ipv4").join(setting);
                std::fs::write(&path, value)
                    .map_err(|error| Error::caused(&code::DEMO_UNSUPPORTED, format!("write {}", path.display()), error))?;
            }
            Ok(())
        })
        .map_err(|error| Error::caused(&code::DEMO_UNSUPPORTED, "enter a network namespace", error))??;
    link::bridge(&place)?;
    Ok(place)
}

fn make_pod(dir: &Path, node: &Place, spec: &PodSpec<'_>) -> Result<Place> {
    let ips = spec.hosts.iter().map(|host| Ipv4Addr::new(10, 77, spec.node, *host)).collect();
    let place = make_netns(dir, spec.name.to_owned(), spec.node, ips)?;
    link::pod(node, &place)?;
    Ok(place)
}

/// A new namespace, held by a bind mount.
fn make_netns(dir: &Path, name: String, node: u8, ips: Vec<Ipv4Addr>) -> Result<Place> {
    let path = dir.join("netns").join(&name);
    let failed = |step: &str, error: std::io::Error| Error::caused(&code::DEMO_UNSUPPORTED, format!("{step} for {name}"), error);
    std::fs::File::create_new(&path).map_err(|error| failed("create the mount point", error))?;
    // A thread of its own: it ends inside the new namespace.
    let made = std::thread::scope(|scope| {
        scope
            .spawn(|| {
                unshare(CloneFlags::CLONE_NEWNET)?;
                mount(Some("/proc/thread-self/ns/net"), &path, None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
                NetNs::current()
            })
            .join()
    });
    let netns = made
        .map_err(|_| Error::internal("the thread that makes a namespace ended by itself"))?
        .map_err(|error| failed("make a network namespace", error))?;
    link::loopback_up(&netns)?;
    Ok(Place { name, netns, path, ips, node })
}
