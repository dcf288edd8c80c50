//! The claims of the demo in their order, each proven on live traffic.

mod claims;
mod hold;
mod leftover;
pub mod mesh;
mod policy;
pub mod report;
pub mod table;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use self::mesh::Mesh;
use self::report::Report;
use super::capture::Recorder;
use super::sandbox::Sandbox;
use super::wait;
use crate::base::{Error, Result};

/// How long each figure of the table is measured.
const MEASURE: table::Times =
    table::Times { bulk: Duration::from_millis(2500), round_trips: Duration::from_millis(1500), rate: Duration::from_millis(1500) };

/// What the demo is asked for.
pub struct Options {
    /// The program whose roles are started: this one.
    pub program: PathBuf,
    /// Takes what is on the wire during the claims.
    pub recorder: Option<Recorder>,
    /// Leave the mesh up afterwards until a signal comes.
    pub hold: bool,
}

/// Tells the story. Progress goes to standard error.
///
/// The report holds whatever was found, also when the error says that the story could not be told to its end.
pub fn tell(sandbox: &Sandbox, options: Options) -> (Report, Option<Error>) {
    let progress = Progress { start: Instant::now() };
    let mut report = Report::default();
    let ended = tell_into(sandbox, options, &progress, &mut report);
    report.seconds = progress.start.elapsed().as_secs_f64();
    let failed = report.claims.iter().find(|claim| !claim.holds).map(report::Claim::error);
    // After a signal, whatever failed did so because of it.
    let error = ended.err().filter(|_| wait::interrupted().is_none() || failed.is_none()).or(failed);
    report.ok = error.is_none() && !report.claims.is_empty();
    report.error = error.as_ref().map(ToString::to_string);
    (report, error)
}

fn tell_into(sandbox: &Sandbox, options: Options, progress: &Progress, report: &mut Report) -> Result<()> {
    progress.say("two nodes, one wire, four pods; control plane, two agents, two proxies");
    let mut mesh = Mesh::start(sandbox.dir(), &options.program)?;
    progress.say("all are up");
    let told = claims::all(&mut mesh, options.recorder, progress, report);
    // A child that ended is the cause of whatever failed after it.
    told.map_err(|error| mesh.check().err().unwrap_or(error))?;
    if options.hold && report.claims.iter().all(|claim| claim.holds) {
        hold::hold(&mut mesh, sandbox, progress)?;
    }
    mesh.stop();
    Ok(())
}

/// Lines with the time since the start.
pub struct Progress {
    start: Instant,
}

impl Progress {
    /// Starts the clock.
    pub fn start() -> Self {
        Self { start: Instant::now() }
    }

    /// One line.
    pub fn say(&self, text: &str) {
        eprintln!("{:5.1} s  {text}", self.start.elapsed().as_secs_f64());
    }
}
