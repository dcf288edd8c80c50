//! The agent's side: keeps every connected proxy at the set of pods that the agent wants served.
//!
//! During an upgrade two proxies are connected. Both get every removal; additions go to the newest only, because the
//! older one is about to leave.

mod session;
mod table;

use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;

use super::codec::WorkloadInfo;
use crate::base::drain::Watch;
use crate::base::{Error, Result, Str, code, deadline};
use crate::net::seqpacket::{self, Listener};
use crate::net::{NetNs, netns::NetNsId};
use table::Table;

/// For the proxy's first message, and for each answer.
const LIMIT: Duration = Duration::from_secs(5);

/// Proxies at the same time. Two during an upgrade.
const MAX_SESSIONS: usize = 8;

/// How long one change may take with everything that is queued before it.
const CHANGE_LIMIT: Duration = Duration::from_secs(15);

/// A pod that is to be served.
#[derive(Clone, Debug)]
pub struct Pod {
    /// Its UID.
    pub uid: Str,
    /// What it is called.
    pub info: WorkloadInfo,
    /// Its network namespace; without one, proxies are only told to keep the pod.
    pub netns: Option<NetNs>,
}

/// What the newest proxy said about a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Served {
    /// No proxy is connected.
    NoProxy,
    /// A proxy is connected but has not answered about this pod yet.
    Unknown,
    /// It serves the pod in this network namespace.
    Yes(NetNsId),
    /// It could not, and why.
    Refused(String),
}

/// Changes and asks the set of pods; clones share it.
#[derive(Clone, Debug)]
pub struct Handle {
    table: Arc<Table>,
}

/// The listening socket.
#[derive(Debug)]
pub struct Server {
    path: PathBuf,
    listener: Listener,
    table: Arc<Table>,
}

impl Handle {
    /// An empty set without listener.
    pub fn new() -> Self {
        Self { table: Arc::new(Table::new()) }
    }

    /// Puts the pod into the set that proxies get when they connect, without telling those that are connected.
    pub fn register(&self, pod: Pod) {
        self.table.register(pod);
    }

    /// Puts the pod into the set and has the newest proxy serve it.
    ///
    /// # Errors
    /// No proxy is connected, it refused, or it did not answer (and is disconnected). The pod stays in the set.
    /// A pod without network namespace can only be registered.
    pub async fn add(&self, pod: Pod) -> Result<()> {
        if pod.netns.is_none() {
            return Err(Error::new(&code::NETNS_GONE, format!("pod {}: no network namespace", pod.uid)));
        }
        let answer = self.table.add(pod)?;
        deadline(CHANGE_LIMIT, &code::ZDS_REFUSED, "the proxy", answer).await?.unwrap_or_else(|_| Err(session_ended()))
    }

    /// Takes the pod out of the set and has all proxies stop serving it.
    ///
    /// # Errors
    /// A proxy refused. One that has gone away is no error: what it is told when it comes back has no such pod.
    pub async fn remove(&self, uid: &str) -> Result<()> {
        for answer in self.table.remove(uid) {
            if let Ok(answer) = deadline(CHANGE_LIMIT, &code::ZDS_REFUSED, "the proxy", answer).await? {
                answer?;
            }
        }
        Ok(())
    }

    /// What the newest proxy said about the pod.
    pub fn served(&self, uid: &str) -> Served {
        self.table.served(uid)
    }

    /// Changes with every connection, disconnection and answer.
    pub fn changed(&self) -> watch::Receiver<u64> {
        self.table.changed()
    }

    /// How many proxies are connected.
    pub fn proxies(&self) -> usize {
        self.table.proxies()
    }
}

impl Default for Handle {
    fn default() -> Self {
        Self::new()
    }
}

impl Server {
    /// Listens on the socket file `path`; a stale file is removed, missing directories are made.
    ///
    /// Proxies stop what the snapshot does not name: register all pods first.
    ///
    /// # Errors
    /// The file cannot be made, or another process listens there.
    pub async fn bind(path: &Path, handle: &Handle) -> Result<Self> {
        let listener = listen(path).await?;
        Ok(Self { path: path.to_owned(), listener, table: handle.table.clone() })
    }

    /// Serves proxies until a drain starts. Makes the socket file anew when somebody has removed it.
    pub async fn run(mut self, mut drain: Watch) {
        let free = Arc::new(Semaphore::new(MAX_SESSIONS));
        let mut sessions = JoinSet::new();
        let mut look = seqpacket::look();
        loop {
            let accepted = tokio::select! {
                accepted = self.listener.accept() => accepted,
                Some(_) = sessions.join_next() => continue,
                _ = look.tick() => {
                    if !self.listener.is_at(&self.path) {
                        self.listen_again().await;
                    }
                    continue;
                }
                _ = drain.started() => return,
            };
            match (accepted, free.clone().try_acquire_owned()) {
                (Ok(connection), Ok(permit)) => {
                    let table = self.table.clone();
                    sessions.spawn(async move {
                        session::run(connection, table).await;
                        drop(permit);
                    });
                }
                (Ok(_), Err(_)) => tracing::warn!(limit = MAX_SESSIONS, "too many proxies are connected, one more is turned away"),
                (Err(error), _) => {
                    tracing::warn!(%error, "a proxy could not be accepted");
                    // Out of descriptors, most likely: accepting again at once would only spin.
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }

    async fn listen_again(&mut self) {
        match listen(&self.path).await {
            Ok(listener) => {
                tracing::warn!(socket = %self.path.display(), "somebody has removed the socket for proxies, it is there again");
                self.listener = listener;
            }
            Err(error) => tracing::warn!(%error, "the socket for proxies is gone"),
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // A successor finds a stale file just as well; leaving none is only neater.
        if self.listener.is_at(&self.path) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

async fn listen(path: &Path) -> Result<Listener> {
    let failed = |error| Error::caused(&code::BIND_FAILED, format!("listen on {}", path.display()), error);
    if let Some(directory) = path.parent() {
        std::fs::create_dir_all(directory).map_err(failed)?;
    }
    remove_stale(path).await.map_err(failed)?;
    Listener::bind(path).map_err(failed)
}

/// Removes a socket file that nobody listens on any more.
async fn remove_stale(path: &Path) -> io::Result<()> {
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
        Ok(meta) if !meta.file_type().is_socket() => {
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, "a file that is no socket is in the way"));
        }
        Ok(_) => {}
    }
    if seqpacket::is_alive(path).await {
        return Err(io::Error::new(io::ErrorKind::AddrInUse, "another agent listens there"));
    }
    std::fs::remove_file(path)
}

fn session_ended() -> Error {
    Error::new(&code::ZDS_REFUSED, "the proxy went away before it answered")
}

#[cfg(test)]
mod tests;
