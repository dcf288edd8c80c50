//! Answers the plugin's calls.

use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::metrics::Metrics;
use crate::agent::sandbox::{Sandbox, Sandboxes, Verdict};
use crate::base::drain::Watch;
use crate::base::{Error, Result, code, deadline};
use crate::cni::message::{Answer, Call};
use crate::net::NetNs;
use crate::net::seqpacket::{self, Connection, Listener, Packet};

/// Calls that are answered at the same time; more wait in the plugin.
const MAX_CALLS: usize = 128;

/// For the message of a caller, which it sends at once, and for the end of a pod.
const CALL_LIMIT: Duration = Duration::from_secs(2);

/// The longest that a pod is waited for, whatever the plugin asks.
const MAX_ADD: Duration = Duration::from_secs(60);

/// Beyond the limit that `add` itself keeps.
const GRACE: Duration = Duration::from_millis(200);

/// The listening socket.
#[derive(Debug)]
pub struct Server<S> {
    path: PathBuf,
    listener: Listener,
    sandboxes: Arc<S>,
    metrics: Metrics,
    /// The only user that may call.
    owner: u32,
}

impl<S: Sandboxes> Server<S> {
    /// Listens on the socket file `path`, in place of whoever did before: during an upgrade the calls go to the newer agent
    /// from one moment to the next. Must be called inside a runtime.
    ///
    /// # Errors
    /// BIND_FAILED with the kernel's answer.
    pub fn bind(path: &Path, sandboxes: Arc<S>, metrics: Metrics) -> Result<Self> {
        let listener = listen(path).map_err(|error| Error::caused(&code::BIND_FAILED, format!("listen on {}", path.display()), error))?;
        Ok(Self { path: path.to_owned(), listener, sandboxes, metrics, owner: nix::unistd::geteuid().as_raw() })
    }

    /// Answers until a drain starts. Calls that are open then end without an answer: the plugin asks the successor. Makes
    /// the socket file anew when somebody has removed it.
    pub async fn run(mut self, mut drain: Watch) {
        let permits = Arc::new(Semaphore::new(MAX_CALLS));
        let mut calls = JoinSet::new();
        let mut look = seqpacket::look();
        loop {
            let next = async {
                let permit = permits.clone().acquire_owned().await.ok()?;
                Some((self.listener.accept().await, permit))
            };
            let accepted = tokio::select! {
                accepted = next => accepted,
                Some(_) = calls.join_next() => continue,
                _ = look.tick() => {
                    // One that somebody else listens on is a newer agent's.
                    if !self.listener.is_at(&self.path) && !seqpacket::is_alive(&self.path).await {
                        self.listen_again();
                    }
                    continue;
                }
                _ = drain.started() => return,
            };
            match accepted {
                Some((Ok(connection), permit)) => {
                    let (sandboxes, metrics, owner) = (self.sandboxes.clone(), self.metrics.clone(), self.owner);
                    calls.spawn(async move {
                        if let Err(error) = serve(&connection, &*sandboxes, &metrics, owner).await {
                            metrics.count("refused");
                            tracing::warn!(%error, "a call on the CNI socket is not answered");
                        }
                        drop(permit);
                    });
                }
                Some((Err(error), _)) => {
                    tracing::warn!(%error, "a CNI call could not be accepted");
                    // Out of descriptors, most likely: accepting again at once would only spin.
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
                None => return,
            }
        }
    }

    fn listen_again(&mut self) {
        let socket = self.path.display();
        match listen(&self.path) {
            Ok(listener) => {
                tracing::warn!(%socket, "somebody has removed the socket for CNI calls, it is there again");
                self.listener = listener;
            }
            Err(error) => tracing::warn!(%socket, %error, "the socket for CNI calls is gone and cannot be made"),
        }
    }
}

/// Makes the socket under another name and moves it to its place, which a file that somebody left cannot prevent.
fn listen(path: &Path) -> io::Result<Listener> {
    if let Some(directory) = path.parent() {
        std::fs::DirBuilder::new().recursive(true).mode(0o755).create(directory)?;
    }
    let fresh = path.with_extension("new");
    match std::fs::remove_file(&fresh) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = Listener::bind(&fresh)?;
    std::fs::rename(&fresh, path)?;
    Ok(listener)
}

/// Answers one caller.
async fn serve(connection: &Connection, sandboxes: &impl Sandboxes, metrics: &Metrics, owner: u32) -> Result<()> {
    let broken = |error| Error::caused(&code::CNI_CALL, "the connection", error);
    let uid = connection.peer_uid().map_err(broken)?;
    if uid != owner {
        return Err(Error::new(&code::CNI_CALL, format!("the caller is user {uid}")));
    }
    let packet = deadline(CALL_LIMIT, &code::CNI_CALL, "the caller", connection.receive()).await?.map_err(broken)?;
    let Some(Packet { data, fd }) = packet else {
        return Err(Error::new(&code::CNI_CALL, "the caller hung up"));
    };
    let answer = match Call::decode(&data)? {
        Call::Add { pod, ips, limit_ms } => {
            let Some(fd) = fd else { return Err(Error::new(&code::CNI_CALL, format!("pod {}: no network namespace", pod.uid))) };
            let netns = NetNs::from_fd(fd).map_err(|error| Error::caused(&code::CNI_CALL, format!("pod {}", pod.uid), error))?;
            let sandbox = Sandbox {
                uid: pod.uid.into(),
                namespace: pod.namespace.into(),
                name: pod.name.into(),
                container_id: pod.container.into(),
                netns,
                ips,
            };
            add(sandboxes, sandbox, Duration::from_millis(limit_ms).min(MAX_ADD), metrics).await
        }
        Call::Del { pod } => {
            deadline(CALL_LIMIT, &code::CNI_CALL, "the agent", sandboxes.del(&pod.uid, &pod.container)).await?;
            metrics.count("forgotten");
            Answer::Forgotten
        }
    };
    deadline(CALL_LIMIT, &code::CNI_CALL, "the caller", connection.send(&answer.encode()?, None)).await?.map_err(broken)
}

async fn add(sandboxes: &impl Sandboxes, sandbox: Sandbox, limit: Duration, metrics: &Metrics) -> Answer {
    let pod = format!("{}/{}", sandbox.namespace, sandbox.name);
    let started = Instant::now();
    let verdict = deadline(limit + GRACE, &code::CNI_NOT_ENROLLED, "the pod's enrolment", sandboxes.add(sandbox, limit)).await;
    let took = started.elapsed();
    metrics.seconds.observe(took.as_secs_f64());
    match verdict.unwrap_or_else(Err) {
        Ok(Verdict::Enrolled) => {
            metrics.count("enrolled");
            tracing::debug!(pod, ?took, "a new pod is in the mesh");
            Answer::Enrolled
        }
        Ok(Verdict::NotInMesh(why)) => {
            metrics.count("not_in_mesh");
            tracing::debug!(pod, why, "a new pod is not to be in the mesh");
            Answer::NotInMesh { why: why.to_owned() }
        }
        Err(error) => {
            metrics.count("failed");
            tracing::warn!(pod, %error, ?took, "a new pod could not be brought into the mesh; it is not started");
            Answer::failed(&error)
        }
    }
}

#[cfg(test)]
mod tests;
