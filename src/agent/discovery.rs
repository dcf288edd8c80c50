//! Which pods this node has, and which of them are to be in the mesh.

use std::future::Future;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use super::enrolment::Existing;
use crate::base::{Result, Str};
use crate::config::meshfile::{self, MeshFile};
use crate::config::watch;
use crate::net::NetNs;
use crate::zds::WorkloadInfo;

/// Where a pod's network namespace is found.
#[derive(Clone, Debug)]
pub enum Place {
    /// A file that may come to be another namespace.
    Path(PathBuf),
    /// It is open already.
    Open(NetNs),
}

impl PartialEq for Place {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Path(one), Self::Path(two)) => one == two,
            (Self::Open(one), Self::Open(two)) => one.id() == two.id(),
            _ => false,
        }
    }
}

impl Eq for Place {}

/// A pod of this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// Its UID. Another UID is another pod, whatever its name.
    pub uid: Str,
    /// What it is called.
    pub info: WorkloadInfo,
    /// Its UID for the node's container runtime, which names control groups after it. Another one for static pods.
    pub runtime_uid: Str,
    /// Its addresses, as far as they are known.
    pub ips: Vec<IpAddr>,
    /// Where its network namespace is found, if the source says so.
    pub netns: Option<Place>,
    /// Whether it is to be in the mesh.
    pub ambient: bool,
    /// Why, or why not.
    pub why: &'static str,
    /// What becomes of connections that are older than its enrolment.
    pub existing: Existing,
    /// Since when a container of it runs, if the source says so.
    pub running_since: Option<SystemTime>,
    /// An agent has said that it is captured. That may have ceased to be true.
    pub marked: bool,
}

impl Pod {
    /// Whether the same is wanted for both. What is only observed does not count.
    pub fn wants_the_same(&self, other: &Self) -> bool {
        let wanted = |pod: &Self| (pod.uid.clone(), pod.ambient, pod.existing);
        wanted(self) == wanted(other) && self.info == other.info && self.netns == other.netns
    }
}

/// A source of pods.
pub trait Discovery: Send {
    /// All pods of this node: the first time as soon as they are known, then whenever they have changed. May be dropped
    /// and called again without losing a change.
    fn next(&mut self) -> impl Future<Output = Vec<Pod>> + Send;
}

/// Asks about one pod that the list may not have yet.
pub trait Lookup: Send + Sync + 'static {
    /// The pod with that UID (if it is known), namespace and name.
    ///
    /// # Errors
    /// There is none, or it cannot be found out within `limit`.
    fn pod(&self, uid: &str, namespace: &str, name: &str, limit: Duration) -> impl Future<Output = Result<Pod>> + Send;
}

/// Pods from a mesh file. When the file breaks, the last good state stays.
#[derive(Debug)]
pub struct FileDiscovery {
    path: PathBuf,
    node: String,
    watch: watch::Watch,
    /// The file as it was last understood.
    last: Option<MeshFile>,
    /// The file has not been read since it changed.
    unread: bool,
}

impl FileDiscovery {
    /// The pods of `node` in the file `path`.
    ///
    /// # Errors
    /// The path cannot be one of a file. A file that is not there yet is waited for.
    pub fn new(path: PathBuf, node: String) -> Result<Self> {
        let watch = watch::watch(&path)?;
        Ok(Self { path, node, watch, last: None, unread: true })
    }

    /// Reads the file; `None` when it is broken or says nothing new about this node.
    fn read(&mut self) -> Option<Vec<Pod>> {
        let mut loaded = match meshfile::load(&self.path) {
            Ok(loaded) => loaded,
            Err(error) if self.last.is_some() => {
                tracing::warn!(%error, "the mesh file is broken, the last good state stays in force");
                return None;
            }
            Err(error) => {
                tracing::warn!(%error, "waiting for a mesh file");
                return None;
            }
        };
        for error in &loaded.rejected {
            tracing::warn!(%error, "a part of the mesh file is rejected");
        }
        if let Some(last) = &self.last {
            for kept in loaded.keep_previous(last) {
                tracing::warn!(%kept, "stays as it was before");
            }
        }
        let before = self.last.as_ref().map(|mesh| pods_of(mesh, &self.node));
        let now = pods_of(&loaded.mesh, &self.node);
        self.last = Some(loaded.mesh);
        (before.as_ref() != Some(&now)).then_some(now)
    }
}

impl Discovery for FileDiscovery {
    async fn next(&mut self) -> Vec<Pod> {
        loop {
            if !self.unread {
                self.watch.changed().await;
                self.unread = true;
            }
            let read = self.read();
            self.unread = false;
            if let Some(pods) = read {
                return pods;
            }
        }
    }
}

fn pods_of(mesh: &MeshFile, node: &str) -> Vec<Pod> {
    let pods = mesh.pods.iter().filter(|pod| pod.node == node);
    pods.map(|pod| Pod {
        uid: pod.effective_uid().into(),
        runtime_uid: pod.effective_uid().into(),
        info: WorkloadInfo { name: pod.name.clone(), namespace: pod.namespace.clone(), service_account: pod.service_account.clone() },
        ips: pod.ips.clone(),
        netns: pod.netns.clone().map(Place::Path),
        ambient: pod.ambient,
        why: if pod.ambient { "the mesh file says so" } else { "it is not ambient in the mesh file" },
        existing: Existing::Keep,
        running_since: None,
        marked: false,
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TWO: &str = "pods:
- {name: a, node: here, ips: [10.0.0.1], netns: /run/a, ambient: true}
- {name: b, node: there, ips: [10.0.0.2], netns: /run/b, ambient: true}
";

    async fn soon<F: Future>(future: F) -> F::Output {
        tokio::time::timeout(Duration::from_secs(10), future).await.expect("in time")
    }

    #[tokio::test]
    async fn the_file_is_waited_for_followed_and_kept_when_it_breaks() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let path = directory.path().join("mesh.yaml");
        let mut discovery = FileDiscovery::new(path.clone(), "here".into()).expect("a path");
        let (first, ()) = tokio::join!(soon(discovery.next()), async {
            std::fs::write(&path, TWO).expect("write");
        });
        assert_eq!(first.len(), 1, "only this node's");
        assert_eq!((first[0].info.name.as_str(), first[0].ambient), ("a", true));
        assert_eq!(first[0].netns, Some(Place::Path("/run/a".into())));

        std::fs::write(&path, "pods: [").expect("write");
        assert!(discovery.read().is_none(), "a broken file changes nothing");
        std::fs::write(&path, TWO.replace("10.0.0.2", "10.0.0.3")).expect("write");
        assert!(discovery.read().is_none(), "a change of another node is none here");

        std::fs::write(&path, TWO.replacen("ambient: true", "ambient: false", 1)).expect("write");
        let second = soon(discovery.next()).await;
        assert_eq!((second.len(), second[0].ambient, &second[0].uid), (1, false, &first[0].uid));
    }
}
