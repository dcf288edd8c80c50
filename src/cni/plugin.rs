//! The plugin itself: one process for each call, which lives for milliseconds. It has one thread and asks nobody but the
//! agent of its node.

use std::io::{self, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::message::{Answer, Call, PodRef};
use super::outside::{self, Outside};
use super::spec::{Config, Failure, PodArgs, Supported, VERSIONS, number};
use crate::base::{Code, Error, Result, code};
use crate::net::NetNs;
use crate::net::seqpacket::Connection;

/// How long a pod may wait for the agent, which may just be starting. The kubelet waits for minutes, but containerd cannot
/// take a changed CNI configuration during a call, and no call begins while it is about to.
const ADD_LIMIT: Duration = Duration::from_secs(10);

/// The agent is told to be done this long before the plugin gives up: its reason says more than silence.
const MARGIN: Duration = Duration::from_millis(500);

/// How long the end of a pod may be held up. An agent that misses it hears of the end from the API server.
const DEL_LIMIT: Duration = Duration::from_secs(1);

/// Between two attempts to reach the agent: doubles from the first to the last.
const PAUSE: (Duration, Duration) = (Duration::from_millis(10), Duration::from_millis(160));

/// Configurations are some kilobytes.
const MAX_INPUT: usize = 1 << 20;

/// The variable that tells the plugin what to do, and that it is called as one.
pub const COMMAND: &str = "CNI_COMMAND";

/// The environment of the call.
#[derive(Debug)]
struct Environment {
    command: String,
    container: String,
    netns: String,
    args: String,
    /// Where the program lies, and beside it what the agent left.
    directory: Option<PathBuf>,
}

/// A call that fails.
#[derive(Debug)]
struct Refusal {
    number: u32,
    error: Error,
    /// Whose hint says what to do.
    hint: &'static Code,
}

/// Does what the environment asks for, reads standard input, answers on standard output.
pub fn main() -> ExitCode {
    let started = Instant::now();
    let environment = Environment::of_process();
    let input = read_input(started + ADD_LIMIT);
    let input = input.as_deref().unwrap_or_else(|error| {
        eprintln!("warren: standard input: {error}");
        &[]
    });
    let (output, status) = match environment.answer(input, started) {
        Ok(output) => (output, ExitCode::SUCCESS),
        Err(refusal) => (refusal.told(input), ExitCode::FAILURE),
    };
    let mut stdout = io::stdout().lock();
    match stdout.write_all(output.as_bytes()).and_then(|()| stdout.flush()) {
        Ok(()) => status,
        Err(error) => {
            eprintln!("warren: standard output: {error}");
            ExitCode::FAILURE
        }
    }
}

impl Environment {
    fn of_process() -> Self {
        let variable = |name| std::env::var(name).unwrap_or_default();
        Self {
            command: variable(COMMAND),
            container: variable("CNI_CONTAINERID"),
            netns: variable("CNI_NETNS"),
            args: variable("CNI_ARGS"),
            directory: std::env::current_exe().ok().and_then(|path| path.parent().map(Path::to_owned)),
        }
    }

    /// What is written to standard output when the call succeeds.
    fn answer(&self, input: &[u8], started: Instant) -> std::result::Result<String, Refusal> {
        match self.command.as_str() {
            "VERSION" => {
                let config = Config::parse(input).ok();
                let version = config.as_ref().map(|config| &*config.version).filter(|version| !version.is_empty());
                let newest = VERSIONS.last().copied().unwrap_or_default();
                to_json(&Supported { version: version.unwrap_or(newest), supported: VERSIONS })
            }
            "ADD" => self.add(&usable(input)?, started),
            // The agent looks at every pod again and again by itself; nothing is known here that it does not see.
            "CHECK" => previous(&usable(input)?).map(|_| String::new()),
            "DEL" => {
                self.del(input, started);
                Ok(String::new())
            }
            // Nothing is kept that could be left over. An agent that is away does not make the node's network unready:
            // the agent's own pod could not start any more.
            "GC" | "STATUS" => Ok(String::new()),
            other => {
                let error = Error::new(&code::CNI_CALL, format!("{COMMAND}={other:?} is not known"));
                Err(Refusal::new(number::ENVIRONMENT, error))
            }
        }
    }

    fn add(&self, config: &Config<'_>, started: Instant) -> std::result::Result<String, Refusal> {
        let previous = previous(config)?;
        let Some(pod) = PodArgs::parse(&self.args) else {
            // Not a pod of the kubelet: somebody else on this node uses the same networks.
            return Ok(previous);
        };
        if config.exclude.iter().any(|name| *name == pod.namespace) {
            return Ok(previous);
        }
        let ips = config.ips().map_err(|error| Refusal::new(number::CONFIGURATION, error))?;
        if pod.uid.is_empty() || self.container.is_empty() {
            let error = Error::new(&code::CNI_CALL, format!("pod {pod}: no K8S_POD_UID in CNI_ARGS, or no CNI_CONTAINERID"));
            return Err(Refusal::new(number::ENVIRONMENT, error));
        }
        let netns = NetNs::open(&self.netns).map_err(|error| {
            let text = format!("pod {pod}: CNI_NETNS={:?}", self.netns);
            Refusal::new(number::ENVIRONMENT, Error::caused(&code::CNI_CALL, text, error))
        })?;
        let call = |limit: Duration| Call::Add {
            pod: pod.sandbox(&self.container),
            ips: ips.clone(),
            limit_ms: u64::try_from(limit.saturating_sub(MARGIN).as_millis()).unwrap_or(u64::MAX),
        };
        let may_pass = || self.is_outside(&pod.namespace);
        match ask_until(&config.socket, call, Some(&netns), started + ADD_LIMIT, may_pass) {
            Ok(Answer::Enrolled | Answer::NotInMesh { .. }) => Ok(previous),
            Ok(Answer::Failed { code, text, retry }) => Err(Refusal::of_agent(&pod, &code, &text, retry)),
            Ok(Answer::Forgotten) => {
                let error = Error::new(&code::CNI_CALL, format!("pod {pod}: the agent gave an answer to another question"));
                Err(Refusal::new(number::DECODE, error))
            }
            Err(_) if may_pass() => {
                eprintln!("warren: the agent is away; pod {pod} starts, its namespace is not in the mesh");
                Ok(previous)
            }
            Err(error) => {
                let text = format!("the node agent does not answer on {} and pod {pod} may be in the mesh", config.socket.display());
                Err(Refusal::new(number::LATER, Error::caused(&code::CNI_AGENT_AWAY, text, error)))
            }
        }
    }

    /// A pod ends whatever is wrong here.
    fn del(&self, input: &[u8], started: Instant) {
        let Ok(config) = Config::parse(input) else { return };
        let Some(pod) = PodArgs::parse(&self.args) else { return };
        if config.exclude.iter().any(|name| *name == pod.namespace) {
            return;
        }
        let call = |_| Call::Del { pod: pod.sandbox(&self.container) };
        if let Err(error) = ask_until(&config.socket, call, None, started + DEL_LIMIT, || true) {
            eprintln!("warren: the agent was not told of the end of pod {pod}: {error}");
        }
    }

    /// Whether the agent knew, when it last ran, that no pod of the namespace is to be in the mesh.
    fn is_outside(&self, namespace: &str) -> bool {
        let Some(directory) = &self.directory else { return false };
        Outside::read(&directory.join(outside::FILE)).is_ok_and(|known| known.outside.contains(namespace))
    }
}

impl Refusal {
    fn new(number: u32, error: Error) -> Self {
        let hint = error.code();
        Self { number, error, hint }
    }

    fn of_agent(pod: &PodArgs, reason: &str, text: &str, retry: bool) -> Self {
        let error = Error::new(&code::CNI_NOT_ENROLLED, format!("pod {pod}: {text}"));
        let hint = code::find(reason).unwrap_or(error.code());
        Self { number: if retry { number::LATER } else { number::REFUSED }, error, hint }
    }

    /// What is written to standard output.
    fn told(&self, input: &[u8]) -> String {
        let config = Config::parse(input).ok();
        let version = config.as_ref().map(|config| &*config.version).filter(|version| VERSIONS.contains(version));
        let version = version.or(VERSIONS.last().copied()).unwrap_or_default();
        let failure = Failure { version, code: self.number, msg: format!("warren: {}", self.error), details: self.hint.hint };
        serde_json::to_string(&failure).unwrap_or_else(|error| error.to_string())
    }
}

impl PodArgs {
    fn sandbox(&self, container: &str) -> PodRef {
        PodRef { uid: self.uid.clone(), namespace: self.namespace.clone(), name: self.name.clone(), container: container.to_owned() }
    }
}

/// `namespace/name`
impl std::fmt::Display for PodArgs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

fn to_json(value: &impl serde::Serialize) -> std::result::Result<String, Refusal> {
    serde_json::to_string(value).map_err(|error| Refusal::new(number::DECODE, Error::caused(&code::CNI_CALL, "an answer", error)))
}

/// A configuration whose version is spoken.
fn usable(input: &[u8]) -> std::result::Result<Config<'_>, Refusal> {
    let config = Config::parse(input).map_err(|error| Refusal::new(number::DECODE, error))?;
    if VERSIONS.contains(&&*config.version) {
        return Ok(config);
    }
    let text = format!("cniVersion {:?} is not one of {}", config.version, VERSIONS.join(", "));
    Err(Refusal::new(number::VERSION, Error::new(&code::CNI_CALL, text)))
}

