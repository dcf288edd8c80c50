//! Where CNI calls come in: finds out about the pod, puts it in front, waits for the answer.

use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use crate::agent::discovery::{Lookup, Pod};
use crate::agent::sandbox::{Sandbox, Sandboxes, Verdict};
use crate::base::{Error, Result, Str, code};

/// Calls that wait for the reconciler.
const MAX_CALLS: usize = 256;

/// What is left of a call's time for its way back.
const RETURN: Duration = Duration::from_millis(100);

/// What the reconciler is asked for.
#[derive(Debug)]
pub(super) enum Command {
    /// Enrol the pod in its new sandbox.
    Add(Box<(Pod, Sandbox)>, Waiter),
    /// The pod has this sandbox, and is not to be in the mesh.
    Note(Str, Sandbox),
    /// The sandbox is being taken down.
    Del(Str),
}

/// Somebody who waits for an enrolment.
#[derive(Debug)]
pub(super) struct Waiter {
    pub(super) end: Instant,
    pub(super) reply: oneshot::Sender<Result<Verdict>>,
}

/// The side of the CNI calls.
#[derive(Debug)]
pub struct Front<L> {
    lookup: L,
    commands: mpsc::Sender<Command>,
}

/// The reconciler's side.
#[derive(Debug)]
pub struct Calls(pub(super) mpsc::Receiver<Command>);

/// Both sides. Calls that come before the reconciler works wait for it.
pub fn front<L: Lookup>(lookup: L) -> (Front<L>, Calls) {
    let (commands, receiver) = mpsc::channel(MAX_CALLS);
    (Front { lookup, commands }, Calls(receiver))
}

/// For a source whose pods do not come by CNI calls.
pub fn no_calls() -> Calls {
    Calls(mpsc::channel(1).1)
}

impl<L: Lookup> Sandboxes for Front<L> {
    async fn add(&self, sandbox: Sandbox, limit: Duration) -> Result<Verdict> {
        let started = Instant::now();
        let name = format!("{}/{}", sandbox.namespace, sandbox.name);
        let verdict = match tokio::time::timeout(limit, self.decide(sandbox, started + limit)).await {
            Ok(verdict) => verdict,
            Err(_) => Err(Error::new(&code::NOT_CAPTURED, format!("pod {name}: the agent is not ready, or too much waits for it"))),
        };
        tracing::debug!(pod = %name, ?verdict, took = ?started.elapsed(), "sandbox");
        verdict
    }

    async fn del(&self, _uid: &str, container_id: &str) {
        // A full queue is one that nobody empties: the audit will find what has become of the sandbox.
        let _ = self.commands.try_send(Command::Del(container_id.into()));
    }
}

impl<L: Lookup> Front<L> {
    async fn decide(&self, sandbox: Sandbox, end: Instant) -> Result<Verdict> {
        let pod = self.lookup.pod(&sandbox.uid, &sandbox.namespace, &sandbox.name, end - Instant::now()).await?;
        if !pod.ambient {
            let why = pod.why;
            // Its label may come later: then the namespace need not be looked for.
            let _ = self.commands.try_send(Command::Note(pod.uid, sandbox));
            return Ok(Verdict::NotInMesh(why));
        }
        let (reply, answer) = oneshot::channel();
        let waiter = Waiter { end: end.checked_sub(RETURN).unwrap_or(end), reply };
        let stopped = || Error::new(&code::NOT_CAPTURED, "the agent is ending");
        self.commands.send(Command::Add(Box::new((pod, sandbox)), waiter)).await.map_err(|_| stopped())?;
        answer.await.unwrap_or_else(|_| Err(stopped()))
    }
}
