//! `warren`: parses the command line, calls one role.

use std::process::ExitCode;

fn main() -> ExitCode {
    warren::cli::main()
}
