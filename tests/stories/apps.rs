//! Applications that the stories play themselves: sockets inside the pods, and what proxies say about them.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::ops::{Deref, DerefMut};
use std::path::Path;
use std::time::Duration;

use serde_json::Value;
use socket2::{Domain, SockRef, Socket, Type};
use warren::config::meshfile::{Action, MeshFile, Policy, Rule};
use warren::demo::lab::Place;
use warren::demo::pod::Outcome;
use warren::demo::story::mesh::{LogMark, Mesh, STOLEN, text};
use warren::demo::wait::wait_for;

use crate::common::{WARREN, sandboxed};

/// For something that takes a fraction of it.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// A port on which no application of the lab listens by itself.
pub(crate) const PORT: u16 = 9000;

/// Tells the story `name` in a mesh whose three pods are enrolled.
pub(crate) fn enrolled(name: &str, story: impl FnOnce(&mut Mesh)) {
    sandboxed(name, |dir| story(&mut Running::start(dir)));
}

/// Ends in good order, also when the story fails.
struct Running(Option<Mesh>);

impl Running {
    fn start(dir: &Path) -> Self {
        let mut mesh = Mesh::start(dir, Path::new(WARREN)).expect("the mesh comes up");
        mesh.enrol(true).expect("the file can be written");
        mesh.wait_until_enrolled().expect("client and server are enrolled");
        let to = at(&mesh, "local", warren::demo::pod::ECHO_PORT);
        let mark = mesh.log_mark();
        mesh.until(PATIENCE, "traffic within the node goes through the mesh", |mesh| {
            let said = mesh.say("client", to, "is this the mesh?").ok()?;
            let tunnelled = mesh.access_log(1, &mark).iter().any(|line| text(line, "dst.hbone_addr") == to.to_string());
            (said.outcome == Outcome::Echoed && tunnelled).then_some(())
        })
        .expect("the second server is enrolled");
        Self(Some(mesh))
    }
}

impl Deref for Running {
    type Target = Mesh;

    fn deref(&self) -> &Mesh {
        self.0.as_ref().expect("until it is dropped")
    }
}

impl DerefMut for Running {
    fn deref_mut(&mut self) -> &mut Mesh {
        self.0.as_mut().expect("until it is dropped")
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(mesh) = self.0.take() {
            if std::thread::panicking() {
                tell(&mesh);
            }
            mesh.stop();
        }
    }
}

/// The last words of the proxies, for whoever reads the failure.
fn tell(mesh: &Mesh) {
    for child in mesh.children().iter().filter(|child| child.name().starts_with("proxy-")) {
        let output = child.output();
        let lines: Vec<&str> = output.lines().collect();
        let last = lines.get(lines.len().saturating_sub(15)..).unwrap_or_default();
        eprintln!("{} said last:\n{}", child.name(), last.join("\n"));
    }
}

/// A port of a pod.
pub(crate) fn at(mesh: &Mesh, pod: &str, port: u16) -> SocketAddr {
    SocketAddr::from((mesh.lab().pod(pod).expect("a pod of the lab").ip(), port))
}

/// Connects from inside a pod; reads and writes end after [`PATIENCE`].
pub(crate) fn try_connect(mesh: &Mesh, pod: &str, to: SocketAddr) -> io::Result<TcpStream> {
    let place = mesh.lab().pod(pod).expect("a pod of the lab");
    let stream = place.netns.run(|| TcpStream::connect_timeout(&to, PATIENCE))??;
    patient(stream)
}

/// The same where it must work.
pub(crate) fn connect(mesh: &Mesh, pod: &str, to: SocketAddr) -> TcpStream {
    try_connect(mesh, pod, to).unwrap_or_else(|error| panic!("{pod} to {to}: {error}"))
}

/// A server application in a pod.
pub(crate) struct Server {
    listener: TcpListener,
    pub(crate) addr: SocketAddr,
}

impl Server {
    /// Listens on `port` of a pod.
    pub(crate) fn start(mesh: &Mesh, pod: &str, port: u16) -> Self {
        Self::start_at(mesh, pod, at(mesh, pod, port))
    }

    /// Listens on one of the addresses of a pod.
    pub(crate) fn start_at(mesh: &Mesh, pod: &str, addr: SocketAddr) -> Self {
        let place = mesh.lab().pod(pod).expect("a pod of the lab");
        let listener = place.netns.run(|| TcpListener::bind(addr)).expect("the pod's namespace").expect("the port is free");
        listener.set_nonblocking(true).expect("a socket");
        Self { listener, addr }
    }

