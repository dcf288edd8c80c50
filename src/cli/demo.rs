//! `warren demo`, and the two hidden commands it is made of: `sandbox` and `demo-pod`.
//!
//! `demo` and `sandbox` make namespaces, which the kernel allows only to a process with one thread: they run before any
//! runtime exists.

use std::ffi::OsString;
use std::io::Read;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use crate::base::{Error, Result, code};
use crate::demo::capture::Recorder;
use crate::demo::sandbox::Sandbox;
use crate::demo::story::mesh::Mesh;
use crate::demo::story::{self, Told, hold};
use crate::demo::{pod, sandbox, wait};

/// Shows the mesh at work: two nodes and their pods on this machine, in namespaces that vanish afterwards.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Keeps what was on the wire between the nodes in FILE, for Wireshark.
    #[arg(long, value_name = "FILE")]
    pcap: Option<PathBuf>,
    /// Prints one JSON object instead of text.
    #[arg(long)]
    json: bool,
    /// Leaves the mesh up afterwards and prints how to look around, until Ctrl-C.
    #[arg(long)]
    hold: bool,
}

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
    /// Answers tunnels at an address that the mesh says is another workload's.
    Impostor(pod::Impostor),
    /// Holds connections open until its standard input ends.
    Idle {
        to: SocketAddr,
        #[arg(long, default_value_t = 1000)]
        count: usize,
    },
}

/// Tells the story. The status is 128 and the signal's number when one ended it; after `--hold` that is a good end.
///
/// # Errors
/// The machine does not allow it, or a claim does not hold.
pub fn run(args: Args) -> Result<ExitCode> {
    // Before the namespaces are left: inside, the path may mean another file.
    let recorder = args.pcap.map(recorder).transpose()?;
    let program = std::env::current_exe().map_err(|error| Error::caused(&code::DEMO_UNSUPPORTED, "/proc is needed", error))?;
    let sandbox = match prepare() {
        Ok(sandbox) => sandbox,
        Err(error) => return show(args.json, Told::failed(error)).map(|_| ExitCode::FAILURE),
    };
    let told = story::tell(&sandbox, &program, recorder);
    if told.error.is_some()
        && let Some(signal) = wait::interrupted()
    {
        return Ok(ExitCode::from(u8::try_from(128 + signal).unwrap_or(u8::MAX)));
    }
    let Some(mut mesh) = show(args.json, told)? else { return Ok(ExitCode::SUCCESS) };
    if args.hold
        && let Err(error) = hold::hold(&mut mesh, &sandbox)
        && wait::interrupted().is_none()
    {
        return Err(error);
    }
    mesh.stop();
    Ok(ExitCode::SUCCESS)
}

/// Prints the report; gives the mesh when every claim holds.
fn show(json: bool, told: Told) -> Result<Option<Mesh>> {
    if json {
        print(&told.report)?;
    } else if !told.report.claims.is_empty() {
        super::show(&format!("\n{}\n", told.report.text()))?;
    }
    told.error.map_or(Ok(told.mesh), Err)
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
        Role::Impostor(wanted) => runtime()?.block_on(pod::impersonate(wanted))?,
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

fn prepare() -> Result<Sandbox> {
    let sandbox = sandbox::enter()?;
    wait::catch_signals()?;
    Ok(sandbox)
}

fn recorder(path: PathBuf) -> Result<Recorder> {
    let file = std::fs::File::create(&path);
    Recorder::new(file.map_err(|error| Error::caused(&code::BAD_FILE, format!("create {}", path.display()), error))?)
}

fn print(report: &impl serde::Serialize) -> Result<()> {
    let line = serde_json::to_string(report).map_err(|error| Error::caused(&code::INTERNAL, "write a report", error))?;
    super::show(&format!("{line}\n"))
}

fn duration(seconds: f64) -> Result<Duration> {
    Duration::try_from_secs_f64(seconds).map_err(|error| Error::caused(&code::BAD_SETTING, format!("--seconds {seconds}"), error))
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    let built = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    built.map_err(|error| Error::caused(&code::INTERNAL, "start the runtime", error))
}
