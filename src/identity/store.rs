//! The certificates in use: fetched once for many callers, renewed at half life, kept while the authority is away.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

use super::queue::{Call, Priority, Queue, Signed, State};
use super::{Authority, Certificate, SpiffeId};
use crate::base::{Error, Result, code, deadline};

/// Calls to the authority at one time.
const MAX_CALLS: usize = 8;

/// Identities of one node: more pods than this do not fit on one.
const MAX_IDENTITIES: usize = 4096;

/// A caller waits for its turn and for the call, whose own bound is shorter.
const WAIT: Duration = Duration::from_secs(30);

/// Gives certificates. Clones share everything; the renewals end with the last clone.
#[derive(Clone)]
pub struct CertificateStore {
    shared: Arc<Shared>,
    _scheduler: Arc<AbortOnDropHandle<()>>,
}

struct Shared {
    authority: Arc<dyn Authority>,
    queue: Mutex<Queue>,
    /// The scheduler has to look at the queue again.
    changed: Notify,
}

/// One identity, as `/config_dump` shows it.
#[derive(Clone, Debug)]
pub struct Listed {
    /// Whose.
    pub id: SpiffeId,
    /// How it stands.
    pub state: ListedState,
    /// Present when available.
    pub certificate: Option<Arc<Certificate>>,
}

/// How an identity stands; `Display` is the text of `/config_dump`.
#[derive(Clone, Debug)]
pub enum ListedState {
    /// Can be used.
    Available,
    /// Asked for, not answered yet.
    Initializing,
    /// The last answer was this, and nothing valid is left.
    Unavailable(Error),
}

impl CertificateStore {
    /// Starts the scheduler on the current runtime.
    pub fn new(authority: Arc<dyn Authority>) -> Self {
        let shared = Arc::new(Shared { authority, queue: Mutex::default(), changed: Notify::new() });
        let scheduler = tokio::spawn(schedule(shared.clone()));
        Self { shared, _scheduler: Arc::new(AbortOnDropHandle::new(scheduler)) }
    }

    /// The certificate of `id`: at once if there is one or the last attempt failed, else when the authority has answered.
    ///
    /// # Errors
    /// The authority's last answer; or the identity was forgotten while this waited.
    pub async fn certificate(&self, id: &SpiffeId) -> Result<Arc<Certificate>> {
        let mut state = self.want(id, Priority::RealTime)?;
        let what = format!("certificate for {id}");
        let ready = state.wait_for(|state| !matches!(state, State::Initializing));
        let found = match deadline(WAIT, &code::CA_UNAVAILABLE, what, ready).await? {
            Ok(state) => state.clone(),
            Err(_) => return Err(Error::new(&code::UNKNOWN_LOCAL, format!("{id}: no pod of this node has this identity any more"))),
        };
        match found {
            State::Available { certificate, expires } if expires > Instant::now() => Ok(certificate),
            State::Available { .. } => {
                Err(Error::new(&code::CA_UNAVAILABLE, format!("the certificate of {id} has expired and was not renewed")))
            }
            State::Unavailable(error) => Err(error),
            State::Initializing => Err(Error::internal("a certificate state that was waited for is gone")),
        }
    }

    /// Fetches `id` in the background, before anybody needs it, and keeps it until it is released.
    ///
    /// # Errors
    /// Too many identities.
    pub fn prefetch(&self, id: &SpiffeId) -> Result<()> {
        self.want(id, Priority::Warmup).map(drop)
    }

    /// No pod has `id` any more: it is no longer renewed. A valid certificate is kept for ten minutes, for the next pod;
    /// without one, whoever waits for it gets an error.
    pub fn release(&self, id: &SpiffeId) {
        if self.shared.queue.lock().release(id, Instant::now()) {
            self.shared.changed.notify_one();
        }
    }

    /// All identities, sorted.
    pub fn list(&self) -> Vec<Listed> {
        let queue = self.shared.queue.lock();
        let mut all: Vec<Listed> = queue
            .states()
            .map(|(id, state)| {
                let (state, certificate) = match state {
                    State::Initializing => (ListedState::Initializing, None),
                    State::Available { certificate, .. } => (ListedState::Available, Some(certificate)),
                    State::Unavailable(error) => (ListedState::Unavailable(error), None),
                };
                Listed { id: id.clone(), state, certificate }
            })
            .collect();
        all.sort_by(|a, b| a.id.cmp(&b.id));
        all
    }

    fn want(&self, id: &SpiffeId, priority: Priority) -> Result<tokio::sync::watch::Receiver<State>> {
        let mut queue = self.shared.queue.lock();
        if queue.len() >= MAX_IDENTITIES && !queue.contains(id) {
            queue.make_room();
        }
        if queue.len() >= MAX_IDENTITIES && !queue.contains(id) {
            return Err(Error::new(&code::CAPACITY, format!("{MAX_IDENTITIES} identities on one node")));
        }
        let (state, look) = queue.want(id, priority, Instant::now());
        if look {
            self.shared.changed.notify_one();
        }
        Ok(state)
    }
}

impl fmt::Display for ListedState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Available => f.write_str("Available"),
            Self::Initializing => f.write_str("Initializing"),
            Self::Unavailable(error) => write!(f, "Unavailable: {error}"),
        }
    }
}

async fn schedule(shared: Arc<Shared>) {
    let mut calls = JoinSet::new();
    loop {
        let wake = {
            let mut queue = shared.queue.lock();
            let now = Instant::now();
            while calls.len() < MAX_CALLS
                && let Some(call) = queue.next(now)
            {
                calls.spawn(ask(shared.clone(), call));
            }
            // With all calls under way only the end of one can start another.
            if calls.len() < MAX_CALLS { queue.wake() } else { None }
        };
        tokio::select! {
            () = shared.changed.notified() => {}
            Some(_) = calls.join_next() => {}
            () = sleep_until(wake) => {}
        }
    }
}

async fn sleep_until(wake: Option<Instant>) {
    match wake {
        Some(wake) => tokio::time::sleep_until(wake).await,
        None => std::future::pending().await,
    }
}

async fn ask(shared: Arc<Shared>, call: Call) {
    let work = shared.authority.sign(&call.id);
    // A panic in an authority must not leave the identity marked as under way for ever.
    let result = match futures::FutureExt::catch_unwind(std::panic::AssertUnwindSafe(work)).await {
        Ok(result) => result.and_then(signed),
        Err(_) => Err(Error::internal(format!("signing for {} panicked", call.id))),
    };
    let jitter = rand::random_range(0.8..=1.2);
    shared.queue.lock().finish(&call, result, Instant::now(), jitter);
}

/// Puts the certificate's times on the monotonic clock, which no administrator sets back.
fn signed(certificate: Certificate) -> Result<Signed> {
    let (wall, now) = (SystemTime::now(), Instant::now());
    let left = |time: SystemTime| time.duration_since(wall).unwrap_or_default();
    let expires = left(certificate.not_after);
    if expires.is_zero() {
        return Err(Error::new(
            &code::BAD_CERTIFICATE,
            format!("the certificate for {} is expired on arrival: compare the clocks", certificate.id),
        ));
    }
    let lifetime = certificate.not_after.duration_since(certificate.not_before).unwrap_or_default();
    let renew = left(certificate.not_before + lifetime / 2);
    Ok(Signed { certificate: Arc::new(certificate), renew: now + renew, expires: now + expires })
}

#[cfg(test)]
#[path = "store_tests.rs"]
mod tests;
