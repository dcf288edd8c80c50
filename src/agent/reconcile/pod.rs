//! One pod: observes it and takes the next step.

use std::time::Duration;

use tokio::time::Instant;

use crate::agent::decide::{self, Step, View, decide};
use crate::agent::discovery::{Place, Pod};
use crate::agent::redirect::{Redirect, State};
use crate::base::{Error, Result, Str, code};
use crate::net::NetNs;
use crate::zds::server::{self, Handle};

/// What is wanted for a pod, and the namespace in which it was last seen.
#[derive(Clone, Debug)]
pub(super) struct Task {
    pod: Pod,
    netns: Option<NetNs>,
    /// Since when no new connections are redirected.
    held: Option<Instant>,
}

/// How a step went; texts are for the log, where one that repeats is left out.
#[derive(Debug)]
pub(super) enum Outcome {
    /// There is more to do.
    Step(&'static str),
    /// Nothing is to be done until something changes.
    Settled(&'static str),
    /// Its connections are being finished.
    Draining,
    /// Try again later.
    Failed(Error),
    /// It is no longer of interest.
    Gone(&'static str),
}

impl Task {
    pub(super) fn new(pod: Pod) -> Self {
        Self { pod, netns: None, held: None }
    }

    pub(super) fn uid(&self) -> &Str {
        &self.pod.uid
    }

    pub(super) fn name(&self) -> String {
        format!("{}/{}", self.pod.info.namespace, self.pod.info.name)
    }

    /// Takes what is wanted now; tells whether that is something else.
    pub(super) fn update(&mut self, pod: Pod) -> bool {
        let other = self.pod != pod;
        self.pod = pod;
        other
    }

    /// It is not to be in the mesh; tells whether that is new.
    pub(super) fn leave(&mut self) -> bool {
        std::mem::replace(&mut self.pod.ambient, false)
    }

    /// Takes what a step of an earlier clone has found; tells whether what it was after is still what is wanted.
    pub(super) fn finish(&mut self, done: Task) -> bool {
        (self.netns, self.held) = (done.netns, done.held);
        self.pod == done.pod
    }

    /// The pod as proxies are told about it, if they are.
    pub(super) fn register(&mut self) -> Option<server::Pod> {
        if !self.pod.ambient {
            return None;
        }
        self.netns = self.open().ok();
        Some(self.served_pod())
    }

    /// Takes one step.
    pub(super) async fn step(mut self, redirect: &impl Redirect, proxies: &Handle, drain: Duration) -> (Self, Outcome) {
        let outcome = match self.try_step(redirect, proxies, drain).await {
            Ok(outcome) => outcome,
            Err(error) => Outcome::Failed(error),
        };
        (self, outcome)
    }

    async fn try_step(&mut self, redirect: &impl Redirect, proxies: &Handle, drain: Duration) -> Result<Outcome> {
        let netns = match self.locate(proxies).await? {
            Ok(netns) => netns,
            Err(outcome) => return Ok(outcome),
        };
        let state = redirect.state(&netns).await?;
        let drained = match (self.pod.ambient, state) {
            (false, State::Holding) => {
                let held = *self.held.get_or_insert_with(Instant::now);
                held.elapsed() >= drain || redirect.connections(&netns).await? == 0
            }
            _ => false,
        };
        let served = match proxies.served(&self.pod.uid) {
            server::Served::NoProxy => decide::Served::NoProxy,
            server::Served::Yes(id) if id == netns.id() => decide::Served::Yes,
            _ => decide::Served::No,
        };
        let view = View { wanted: self.pod.ambient, state, served, drained };
        self.take(decide(view), view, &netns, redirect, proxies).await
    }

    async fn take(&mut self, step: Step, view: View, netns: &NetNs, redirect: &impl Redirect, proxies: &Handle) -> Result<Outcome> {
        Ok(match step {
            Step::Nothing => Outcome::Settled("enrolled: new connections go through the proxy"),
            Step::AwaitProxy if view.state == State::Redirecting => {
                Outcome::Settled("enrolled, but no proxy is connected to this agent; one that runs goes on serving")
            }
            Step::AwaitProxy => Outcome::Settled("not enrolled yet: no proxy is connected to this agent"),
            Step::AwaitDrain => Outcome::Draining,
            Step::Serve => {
                proxies.add(self.served_pod()).await?;
                Outcome::Step("")
            }
            Step::Redirect => {
                self.held = None;
                redirect.apply(netns).await?;
                // The kernel is asked again whether it is so; only then the pod is said to be enrolled.
                Outcome::Step("")
            }
            Step::Hold => {
                redirect.hold(netns).await?;
                self.held = Some(Instant::now());
                Outcome::Step("leaves the mesh: new connections go direct, open ones are finished")
            }
            Step::Remove => {
                proxies.remove(&self.pod.uid).await?;
                redirect.remove(netns).await?;
                Outcome::Gone(if view.state == State::Absent { "" } else { "un-enrolled" })
            }
        })
    }

    /// The pod's namespace as it is now; or how the step ends without it.
    async fn locate(&mut self, proxies: &Handle) -> Result<std::result::Result<NetNs, Outcome>> {
        let found = self.open();
        if self.pod.ambient {
            if let (Ok(new), Some(old)) = (&found, &self.netns)
                && new.id() != old.id()
            {
                tracing::info!(uid = %self.pod.uid, pod = %self.name(), netns = %new.id(), "pod has a new network namespace");
            }
            self.netns = found.as_ref().ok().cloned();
            proxies.register(self.served_pod());
            return found.map(Ok);
        }
        match (found, &self.netns) {
            (Ok(found), Some(old)) if found.id() == old.id() => Ok(Ok(found)),
            (Ok(found), None) => {
                self.netns = Some(found.clone());
                Ok(Ok(found))
            }
            // The pod is gone, or another one has its place: there is nothing to clean up.
            _ => {
                proxies.remove(&self.pod.uid).await?;
                Ok(Err(Outcome::Gone(if self.netns.is_some() { "gone" } else { "" })))
            }
        }
    }

    fn open(&self) -> Result<NetNs> {
        let netns = match &self.pod.netns {
            None => return Err(Error::new(&code::NETNS_GONE, format!("pod {}: no network namespace is given", self.name()))),
            Some(Place::Open(netns)) => netns.clone(),
            Some(Place::Path(path)) => {
                NetNs::open(path).map_err(|error| Error::caused(&code::NETNS_GONE, format!("open {}", path.display()), error))?
            }
        };
        // The agent's own namespace may be the node's: redirecting that would cut the node off.
        if NetNs::current().is_ok_and(|own| own.id() == netns.id()) {
            let text = format!("the network namespace of pod {} is the agent's own", self.name());
            return Err(Error::new(&code::NETNS_GONE, text));
        }
        Ok(netns)
    }

    fn served_pod(&self) -> server::Pod {
        server::Pod { uid: self.pod.uid.clone(), info: self.pod.info.clone(), netns: self.netns.clone() }
    }
}
