//! The process log: one subscriber, plain or JSON, to stdout.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::time::UtcTime;

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

/// Starts logging. `filter` is a comma list of `level` and `target=level`.
///
/// # Errors
/// The filter cannot be parsed.
pub fn init(format: Format, filter: &str) -> Result<()> {
    let filter = EnvFilter::try_new(filter).map_err(|error| Error::caused(&code::BAD_SETTING, format!("RUST_LOG={filter}"), error))?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_timer(UtcTime::rfc_3339());
    // A second start in one process (tests) keeps the first.
    let _ = match format {
        Format::Plain => builder.with_ansi(std::io::stdout().is_terminal()).try_init(),
        Format::Json => builder.json().flatten_event(true).with_current_span(false).try_init(),
    };
    Ok(())
}
