//! When the node's processes are looked through for the namespaces of pods.

use std::time::Duration;

use rand::Rng;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::agent::find::{Finder, Found, Wanted};
use crate::base::{Error, Result, code};

/// Between two passes while a pod cannot be found: doubles from the first to the last.
const PAUSE: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(10));

/// One pass at a time, no more often than needed.
#[derive(Debug)]
pub(super) struct Search {
    finder: Option<Finder>,
    running: Option<(Instant, JoinHandle<Result<Found>>)>,
    /// The next pass for pods that are not found yet.
    next: Instant,
    pause: Duration,
    /// The next pass over pods that are: their sandbox may be another one by now.
    audit: Instant,
    between_audits: Duration,
}

impl Search {
    pub(super) fn new(finder: Option<Finder>, between_audits: Duration) -> Self {
        let now = Instant::now();
        Self { finder, running: None, next: now, pause: PAUSE.0, audit: now + between_audits, between_audits }
    }

    /// There are pods that have not been looked for.
    pub(super) fn soon(&mut self) {
        (self.next, self.pause) = (Instant::now(), PAUSE.0);
    }

    /// When a pass is due, if one is not running and `lost` pods are looked for or `given` ones are to be looked after.
    pub(super) fn due(&self, lost: bool, given: bool) -> Option<Instant> {
        if self.running.is_some() || self.finder.is_none() {
            return None;
        }
        let next = lost.then_some(self.next);
        let audit = given.then_some(self.audit);
        next.into_iter().chain(audit).min()
    }

    /// Starts a pass, in place of one that is running; not without a finder.
    pub(super) fn start(&mut self, wanted: Vec<Wanted>) -> bool {
        let Some(finder) = self.finder.clone() else { return false };
        let now = Instant::now();
        (self.next, self.pause) = (now + self.pause, (self.pause * 2).min(PAUSE.1));
        self.audit = now + self.between_audits.mul_f64(rand::rng().random_range(0.8..1.2));
        self.running = Some((now, tokio::task::spawn_blocking(move || finder.find(&wanted))));
        true
    }

    /// The end of the pass that is running, with its start. May be dropped and called again.
    pub(super) async fn done(&mut self) -> (Instant, Result<Found>) {
        let Some((started, running)) = &mut self.running else { return std::future::pending().await };
        let (started, found) = (*started, running.await);
        self.running = None;
        (started, found.unwrap_or_else(|error| Err(Error::caused(&code::INTERNAL, "look through the node's processes", error))))
    }
}
