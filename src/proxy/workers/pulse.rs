//! How busy a thread has been of late.

use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// How far back "of late" goes: what was before counts half after as long.
const MEMORY: Duration = Duration::from_millis(10);

/// What a connection that was just placed is taken for, until it shows what it does.
const NEWCOMER: f64 = 0.125;

/// Bytes of late that make a thread as busy as can be, 200 MB/s: what comes next waits behind what its sockets hold, also
/// while the thread itself waits for others.
const BULK: f64 = (2 << 20) as f64;

thread_local! {
    static OWN: RefCell<Option<Arc<Pulse>>> = const { RefCell::new(None) };
}

/// Bytes of a connection went through this thread.
pub(in crate::proxy) fn moved(bytes: usize) {
    OWN.with_borrow(|own| {
        if let Some(pulse) = own {
            pulse.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        }
    });
}

/// The share of time in which a thread had something to do, whether or not the kernel let it; more if it moves bulk.
#[derive(Debug)]
pub(super) struct Pulse {
    state: Mutex<State>,
    /// Since the last turn.
    bytes: AtomicU64,
}

#[derive(Clone, Copy, Debug)]
struct State {
    /// Until `since`.
    busy: f64,
    /// What those have to do that were placed of late, as it was guessed.
    guessed: f64,
    /// Bytes of late.
    volume: f64,
    since: Instant,
    parked: bool,
}

impl Pulse {
    pub(super) fn new(now: Instant) -> Self {
        let state = State { busy: 0.0, guessed: 0.0, volume: 0.0, since: now, parked: true };
        Self { state: Mutex::new(state), bytes: AtomicU64::new(0) }
    }

    /// It is this thread's from now on.
    pub(super) fn adopt(self: Arc<Self>) {
        OWN.set(Some(self));
    }

    /// The thread has nothing to do from now on.
    pub(super) fn park(&self, now: Instant) {
        self.turn(now, true);
    }

    /// It has.
    pub(super) fn unpark(&self, now: Instant) {
        self.turn(now, false);
    }

    fn turn(&self, now: Instant, parked: bool) {
        let mut state = self.state.lock();
        state.pass(now, self.bytes.swap(0, Ordering::Relaxed));
        state.parked = parked;
    }

    /// It will have one connection more.
    pub(super) fn expect(&self, now: Instant) {
        let mut state = self.state.lock();
        state.pass(now, self.bytes.swap(0, Ordering::Relaxed));
        state.guessed += NEWCOMER;
    }

    /// From 0 to 1.
    pub(super) fn busy(&self, now: Instant) -> f64 {
        self.now(now).load()
    }

    /// With what is expected: more than 1 if it is too much.
    pub(super) fn will_be_busy(&self, now: Instant) -> f64 {
        let state = self.now(now);
        state.load() + state.guessed
    }

    fn now(&self, now: Instant) -> State {
        let mut state = *self.state.lock();
        state.pass(now, self.bytes.load(Ordering::Relaxed));
        state
    }
}

impl State {
    fn pass(&mut self, now: Instant, bytes: u64) {
        let (past, recent) = (MEMORY.as_secs_f64(), now.saturating_duration_since(self.since).as_secs_f64());
        let was = if self.parked { 0.0 } else { 1.0 };
        let fades = past / (past + recent);
        self.busy = was + (self.busy - was) * fades;
        self.guessed *= fades;
        self.volume = ((self.volume + bytes as f64) * fades).min(BULK);
        self.since = self.since.max(now);
    }

    fn load(&self) -> f64 {
        self.busy.max(self.volume / BULK)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_is_as_busy_as_it_was_of_late() {
        let start = Instant::now();
        let at = |ms: u64| start + Duration::from_millis(ms);
        let about = |share: f64, wanted: f64| assert!((share - wanted).abs() < 0.05, "{share} is not {wanted}");
        let pulse = Pulse::new(start);
        about(pulse.busy(at(50)), 0.0);
        // It runs, and has not parked since.
        pulse.unpark(at(100));
        about(pulse.busy(at(110)), 0.5);
        about(pulse.busy(at(5_000)), 1.0);
        // A quarter of the time, in small pieces.
        for ms in (5_000..10_000).step_by(4) {
            pulse.unpark(at(ms));
            pulse.park(at(ms + 1));
        }
        about(pulse.busy(at(10_000)), 0.25);
        about(pulse.busy(at(20_000)), 0.0);
        // Mostly waiting, but for others that have 400 MB/s of it to move.
        Arc::new(Pulse::new(at(0))).adopt();
        for ms in 0..1_000 {
            OWN.with_borrow(|own| own.as_ref().expect("adopted").unpark(at(ms)));
            moved(400 << 10);
        }
        OWN.with_borrow(|own| {
            let pulse = own.as_ref().expect("adopted");
            about(pulse.busy(at(1_000)), 1.0);
            // Much at once, and long ago.
            pulse.park(at(1_000));
            moved(1 << 30);
            pulse.unpark(at(5_000));
            pulse.park(at(5_000));
            about(pulse.busy(at(5_000)), 1.0);
            about(pulse.busy(at(5_100)), 0.05);
        });
        // Many that come at once: each counts until it is seen what they do.
        for _ in 0..8 {
            pulse.expect(at(20_000));
        }
        about(pulse.busy(at(20_000)), 0.0);
        about(pulse.will_be_busy(at(20_000)), 1.0);
        about(pulse.will_be_busy(at(20_010)), 0.5);
        about(pulse.will_be_busy(at(30_000)), 0.0);
        about(pulse.will_be_busy(at(0)), 1.0);
    }
}
