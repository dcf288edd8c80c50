//! Brings every pod of the node to what is wanted, and looks again and again whether it still is.
//!
//! Nothing is remembered that can be observed: what is in force is read from the kernel, what is served is what the
//! proxy that is connected now has acknowledged.

mod pod;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use futures::stream::{FuturesUnordered, StreamExt};
use rand::Rng;
use tokio::time::Instant;

use super::discovery::{Discovery, Pod};
use super::redirect::Redirect;
use crate::base::Str;
use crate::base::drain::Watch;
use crate::zds::server::{Handle, Served};
use pod::{Outcome, Task};

/// Between two looks at a pod that is as it must be.
const AUDIT: Duration = Duration::from_secs(30);

/// Between two attempts after a failure: doubles from the first to the last.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(15));

/// How often the connections of a pod that leaves are counted.
const DRAIN_LOOK: Duration = Duration::from_millis(250);

/// Pods that are worked on at the same time.
const WORKERS: usize = 8;

/// More pods than any node runs; what is above is left alone.
const MAX_PODS: usize = 4096;

/// How long leaving all pods may take when the agent ends.
const EXIT_LIMIT: Duration = Duration::from_secs(15);

/// Choices of the operator.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// How long connections of a pod that leaves the mesh may go on before they are cut.
    pub drain: Duration,
    /// The same when the agent itself ends.
    pub exit_drain: Duration,
    /// Leave all pods enrolled when the agent ends: a successor takes over.
    pub keep_on_exit: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self { drain: Duration::from_secs(30), exit_drain: Duration::from_secs(5), keep_on_exit: false }
    }
}

/// The reconciler.
#[derive(Debug)]
pub struct Reconciler<R> {
    redirect: Arc<R>,
    proxies: Handle,
    settings: Settings,
    pods: BTreeMap<Str, Tracked>,
    /// The steps that are being taken, at most one for each pod. A pod that is stuck holds up no other.
    steps: FuturesUnordered<BoxFuture<'static, (Task, Outcome)>>,
}

/// A pod that is in the mesh, is to be, or was.
#[derive(Debug)]
struct Tracked {
    task: Task,
    /// A step is being taken.
    busy: bool,
    due: Instant,
    failures: u32,
    /// What the proxy said when it was last looked at.
    seen: Served,
    /// The last line about it in the log.
    logged: String,
}

