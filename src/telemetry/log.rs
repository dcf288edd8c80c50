//! The process log: one subscriber, plain or JSON, to stdout; its filter can be changed while the process runs.
//!
//! Lines go through a bounded queue and are written by a thread of their own: a reader of stdout that stands still must not
//! stop connections. What does not fit is dropped and counted.

use std::io::IsTerminal;
use std::sync::OnceLock;

use parking_lot::Mutex;
use tracing_appender::non_blocking::{ErrorCounter, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::filter::Directive;
use tracing_subscriber::fmt::time::UtcTime;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Registry, fmt, reload};

use crate::base::{Error, Result, code};

/// How lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Format {
    /// `<time> <level> <target> <message> <fields>`
    #[default]
    Plain,
    /// One JSON object a line.
    Json,
}

/// Logs as an error what its callers get as one and handle.
const SILENT: &str = "kube_client::client::builder=off";

/// Lines that may wait to be written.
const QUEUE: usize = 10_000;

/// Writes what is waiting when it is dropped: hold it until the process ends.
#[must_use = "dropped, it ends the log"]
#[derive(Debug)]
pub struct Guard {
    _writer: WorkerGuard,
}

struct Control {
    dropped: ErrorCounter,
    handle: reload::Handle<EnvFilter, Registry>,
    default: String,
    current: Mutex<String>,
}

static CONTROL: OnceLock<Control> = OnceLock::new();

/// Starts logging. `filter` is a comma list of `level` and `target=level`. A second start in one process keeps the first.
///
/// # Errors
/// The filter cannot be parsed.
pub fn init(format: Format, filter: &str) -> Result<Guard> {
    let (filter_layer, handle) = reload::Layer::new(parse(filter)?);
    let (writer, guard) =
        NonBlockingBuilder::default().buffered_lines_limit(QUEUE).lossy(true).thread_name("warren-log").finish(std::io::stdout());
    let dropped = writer.error_counter();
    let registry = tracing_subscriber::registry().with(filter_layer);
    let started = match format {
        Format::Plain => {
            let ansi = std::io::stdout().is_terminal();
            registry.with(fmt::layer().with_timer(UtcTime::rfc_3339()).with_ansi(ansi).with_writer(writer)).try_init()
        }
        Format::Json => {
            registry.with(fmt::layer().json().flatten_event(true).with_timer(UtcTime::rfc_3339()).with_writer(writer)).try_init()
        }
    };
    if started.is_ok() {
        let _ = CONTROL.set(Control { dropped, handle, default: filter.to_owned(), current: Mutex::new(filter.to_owned()) });
    }
    Ok(Guard { _writer: guard })
}

/// Lines that were dropped because the queue was full.
pub fn dropped_lines() -> usize {
    CONTROL.get().map(|control| control.dropped.dropped_lines()).unwrap_or_default()
}

/// The filter now.
pub fn current() -> String {
    CONTROL.get().map(|control| control.current.lock().clone()).unwrap_or_default()
}

/// Adds directives to the filter; a later one wins.
///
/// # Errors
/// One of them is not `level` or `target=level`; nothing is changed.
pub fn add(directives: &str) -> Result<()> {
    for directive in directives.split(',') {
        // A bare target would mean "everything of it", which is never what was meant by a misspelt level.
        let level = directive.rsplit_once('=').map_or(directive, |(_, level)| level);
        if level.parse::<tracing::level_filters::LevelFilter>().is_err() || directive.parse::<Directive>().is_err() {
            return Err(Error::new(&code::BAD_SETTING, format!("log filter {directives:?}")));
        }
    }
    change(|current| format!("{current},{directives}"))
}

/// Back to the filter that the process was started with.
pub fn reset() {
    if let Some(control) = CONTROL.get() {
        let _ = change(|_| control.default.clone());
    }
}

fn change(next: impl FnOnce(&str) -> String) -> Result<()> {
    let Some(control) = CONTROL.get() else { return Ok(()) };
    let mut current = control.current.lock();
    let filter = parse(&next(&current))?;
    // The filter prints itself without what was overridden, so that repeated changes do not pile up.
    *current = filter.to_string();
    control.handle.reload(filter).map_err(|error| Error::caused(&code::BAD_SETTING, "log filter", error))
}

fn parse(filter: &str) -> Result<EnvFilter> {
    EnvFilter::try_new(format!("{SILENT},{filter}"))
        .map_err(|error| Error::caused(&code::BAD_SETTING, format!("log filter {filter:?}"), error))
}
