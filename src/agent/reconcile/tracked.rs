//! What the reconciler keeps about a pod beside its task: when to look again, who waits, since when it is exposed.

use std::time::{Duration, SystemTime};

use tokio::time::Instant;

use super::front::Waiter;
use super::pod::{Given, Task};
use crate::agent::board::{Board, Condition, Notice, span};
use crate::agent::discovery::Pod;
use crate::agent::find::Wanted;
use crate::agent::redirect::State;
use crate::agent::sandbox::Verdict;
use crate::base::{Error, code};
use crate::zds::server::Served;

/// A pod that runs for so long without being captured is worth an Event.
const LATE: Duration = Duration::from_secs(1);
const NOT_CAPTURED: Duration = Duration::from_secs(10);

/// Between two Events that say the same.
const AGAIN: Duration = Duration::from_secs(600);

/// A pod that is in the mesh, is to be, or was.
#[derive(Debug)]
pub(super) struct Tracked {
    pub(super) task: Task,
    /// A step is being taken.
    pub(super) busy: bool,
    /// A step has been taken.
    pub(super) looked: bool,
    pub(super) due: Instant,
    pub(super) failures: u32,
    /// What the proxy said when it was last looked at.
    pub(super) seen: Served,
    /// The source of pods has named it.
    pub(super) listed: bool,
    /// Why it is not as it must be, or the last line about it in the log.
    pub(super) logged: String,
    pub(super) waiters: Vec<Waiter>,
    created: Instant,
    /// Since when it is to be in the mesh; `None`: since it runs.
    since: Option<Instant>,
    /// When all was as it must be, the last time.
    good: Option<Instant>,
    noticed: Option<Instant>,
}

impl Tracked {
    pub(super) fn new(pod: Pod, given: Option<Given>, listed: bool, since: Option<Instant>) -> Self {
        Self {
            task: Task::new(pod, given),
            busy: false,
            looked: false,
            due: Instant::now(),
            failures: 0,
            seen: Served::Unknown,
            listed,
            logged: String::new(),
            waiters: Vec::new(),
            created: Instant::now(),
            since,
            good: None,
            noticed: None,
        }
    }

    /// Looks at it at once.
    pub(super) fn soon(&mut self) {
        (self.due, self.failures) = (Instant::now(), 0);
    }

    /// It is to be in the mesh from now on.
    pub(super) fn joins(&mut self) {
        (self.since, self.good, self.noticed) = (Some(Instant::now()), None, None);
    }

    /// The namespace it is in now.
    pub(super) fn give(&mut self, given: Given) {
        self.task.wanted.given = Some(given);
        self.soon();
    }

    /// Its sandbox is no more: until now it was as it was seen last.
    pub(super) fn sandbox_ended(&mut self) {
        self.good = self.good.map(|_| Instant::now());
        self.soon();
    }

    /// The pod as it is looked for.
    pub(super) fn sought(&self) -> Wanted {
        let wanted = &self.task.wanted;
        super::wanted(&wanted.pod, wanted.given.as_ref().map(|given| given.netns.id()))
    }

    /// Answers all who wait.
    pub(super) fn answer(&mut self, verdict: impl Fn() -> Result<Verdict, Error>) {
        for waiter in self.waiters.drain(..) {
            // One who has gone away meanwhile will ask again.
            let _ = waiter.reply.send(verdict());
        }
    }

    /// Answers those whose time is over.
    pub(super) fn expire(&mut self, now: Instant) {
        let text = match self.logged.as_str() {
            "" => "it is not done yet",
            text => text,
        };
        let text = format!("pod {}: {text}", self.task.name());
        for waiter in self.waiters.extract_if(.., |waiter| waiter.end <= now) {
            let _ = waiter.reply.send(Err(Error::new(&code::NOT_CAPTURED, text.clone())));
        }
    }

    /// How it is, by what the last step saw.
    pub(super) fn condition(&self) -> Option<Condition> {
        let (wanted, known) = (&self.task.wanted, &self.task.known);
        match (wanted.pod.ambient, known.state) {
            (true, Some(State::Redirecting)) if known.served => Some(Condition::Captured),
            (true, Some(State::Redirecting)) => Some(Condition::Closed),
            (true, None | Some(State::Outdated)) => Some(Condition::Unknown),
            (true, Some(State::Absent | State::Holding)) => Some(Condition::Open),
            (false, Some(State::Redirecting | State::Outdated | State::Holding)) => Some(Condition::Leaving),
            // What an agent has said about it stands until it is found.
            (false, None) if self.task.is_lost() => Some(Condition::Unknown),
            (false, _) => None,
        }
    }

    /// Since when it runs without being captured: not before it was to be, nor before all was well, nor before it ran.
    pub(super) fn exposed(&self) -> Option<Instant> {
        if !self.looked || !self.task.wanted.pod.ambient || !matches!(self.condition(), Some(Condition::Open | Condition::Unknown)) {
            return None;
        }
        let running = self.task.wanted.pod.running_since?;
        let running = SystemTime::now().duration_since(running).unwrap_or_default();
        let now = Instant::now();
        let running = now.checked_sub(running).unwrap_or(now);
        // After a reboot the API still tells of the containers that ran before it.
        let running = running.max(self.task.wanted.given.as_ref().map_or(self.created, |given| given.since));
        let since = self.good.max(self.since);
        Some(since.map_or(running, |since| since.max(running)))
    }

    /// Tells the board how it is.
    pub(super) fn show(&self, board: &Board) {
        let (uid, pod) = (self.task.uid(), &self.task.wanted.pod);
        match self.condition() {
            Some(condition) => {
                board.set(uid, &pod.info, &pod.ips, condition, self.exposed().map(Instant::into_std));
                board.set_left(uid, self.task.known.left);
            }
            None => board.remove(uid),
        }
    }

    /// All is as it must be. `exposed`: since when it was not, while it ran.
    pub(super) fn is_good(&mut self, board: &Board, exposed: Option<Instant>) {
        let now = Instant::now();
        if let Some(time) = exposed.map(|since| now.saturating_duration_since(since)).filter(|time| *time >= LATE) {
            let time = span(time);
            tracing::warn!(uid = %self.task.uid(), pod = %self.task.name(), %time, "captured late");
            self.notice(
                board,
                true,
                "WarrenCapturedLate",
                format!("The pod ran for up to {time} without being captured: what it sent and received was not protected."),
            );
        }
        (self.good, self.noticed) = (Some(now), None);
    }

    /// It is not as it must be: its owner hears of it when that lasts.
    pub(super) fn is_bad(&mut self, board: &Board) {
        let now = Instant::now();
        let Some(time) = self.exposed().map(|since| now.saturating_duration_since(since)) else { return };
        if time >= NOT_CAPTURED && self.noticed.is_none_or(|noticed| now.duration_since(noticed) >= AGAIN) {
            self.noticed = Some(now);
            let text = format!("The pod is to be in the mesh and has run for {} without being captured: {}", span(time), self.logged);
            self.notice(board, true, "WarrenNotCaptured", text);
        }
    }

    pub(super) fn notice(&self, board: &Board, warning: bool, reason: &'static str, text: String) {
        board.notice(Notice { uid: self.task.uid().clone(), info: self.task.wanted.pod.info.clone(), warning, reason, text });
    }
}
