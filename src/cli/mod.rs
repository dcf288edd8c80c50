//! The command line: one file per role or verb.

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::base::{Error, Result, code};
use crate::config::{Env, env};
use crate::telemetry::log;

pub mod agent;
pub mod control;
mod explain;
mod proxy;
mod settings;
mod shutdown;

/// Encrypts and authenticates every TCP connection between Kubernetes pods, without touching the pods.
#[derive(Debug, Parser)]
#[command(name = "warren", version, disable_help_subcommand = true)]
struct Arguments {
    #[command(subcommand)]
    role: Role,
}

#[derive(Debug, Subcommand)]
enum Role {
    /// Node proxy: captures and carries the traffic of this node's pods. Configured by environment variables.
    Proxy(proxy::Arguments),
    /// Node agent: redirects the traffic of this node's pods and hands them to the proxy.
    Agent(agent::Args),
    /// Control plane: tells proxies about the mesh and signs their certificates.
    Control(control::Args),
    /// Says what an error code means and what to do about it.
    Explain(explain::Arguments),
    /// Prints the settings of `warren proxy` as a Markdown page.
    Settings,
}

/// Parses the command line and runs the role. Exit status: 0 done, 1 failed, 2 wrong usage.
pub fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(arguments.role) {
        Ok(status) => status,
        Err(error) => {
            eprintln!("warren: {error}");
            eprintln!("  {}: {}", error.code().id, error.code().hint);
            ExitCode::FAILURE
        }
    }
}

fn run(role: Role) -> Result<ExitCode> {
    match role {
        Role::Proxy(arguments) => proxy::run(arguments),
        Role::Agent(arguments) => served(agent::run(arguments)),
        Role::Control(arguments) => served(control::run(arguments)),
        Role::Explain(arguments) => explain::run(&arguments),
        Role::Settings => settings::run(),
    }
}

/// Runs a role that is one task and its helpers, with the process log.
fn served(role: impl Future<Output = Result<()>>) -> Result<ExitCode> {
    let vars = Env::process();
    let format = match vars.some(&env::LOG_FORMAT) {
        Some("json") => log::Format::Json,
        _ => log::Format::Plain,
    };
    log::init(format, vars.some(&env::RUST_LOG).unwrap_or("info"))?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|error| Error::caused(&code::NO_PERMISSION, "cannot start threads", error))?;
    runtime.block_on(role)?;
    runtime.shutdown_timeout(std::time::Duration::from_secs(1));
    Ok(ExitCode::SUCCESS)
}