/// The result of the plugins before, exactly as they wrote it: it is also this plugin's.
fn previous(config: &Config<'_>) -> std::result::Result<String, Refusal> {
    let text = "no prevResult: this plugin must come after the one that makes the network";
    let previous = config.previous.ok_or_else(|| Refusal::new(number::CONFIGURATION, Error::new(&code::CNI_CALL, text)))?;
    Ok(previous.get().to_owned())
}

/// Asks the agent until it answers, or `end`, or until nobody listens and `give_up` allows to go on without it.
/// `call` is made anew for each attempt, with the time that is left.
fn ask_until(
    socket: &Path,
    call: impl Fn(Duration) -> Call,
    netns: Option<&NetNs>,
    end: Instant,
    give_up: impl Fn() -> bool,
) -> io::Result<Answer> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build()?;
    runtime.block_on(async {
        let mut pause = PAUSE.0;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let silence = || io::Error::new(io::ErrorKind::TimedOut, "it took the call and said nothing in time");
            let attempt = tokio::time::timeout(left, ask(socket, &call(left), netns)).await;
            let error = match attempt.unwrap_or_else(|_| Err(silence())) {
                Ok(answer) => return Ok(answer),
                Err(error) => error,
            };
            let away = matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused);
            if Instant::now() + pause >= end || away && give_up() {
                return Err(error);
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(PAUSE.1);
        }
    })
}

