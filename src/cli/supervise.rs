//! A small process that runs a role as its child and starts it again when it was killed: sooner than the container
//! runtime would, which waits ten seconds and more from the second time on.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::os::fd::AsFd;
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::base::{Error, Result, code};
use crate::config::env;
use crate::demo::sandbox::PARENT;
use crate::net::memory;

/// A role that fails sooner after its start cannot be started: that is for the container runtime to show.
const START: Duration = Duration::from_secs(10);

/// So many starts in this time follow at once; then there are pauses, twice as long each time.
const AT_ONCE: (usize, Duration) = (5, Duration::from_secs(60));

/// The first and the longest pause.
const PAUSE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// Runs `warren` with these arguments until it ends by itself or is asked to: SIGTERM and SIGINT are passed on.
///
/// # Errors
/// The kernel refuses signals or a process.
pub(super) fn run(arguments: &[OsString]) -> Result<ExitCode> {
    let failed = |errno: Errno| Error::caused(&code::NO_PERMISSION, "signals", errno);
    let signals = mask();
    signals.thread_block().map_err(failed)?;
    let signals = SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK).map_err(failed)?;
    let mut starts = Starts::default();
    loop {
        let started = Instant::now();
        let child = start(arguments)?;
        // It has little to do until that one ends.
        let _ = memory::Program::find().and_then(|program| program.release());
        let (ended, asked) = watch(&signals, child).map_err(failed)?;
        let status = match decide(ended, asked, started.elapsed()) {
            Next::End(status) => status,
            Next::Again => {
                let pause = starts.pause(Instant::now());
                eprintln!("warren: process {child} ended ({ended:?}), it is started again in {pause:?}");
                match wait(&signals, Some(pause), &|| None::<()>).map_err(failed)? {
                    Wait::Asked(_) => 0,
                    _ => continue,
                }
            }
        };
        return Ok(ExitCode::from(status));
    }
}

/// What a process that is run like that does first: the signals that its parent waits for are not its own affair.
pub(super) fn unblock_signals() -> Result<()> {
    mask().thread_unblock().map_err(|errno| Error::caused(&code::NO_PERMISSION, "signals", errno))
}

fn mask() -> SigSet {
    [Signal::SIGTERM, Signal::SIGINT, Signal::SIGCHLD].into_iter().collect()
}

fn start(arguments: &[OsString]) -> Result<Pid> {
    let failed = |error| Error::caused(&code::NO_PERMISSION, "start the role as a process", error);
    let program = std::env::current_exe().map_err(failed)?;
    let mut command = Command::new(program);
    command.args(arguments).env_remove(env::SUPERVISE.name).env(PARENT, std::process::id().to_string());
    let child = command.spawn().map_err(failed)?;
    i32::try_from(child.id()).map(Pid::from_raw).map_err(|error| Error::caused(&code::INTERNAL, "a process id", error))
}

/// Waits for the end of `child`; tells whether it was asked for.
fn watch(signals: &SignalFd, child: Pid) -> nix::Result<(WaitStatus, bool)> {
    let mut asked = false;
    loop {
        match wait(signals, None, &|| reap(child))? {
            Wait::Asked(signal) => {
                asked = true;
                // It may have ended just now.
                let _ = kill(child, signal);
            }
            Wait::Done(status) => return Ok((status, asked)),
            Wait::Over => {}
        }
    }
}

enum Wait<T> {
    Asked(Signal),
    Done(T),
    Over,
}

/// Waits for a request to end, for `done` to be so after a child has ended, or until the time is over.
fn wait<T>(signals: &SignalFd, limit: Option<Duration>, done: &dyn Fn() -> Option<T>) -> nix::Result<Wait<T>> {
    let end = limit.map(|limit| Instant::now() + limit);
    loop {
        while let Some(signal) = signals.read_signal()? {
            let signal = i32::try_from(signal.ssi_signo).ok().and_then(|number| Signal::try_from(number).ok());
            if let Some(signal @ (Signal::SIGTERM | Signal::SIGINT)) = signal {
                return Ok(Wait::Asked(signal));
            }
            // Several ends may be one signal: all are looked for below.
        }
        if let Some(done) = done() {
            return Ok(Wait::Done(done));
        }
        let left = end.map(|end| end.saturating_duration_since(Instant::now()));
        if left.is_some_and(|left| left.is_zero()) {
            return Ok(Wait::Over);
        }
        let timeout =
            left.map_or(PollTimeout::NONE, |left| PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX));
        match poll(&mut [PollFd::new(signals.as_fd(), PollFlags::POLLIN)], timeout) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno),
        }
    }
}

