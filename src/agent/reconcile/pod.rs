//! One pod: observes it and takes the next step.

use std::time::Duration;

use tokio::time::Instant;

use crate::agent::decide::{self, Step, View, decide};
use crate::agent::discovery::{Place, Pod};
use crate::agent::enrolment::Existing;
use crate::agent::existing;
use crate::agent::redirect::{Options, Redirect, State};
use crate::base::{Error, Result, Str, code};
use crate::net::NetNs;
use crate::net::netns::NetNsId;
use crate::zds::server::{self, Handle};

/// One pod of the reconciler. A step works on a clone.
#[derive(Clone, Debug)]
pub(super) struct Task {
    pub(super) wanted: Wanted,
    pub(super) known: Known,
}

/// What is wanted; changed by the reconciler only.
#[derive(Clone, Debug)]
pub(super) struct Wanted {
    pub(super) pod: Pod,
    /// The namespace, from a CNI call or found among the processes; before what the source of pods says.
    pub(super) given: Option<Given>,
    /// It is not listed any more: it has ended, and so has its namespace.
    pub(super) gone: bool,
}

/// A pod's namespace as it was handed over or found.
#[derive(Clone, Debug)]
pub(super) struct Given {
    pub(super) netns: NetNs,
    /// The sandbox's id, if a CNI call brought it.
    pub(super) sandbox: Option<Str>,
    /// A CNI call waits for it: no application runs there yet.
    pub(super) fresh: bool,
    /// No process was in it when it was found: it is left, but not served.
    pub(super) empty: bool,
    pub(super) at: Instant,
    /// Since when something of the pod may run in it.
    pub(super) since: Instant,
}

/// What was observed; changed by steps only.
#[derive(Clone, Debug, Default)]
pub(super) struct Known {
    pub(super) netns: Option<NetNs>,
    /// What the namespace redirects.
    pub(super) state: Option<State>,
    /// A proxy has served the pod in this namespace.
    pub(super) served: bool,
    /// All was as it must be, in this namespace.
    enrolled: Option<NetNsId>,
    /// What was in force before the rules were put there.
    applied_over: Option<State>,
    /// There may be connections from before the rules that were not reset.
    unreset: bool,
    /// What was to become of such connections when all was last as it must be.
    existing: Option<Existing>,
    /// Open connections that are older than the enrolment.
    pub(super) left: usize,
    /// Since when no new connections are redirected.
    held: Option<Instant>,
}

/// What steps work with.
#[derive(Debug)]
pub(super) struct Tools<'a, R> {
    pub(super) redirect: &'a R,
    pub(super) proxies: &'a Handle,
    pub(super) drain: Duration,
    pub(super) options: Options,
}

