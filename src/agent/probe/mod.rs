//! Probes of the kubelet: what it sends to an enrolled pod of this node carries an address that the pod's rules know, so
//! that it reaches the application also where everything else must be authenticated.
//!
//! The rules stand in the node's network namespace. They know the kubelet by its own control group where it has one, so
//! that no other process of the node passes for it; else by its user id, which every process of that user shares.

mod kubelet;
mod node;
mod plan;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use nix::errno::Errno;
use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::agent::redirect::{Options, nft};
use crate::base::{Code, Error, Result, code, deadline};
use node::Node;

pub use plan::{Sender, TABLE};

/// For one operation. It reads some files for each process of the node and speaks to the kernel a few times.
const LIMIT: Duration = Duration::from_secs(5);

/// How often the kubelet is looked for: one that was started anew has another control group.
const LOOK: Duration = Duration::from_secs(2);

/// Between two times that the table is read back.
const AUDIT: Duration = Duration::from_secs(30);

/// How the kubelet is known, in a sentence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Known {
    /// What the rules look at.
    pub sender: Sender,
    /// The control group, or why there is none to look at.
    pub why: String,
}

/// The rules for probes of one node.
#[derive(Clone, Debug)]
pub struct ProbeTable {
    node: Node,
    options: Options,
    state: Arc<Mutex<State>>,
    /// One operation at a time.
    turn: Arc<tokio::sync::Mutex<()>>,
}

#[derive(Debug, Default)]
struct State {
    wanted: BTreeSet<IpAddr>,
    kubelet: Option<Found>,
}

#[derive(Clone, Debug)]
struct Found {
    process: kubelet::Instance,
    known: Known,
}

impl ProbeTable {
    /// Nothing is done yet. `proc` is where the processes of the node are seen, and `init` one that lives in the node's
    /// own namespaces: process 1.
    pub fn new(options: Options, proc: PathBuf, init: u32) -> Self {
        nft::prepare();
        Self { node: Node::new(proc, init), options, state: Arc::default(), turn: Arc::default() }
    }

    /// Probes of the kubelet to these pods, and no others, are let through from now on.
    ///
    /// # Errors
    /// `PROBER_UNKNOWN` without a kubelet, and as the kernel says. The addresses count all the same: [`Self::keep`]
    /// tries again.
    pub async fn set(&self, pods: BTreeSet<IpAddr>) -> Result<()> {
        self.state.lock().wanted = pods;
        self.assert(false).await
    }

    /// Reads back what is in force and, where that is not what is wanted, puts it in force. Looks for the kubelet anew.
    ///
    /// # Errors
    /// As [`Self::set`].
    pub async fn audit(&self) -> Result<()> {
        self.assert(true).await
    }

    /// Removes everything.
    ///
    /// # Errors
    /// As the kernel says.
    pub async fn remove(&self) -> Result<()> {
        let _turn = self.turn.lock().await;
        *self.state.lock() = State::default();
        self.on_node(|node| node.enter().and_then(|_| nft::assure(TABLE, &[]))).await
    }

    /// How the kubelet is known, once it is.
    pub fn known(&self) -> Option<Known> {
        self.state.lock().kubelet.as_ref().map(|found| found.known.clone())
    }

    /// Keeps the rules right: audits them, and makes them anew when the kubelet was started anew. Never ends; may be
    /// dropped.
    pub async fn keep(&self) {
        let mut look = tokio::time::interval(LOOK);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut audited = Instant::now();
        let mut failed = String::new();
        loop {
            look.tick().await;
            if self.is_settled() && audited.elapsed() < AUDIT {
                continue;
            }
            audited = Instant::now();
            match self.audit().await {
                Ok(()) => failed.clear(),
                Err(error) => {
                    let text = error.to_string();
                    if text != failed {
                        tracing::warn!(%error, "kubelet's probes may not reach pods, will be tried again");
                        failed = text;
                    }
                }
            }
        }
    }