    /// Listens with a queue that is full: the kernel drops whoever comes.
    pub(crate) fn full(place: &Place, on: SocketAddr) -> (Self, TcpStream) {
        let made = place.netns.run(|| {
            let socket = Socket::new(Domain::IPV4, Type::STREAM.cloexec(), None)?;
            socket.bind(&on.into())?;
            socket.listen(0)?;
            // Over loopback where that is possible: it is never captured.
            let own = if on.ip().is_unspecified() { SocketAddr::from((Ipv4Addr::LOCALHOST, on.port())) } else { on };
            let queued = TcpStream::connect_timeout(&own, PATIENCE)?;
            let more = TcpStream::connect_timeout(&own, Duration::from_millis(200));
            assert_eq!(more.expect_err("the queue has one place").kind(), io::ErrorKind::TimedOut);
            io::Result::Ok((socket, queued))
        });
        let (socket, queued) = made.expect("the namespace").expect("a listener");
        (Self { listener: socket.into(), addr: SocketAddr::from((place.ip(), on.port())) }, queued)
    }

    pub(crate) fn into_listener(self) -> TcpListener {
        self.listener
    }

    /// The next connection, and who it says it is.
    pub(crate) fn accept(&self) -> (TcpStream, SocketAddr) {
        wait_for(PATIENCE, "a connection arrives", || self.try_accept()).expect("in time")
    }

    /// One that has arrived already.
    pub(crate) fn try_accept(&self) -> Option<(TcpStream, SocketAddr)> {
        match self.listener.accept() {
            Ok((stream, peer)) => {
                stream.set_nonblocking(false).expect("a socket");
                Some((patient(stream).expect("a socket"), peer))
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => None,
            Err(error) => panic!("{error}"),
        }
    }

    /// A connection from `pod` to this server: the client's end and the server's.
    pub(crate) fn pair(&self, mesh: &Mesh, pod: &str) -> (TcpStream, TcpStream) {
        let client = connect(mesh, pod, self.addr);
        (client, self.accept().0)
    }
}

fn patient(stream: TcpStream) -> io::Result<TcpStream> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(stream)
}

/// Says that nothing more comes.
pub(crate) fn half_close(stream: &TcpStream) {
    stream.shutdown(Shutdown::Write).expect("a connection");
}

/// Closes with RST.
pub(crate) fn reset(stream: TcpStream) {
    SockRef::from(&stream).set_linger(Some(Duration::ZERO)).expect("a socket");
}

/// Reads to the end; the bytes must be `wanted` and the end a clean one.
pub(crate) fn reads(stream: &mut TcpStream, wanted: &str) {
    let mut got = Vec::new();
    stream.read_to_end(&mut got).unwrap_or_else(|error| panic!("{error} after {:?}, wanted {wanted:?}", String::from_utf8_lossy(&got)));
    assert_eq!(String::from_utf8_lossy(&got), wanted);
}

/// Reads until the connection ends, which must be by a reset; returns how many bytes came before.
pub(crate) fn ends_by_reset(stream: &mut TcpStream) -> usize {
    let (mut buffer, mut total) = (vec![0; 64 * 1024], 0);
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => panic!("a clean end after {total} bytes, wanted a reset"),
            Ok(length) => total += length,
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return total,
            Err(error) => panic!("{error} after {total} bytes, wanted a reset"),
        }
    }
}

/// Connects from inside a pod and is reset, at once or later, without having got a byte.
pub(crate) fn is_reset(mesh: &Mesh, pod: &str, to: SocketAddr) {
    match try_connect(mesh, pod, to) {
        Ok(mut stream) => assert_eq!(ends_by_reset(&mut stream), 0, "{pod} to {to}"),
        // Before connect() had returned.
        Err(error) => assert_eq!(error.kind(), io::ErrorKind::ConnectionReset, "{pod} to {to}"),
    }
}

/// The first line with that code in the access log of a node since `mark`.
pub(crate) fn line(mesh: &mut Mesh, node: u8, mark: &LogMark, code: &str) -> Value {
    let found = mesh.until(PATIENCE, &format!("the access log of node{node} says {code}"), |mesh| {
        mesh.access_log(node, mark).into_iter().find(|line| text(line, "code") == code)
    });
    found.unwrap_or_else(|error| panic!("{error}; it says {:#?}", mesh.access_log(node, mark)))
}

