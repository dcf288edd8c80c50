//! Waiting with a deadline, and what ends every wait early: SIGINT, SIGTERM, SIGHUP.

use std::sync::atomic::{AtomicI32, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use tokio::signal::unix::{SignalKind, signal};

use crate::base::{Error, Result, code};

/// How often a condition is looked at that nothing announces.
const INTERVAL: Duration = Duration::from_millis(5);

static SIGNAL: AtomicI32 = AtomicI32::new(0);
static LOCK: Mutex<()> = Mutex::new(());
static WAKE: Condvar = Condvar::new();

/// Looks at `probe` until it gives a value.
///
/// # Errors
/// `NOT_READY`, naming `what`, when `limit` is over or a signal asked this process to end.
pub fn wait_for<T>(limit: Duration, what: &str, mut probe: impl FnMut() -> Option<T>) -> Result<T> {
    let end = Instant::now() + limit;
    loop {
        check()?;
        if let Some(value) = probe() {
            return Ok(value);
        }
        if Instant::now() >= end {
            return Err(Error::new(&code::NOT_READY, format!("{what}: not within {limit:?}")));
        }
        pause(INTERVAL);
    }
}

/// The signal that asked this process to end.
pub fn interrupted() -> Option<i32> {
    match SIGNAL.load(Ordering::Relaxed) {
        0 => None,
        signal => Some(signal),
    }
}

/// # Errors
/// A signal asked this process to end.
pub fn check() -> Result<()> {
    match interrupted() {
        None => Ok(()),
        Some(signal) => Err(Error::new(&code::NOT_READY, format!("interrupted by signal {signal}"))),
    }
}

/// From now on SIGINT, SIGTERM and SIGHUP end waits instead of the process. Starts a thread.
///
/// # Errors
/// The handlers cannot be installed.
pub fn catch_signals() -> Result<()> {
    let failed = |error| Error::caused(&code::NO_PERMISSION, "catch signals", error);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
    let (mut interrupt, mut terminate, mut hangup) = {
        let _inside = runtime.enter();
        let catch = |kind| signal(kind).map_err(failed);
        (catch(SignalKind::interrupt())?, catch(SignalKind::terminate())?, catch(SignalKind::hangup())?)
    };
    let watch = move || {
        runtime.block_on(async {
            loop {
                let kind = tokio::select! {
                    _ = interrupt.recv() => SignalKind::interrupt(),
                    _ = terminate.recv() => SignalKind::terminate(),
                    _ = hangup.recv() => SignalKind::hangup(),
                };
                SIGNAL.store(kind.as_raw_value(), Ordering::Relaxed);
                let _guard = LOCK.lock();
                WAKE.notify_all();
            }
        });
    };
    std::thread::Builder::new().name("signals".to_owned()).spawn(watch).map_err(failed)?;
    Ok(())
}

/// Waits for a signal, at most `limit`.
pub fn pause(limit: Duration) {
    let mut guard = LOCK.lock();
    if interrupted().is_none() {
        WAKE.wait_for(&mut guard, limit);
    }
}
