//! What ends a role: SIGTERM, SIGINT, or a request; and what is done until then.

use std::process::ExitCode;
use std::time::Duration;

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::base::{Error, Result, code};
use crate::net::memory::{self, Program};

/// How often a role looks whether it has been idle.
const REST: Duration = Duration::from_secs(10);

/// It has, when it took less processor time than this since the last look.
const IDLE: Duration = Duration::from_millis(100);

/// The signals that end a process.
pub(super) struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// From now on they no longer kill the process.
    pub(super) fn listen() -> Result<Self> {
        let failed = |error| Error::caused(&code::NO_PERMISSION, "signal handlers", error);
        Ok(Self {
            terminate: signal(SignalKind::terminate()).map_err(failed)?,
            interrupt: signal(SignalKind::interrupt()).map_err(failed)?,
        })
    }

    /// The first signal, by name.
    pub(super) async fn first(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
            never = rest() => match never {},
        }
    }

    /// Runs the orderly end; a SIGINT during it ends the process at once. Further SIGTERMs change nothing.
    pub(super) async fn finish(mut self, end: impl Future<Output = ()>) -> ExitCode {
        tokio::select! {
            () = end => ExitCode::SUCCESS,
            _ = self.interrupt.recv() => {
                tracing::warn!("second interrupt: ending without drain");
                ExitCode::from(130)
            }
        }
    }
}

/// Gives memory back whenever there was hardly anything to do.
async fn rest() -> std::convert::Infallible {
    let mut pause = tokio::time::interval_at(tokio::time::Instant::now() + REST, REST);
    let mut before = used();
    let mut program = None;
    loop {
        pause.tick().await;
        let now = used();
        if now.saturating_sub(before) < IDLE {
            memory::release_heap();
            if let Err(error) = release(&mut program) {
                tracing::debug!(%error, "the program's pages stay in memory");
            }
        }
        before = now;
    }
}

/// Releases the program, which is looked for the first time.
fn release(found: &mut Option<Program>) -> std::io::Result<()> {
    let program = match found {
        Some(program) => program,
        None => found.insert(Program::find()?),
    };
    program.release()
}

/// The process' processor time so far.
fn used() -> Duration {
    getrusage(UsageWho::RUSAGE_SELF).map_or(Duration::ZERO, |usage| {
        [usage.user_time(), usage.system_time()]
            .map(|time| Duration::from_micros(u64::try_from(time.num_microseconds()).unwrap_or(0)))
            .iter()
            .sum()
    })
}
