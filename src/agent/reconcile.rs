//! Brings every pod of the node to what is wanted, and looks again and again whether it still is.
//!
//! Nothing is remembered that can be observed: what is in force is read from the kernel, what is served is what the
//! proxy that is connected now has acknowledged.

mod front;
mod pod;
mod search;
mod settle;
mod tracked;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use futures::stream::{FuturesUnordered, StreamExt};
use tokio::time::Instant;

use super::board::Board;
use super::discovery::{Discovery, Pod};
use super::find::{Finder, Found, Located, Wanted};
use super::redirect::{Options, Redirect};
use super::sandbox::{Sandbox, Verdict};
use crate::base::drain::Watch;
use crate::base::{Error, Result, Str, code};
use crate::net::netns::NetNsId;
use crate::zds::server::Handle;
pub use front::{Calls, Front, front, no_calls};
use front::{Command, Waiter};
use pod::{Given, Outcome, Task, Tools};
use search::Search;
use tracked::Tracked;

/// The longest pause when nothing is due.
const IDLE: Duration = Duration::from_secs(30);

/// Pods that are worked on at the same time; those for which a CNI call waits, in addition.
const WORKERS: usize = 8;
const URGENT_WORKERS: usize = 32;

/// More pods than any node runs; what is above is left alone.
const MAX_PODS: usize = 4096;

/// How long leaving all pods may take when the agent ends.
const EXIT_LIMIT: Duration = Duration::from_secs(15);

/// How long a pod that a CNI call has named may be missing from the list.
const LIST_LAG: Duration = Duration::from_secs(60);

/// Choices of the operator.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// How long connections of a pod that leaves the mesh may go on before they are cut.
    pub drain: Duration,
    /// The same when the agent itself ends.
    pub exit_drain: Duration,
    /// Leave all pods enrolled when the agent ends: a successor takes over.
    pub keep_on_exit: bool,
    /// What the rules are made with.
    pub options: Options,
    /// Between two looks at a pod that is as it must be; a fifth more or less, so that those at many pods spread out.
    pub audit: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            drain: Duration::from_secs(30),
            exit_drain: Duration::from_secs(5),
            keep_on_exit: false,
            options: Options::default(),
            audit: Duration::from_secs(30),
        }
    }
}

/// The reconciler.
#[derive(Debug)]
pub struct Reconciler<R> {
    redirect: Arc<R>,
    proxies: Handle,
    settings: Settings,
    board: Arc<Board>,
    pods: BTreeMap<Str, Tracked>,
    /// Namespaces that CNI calls have brought, also those of pods that are not in the mesh.
    handed: BTreeMap<Str, Given>,
    search: Search,
    /// The node's own namespace: redirecting that would cut the node off.
    host: Option<NetNsId>,
    /// The steps that are being taken, at most one for each pod. A pod that is stuck holds up no other.
    steps: FuturesUnordered<BoxFuture<'static, (Task, Outcome)>>,
    /// All pods leave.
    ending: bool,
}

