//! `warren demo`, and the two hidden commands it is made of: `sandbox` and `demo-pod`.
//!
//! `demo` and `sandbox` make namespaces, which the kernel allows only to a process with one thread: they run before any
//! runtime exists.

use std::ffi::OsString;
use std::io::Read;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::process::ExitCode;
use std::time::Duration;

use crate::base::{Error, Result, code};
use crate::demo::{pod, sandbox};

/// Runs a command in network and mount namespaces of its own, in a user namespace where needed.
#[derive(Debug, clap::Args)]
pub struct SandboxArgs {
    /// The command and its arguments.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
    command: Vec<OsString>,
}

/// An application in a pod of the demo.
#[derive(Debug, clap::Args)]
pub struct PodArgs {
    #[command(subcommand)]
    role: Role,
}

#[derive(Debug, clap::Subcommand)]
enum Role {
    /// Serves echo, sink and one-shot echo until it is ended.
    Serve {
        #[arg(long, default_value_t = IpAddr::V4(Ipv4Addr::UNSPECIFIED))]
        ip: IpAddr,
    },
    /// Sends a text and waits until it comes back.
    Say {
        to: SocketAddr,
        text: String,
        /// Milliseconds.
        #[arg(long, default_value_t = 5000)]
        limit: u64,
    },
    /// Sends as much as goes through.
    Bulk {
        to: SocketAddr,
        #[arg(long, default_value_t = 1)]
        connections: usize,
        #[arg(long, default_value_t = 3.0)]
        seconds: f64,
    },
    /// Measures round trips.
    PingPong {
        to: SocketAddr,
        #[arg(long, default_value_t = 1024)]
        size: usize,
        #[arg(long, default_value_t = 2.0)]
        seconds: f64,
    },
    /// Measures new connections per second.
    Rate {
        to: SocketAddr,
        #[arg(long, default_value_t = 1)]
        concurrency: usize,
        #[arg(long, default_value_t = 2.0)]
        seconds: f64,
    },
    /// Holds connections open until its standard input ends.
    Idle {
        to: SocketAddr,
        #[arg(long, default_value_t = 1000)]
        count: usize,
    },
}

/// Enters a sandbox and runs the command there.
///
/// # Errors
/// The kernel does not allow it, or the command cannot be run; otherwise this does not return.
pub fn sandbox(args: &SandboxArgs) -> Result<ExitCode> {
    let (program, rest) = args.command.split_first().ok_or_else(|| Error::new(&code::BAD_SETTING, "no command given"))?;
    Err(sandbox::enter()?.exec(program, rest))
}

/// Plays one application.
///
/// # Errors
/// What it wanted to measure could not be measured.
pub fn pod(args: PodArgs) -> Result<ExitCode> {
    let patience = Duration::from_secs(10);
    match args.role {
        Role::Serve { ip } => runtime()?.block_on(pod::serve(ip))?,
        Role::Say { to, text, limit } => print(&pod::say(to, &text, Duration::from_millis(limit)))?,
        Role::Bulk { to, connections, seconds } => print(&pod::bulk(to, connections, duration(seconds)?)?)?,
        Role::PingPong { to, size, seconds } => print(&pod::ping_pong(to, size, duration(seconds)?)?)?,
        Role::Rate { to, concurrency, seconds } => print(&pod::rate(to, concurrency, duration(seconds)?)?)?,
        Role::Idle { to, count } => {
            let (report, held) = pod::idle(to, count, patience);
            print(&report)?;
            let _ = std::io::stdin().read_to_end(&mut Vec::new());
            drop(held);
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn print(report: &impl serde::Serialize) -> Result<()> {
    let line = serde_json::to_string(report).map_err(|error| Error::caused(&code::INTERNAL, "write a report", error))?;
    println!("{line}");
    Ok(())
}

fn duration(seconds: f64) -> Result<Duration> {
    Duration::try_from_secs_f64(seconds).map_err(|error| Error::caused(&code::BAD_SETTING, format!("--seconds {seconds}"), error))
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    let built = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    built.map_err(|error| Error::caused(&code::INTERNAL, "start the runtime", error))
}