/// How a step went; texts are for the log, where one that repeats is left out.
#[derive(Debug)]
pub(super) enum Outcome {
    /// There is more to do.
    Step(&'static str),
    /// All is as it must be.
    Enrolled(Enrolled),
    /// Nothing can be done until a proxy connects.
    NoProxy,
    /// Its namespace is not known.
    Lost,
    /// Its connections are being finished.
    Draining,
    /// Try again later.
    Failed(Error),
    /// It is no longer of interest.
    Gone(&'static str),
}

/// What had to be done until all was as it must be.
#[derive(Debug, Default)]
pub(super) struct Enrolled {
    /// The rules were put there by this agent since it looked last.
    pub(super) applied: bool,
    /// It had found them there before.
    pub(super) again: bool,
    /// It was looked at for the first time in this namespace.
    pub(super) first: bool,
    /// Connections that are older and were reset.
    pub(super) ended: usize,
    /// Why they could not be.
    pub(super) kept: Option<Error>,
}

impl Task {
    pub(super) fn new(pod: Pod, given: Option<Given>) -> Self {
        Self { wanted: Wanted { pod, given, gone: false }, known: Known::default() }
    }

    pub(super) fn uid(&self) -> &Str {
        &self.wanted.pod.uid
    }

    pub(super) fn name(&self) -> String {
        format!("{}/{}", self.wanted.pod.info.namespace, self.wanted.pod.info.name)
    }

    /// Takes what is wanted now; tells whether that is something else.
    pub(super) fn update(&mut self, mut pod: Pod) -> bool {
        if pod.ips.is_empty() && self.wanted.given.is_some() {
            // The API learns them later than the call that has handed the sandbox over.
            pod.ips.clone_from(&self.wanted.pod.ips);
        }
        let other = !self.wanted.pod.wants_the_same(&pod) || self.wanted.gone;
        if pod.ambient {
            self.wanted.given.take_if(|given| given.empty);
        }
        (self.wanted.pod, self.wanted.gone) = (pod, false);
        other
    }

    /// It is not to be in the mesh; tells whether that is new. One that is lost may have been enrolled, and stays so.
    pub(super) fn leave(&mut self) -> bool {
        self.wanted.pod.marked |= self.is_lost();
        std::mem::replace(&mut self.wanted.pod.ambient, false)
    }

    /// It is lost, and is not looked for any more.
    pub(super) fn give_up(&mut self) {
        self.wanted.pod.marked = false;
    }

    /// It is not listed any more; tells whether that is new. A namespace that was given to the agent has ended with it.
    /// One that is a file may live on: the pod leaves as if it was not to be in the mesh.
    pub(super) fn unlisted(&mut self) -> bool {
        let gone = self.wanted.pod.netns.is_none();
        let new = std::mem::replace(&mut self.wanted.gone, gone) != gone;
        self.leave() || new
    }

    /// It is to be in the mesh, or an agent has said that it was, and nobody has said where its namespace is.
    pub(super) fn is_lost(&self) -> bool {
        let Wanted { pod, given, gone } = &self.wanted;
        (pod.ambient || pod.marked) && !gone && given.is_none() && pod.netns.is_none()
    }

    /// Takes what a step of an earlier clone has found; tells whether what it was after is still what is wanted.
    pub(super) fn finish(&mut self, done: Task) -> bool {
        let as_lost = self.is_lost() == done.is_lost();
        self.known = done.known;
        let id = |wanted: &Wanted| wanted.given.as_ref().map(|given| given.netns.id());
        let (now, then) = (&self.wanted, &done.wanted);
        now.pod.wants_the_same(&then.pod) && now.gone == then.gone && as_lost && id(now) == id(then)
    }

    /// The pod as proxies are told about it, if they are.
    pub(super) fn register(&mut self) -> Option<server::Pod> {
        if !self.wanted.pod.ambient {
            return None;
        }
        self.known.netns = self.open().ok();
        Some(self.served_pod())
    }

    /// Takes one step.
    pub(super) async fn step<R: Redirect>(mut self, tools: Tools<'_, R>) -> (Self, Outcome) {
        let outcome = match self.try_step(&tools).await {
            Ok(outcome) => outcome,
            Err(error) => Outcome::Failed(error),
        };
        (self, outcome)
    }

    async fn try_step<R: Redirect>(&mut self, tools: &Tools<'_, R>) -> Result<Outcome> {
        let Tools { redirect, proxies, drain, .. } = *tools;
        let netns = match self.locate(proxies).await? {
            Ok(netns) => netns,
            Err(outcome) => return Ok(outcome),
        };
        self.start_fresh(&netns, tools).await?;
        let state = redirect.state(&netns).await?;
        self.known.state = Some(state);
        let drained = match (self.wanted.pod.ambient, state) {
            (false, State::Holding) => {
                let held = *self.known.held.get_or_insert_with(Instant::now);
                held.elapsed() >= drain || redirect.connections(&netns).await? == 0
            }
            _ => false,
        };
        let served = match proxies.served(self.uid()) {
            server::Served::NoProxy => decide::Served::NoProxy,
            server::Served::Yes(id) if id == netns.id() => decide::Served::Yes,
            _ => decide::Served::No,
        };
        self.known.served |= served == decide::Served::Yes;
        let enrolled = self.known.enrolled == Some(netns.id());
        let view = View { wanted: self.wanted.pod.ambient, state, served, enrolled, drained };
        self.take(decide(view), view, &netns, tools).await
    }

    /// A sandbox that a CNI call has just brought has no application yet that could meet a closed port: the proxy
    /// begins to listen while the rules are put in force. What failed is seen, and done in order, by what follows.
    async fn start_fresh<R: Redirect>(&mut self, netns: &NetNs, tools: &Tools<'_, R>) -> Result<()> {
        let fresh = self.wanted.given.as_ref().is_some_and(|given| given.fresh && given.netns.id() == netns.id());
        if !fresh || !self.wanted.pod.ambient || self.known.state.is_some() {
            return Ok(());
        }
        let (listens, applied) = tokio::join!(tools.proxies.add(self.served_pod()), tools.redirect.apply(netns));
        applied?;
        match listens {
            Err(error) if !matches!(tools.proxies.served(self.uid()), server::Served::NoProxy) => Err(error),
            _ => Ok(()),
        }
    }

    async fn take<R: Redirect>(&mut self, step: Step, view: View, netns: &NetNs, tools: &Tools<'_, R>) -> Result<Outcome> {
        Ok(match step {
            Step::Nothing => Outcome::Enrolled(self.enrolled(netns, tools.options).await),
            Step::AwaitProxy => Outcome::NoProxy,
            Step::AwaitDrain => Outcome::Draining,
            Step::Serve => {
                tools.proxies.add(self.served_pod()).await?;
                Outcome::Step("")
            }
            Step::Redirect => {
                self.known.held = None;
                tools.redirect.apply(netns).await?;
                self.known.applied_over = Some(view.state);
                // Rules that were of an older version had redirected all that is open.
                self.known.unreset |= view.state != State::Outdated;
                // The kernel is asked again whether it is so; only then the pod is said to be enrolled.
                Outcome::Step("")
            }
            Step::Hold => {
                tools.redirect.hold(netns).await?;
                self.known.held = Some(Instant::now());
                self.known.left = 0;
                Outcome::Step("leaves the mesh: new connections go direct, open ones are finished")
            }
            Step::Remove => {
                tools.proxies.remove(self.uid()).await?;
                tools.redirect.remove(netns).await?;
                Outcome::Gone(if view.state == State::Absent { "" } else { "un-enrolled" })
            }
        })
    }

    /// All is as it must be: looks for connections that are older.
    async fn enrolled(&mut self, netns: &NetNs, options: Options) -> Enrolled {
        let applied_over = self.known.applied_over.take();
        let before = self.known.enrolled.replace(netns.id());
        let mut enrolled =
            Enrolled { applied: applied_over.is_some(), first: before.is_none(), again: before == Some(netns.id()), ..Enrolled::default() };
        let existing = self.wanted.pod.existing;
        // Not at the first look of an agent that has found all in order: its predecessor has done it.
        let reset = existing == Existing::Reset && (self.known.unreset || self.known.existing == Some(Existing::Keep));
        let look = enrolled.applied || enrolled.first || reset || self.known.left > 0;
        if !look {
            return enrolled;
        }
        if reset {
            match existing::reset(netns, options).await {
                Ok(ended) => (enrolled.ended, self.known.unreset) = (ended, false),
                Err(error) => enrolled.kept = Some(error),
            }
        }
        if enrolled.kept.is_none() {
            self.known.existing = Some(existing);
        }
        match existing::count(netns, options).await {
            Ok(left) => self.known.left = left,
            Err(error) => tracing::warn!(uid = %self.uid(), %error, "connections older than the enrolment cannot be counted"),
        }
        enrolled
    }

    /// The pod's namespace as it is now; or how the step ends without it.
    async fn locate(&mut self, proxies: &Handle) -> Result<std::result::Result<NetNs, Outcome>> {
        if self.wanted.gone {
            proxies.remove(self.uid()).await?;
            return Ok(Err(Outcome::Gone("gone")));
        }
        if self.is_lost() {
            if self.known.netns.is_some() || !self.wanted.pod.ambient {
                // Its sandbox has been taken down, or it is not to be served.
                proxies.remove(self.uid()).await?;
                self.known = Known::default();
            }
            if self.wanted.pod.ambient {
                // Proxies that serve it go on.
                proxies.register(self.served_pod());
            }
            return Ok(Err(Outcome::Lost));
        }
        let found = self.open();
        if self.wanted.pod.ambient {
            if let (Ok(new), Some(old)) = (&found, &self.known.netns)
                && new.id() != old.id()
            {
                tracing::info!(uid = %self.uid(), pod = %self.name(), netns = %new.id(), "pod has a new network namespace");
                self.known = Known::default();
            }
            self.known.netns = found.as_ref().ok().cloned();
            proxies.register(self.served_pod());
            return found.map(Ok);
        }
        match (found, &self.known.netns) {
            (Ok(found), Some(old)) if found.id() == old.id() => Ok(Ok(found)),
            (Ok(found), None) => {
                self.known.netns = Some(found.clone());
                Ok(Ok(found))
            }
            // The pod is gone, or another one has its place: there is nothing to clean up.
            _ => {
                proxies.remove(self.uid()).await?;
                Ok(Err(Outcome::Gone(if self.known.netns.is_some() { "gone" } else { "" })))
            }
        }
    }

    fn open(&self) -> Result<NetNs> {
        let netns = match (&self.wanted.given, &self.wanted.pod.netns) {
            (Some(given), _) => given.netns.clone(),
            (None, None) => return Err(Error::new(&code::NETNS_GONE, format!("pod {}: no network namespace is given", self.name()))),
            (None, Some(Place::Open(netns))) => netns.clone(),
            (None, Some(Place::Path(path))) => {
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
        server::Pod { uid: self.uid().clone(), info: self.wanted.pod.info.clone(), netns: self.known.netns.clone() }
    }
}
