//! What the agent knows about each pod of the mesh, for those who tell others: metrics, annotations, Events, probes.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::{mpsc, watch};

use super::metrics::{Metrics, PodState};
use crate::base::Str;
use crate::zds::WorkloadInfo;

/// Notices that wait to be told. What is above is left out; the metrics count it.
const MAX_NOTICES: usize = 256;

/// How a pod is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Condition {
    /// It is to be captured, and what is in force is not known yet or not wholly as it must be.
    Unknown,
    /// It is to be captured, and is not: nothing is redirected.
    Open,
    /// Its rules stand, but no proxy has served it: its traffic waits.
    Closed,
    /// Its rules stand, and a proxy has served it.
    Captured,
    /// It leaves the mesh: new connections go direct.
    Leaving,
}

/// One pod.
#[derive(Clone, Debug)]
pub struct Entry {
    /// What it is called.
    pub info: WorkloadInfo,
    /// Its addresses.
    pub ips: Vec<IpAddr>,
    /// How it is.
    pub condition: Condition,
    /// Connections that are older than its enrolment.
    pub left: usize,
    /// It runs without being captured since then. May be before the agent's start.
    pub exposed: Option<Instant>,
    /// Until when that is in the metric.
    accounted: Instant,
}

/// Something about a pod that its owner should hear of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    /// The pod's UID.
    pub uid: Str,
    /// What it is called.
    pub info: WorkloadInfo,
    /// It is to be looked at.
    pub warning: bool,
    /// One word for machines.
    pub reason: &'static str,
    /// A sentence.
    pub text: String,
}

/// The board.
#[derive(Debug)]
pub struct Board {
    entries: Mutex<BTreeMap<Str, Entry>>,
    changed: watch::Sender<u64>,
    captured: watch::Sender<Option<BTreeSet<IpAddr>>>,
    begun: AtomicBool,
    notices: mpsc::Sender<Notice>,
    all_leave: AtomicBool,
    /// What is counted.
    pub metrics: Metrics,
}

impl Board {
    /// Empty, and the end at which notices come out.
    pub fn new() -> (Self, mpsc::Receiver<Notice>) {
        let (notices, receiver) = mpsc::channel(MAX_NOTICES);
        let board = Self {
            entries: Mutex::new(BTreeMap::new()),
            changed: watch::channel(0).0,
            captured: watch::channel(None).0,
            begun: AtomicBool::new(false),
            notices,
            all_leave: AtomicBool::new(false),
            metrics: Metrics::new(),
        };
        (board, receiver)
    }

    /// How a pod is now. An exposed one is said to be so since `exposed`.
    pub fn set(&self, uid: &Str, info: &WorkloadInfo, ips: &[IpAddr], condition: Condition, exposed: Option<Instant>) {
        let now = Instant::now();
        let mut entries = self.entries.lock();
        let entry = entries.entry(uid.clone()).or_insert_with(|| Entry {
            info: info.clone(),
            ips: Vec::new(),
            condition,
            left: 0,
            exposed: None,
            accounted: exposed.unwrap_or(now),
        });
        self.account(entry, now);
        if entry.exposed.is_none() {
            entry.accounted = exposed.unwrap_or(now);
        }
        (entry.condition, entry.exposed, entry.ips, entry.info) = (condition, exposed, ips.to_vec(), info.clone());
        self.publish(&entries);
    }

    /// How many connections of a pod are older than its enrolment.
    pub fn set_left(&self, uid: &Str, left: usize) {
        let mut entries = self.entries.lock();
        if let Some(entry) = entries.get_mut(uid) {
            entry.left = left;
        }
        self.publish(&entries);
    }

    /// The pod is not in the mesh any more.
    pub fn remove(&self, uid: &str) {
        let mut entries = self.entries.lock();
        if let Some(entry) = entries.get_mut(uid) {
            self.account(entry, Instant::now());
        }
        if entries.remove(uid).is_some() {
            self.publish(&entries);
        }
    }

    /// Tells a pod's owner something.
    pub fn notice(&self, notice: Notice) {
        if self.notices.try_send(notice).is_err() {
            self.metrics.notices_lost.inc();
        }
    }

    /// All pods that are in the mesh, are to be, or leave it.
    pub fn entries(&self) -> BTreeMap<Str, Entry> {
        self.entries.lock().clone()
    }

    /// From now on a pod without entry is one that has left, not one that was not looked at yet.
    pub fn all_leave(&self) {
        self.all_leave.store(true, Ordering::Relaxed);
        self.changed.send_modify(|count| *count += 1);
    }

