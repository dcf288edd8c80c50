//! `warren settings`

use std::process::ExitCode;

use crate::base::Result;
use crate::config::env;

/// Prints the reference page.
pub(super) fn run() -> Result<ExitCode> {
    super::show(&env::reference_page())?;
    Ok(ExitCode::SUCCESS)
}
