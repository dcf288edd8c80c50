//! The command line: one file per role or verb.

use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};

use crate::base::drain::{self, Watch};
use crate::base::{Error, Result, code};
use crate::config::{Env, env};
use crate::demo::sandbox;
use crate::net::memory;
use crate::telemetry::log;
use shutdown::Signals;

pub mod agent;
mod cni;
pub mod control;
pub mod demo;
mod descriptors;
mod explain;
mod proxy;
mod purge;
mod settings;
mod shutdown;
mod supervise;
mod uninstall;

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
    /// CNI plugin: has the agent bring a new pod into the mesh before it starts. Called by the container runtime.
    Cni,
    /// Shows the mesh at work: two nodes and their pods on this machine, in namespaces that vanish afterwards.
    Demo(demo::Args),
    /// Says what an error code means and what to do about it.
    Explain(explain::Arguments),
    /// Prints the settings of `warren proxy` as a Markdown page.
    Settings,
    /// Takes Warren off this node: rules, CNI plugin. Asks nobody; the agent must have ended.
    Purge(purge::Args),
    /// Takes Warren out of a cluster in order. The chart runs it at `helm uninstall`.
    #[command(hide = true)]
    Uninstall(uninstall::Args),
    /// Runs a command in namespaces of its own. For the project's tests.
    #[command(hide = true)]
    Sandbox(demo::SandboxArgs),
    /// An application in a pod of the demo.
    #[command(hide = true)]
    DemoPod(demo::PodArgs),
}

/// Parses the command line and runs the role. Exit status: 0 done, 1 failed, 2 wrong usage.
pub fn main() -> ExitCode {
    if cni::is_called() {
        return cni::run();
    }
    memory::keep_little();
    let status = sandbox::die_with_parent().and_then(|()| run(Arguments::parse().role));
    match status {
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
        Role::Agent(arguments) => until_signal(|drain| agent::run(arguments, drain)),
        Role::Control(arguments) => until_signal(|drain| control::run(arguments, drain)),
        Role::Cni => Ok(cni::run()),
        // These make namespaces, which the kernel allows only to a process with one thread.
        Role::Demo(arguments) => demo::run(arguments),
        Role::Sandbox(arguments) => demo::sandbox(&arguments),
        Role::DemoPod(arguments) => demo::pod(arguments),
        Role::Explain(arguments) => explain::run(&arguments),
        Role::Settings => settings::run(),
        Role::Purge(arguments) => until_signal(|_| purge::run(arguments)),
        Role::Uninstall(arguments) => until_signal(|_| uninstall::run(arguments)),
    }
}

/// Runs a role, with the process log, until it ends by itself or a signal asks it to and it has drained.
fn until_signal<F: Future<Output = Result<()>>>(role: impl FnOnce(Watch) -> F) -> Result<ExitCode> {
    let vars = Env::process();
    let format = match vars.some(&env::LOG_FORMAT) {
        Some("json") => log::Format::Json,
        _ => log::Format::Plain,
    };
    let _log = log::init(format, vars.some(&env::RUST_LOG).unwrap_or(LOG))?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|error| Error::caused(&code::NO_PERMISSION, "cannot start threads", error))?;
    let status = runtime.block_on(async {
        let mut signals = Signals::listen()?;
        let (trigger, watch) = drain::new();
        let role = role(watch);
        tokio::pin!(role);
        let signal = tokio::select! {
            ended = &mut role => return ended.map(|()| ExitCode::SUCCESS),
            signal = signals.first() => signal,
        };
        tracing::info!(signal, "ending");
        let mut ended = Ok(());
        let end = async {
            let draining = trigger.drain(DRAIN_LIMIT);
            tokio::join!(async { ended = role.await }, draining);
        };
        let status = signals.finish(end).await;
        ended.map(|()| status)
    });
    runtime.shutdown_timeout(Duration::from_secs(1));
    status
}

/// What is logged by default. What the client of the Kubernetes API logs about failed calls is told by those who called.
const LOG: &str = "info,kube_client=off";

/// The longest a role may take to end after a signal; each has shorter limits of its own.
const DRAIN_LIMIT: Duration = Duration::from_secs(60);

/// Prints to stdout.
///
/// # Errors
/// Nobody takes it: the disk is full, the reader is gone.
fn show(text: &str) -> Result<()> {
    let mut stdout = std::io::stdout().lock();
    let written = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush());
    written.map_err(|error| Error::caused(&code::BAD_FILE, "write to stdout", error))
}