/// So many lines of a node's access log have that code.
pub(crate) fn count(mesh: &mut Mesh, node: u8, mark: &LogMark, code: &str, wanted: usize) {
    let mut seen = 0;
    let logged = mesh.until(PATIENCE, "all are logged", |mesh| {
        seen = mesh.access_log(node, mark).iter().filter(|line| text(line, "code") == code).count();
        (seen >= wanted).then_some(())
    });
    assert!(logged.is_ok() && seen == wanted, "{code} on node{node}: {seen} times, wanted {wanted}");
}

/// Resident memory of a node's proxy, bytes.
pub(crate) fn memory(mesh: &Mesh, node: u8) -> u64 {
    let name = format!("proxy-node{node}");
    let proxy = mesh.children().iter().find(|child| child.name() == name).expect("a proxy runs");
    let status = std::fs::read_to_string(format!("/proc/{}/status", proxy.pid())).expect("it runs");
    let kilobytes = status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
    kilobytes.expect("VmRSS") * 1024
}

/// A node's metrics page.
pub(crate) fn metrics(mesh: &Mesh, node: u8) -> String {
    let place = mesh.lab().node(node).expect("a node");
    let connected = place.netns.run(|| TcpStream::connect((Ipv4Addr::LOCALHOST, 15020)));
    let mut stream = patient(connected.expect("the namespace").expect("the proxy serves metrics")).expect("a socket");
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").expect("open");
    let mut page = String::new();
    stream.read_to_string(&mut page).expect("text");
    page
}

/// Of both proxies.
pub(crate) fn memories(mesh: &Mesh) -> u64 {
    memory(mesh, 1) + memory(mesh, 2)
}

/// Whether `from` gets an answer from `to`.
pub(crate) fn talks(mesh: &mut Mesh, from: &str, to: SocketAddr) -> Outcome {
    mesh.say(from, to, "are you there?").expect("the application runs").outcome
}

/// Waits until each of the pods is answered, or refused, as wanted.
pub(crate) fn settles(mesh: &mut Mesh, what: &str, wanted: &[(&str, SocketAddr, Outcome)]) {
    let mut seen = Vec::new();
    let settled = mesh.until(PATIENCE, what, |mesh| {
        seen = wanted.iter().map(|(from, to, _)| talks(mesh, from, *to)).collect();
        seen.iter().eq(wanted.iter().map(|(_, _, outcome)| outcome)).then_some(())
    });
    settled.unwrap_or_else(|error| panic!("{error}: wanted {wanted:?}, saw {seen:?}"));
}

/// A policy for the pods with the label `app: server`.
pub(crate) fn policy(action: Action, rule: Rule) -> Policy {
    Policy {
        name: "told".to_owned(),
        namespace: "default".to_owned(),
        selector: [("app".to_owned(), "server".to_owned())].into(),
        global: false,
        action,
        dry_run: false,
        rules: vec![rule],
    }
}

/// The identity of a pod's account, as policies name it.
pub(crate) fn principal(account: &str) -> Vec<String> {
    vec![format!("cluster.local/ns/default/sa/{account}")]
}

/// Makes the mesh believe that the second address of the pod `outside` is a workload called `vault`, in the mesh on a node
/// that nobody serves; waits until the client's proxy believes it.
pub(crate) fn stage_vault(mesh: &mut Mesh) -> SocketAddr {
    let told = mesh.edit(|file| {
        let mut vault = pod(file, "outside").clone();
        vault.name = "vault".to_owned();
        vault.service_account = "vault".to_owned();
        vault.ips = vec![STOLEN.into()];
        vault.node = "node3".to_owned();
        vault.ambient = true;
        file.pods.push(vault);
    });
    told.expect("the file can be written");
    knows(mesh, "\"vault\"");
    SocketAddr::from((STOLEN, warren::demo::pod::ECHO_PORT))
}

/// Waits until the client's proxy shows `text` in its state.
pub(crate) fn knows(mesh: &mut Mesh, text: &str) {
    let known = mesh.until(PATIENCE, &format!("the client's proxy knows {text}"), |mesh| {
        mesh.admin(1, "/config_dump").ok()?.contains(text).then_some(())
    });
    known.expect("it is in the file");
}

/// A pod of the file.
pub(crate) fn pod<'a>(file: &'a mut MeshFile, name: &str) -> &'a mut warren::config::meshfile::Pod {
    file.pods.iter_mut().find(|pod| pod.name == name).expect("it is in the file")
}
