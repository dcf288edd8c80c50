//! What is to be asked of the authority next: pure data, times come in.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use super::{Certificate, SpiffeId};
use crate::base::Error;

/// Which of several due identities is served first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Priority {
    /// A connection waits for it.
    RealTime,
    /// A pod of this node will need it.
    Warmup,
    /// A renewal or a retry.
    Background,
}

/// First interval after a failure.
const BACKOFF_FIRST: Duration = Duration::from_secs(1);

/// Longest interval after failures, before jitter.
const BACKOFF_MAX: Duration = Duration::from_secs(15);

/// A certificate that is past its half life on arrival is not renewed faster than this.
const SHORTEST_RENEWAL: Duration = Duration::from_secs(1);

/// Intervals after the first failures of a new identity, in which its callers still wait: the control plane may hear of
/// a pod a moment later than the node.
const PATIENCE: [Duration; 2] = [Duration::from_millis(100), Duration::from_millis(300)];

/// How long a certificate is kept after the last pod with its identity has left, not renewed: the next pod of that
/// account starts with it, also while the authority is away.
pub(super) const LINGER: Duration = Duration::from_secs(600);

/// What callers of one identity see.
#[derive(Clone)]
pub(super) enum State {
    Initializing,
    Available { certificate: Arc<Certificate>, expires: Instant },
    Unavailable(Error),
}

struct Entry {
    state: watch::Sender<State>,
    priority: Priority,
    /// None while a call is under way.
    due: Option<Instant>,
    backoff: Option<Duration>,
    /// Failures since the identity came, while it has no answer.
    early_failures: usize,
    /// No pod has it any more; when it is forgotten.
    until: Option<Instant>,
    /// Tells the answer for this entry from that for a forgotten one of the same name.
    generation: u64,
}

/// A certificate and its times on the monotonic clock.
pub(super) struct Signed {
    pub(super) certificate: Arc<Certificate>,
    pub(super) renew: Instant,
    pub(super) expires: Instant,
}

/// A call to make now.
#[derive(Clone, Debug)]
pub(super) struct Call {
    pub(super) id: SpiffeId,
    pub(super) generation: u64,
}

/// All identities and when each is due.
#[derive(Default)]
pub(super) struct Queue {
    entries: HashMap<SpiffeId, Entry>,
    generations: u64,
}

impl Queue {
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(super) fn contains(&self, id: &SpiffeId) -> bool {
        self.entries.contains_key(id)
    }

    /// Follows an identity. One that is not known yet is due now; one that still has no answer gets the higher priority.
    /// Says whether the scheduler has to look again.
    pub(super) fn want(&mut self, id: &SpiffeId, priority: Priority, now: Instant) -> (watch::Receiver<State>, bool) {
        self.expire(now);
        if let Some(entry) = self.entries.get_mut(id) {
            // A connection that ends with its pod does not make the identity stay.
            let back = priority == Priority::Warmup && entry.until.take().is_some();
            let raise = priority < entry.priority && matches!(*entry.state.borrow(), State::Initializing);
            if raise {
                entry.priority = priority;
            }
            return (entry.state.subscribe(), raise || back);
        }
        self.generations += 1;
        let (state, receiver) = watch::channel(State::Initializing);
        let entry = Entry { state, priority, due: Some(now), backoff: None, early_failures: 0, until: None, generation: self.generations };
        self.entries.insert(id.clone(), entry);
        (receiver, true)
    }

    /// No pod has the identity any more: what is valid is kept for a while, what is not yet or no longer is forgotten.
    /// Says whether the scheduler has to look again.
    pub(super) fn release(&mut self, id: &SpiffeId, now: Instant) -> bool {
        let Some(entry) = self.entries.get_mut(id) else { return false };
        let expires = match &*entry.state.borrow() {
            State::Available { expires, .. } if *expires > now => Some(*expires),
            _ => None,
        };
        match expires {
            Some(expires) => entry.until = Some(expires.min(now + LINGER)),
            None => drop(self.entries.remove(id)),
        }
        true
    }

    /// Forgets the identity without pods that would be forgotten first, if there is one.
    pub(super) fn make_room(&mut self) {
        let lingering = self.entries.iter().filter_map(|(id, entry)| Some((entry.until?, id)));
        if let Some(id) = lingering.min().map(|(_, id)| id.clone()) {
            self.entries.remove(&id);
        }
    }

    fn expire(&mut self, now: Instant) {
        self.entries.retain(|_, entry| entry.until.is_none_or(|until| until > now));
    }

    /// The most urgent identity that is due, now marked as under way.
    pub(super) fn next(&mut self, now: Instant) -> Option<Call> {
        self.expire(now);
        let due = self.entries.iter_mut().filter(|(_, entry)| entry.until.is_none()).filter_map(|(id, entry)| {
            let due = entry.due.filter(|due| *due <= now)?;
            Some((entry.priority, due, id, entry))
        });
        let (_, _, id, entry) = due.min_by_key(|(priority, due, ..)| (*priority, *due))?;
        entry.due = None;
        Some(Call { id: id.clone(), generation: entry.generation })
    }

    /// When the next one is due, or to be forgotten.
    pub(super) fn wake(&self) -> Option<Instant> {
        self.entries.values().filter_map(|entry| entry.until.or(entry.due)).min()
    }

    /// Takes the answer of a call; one for a forgotten identity is dropped. `jitter` is a factor around 1.
    pub(super) fn finish(&mut self, call: &Call, result: Result<Signed, Error>, now: Instant, jitter: f64) {
        let Some(entry) = self.entries.get_mut(&call.id).filter(|entry| entry.generation == call.generation) else {
            return;
        };
        if let (Err(error), Some(pause)) = (&result, PATIENCE.get(entry.early_failures))
            && matches!(*entry.state.borrow(), State::Initializing)
        {
            entry.early_failures += 1;
            entry.due = Some(now + pause.mul_f64(jitter));
            tracing::debug!(identity = %call.id, %error, "no certificate yet");
            return;
        }
        entry.priority = Priority::Background;
        match result {
            Ok(signed) => {
                entry.backoff = None;
                entry.due = Some(signed.renew.max(now + SHORTEST_RENEWAL));
                entry.state.send_replace(State::Available { certificate: signed.certificate, expires: signed.expires });
            }
            Err(error) => {
                let backoff = entry.backoff.map_or(BACKOFF_FIRST, |last| (last * 2).min(BACKOFF_MAX));
                entry.backoff = Some(backoff);
                let retry = now + backoff.mul_f64(jitter);
                let valid_until = match &*entry.state.borrow() {
                    State::Available { expires, .. } if *expires > now => Some(*expires),
                    _ => None,
                };
                entry.due = Some(valid_until.map_or(retry, |expires| retry.min(expires)));
                tracing::warn!(identity = %call.id, %error, retry_in = ?retry.duration_since(now), still_valid = valid_until.is_some(), "no certificate");
                if valid_until.is_none() {
                    entry.state.send_replace(State::Unavailable(error));
                }
            }
        }
    }

    pub(super) fn states(&self) -> impl Iterator<Item = (&SpiffeId, State)> {
        self.entries.iter().map(|(id, entry)| (id, entry.state.borrow().clone()))
    }
}
