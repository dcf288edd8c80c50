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
        print!("{}", code::reference_page());
        return Ok(ExitCode::SUCCESS);
    }
    if arguments.codes.is_empty() {
        for code in code::ALL {
            println!("{}  {}", code.id, code.title);
        }
        return Ok(ExitCode::SUCCESS);
    }
    for id in &arguments.codes {
        let code = code::find(id)
            .ok_or_else(|| Error::new(&code::BAD_SETTING, format!("no such code: {id}; `warren explain` without one lists all")))?;
        print_code(code);
    }
    Ok(ExitCode::SUCCESS)
}

fn print_code(code: &Code) {
    println!("{}: {}", code.id, code.title);
    println!("  whose side:   {}", code.side);
    println!("  retry helps:  {}", if code.retry { "yes" } else { "no" });
    println!("  what to do:   {}", code.hint);
}