    /// Whether the kubelet that the rules know still runs, or nothing needs it.
    fn is_settled(&self) -> bool {
        let state = self.state.lock();
        match &state.kubelet {
            Some(found) => found.process.runs(&self.node.proc),
            None => state.wanted.is_empty(),
        }
    }

    async fn assert(&self, anew: bool) -> Result<()> {
        let _turn = self.turn.lock().await;
        let (wanted, before) = {
            let state = self.state.lock();
            (state.wanted.clone(), state.kubelet.clone())
        };
        let options = self.options;
        let known = before.as_ref().map(|found| found.known.clone());
        let found = self.on_node(move |node| establish(node, before.filter(|_| !anew), &wanted, &options)).await?;
        if known.as_ref() != Some(&found.known) {
            let Known { sender, why } = &found.known;
            match sender {
                Sender::Group { .. } => {
                    tracing::info!(pid = found.process.pid, "probes of the kubelet are known by its control group {why}")
                }
                Sender::User(user) => tracing::warn!(
                    pid = found.process.pid,
                    "probes of the kubelet are known by its user id only: every process of the node's network with user id {user} \
                     reaches the enrolled pods of this node past their policies: {why}"
                ),
            }
        }
        self.state.lock().kubelet = Some(found);
        Ok(())
    }

    /// Does `work` on a thread of its own, which may move into the node's namespaces and stay there.
    async fn on_node<R: Send + 'static>(&self, work: impl FnOnce(&Node) -> Result<R> + Send + 'static) -> Result<R> {
        const FAILURE: &Code = &code::REDIRECT_FAILED;
        let (answer, answered) = oneshot::channel();
        let node = self.node.clone();
        let thread = std::thread::Builder::new().name("probes".to_owned());
        thread
            .spawn(move || {
                let _ = answer.send(work(&node));
            })
            .map_err(|error| Error::caused(FAILURE, "start a thread", error))?;
        let done = deadline(LIMIT, FAILURE, "rules for probes", answered).await?;
        done.map_err(|error| Error::caused(FAILURE, "rules for probes", error))?
    }
}

/// Finds the kubelet, unless it is known and still runs, and makes sure that the rules are in force.
fn establish(node: &Node, known: Option<Found>, pods: &BTreeSet<IpAddr>, options: &Options) -> Result<Found> {
    let ids = node.enter()?;
    let found = match known.filter(|found| found.process.runs(&node.proc)) {
        Some(found) => found,
        None => {
            let process = kubelet::find(&node.proc, ids.network)?;
            let known = match ids.groups.and_then(|root| node.group_of(&process, root)) {
                Ok((sender, path)) => Known { sender, why: path },
                Err(why) => Known { sender: Sender::User(process.user), why },
            };
            Found { process, known }
        }
    };
    match put(&found.known.sender, pods, options) {
        // Kernels before 5.13 do not look at control groups.
        Err(error) if matches!(found.known.sender, Sender::Group { .. }) && is_unsupported(&error) => {
            let why = format!("the kernel does not take rules about control group {}: {error}", found.known.why);
            let known = Known { sender: Sender::User(found.process.user), why };
            put(&known.sender, pods, options)?;
            Ok(Found { process: found.process, known })
        }
        result => result.map(|()| found),
    }
}

/// Whether the kernel does not know what it is asked for: any other failure may be over the next time, and opens nothing.
fn is_unsupported(error: &Error) -> bool {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = cause {
        if let Some(errno) = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::raw_os_error) {
            return [Errno::EOPNOTSUPP, Errno::ENOENT, Errno::EINVAL, Errno::EAFNOSUPPORT].contains(&Errno::from_raw(errno));
        }
        cause = error.source();
    }
    false
}

fn put(sender: &Sender, pods: &BTreeSet<IpAddr>, options: &Options) -> Result<()> {
    nft::assure(TABLE, &plan::plans(sender, pods, options))
}
