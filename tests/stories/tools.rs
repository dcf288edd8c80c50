//! What the stories share: a mesh that runs, connections from inside pods, and pages read as an operator reads them.

pub(crate) mod page;

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use serde_json::Value;
use warren::demo::pod::{ECHO_PORT, ONCE_PORT, Outcome};
use warren::demo::story::mesh::{LogMark, Mesh, Port, text};
use warren::demo::wait::wait_for;
use warren::net::NetNs;

use crate::common::WARREN;

/// For something that takes a fraction of it, also while the machine is busy.
pub(crate) const LIMIT: Duration = Duration::from_secs(45);

/// A mesh in which everything runs, nothing is enrolled.
pub(crate) fn started(dir: &Path) -> Mesh {
    Mesh::start(dir, Path::new(WARREN)).expect("the mesh comes up")
}

/// A mesh in which everything runs and client, local and server are enrolled.
pub(crate) fn enrolled(dir: &Path) -> Mesh {
    let mut mesh = started(dir);
    mesh.enrol(true).expect("the file is written");
    mesh.wait_until_enrolled().expect("the pods are enrolled");
    mesh
}

/// Lab and applications, no role of Warren.
pub(crate) fn prepared(dir: &Path) -> Mesh {
    Mesh::without_roles(dir, Path::new(WARREN)).expect("the lab comes up")
}

/// Waits until `probe` gives a value; ends at once when a process of the mesh does.
pub(crate) fn soon<T>(mesh: &mut Mesh, what: &str, probe: impl FnMut(&mut Mesh) -> Option<T>) -> T {
    mesh.until(LIMIT, what, probe).unwrap_or_else(|error| panic!("{error}\n{}", last_words(mesh)))
}

/// The ends of all logs, for a failed story.
fn last_words(mesh: &Mesh) -> String {
    let tail = |output: String| {
        let lines: Vec<&str> = output.lines().collect();
        lines[lines.len().saturating_sub(15)..].join("\n")
    };
    mesh.children().iter().map(|child| format!("--- {}\n{}\n", child.name(), tail(child.output()))).collect()
}

/// The echo server of a pod.
pub(crate) fn echo_at(mesh: &Mesh, pod: &str) -> SocketAddr {
    (mesh.lab().pod(pod).expect("a pod of the lab").ip(), ECHO_PORT).into()
}

/// Lets `pod` talk to the echo of `to` once; it must work.
pub(crate) fn assert_echoed(mesh: &mut Mesh, pod: &str, to: &str) {
    let to = echo_at(mesh, to);
    let said = mesh.say(pod, to, "anyone there?").expect("the client runs");
    assert_eq!(said.outcome, Outcome::Echoed, "{pod} to {to}: {said:?}");
}

/// Waits until a connection from `pod` to `to` is carried in a tunnel, by the word of the access log of `node`.
pub(crate) fn wait_for_tunnel(mesh: &mut Mesh, pod: &str, to: &str, node: u8) {
    let (address, mark) = (echo_at(mesh, to), mesh.log_mark());
    soon(mesh, &format!("{pod} reaches {to} through a tunnel"), |mesh| {
        let echoed = mesh.say(pod, address, "in a tunnel?").is_ok_and(|said| said.outcome == Outcome::Echoed);
        let tunnelled = mesh.access_log(node, &mark).iter().any(|line| text(line, "dst.hbone_addr") == address.to_string());
        (echoed && tunnelled).then_some(())
    });
}

/// The first line of a node's access log since `mark` with this code.
pub(crate) fn line_with_code(mesh: &Mesh, node: u8, mark: &LogMark, code: &str) -> Option<Value> {
    mesh.access_log(node, mark).into_iter().find(|line| text(line, "code") == code)
}

/// What readiness says: head and body; empty when nobody answers.
pub(crate) fn readiness(mesh: &Mesh, node: u8) -> String {
    mesh.http(node, Port::Ready, "GET", "/healthz/ready").unwrap_or_default()
}

/// The body of an HTTP answer with status 200.
pub(crate) fn body(answer: &str) -> &str {
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no HTTP answer: {answer:?}"));
    assert!(head.starts_with("HTTP/1.1 200 "), "{answer}");
    body
}

/// A node's metrics page.
pub(crate) fn metrics(mesh: &Mesh, node: u8) -> String {
    let answer = mesh.http(node, Port::Stats, "GET", "/metrics").expect("metrics are served");
    body(&answer).to_owned()
}

/// The sum of all samples of that name whose labels contain all of `labels`.
pub(crate) fn metric(page: &str, name: &str, labels: &[&str]) -> f64 {
    let samples = page.lines().filter(|line| line.split(['{', ' ']).next() == Some(name));
    samples
        .filter(|line| labels.iter().all(|label| line.contains(label)))
        .map(|line| line.rsplit(' ').next().and_then(|value| value.parse::<f64>().ok()).unwrap_or_else(|| panic!("no value: {line}")))
        .sum()
}

