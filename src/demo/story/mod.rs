//! The claims of the demo in their order, each proven on live traffic.

mod claims;
pub mod hold;
mod leftover;
pub mod mesh;
mod policy;
pub mod report;
pub mod table;

use std::path::Path;
use std::time::{Duration, Instant};

use self::mesh::Mesh;
use self::report::Report;
use super::capture::Recorder;
use super::sandbox::Sandbox;
use crate::base::{Error, Result};

/// How long each figure of the table is measured.
const MEASURE: table::Times =
    table::Times { bulk: Duration::from_millis(2500), round_trips: Duration::from_millis(1500), rate: Duration::from_millis(1500) };

/// What came of it.
pub struct Told {
    /// Whatever was found, also when the story could not be told to its end.
    pub report: Report,
    /// Why not every claim holds.
    pub error: Option<Error>,
    /// Still up.
    pub mesh: Option<Mesh>,
}

impl Told {
    /// It could not even begin.
    pub fn failed(error: Error) -> Self {
        let report = Report { error: Some(error.to_string()), ..Report::default() };
        Self { report, error: Some(error), mesh: None }
    }
}

/// Tells the story with the roles of `program`, and gives the recorder what is on the wire during the claims. Progress
/// goes to standard error.
pub fn tell(sandbox: &Sandbox, program: &Path, recorder: Option<Recorder>) -> Told {
    let progress = Progress::start();
    let mut report = Report::default();
    let (mesh, error) = match tell_into(sandbox, program, recorder, &progress, &mut report) {
        Ok(mesh) => (Some(mesh), None),
        Err(error) => (None, Some(error)),
    };
    report.seconds = progress.start.elapsed().as_secs_f64();
    let error = error.or_else(|| report.claims.iter().find(|claim| !claim.holds).map(report::Claim::error));
    report.ok = error.is_none();
    report.error = error.as_ref().map(ToString::to_string);
    Told { report, error, mesh }
}

fn tell_into(sandbox: &Sandbox, program: &Path, recorder: Option<Recorder>, progress: &Progress, report: &mut Report) -> Result<Mesh> {
    progress.say("two nodes, one wire, four pods; control plane, two agents, two proxies");
    let mut mesh = Mesh::start(sandbox.dir(), program)?;
    progress.say("all are up");
    match claims::all(&mut mesh, recorder, progress, report) {
        Ok(()) => Ok(mesh),
        // A child that ended is the cause of whatever failed after it.
        Err(error) => Err(mesh.check().err().unwrap_or(error)),
    }
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
