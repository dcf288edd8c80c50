//! Child processes inside a network namespace, each with a log file; none outlives this process.

use std::fs::{self, File};
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, SysconfVar, sysconf};

use crate::base::{Error, Result, code};
use crate::demo::sandbox::PARENT;
use crate::demo::wait::{self, wait_for};
use crate::net::NetNs;

type Job = Box<dyn FnOnce() + Send>;

/// The one thread that starts children: the kernel kills a child when the thread that started it ends.
#[derive(Debug)]
pub struct Spawner {
    jobs: mpsc::Sender<Job>,
}

impl Spawner {
    /// Starts the thread; it ends with this value.
    ///
    /// # Errors
    /// No more threads.
    pub fn new() -> Result<Self> {
        let (jobs, todo) = mpsc::channel::<Job>();
        std::thread::Builder::new()
            .name("spawner".to_owned())
            .spawn(move || todo.into_iter().for_each(|job| job()))
            .map_err(|error| Error::caused(&code::NO_PERMISSION, "start a thread", error))?;
        Ok(Self { jobs })
    }

    /// Starts `command` inside `netns`.
    fn spawn(&self, netns: &NetNs, mut command: Command) -> io::Result<std::process::Child> {
        let (answer, started) = mpsc::sync_channel(1);
        let netns = netns.clone();
        let job = move || {
            let child = netns.run(|| command.spawn()).and_then(|child| child);
            let _ = answer.send(child);
        };
        let gone = || io::Error::other("the thread that starts children has ended");
        self.jobs.send(Box::new(job)).map_err(|_| gone())?;
        started.recv().map_err(|_| gone())?
    }
}

/// A running child. Dropping it kills it.
#[derive(Debug)]
pub struct Child {
    name: String,
    log: PathBuf,
    process: std::process::Child,
    // The child dies with the thread behind this.
    _spawner: Arc<Spawner>,
}

impl Child {
    pub(super) fn start(spawner: &Arc<Spawner>, netns: &NetNs, log: &Path, name: &str, mut command: Command) -> Result<Self> {
        let failed = |error| Error::caused(&code::DEMO_CHILD, format!("start {name}"), error);
        let file = File::create(log).map_err(failed)?;
        command
            .stdin(Stdio::piped())
            .stdout(file.try_clone().map_err(failed)?)
            .stderr(file)
            .env(PARENT, std::process::id().to_string())
            // Ctrl-C at the terminal is for this process: it decides how its children end.
            .process_group(0);
        let process = spawner.spawn(netns, command).map_err(failed)?;
        Ok(Self { name: name.to_owned(), log: log.to_owned(), process, _spawner: Arc::clone(spawner) })
    }

    /// The name given at start.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Changes that name; the log stays where it is.
    pub fn rename(&mut self, name: &str) {
        name.clone_into(&mut self.name);
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// Its log file.
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// Everything it has written so far.
    pub fn output(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// How it ended, if it has.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.process.try_wait().ok().flatten()
    }

    /// # Errors
    /// `DEMO_CHILD` with its last log lines when it has ended.
    pub fn check(&mut self) -> Result<()> {
        match self.ended() {
            None => Ok(()),
            Some(status) => Err(Error::new(&code::DEMO_CHILD, format!("{} ended ({status}); it said:\n{}", self.name, self.last_lines()))),
        }
    }

    /// Waits until it has written a line that contains `text`.
    ///
    /// # Errors
    /// It ended before, or `limit` is over.
    pub fn wait_for_output(&mut self, text: &str, limit: Duration) -> Result<()> {
        let what = format!("{} says {text:?}", self.name);
        wait_for(limit, &what, || {
            if self.output().contains(text) {
                return Some(Ok(()));
            }
            self.check().err().map(Err)
        })?
    }

    /// Waits for its end and returns what it wrote.
    ///
    /// # Errors
    /// `DEMO_CHILD` when it failed; `NOT_READY` when `limit` is over (it is killed then).
    pub fn finish(mut self, limit: Duration) -> Result<String> {
        let status = wait_for(limit, &format!("{} ends", self.name), || self.ended())?;
        if status.success() {
            return Ok(self.output());
        }
        Err(Error::new(&code::DEMO_CHILD, format!("{} ended ({status}); it said:\n{}", self.name, self.last_lines())))
    }

    /// Asks it to end, kills it when it does not within `limit`. Returns its status when it ended by itself.
    pub fn stop(mut self, limit: Duration) -> Option<ExitStatus> {
        self.signal(Signal::SIGTERM);
        wait_for(limit, "end", || self.ended()).ok()
    }

    /// Sends a signal.
    pub fn signal(&mut self, signal: Signal) {
        // A child that was waited for no longer owns its number.
        if self.ended().is_none()
            && let Ok(pid) = i32::try_from(self.pid())
        {
            let _ = kill(Pid::from_raw(pid), signal);
        }
    }

    /// Processor time it has used: user and system.
    ///
    /// # Errors
    /// It has ended.
    pub fn cpu(&self) -> Result<Duration> {
        let failed = || Error::new(&code::DEMO_CHILD, format!("{} has no /proc entry", self.name));
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid())).map_err(|_| failed())?;
        // The second field is the command in parentheses and may hold spaces; utime and stime are fields 14 and 15.
        let fields: Vec<&str> = stat.rsplit_once(')').map(|(_, rest)| rest.split_whitespace().collect()).unwrap_or_default();
        let ticks = |at: usize| fields.get(at).and_then(|text| text.parse::<u64>().ok());
        let total = ticks(11).zip(ticks(12)).map(|(user, system)| user + system).ok_or_else(failed)?;
        let per_second = sysconf(SysconfVar::CLK_TCK).ok().flatten().and_then(|rate| u64::try_from(rate).ok()).unwrap_or(100);
        Ok(Duration::from_millis(total * 1000 / per_second.max(1)))
    }

    fn last_lines(&self) -> String {
        let output = self.output();
        let lines: Vec<&str> = output.lines().collect();
        lines.get(lines.len().saturating_sub(12)..).unwrap_or_default().join("\n")
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        let _ = self.process.kill();
        if let Err(error) = self.process.wait() {
            tracing::debug!(%error, name = self.name, interrupted = wait::interrupted(), "cannot wait for a child");
        }
    }
}
