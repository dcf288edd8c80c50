//! `warren explain W####`

use std::process::ExitCode;

use crate::base::{Code, Error, Result, code};

/// Which codes.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Codes such as W2004; none lists all.
    codes: Vec<String>,
    /// Print the whole reference as a Markdown page.
    #[arg(long, conflicts_with = "codes")]
    page: bool,
}

/// Prints what each code means.
pub(super) fn run(arguments: &Arguments) -> Result<ExitCode> {
    if arguments.page {
        super::show(&code::reference_page())?;
        return Ok(ExitCode::SUCCESS);
    }
    if arguments.codes.is_empty() {
        let list: String = code::ALL.iter().map(|code| format!("{}  {}\n", code.id, code.title)).collect();
        super::show(&list)?;
        return Ok(ExitCode::SUCCESS);
    }
    for id in &arguments.codes {
        let code = code::find(id)
            .ok_or_else(|| Error::new(&code::BAD_SETTING, format!("no such code: {id}; `warren explain` without one lists all")))?;
        super::show(&text(code))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn text(code: &Code) -> String {
    let retry = if code.retry { "yes" } else { "no" };
    format!("{}: {}\n  whose side:   {}\n  retry helps:  {retry}\n  what to do:   {}\n", code.id, code.title, code.side, code.hint)
}