impl<R: Redirect + 'static> Reconciler<R> {
    /// Nothing is done yet.
    pub fn new(redirect: R, proxies: Handle, settings: Settings) -> Self {
        Self { redirect: Arc::new(redirect), proxies, settings, pods: BTreeMap::new(), steps: FuturesUnordered::new() }
    }

    /// Takes the first list of pods. After that the set of pods for proxies is complete, and they may connect.
    pub fn begin(&mut self, pods: Vec<Pod>) {
        // Pods that are not to be in the mesh are looked at once: an earlier agent may have enrolled them.
        for pod in pods {
            self.track(pod, true);
        }
        for tracked in self.pods.values_mut() {
            if let Some(pod) = tracked.task.register() {
                self.proxies.register(pod);
            }
        }
    }

    /// Works until a drain starts, then takes all pods out of the mesh (unless they are to be kept).
    pub async fn run(mut self, mut discovery: impl Discovery, mut drain: Watch) {
        let mut answers = self.proxies.changed();
        loop {
            let due = self.next_due();
            tokio::select! {
                biased;
                _ = drain.started() => break,
                pods = discovery.next() => self.update(pods),
                _ = answers.changed() => self.wake(),
                Some((task, outcome)) = self.steps.next() => self.settle(task, outcome),
                () = tokio::time::sleep_until(due) => self.start_steps(),
            }
        }
        if self.settings.keep_on_exit {
            tracing::info!(pods = self.pods.len(), "the agent ends, pods stay enrolled");
            return;
        }
        self.leave_all().await;
    }

    fn track(&mut self, pod: Pod, always: bool) {
        let now = Instant::now();
        if let Some(tracked) = self.pods.get_mut(&pod.uid) {
            if tracked.task.update(pod) {
                (tracked.due, tracked.failures) = (now, 0);
            }
        } else if pod.ambient || (always && pod.netns.is_some()) {
            if self.pods.len() >= MAX_PODS {
                tracing::error!(uid = %pod.uid, "more than {MAX_PODS} pods, this one is left alone");
                return;
            }
            let task = Task::new(pod);
            let tracked = Tracked { task, busy: false, due: now, failures: 0, seen: Served::Unknown, logged: String::new() };
            self.pods.insert(tracked.task.uid().clone(), tracked);
        }
    }

    fn update(&mut self, pods: Vec<Pod>) {
        let listed: std::collections::BTreeSet<Str> = pods.iter().map(|pod| pod.uid.clone()).collect();
        for pod in pods {
            self.track(pod, false);
        }
        for (uid, tracked) in &mut self.pods {
            if !listed.contains(uid) && tracked.task.leave() {
                (tracked.due, tracked.failures) = (Instant::now(), 0);
            }
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

    /// When the next step can be started.
    fn next_due(&self) -> Instant {
        let idle = self.pods.values().filter(|tracked| !tracked.busy && self.steps.len() < WORKERS);
        idle.map(|tracked| tracked.due).min().unwrap_or_else(|| Instant::now() + AUDIT)
    }

    /// Starts a step for pods that are due, for those first that have waited longest.
    fn start_steps(&mut self) {
        let now = Instant::now();
        let mut due: Vec<_> = self.pods.iter_mut().filter(|(_, tracked)| !tracked.busy && tracked.due <= now).collect();
        due.sort_by_key(|(_, tracked)| tracked.due);
        for (uid, tracked) in due.into_iter().take(WORKERS.saturating_sub(self.steps.len())) {
            // Before the step looks: what the proxy says during it is news, and wakes the pod again.
            tracked.seen = self.proxies.served(uid);
            tracked.busy = true;
            let (task, redirect, proxies, drain) = (tracked.task.clone(), self.redirect.clone(), self.proxies.clone(), self.settings.drain);
            self.steps.push(Box::pin(async move { task.step(&*redirect, &proxies, drain).await }));
        }
    }

    fn settle(&mut self, task: Task, outcome: Outcome) {
        let uid = task.uid().clone();
        let Some(tracked) = self.pods.get_mut(&uid) else { return };
        let (name, now) = (task.name(), Instant::now());
        tracked.busy = false;
        let is_as_wanted = tracked.task.finish(task);
        let mut line = String::new();
        match outcome {
            Outcome::Step(text) => {
                line = text.to_owned();
                (tracked.due, tracked.failures) = (now, 0);
            }
            Outcome::Settled(text) => {
                line = text.to_owned();
                // Audits of many pods spread out over time.
                let jitter = rand::rng().random_range(0.8..1.2);
                (tracked.due, tracked.failures) = (now + AUDIT.mul_f64(jitter), 0);
            }
            Outcome::Draining => tracked.due = now + DRAIN_LOOK,
            Outcome::Failed(error) => {
                let text = error.to_string();
                if tracked.logged != text {
                    tracing::warn!(%uid, pod = %name, %error, "pod is not as it must be, will be tried again");
                    tracked.logged = text;
                }
                let pause = BACKOFF.0.saturating_mul(1 << tracked.failures.min(16)).min(BACKOFF.1);
                tracked.failures += 1;
                tracked.due = now + pause;
            }
            Outcome::Gone(text) => {
                if !text.is_empty() {
                    tracing::info!(%uid, pod = %name, "{text}");
                }
                if is_as_wanted {
                    self.pods.remove(&uid);
                    return;
                }
            }
        }
        if !is_as_wanted || self.proxies.served(&uid) != tracked.seen {
            tracked.due = now;
        }
        if !line.is_empty() && tracked.logged != line {
            tracing::info!(%uid, pod = %name, "{line}");
            tracked.logged = line;
        }
    }

    async fn leave_all(&mut self) {
        let started = Instant::now();
        self.settings.drain = self.settings.exit_drain;
        for tracked in self.pods.values_mut() {
            tracked.task.leave();
            (tracked.due, tracked.failures) = (started, 0);
        }
        tracing::info!(pods = self.pods.len(), "the agent ends, all pods leave the mesh");
        let end = started + EXIT_LIMIT;
        while !self.pods.is_empty() && Instant::now() < end {
            let due = self.next_due().min(end);
            tokio::select! {
                biased;
                Some((task, outcome)) = self.steps.next() => self.settle(task, outcome),
                () = tokio::time::sleep_until(due) => self.start_steps(),
            }
        }
        for (uid, tracked) in &self.pods {
            tracing::error!(%uid, pod = %tracked.task.name(), why = %tracked.logged, "pod could not be taken out of the mesh");
        }
    }
}