/// `/config_dump` of a node.
pub(crate) fn dump(mesh: &Mesh, node: u8) -> Value {
    let answer = mesh.admin(node, "/config_dump").expect("the admin API answers");
    serde_json::from_str(body(&answer)).expect("JSON")
}

/// Whether something in `pod` listens on `port`, asked from inside.
pub(crate) fn listens(mesh: &Mesh, pod: &str, port: u16) -> bool {
    let place = mesh.lab().pod(pod).expect("a pod of the lab");
    let to = SocketAddr::from((place.ip(), port));
    match place.netns.run(|| TcpStream::connect_timeout(&to, Duration::from_secs(2))).expect("the namespace is ours") {
        Ok(_) => true,
        // It was accepted, and reset at once: the proxy takes no connection that is addressed to itself.
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => true,
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => false,
        Err(error) => panic!("connect to {to} in {pod}: {error}"),
    }
}

/// An open connection from a pod to an echo server.
pub(crate) struct Held(TcpStream);

impl Held {
    /// Connects and talks once.
    pub(crate) fn open(mesh: &Mesh, pod: &str, to: &str) -> Self {
        let netns = &mesh.lab().pod(pod).expect("a pod of the lab").netns;
        let mut held = Self(connect(netns, echo_at(mesh, to)).expect("connected"));
        held.echo("hello").expect("the first text comes back");
        held
    }

    /// Sends `text` and waits until it has come back.
    pub(crate) fn echo(&mut self, text: &str) -> io::Result<()> {
        self.0.write_all(text.as_bytes())?;
        let mut answer = vec![0; text.len()];
        self.0.read_exact(&mut answer)?;
        if answer == text.as_bytes() { Ok(()) } else { Err(io::Error::other("something else came back")) }
    }

    /// It must still carry data.
    pub(crate) fn assert_alive(&mut self, when: &str) {
        self.echo("still there?").unwrap_or_else(|error| panic!("the connection is lost {when}: {error}"));
    }
}

/// Short connections from a pod, one after the other, until asked how that went.
pub(crate) struct Traffic {
    stop: Arc<AtomicBool>,
    count: Arc<AtomicUsize>,
    thread: JoinHandle<Flow>,
}

/// How short connections went.
#[derive(Debug, Default)]
pub(crate) struct Flow {
    /// That carried a text there and back.
    pub(crate) good: usize,
    /// What happened to the others.
    pub(crate) bad: Vec<String>,
}

impl Traffic {
    /// Starts it.
    pub(crate) fn start(mesh: &Mesh, pod: &str, to: &str) -> Self {
        let netns = mesh.lab().pod(pod).expect("a pod of the lab").netns.clone();
        let to = SocketAddr::from((mesh.lab().pod(to).expect("a pod of the lab").ip(), ONCE_PORT));
        let stop = Arc::new(AtomicBool::new(false));
        let count = Arc::new(AtomicUsize::new(0));
        let (asked, counted) = (stop.clone(), count.clone());
        let thread = std::thread::spawn(move || {
            let mut flow = Flow::default();
            while !asked.load(Ordering::Relaxed) {
                match once(&netns, to) {
                    Ok(()) => flow.good += 1,
                    Err(error) if flow.bad.len() < 1000 => flow.bad.push(format!("after {} good ones: {error}", flow.good)),
                    Err(_) => {}
                }
                counted.fetch_add(1, Ordering::Relaxed);
            }
            flow
        });
        Self { stop, count, thread }
    }

    /// Waits until that many more connections have been made.
    pub(crate) fn wait_for_more(&self, connections: usize) {
        let wanted = self.count.load(Ordering::Relaxed) + connections;
        let done = || (self.count.load(Ordering::Relaxed) >= wanted).then_some(());
        wait_for(LIMIT, "more connections", done).unwrap_or_else(|error| panic!("{error}"));
    }

    /// Ends it; none may have failed.
    pub(crate) fn assert_unharmed(self) {
        self.stop.store(true, Ordering::Relaxed);
        let flow = self.thread.join().expect("no panic");
        assert!(flow.bad.is_empty() && flow.good > 0, "{} good, {} bad: {:?}", flow.good, flow.bad.len(), flow.bad.first());
    }
}

fn once(netns: &NetNs, to: SocketAddr) -> io::Result<()> {
    let mut stream = connect(netns, to)?;
    stream.write_all(b"short")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    if answer == "short" { Ok(()) } else { Err(io::Error::other(format!("{answer:?} came back"))) }
}

fn connect(netns: &NetNs, to: SocketAddr) -> io::Result<TcpStream> {
    let stream = netns.run(|| TcpStream::connect_timeout(&to, LIMIT))??;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(LIMIT))?;
    stream.set_write_timeout(Some(LIMIT))?;
    Ok(stream)
}