/// Buries all children that have ended, also those that were left to this process; gives the end of `child`.
fn reap(child: Pid) -> Option<WaitStatus> {
    let mut found = None;
    loop {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::StillAlive) => return found,
            Ok(status) if status.pid() == Some(child) => found = Some(status),
            Ok(_) | Err(Errno::EINTR) => {}
            // No children are left: what was waited for cannot come any more.
            Err(_) => return found.or(Some(WaitStatus::Exited(child, 1))),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    End(u8),
    Again,
}

fn decide(ended: WaitStatus, asked: bool, lived: Duration) -> Next {
    let status = match ended {
        WaitStatus::Exited(_, status) => u8::try_from(status).unwrap_or(1),
        // As shells tell of it.
        WaitStatus::Signaled(_, signal, _) => 128_u8.saturating_add(u8::try_from(signal as i32).unwrap_or(0)),
        _ => 1,
    };
    let killed = matches!(ended, WaitStatus::Signaled(..));
    if !asked && status != 0 && (killed || lived >= START) { Next::Again } else { Next::End(status) }
}

/// When the role was started again.
#[derive(Debug, Default)]
struct Starts(VecDeque<Instant>);

impl Starts {
    /// How long to wait before the next start.
    fn pause(&mut self, now: Instant) -> Duration {
        while self.0.front().is_some_and(|start| now.duration_since(*start) > AT_ONCE.1) {
            self.0.pop_front();
        }
        let many = self.0.len().saturating_sub(AT_ONCE.0 - 1);
        self.0.push_back(now);
        match u32::try_from(many) {
            Ok(0) => Duration::ZERO,
            Ok(many) => PAUSE.0.saturating_mul(1 << (many - 1).min(16)).min(PAUSE.1),
            Err(_) => PAUSE.1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_killed_is_started_again_what_cannot_start_is_not() {
        let pid = Pid::from_raw(7);
        let (soon, late) = (Duration::from_secs(1), Duration::from_secs(100));
        let killed = WaitStatus::Signaled(pid, Signal::SIGKILL, false);
        let cases = [
            ("killed", killed, false, late, Next::Again),
            ("killed at its start", killed, false, soon, Next::Again),
            ("failed after a while", WaitStatus::Exited(pid, 1), false, late, Next::Again),
            ("failed at its start", WaitStatus::Exited(pid, 1), false, soon, Next::End(1)),
            ("ended by itself", WaitStatus::Exited(pid, 0), false, late, Next::End(0)),
            ("ended when asked", WaitStatus::Exited(pid, 0), true, late, Next::End(0)),
            ("failed when asked to end", WaitStatus::Exited(pid, 3), true, late, Next::End(3)),
            ("killed when asked to end", killed, true, late, Next::End(137)),
        ];
        for (name, ended, asked, lived, expected) in cases {
            assert_eq!(decide(ended, asked, lived), expected, "{name}");
        }
    }

    #[test]
    fn a_few_starts_follow_at_once_many_are_slowed_down() {
        let mut starts = Starts::default();
        let now = Instant::now();
        let pauses: Vec<u128> = (0..12).map(|_| starts.pause(now).as_millis()).collect();
        assert_eq!(pauses, [0, 0, 0, 0, 0, 100, 200, 400, 800, 1600, 3200, 5000]);
        assert_eq!(starts.pause(now + Duration::from_secs(61)), Duration::ZERO, "that was long ago");
        assert_eq!(starts.0.len(), 1);
    }
}
