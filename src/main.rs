//! Parses the command line and calls one role.

use std::process::ExitCode;

use clap::Parser;
use warren::cli::demo;

#[derive(Parser)]
#[command(name = "warren", version, about)]
enum Command {
    Demo(demo::Args),
    #[command(hide = true)]
    Sandbox(demo::SandboxArgs),
    #[command(hide = true)]
    DemoPod(demo::PodArgs),
}

fn main() -> ExitCode {
    let run = || {
        warren::demo::sandbox::die_with_parent()?;
        match Command::parse() {
            Command::Demo(args) => demo::run(args),
            Command::Sandbox(args) => demo::sandbox(&args),
            Command::DemoPod(args) => demo::pod(args),
        }
    };
    run().unwrap_or_else(|error: warren::base::Error| {
        eprintln!("warren: {error}\n{}", error.code().hint);
        ExitCode::FAILURE
    })
}