impl<R: Redirect + 'static> Reconciler<R> {
    /// Nothing is done yet. Without `finder`, pods are where their source says they are.
    pub fn new(redirect: R, proxies: Handle, settings: Settings, board: Arc<Board>, finder: Option<Finder>) -> Self {
        let host = finder.as_ref().and_then(|finder| finder.host().ok()).map(|netns| netns.id());
        Self {
            redirect: Arc::new(redirect),
            proxies,
            settings,
            board,
            pods: BTreeMap::new(),
            handed: BTreeMap::new(),
            search: Search::new(finder, settings.audit),
            host,
            steps: FuturesUnordered::new(),
            ending: false,
        }
    }

    /// Takes the first list of pods, and `found`, where they were found. After that the set of pods for proxies is
    /// complete, and they may connect.
    pub fn begin(&mut self, pods: Vec<Pod>, mut found: Found) {
        let now = Instant::now();
        for pod in pods {
            let given = found.remove(&pod.uid).map(located);
            // One that was captured once was to be since it runs. Pods that are not to be in the mesh are looked at
            // once: an earlier agent may have enrolled them. If one has said so, they are looked for until then.
            let since = (!pod.marked).then_some(now);
            if pod.ambient || pod.marked || pod.netns.is_some() || given.is_some() {
                self.insert(Tracked::new(pod, given, true, since));
            }
        }
        for tracked in self.pods.values_mut() {
            if let Some(pod) = tracked.task.register() {
                self.proxies.register(pod);
            }
            tracked.show(&self.board);
        }
        self.board.begin();
    }

    /// Works until a drain starts.
    pub async fn run(&mut self, discovery: &mut impl Discovery, calls: &mut Calls, drain: &mut Watch) {
        let mut answers = self.proxies.changed();
        loop {
            let due = self.next_due();
            tokio::select! {
                biased;
                _ = drain.started() => return,
                Some(command) = calls.0.recv() => self.command(command),
                pods = discovery.next() => self.update(pods),
                _ = answers.changed() => self.wake(),
                Some((task, outcome)) = self.steps.next() => self.settle(task, outcome),
                (started, found) = self.search.done() => self.found(started, found),
                () = tokio::time::sleep_until(due) => self.work(),
            }
        }
    }

    /// Takes all pods out of the mesh, as far as that is possible in the time that there is.
    pub async fn leave_all(&mut self, calls: &mut Calls) {
        let started = Instant::now();
        self.ending = true;
        self.settings.drain = self.settings.exit_drain;
        for tracked in self.pods.values_mut() {
            tracked.task.leave();
            tracked.answer(|| Ok(Verdict::NotInMesh(REMOVED)));
            tracked.soon();
        }
        tracing::info!(pods = self.pods.len(), "the agent ends, all pods leave the mesh");
        let lost: Vec<_> = self.pods.values().filter(|tracked| tracked.task.is_lost()).map(Tracked::sought).collect();
        if !lost.is_empty() && !self.search.start(lost) {
            self.found(started, Ok(Found::new()));
        }
        let end = started + EXIT_LIMIT;
        while !self.pods.is_empty() && Instant::now() < end {
            let due = self.next_due().min(end);
            tokio::select! {
                biased;
                Some((task, outcome)) = self.steps.next() => self.settle(task, outcome),
                Some(command) = calls.0.recv() => self.command(command),
                (started, found) = self.search.done() => self.found(started, found),
                () = tokio::time::sleep_until(due) => self.work(),
            }
        }
        for (uid, tracked) in &self.pods {
            tracing::error!(%uid, pod = %tracked.task.name(), why = %tracked.logged, "pod could not be taken out of the mesh");
        }
    }

    /// How many pods are in the mesh, are to be, or leave it.
    pub fn len(&self) -> usize {
        self.pods.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.pods.is_empty()
    }

    fn insert(&mut self, tracked: Tracked) {
        if self.pods.len() >= MAX_PODS {
            tracing::error!(uid = %tracked.task.uid(), "more than {MAX_PODS} pods, this one is left alone");
            return;
        }
        if tracked.task.is_lost() {
            self.search.soon();
        }
        self.pods.insert(tracked.task.uid().clone(), tracked);
    }

    /// A pod as its source has it now.
    fn track(&mut self, pod: Pod, listed: bool) {
        let Some(tracked) = self.pods.get_mut(&pod.uid) else {
            if pod.ambient {
                let given = self.handed.get(&pod.uid).cloned();
                self.insert(Tracked::new(pod, given, listed, Some(Instant::now())));
            }
            return;
        };
        tracked.listed |= listed;
        let (before, ips) = (tracked.task.wanted.pod.ambient, tracked.task.wanted.pod.ips.clone());
        let joins = pod.ambient && !before;
        let moved = pod.ips != ips;
        if tracked.task.update(pod) {
            tracked.soon();
        }
        if joins {
            tracked.joins();
        }
        if tracked.task.is_lost() && (joins || moved) {
            self.search.soon();
        }
        if !tracked.busy {
            tracked.show(&self.board);
        }
    }

    fn update(&mut self, pods: Vec<Pod>) {
        let listed: BTreeSet<Str> = pods.iter().map(|pod| pod.uid.clone()).collect();
        for pod in pods {
            self.track(pod, true);
        }
        let now = Instant::now();
        let lags = |given: Option<&Given>| given.is_some_and(|given| now.duration_since(given.at) < LIST_LAG);
        for (uid, tracked) in &mut self.pods {
            // What a CNI call has named may not be listed yet.
            let expected = !tracked.listed && lags(tracked.task.wanted.given.as_ref());
            if !listed.contains(uid) && !expected && tracked.task.unlisted() {
                tracked.soon();
            }
        }
        self.handed.retain(|uid, given| listed.contains(uid) || lags(Some(given)));
    }

    fn command(&mut self, command: Command) {
        match command {
            Command::Add(_, waiter) if self.ending => drop(waiter.reply.send(Ok(Verdict::NotInMesh(REMOVED)))),
            Command::Add(call, waiter) if Some(call.1.netns.id()) == self.host => {
                let text = format!("the sandbox of pod {}/{} is in the node's own network namespace", call.1.namespace, call.1.name);
                drop(waiter.reply.send(Err(Error::new(&code::NETNS_GONE, text))));
            }
            Command::Add(call, waiter) => self.add(call.0, call.1, waiter),
            Command::Note(_, sandbox) if Some(sandbox.netns.id()) == self.host => {}
            Command::Note(uid, sandbox) => {
                let given = handed(&sandbox);
                if let Some(tracked) = self.pods.get_mut(&uid) {
                    tracked.give(given.clone());
                }
                self.hand(uid, given);
            }
            Command::Del(sandbox) => {
                let is = |given: &Given| given.sandbox.as_ref() == Some(&sandbox);
                self.handed.retain(|_, given| !is(given));
                for tracked in self.pods.values_mut() {
                    if tracked.task.wanted.given.take_if(|given| is(given)).is_some() {
                        tracked.sandbox_ended();
                    }
                }
            }
        }
    }

    fn add(&mut self, mut pod: Pod, sandbox: Sandbox, waiter: Waiter) {
        let (uid, given) = (pod.uid.clone(), handed(&sandbox));
        if !sandbox.ips.is_empty() {
            // The API learns them from the sandbox, later.
            pod.ips = sandbox.ips;
        }
        self.hand(uid.clone(), given.clone());
        self.track(pod, false);
        let Some(tracked) = self.pods.get_mut(&uid) else {
            let full = Error::new(&code::NOT_CAPTURED, format!("more than {MAX_PODS} pods on this node"));
            return drop(waiter.reply.send(Err(full)));
        };
        tracked.give(Given { fresh: true, ..given });
        tracked.waiters.push(waiter);
        self.work();
    }

    fn hand(&mut self, uid: Str, given: Given) {
        if self.handed.len() < MAX_PODS {
            self.handed.insert(uid, given);
        }
    }

    /// A proxy came, went or answered: looks at the pods that this is about.
    fn wake(&mut self) {
        for (uid, tracked) in &mut self.pods {
            if self.proxies.served(uid) != tracked.seen {
                tracked.due = Instant::now();
            }
        }
    }

    /// When something can be done.
    fn next_due(&self) -> Instant {
        let free = |tracked: &&Tracked| !tracked.busy && self.steps.len() < workers(tracked);
        let steps = self.pods.values().filter(free).map(|tracked| tracked.due);
        let waiters = self.pods.values().flat_map(|tracked| tracked.waiters.iter().map(|waiter| waiter.end));
        let lost = self.pods.values().any(|tracked| tracked.task.is_lost() && !tracked.task.wanted.pod.ips.is_empty());
        let given = self.pods.values().any(|tracked| tracked.task.wanted.given.is_some());
        let search = if self.ending { None } else { self.search.due(lost, given) };
        steps.chain(waiters).chain(search).min().unwrap_or_else(|| Instant::now() + IDLE)
    }

    /// Starts what is due: steps for pods, those first for which somebody waits, then those that have waited longest;
    /// and a pass through the node's processes.
    fn work(&mut self) {
        let now = Instant::now();
        for tracked in self.pods.values_mut() {
            tracked.expire(now);
        }
        let mut due: Vec<_> = self.pods.iter_mut().filter(|(_, tracked)| !tracked.busy && tracked.due <= now).collect();
        due.sort_by_key(|(_, tracked)| (tracked.waiters.is_empty(), tracked.due));
        for (uid, tracked) in due {
            if self.steps.len() >= workers(tracked) {
                break;
            }
            // Before the step looks: what the proxy says during it is news, and wakes the pod again.
            tracked.seen = self.proxies.served(uid);
            tracked.busy = true;
            let (task, redirect, proxies, settings) = (tracked.task.clone(), self.redirect.clone(), self.proxies.clone(), self.settings);
            self.steps.push(Box::pin(async move {
                task.step(Tools { redirect: &*redirect, proxies: &proxies, drain: settings.drain, options: settings.options }).await
            }));
        }
        let lost = |tracked: &Tracked| tracked.task.is_lost() && !tracked.task.wanted.pod.ips.is_empty();
        let any_lost = self.pods.values().any(lost);
        let given = self.pods.values().any(|tracked| tracked.task.wanted.given.is_some());
        if !self.ending && self.search.due(any_lost, given).is_some_and(|due| due <= now) {
            let sought = |tracked: &&Tracked| {
                let pod = &tracked.task.wanted.pod;
                tracked.task.is_lost() || (pod.ambient && pod.netns.is_none())
            };
            self.board.metrics.searches.inc();
            self.search.start(self.pods.values().filter(sought).map(Tracked::sought).collect());
        }
    }

    /// A pass through the node's processes has ended.
    fn found(&mut self, started: Instant, found: Result<Found>) {
        let found = match found {
            Ok(found) => found,
            Err(error) => {
                tracing::warn!(%error, "pods cannot be looked for");
                return;
            }
        };
        for (uid, tracked) in &mut self.pods {
            let Some(found) = found.get(uid) else {
                if tracked.task.is_lost() && self.ending {
                    tracing::warn!(%uid, pod = %tracked.task.name(), "its network namespace is not found: nothing is removed there");
                    tracked.task.give_up();
                    tracked.soon();
                } else if tracked.task.is_lost() {
                    "no process of the node is known to be in its network namespace".clone_into(&mut tracked.logged);
                    tracked.is_bad(&self.board);
                }
                continue;
            };
            if found.empty && tracked.task.wanted.pod.ambient {
                // It is to be in the mesh again since the pass began.
                continue;
            }
            match &tracked.task.wanted.given {
                // The one that is known is still there, or is too young for this pass to have seen its processes.
                Some(given) if given.at >= started || found.netns.id() == given.netns.id() => continue,
                Some(_) if self.ending => continue,
                Some(_) => {
                    self.board.metrics.sandboxes_replaced.inc();
                    tracing::warn!(%uid, pod = %tracked.task.name(), "the pod has a new sandbox that nobody has told the agent about");
                }
                None if tracked.task.is_lost() => {}
                None => continue,
            }
            tracked.give(located(found.clone()));
        }
        self.work();
    }
}

/// Why pods are not enrolled any more.
const REMOVED: &str = "Warren is being removed from this node";

fn handed(sandbox: &Sandbox) -> Given {
    let now = Instant::now();
    Given { netns: sandbox.netns.clone(), sandbox: Some(sandbox.container_id.clone()), fresh: false, empty: false, at: now, since: now }
}

fn located(found: Located) -> Given {
    let now = Instant::now();
    Given { netns: found.netns, sandbox: None, fresh: false, empty: found.empty, at: now, since: now.checked_sub(found.age).unwrap_or(now) }
}

fn workers(tracked: &Tracked) -> usize {
    WORKERS + if tracked.waiters.is_empty() { 0 } else { URGENT_WORKERS }
}

/// The pod as it is looked for. `known`: its namespace as it was.
pub(super) fn wanted(pod: &Pod, known: Option<NetNsId>) -> Wanted {
    Wanted { uid: pod.uid.clone(), runtime_uid: pod.runtime_uid.clone(), ips: pod.ips.clone(), known, leaves: !pod.ambient }
}