async fn ask(socket: &Path, call: &Call, netns: Option<&NetNs>) -> io::Result<Answer> {
    let message = call.encode().map_err(io::Error::other)?;
    let connection = Connection::connect(socket).await?;
    connection.send(&message, netns.map(AsFd::as_fd)).await?;
    match connection.receive().await? {
        Some(answer) => Answer::decode(&answer.data).map_err(io::Error::other),
        None => Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it ended before it answered")),
    }
}

/// Everything that the runtime writes, until it closes its end.
fn read_input(end: Instant) -> Result<Vec<u8>> {
    let broken = |error: io::Error| Error::caused(&code::CNI_CALL, "cannot be read", error);
    let stdin = io::stdin();
    let mut input = Vec::new();
    let mut chunk = vec![0; 16 << 10];
    loop {
        let left = end.saturating_duration_since(Instant::now());
        let mut fds = [PollFd::new(stdin.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)) {
            Ok(0) => return Err(broken(io::ErrorKind::TimedOut.into())),
            Ok(_) => {}
            Err(Errno::EINTR) => continue,
            Err(errno) => return Err(broken(errno.into())),
        }
        match nix::unistd::read(&stdin, &mut chunk) {
            Ok(0) => return Ok(input),
            Ok(length) => input.extend_from_slice(chunk.get(..length).unwrap_or_default()),
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(broken(errno.into())),
        }
        if input.len() > MAX_INPUT {
            return Err(Error::new(&code::CNI_CALL, format!("more than {MAX_INPUT} bytes")));
        }
    }
}