    /// Whether all pods leave.
    pub fn do_all_leave(&self) -> bool {
        self.all_leave.load(Ordering::Relaxed)
    }

    /// Changes with every entry.
    pub fn changed(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// All pods that there are at the agent's start have an entry.
    pub fn begin(&self) {
        self.begun.store(true, Ordering::Relaxed);
        self.publish(&self.entries.lock());
    }

    /// The addresses of the pods whose rules stand or may stand; nothing before they are known.
    pub fn captured(&self) -> watch::Receiver<Option<BTreeSet<IpAddr>>> {
        self.captured.subscribe()
    }

    /// The metrics page.
    ///
    /// # Errors
    /// A collector failed.
    pub fn page(&self) -> Result<String, std::fmt::Error> {
        let now = Instant::now();
        for entry in self.entries.lock().values_mut() {
            self.account(entry, now);
        }
        self.metrics.encode()
    }

    /// Puts the time that a pod is exposed into the metric, up to `now`.
    fn account(&self, entry: &mut Entry, now: Instant) {
        if entry.exposed.is_some() {
            self.metrics.uncaptured_seconds.inc_by(now.saturating_duration_since(entry.accounted).as_secs_f64());
        }
        entry.accounted = now;
    }

    fn publish(&self, entries: &BTreeMap<Str, Entry>) {
        let mut captured = BTreeSet::new();
        let mut counts = BTreeMap::from(
            [Condition::Unknown, Condition::Open, Condition::Closed, Condition::Captured, Condition::Leaving].map(|one| (name(one), 0)),
        );
        let mut left = 0;
        for entry in entries.values() {
            *counts.entry(name(entry.condition)).or_default() += 1;
            left += entry.left;
            if matches!(entry.condition, Condition::Captured | Condition::Closed | Condition::Unknown) {
                captured.extend(&entry.ips);
            }
        }
        for (state, count) in counts {
            self.metrics.pods.get_or_create(&PodState { state }).set(count);
        }
        self.metrics.connections_left.set(i64::try_from(left).unwrap_or(i64::MAX));
        if self.begun.load(Ordering::Relaxed) {
            self.captured.send_if_modified(|before| {
                let captured = Some(captured);
                let other = *before != captured;
                *before = captured;
                other
            });
        }
        self.changed.send_modify(|count| *count += 1);
    }
}

fn name(condition: Condition) -> &'static str {
    match condition {
        Condition::Unknown => "unknown",
        Condition::Open => "open",
        Condition::Closed => "closed",
        Condition::Captured => "captured",
        Condition::Leaving => "leaving",
    }
}

/// A time for people: `0.4 s`, `25 s`, `3 min`.
pub fn span(time: Duration) -> String {
    match time.as_secs() {
        0..10 => format!("{:.1} s", time.as_secs_f64()),
        10..120 => format!("{} s", time.as_secs()),
        seconds @ 120..7200 => format!("{} min", seconds / 60),
        seconds => format!("{} h", seconds / 3600),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exposed_time_is_counted_once_and_captured_addresses_are_told() {
        let (board, _notices) = Board::new();
        let captured = board.captured();
        board.begin();
        let info = WorkloadInfo { name: "a".into(), namespace: "n".into(), service_account: "s".into() };
        let (uid, ips) = (Str::from("u"), ["10.0.0.1".parse().expect("an address")]);
        let before = Instant::now().checked_sub(Duration::from_secs(100)).expect("the machine is up that long");
        board.set(&uid, &info, &ips, Condition::Open, Some(before));
        board.page().expect("a page");
        board.set(&uid, &info, &ips, Condition::Open, Some(before));
        assert!(captured.borrow().as_ref().is_some_and(BTreeSet::is_empty));
        board.set(&uid, &info, &ips, Condition::Captured, None);
        let counted = board.metrics.uncaptured_seconds.get();
        assert!((100.0..110.0).contains(&counted), "{counted}");
        assert_eq!(captured.borrow().as_ref().map(BTreeSet::len), Some(1));
        assert!(board.page().expect("a page").contains("warren_agent_pods{state=\"captured\"} 1"));
        board.remove("u");
        assert!(captured.borrow().as_ref().is_some_and(BTreeSet::is_empty));
        assert_eq!(board.metrics.uncaptured_seconds.get().to_bits(), counted.to_bits(), "nothing more");
    }
}
