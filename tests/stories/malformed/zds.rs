//! An agent that speaks nonsense.

use std::fs::{File, Permissions};
use std::io::{ErrorKind, IoSlice, Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use socket2::{Domain, SockAddr, Socket, Type};
use warren::demo::wait::wait_for;
use warren::zds::codec::{Answer, Request, decode_answer, decode_hello, encode_request};

use crate::common::{WARREN, sandboxed, warren};
use crate::tools::{LIMIT, listens, metric, metrics, prepared, readiness, soon, wait_for_tunnel};

#[test]
fn a_lying_agent_is_refused_again_and_again_and_a_good_one_is_served_afterwards() {
    sandboxed("malformed::zds::a_lying_agent_is_refused_again_and_again_and_a_good_one_is_served_afterwards", |dir| {
        let mut mesh = prepared(dir);
        mesh.start_control().unwrap();
        let path = mesh.zds_socket(1);
        let agent = Agent::listen(&path);
        mesh.start_proxy(1, &[]).unwrap();
        let netns = File::open(&mesh.lab().pod("client").unwrap().path).unwrap();
        let other = File::open(&mesh.lab().pod("local").unwrap().path).unwrap();
        let file = File::open(mesh.mesh_file()).unwrap();
        let add = encode_request(&Request::Add { uid: "default.client".to_owned(), info: info("client") }).unwrap();
        let snapshot = encode_request(&Request::SnapshotSent).unwrap();
        let keep = encode_request(&Request::Keep { uid: "default.client".to_owned() }).unwrap();
        let (netns, other, file) = (netns.as_raw_fd(), other.as_raw_fd(), file.as_raw_fd());
        let long = vec![0x0a; 2000];
        let cases: [(&str, &[u8], &[RawFd]); 8] = [
            ("garbage", &[0xff; 40], &[]),
            ("a message of no kind", &[0x7a, 0x00], &[]),
            ("a pod without its namespace", &add, &[]),
            ("a pod with two namespaces", &add, &[netns, other]),
            ("a pod that is cut short", &add[..add.len() - 5], &[netns]),
            ("more than a message holds", &long, &[]),
            ("a descriptor where none belongs", &snapshot, &[netns]),
            ("a pod kept after the snapshot", &keep, &[]),
        ];
        for (what, data, fds) in cases {
            let session = agent.accept();
            session.send(&snapshot, &[]);
            assert_eq!(session.receive(), Some(Answer::Done), "{what}: the snapshot is good");
            session.send(data, fds);
            if let Some(answer) = session.receive() {
                assert!(matches!(&answer, Answer::Refused(why) if why.contains("W5002")), "{what}: {answer:?}");
                assert_eq!(session.receive(), None, "{what}: the session is ended");
            }
            mesh.check().unwrap_or_else(|error| panic!("{what}: {error}"));
            assert!(!listens(&mesh, "client", 15001), "{what}");
        }

        // One pod's wrong descriptor is one pod's trouble: the session goes on.
        let session = agent.accept();
        session.send(&add, &[file]);
        assert!(matches!(session.receive(), Some(Answer::Refused(why)) if why.contains("default.client") && why.contains("W5004")));
        session.send(&add, &[netns]);
        assert_eq!(session.receive(), Some(Answer::Done));
        session.send(&snapshot, &[]);
        assert_eq!(session.receive(), Some(Answer::Done));
        soon(&mut mesh, "the pod is served", |mesh| listens(mesh, "client", 15001).then_some(()));
        let ready = soon(&mut mesh, "the proxy is ready", |mesh| Some(readiness(mesh, 1)).filter(|said| said.contains("200 OK")));
        assert!(ready.ends_with("ready\n"), "{ready}");
        assert_eq!(metric(&metrics(&mesh, 1), "workload_manager_active_proxy_count", &[]), 1.0);

        // A real one takes its place.
        drop((session, agent));
        std::fs::remove_file(&path).unwrap();
        mesh.enrol(true).unwrap();
        for node in 1..=2 {
            mesh.start_agent(node, &[]).unwrap();
        }
        mesh.start_proxy(2, &[]).unwrap();
        wait_for_tunnel(&mut mesh, "client", "server", 1);
    });
}

/// Outside of any sandbox, where a user has no power over other namespaces; root gives its power up for it.
#[test]
fn a_proxy_without_privilege_refuses_the_pod_and_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).unwrap();
    let mut pod = Process::start(warren(&["sandbox", "--", WARREN, "demo-pod", "serve"]), &dir.path().join("pod.log"));
    pod.wait_for("listening");
    let netns = File::open(format!("/proc/{}/ns/net", pod.0.id())).unwrap();

    let path = dir.path().join("zds.sock");
    let agent = Agent::listen(&path);
    std::fs::set_permissions(&path, Permissions::from_mode(0o777)).unwrap();
    let port = || std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let readiness = port();
    let mut command = warren(&["proxy"]);
    command.env_clear().env("INPOD_UDS", &path).envs([("XDS_ADDRESS", ""), ("CA_ADDRESS", "https://127.0.0.1:1"), ("NODE_NAME", "n")]);
    for (name, port) in [("READINESS_PORT", readiness), ("ADMIN_PORT", port()), ("STATS_PORT", port())] {
        command.env(name, port.to_string());
    }
    if nix::unistd::Uid::effective().is_root() {
        command.uid(65534).gid(65534);
    }
    let mut proxy = Process::start(command, &dir.path().join("proxy.log"));
    let session = agent.accept();
    for _ in 0..2 {
        session.send(&encode_request(&Request::Add { uid: "u".to_owned(), info: info("client") }).unwrap(), &[netns.as_raw_fd()]);
        let answer = session.receive();
        let Some(Answer::Refused(why)) = &answer else { panic!("{answer:?}:\n{}", proxy.output()) };
        assert!(why.contains("not permitted") && why.contains("W5004"), "{why}");
    }
    session.send(&encode_request(&Request::SnapshotSent).unwrap(), &[]);
    assert_eq!(session.receive(), Some(Answer::Done));
    proxy.wait_for("1 pods cannot be served yet");
    let mut said = String::new();
    let mut stream = std::net::TcpStream::connect(("127.0.0.1", readiness)).unwrap();
    stream.write_all(b"GET /healthz/ready HTTP/1.1\r\nHost: n\r\nConnection: close\r\n\r\n").unwrap();
    stream.read_to_string(&mut said).unwrap();
    assert!(said.starts_with("HTTP/1.1 500 ") && said.contains("1 pods cannot be served yet"), "{said}");
    assert!(proxy.0.try_wait().unwrap().is_none(), "it goes on");
}

/// A process whose output is in a file; killed when dropped.
struct Process(Child, PathBuf);

impl Process {
    fn start(mut command: Command, log: &Path) -> Self {
        let file = File::create(log).unwrap();
        command.stdin(Stdio::null()).stdout(file.try_clone().unwrap()).stderr(file);
        Self(command.spawn().unwrap(), log.to_owned())
    }

    fn output(&self) -> String {
        std::fs::read_to_string(&self.1).unwrap_or_default()
    }

    fn wait_for(&mut self, text: &str) {
        let said = wait_for(LIMIT, text, || self.output().contains(text).then_some(()));
        said.unwrap_or_else(|error| panic!("{error}:\n{}", self.output()));
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn info(name: &str) -> warren::zds::WorkloadInfo {
    warren::zds::WorkloadInfo { name: name.to_owned(), namespace: "default".to_owned(), service_account: name.to_owned() }
}

/// The socket of an agent, played by hand.
struct Agent(Socket);

struct Session(Socket);

impl Agent {
    fn listen(path: &Path) -> Self {
        let socket = Socket::new(Domain::UNIX, Type::SEQPACKET, None).unwrap();
        socket.bind(&SockAddr::unix(path).unwrap()).unwrap();
        socket.listen(4).unwrap();
        socket.set_read_timeout(Some(LIMIT)).unwrap();
        Self(socket)
    }

    /// The next session, after its greeting.
    fn accept(&self) -> Session {
        let session = Session(self.0.accept().expect("the proxy connects again").0);
        session.0.set_read_timeout(Some(LIMIT)).unwrap();
        decode_hello(&session.packet()).expect("a greeting");
        session
    }
}

impl Session {
    fn send(&self, data: &[u8], fds: &[RawFd]) {
        let rights = [ControlMessage::ScmRights(fds)];
        let control = if fds.is_empty() { &[][..] } else { &rights[..] };
        sendmsg::<()>(self.0.as_raw_fd(), &[IoSlice::new(data)], control, MsgFlags::MSG_NOSIGNAL, None).expect("sent");
    }

    /// The answer; `None` when the proxy has ended the session.
    fn receive(&self) -> Option<Answer> {
        let packet = self.packet();
        (!packet.is_empty()).then(|| decode_answer(&packet).expect("an answer"))
    }

    fn packet(&self) -> Vec<u8> {
        let mut buffer = [0; 2048];
        let length = match (&self.0).read(&mut buffer) {
            Ok(length) => length,
            Err(error) if error.kind() == ErrorKind::ConnectionReset => 0,
            Err(error) => panic!("nothing from the proxy: {error}"),
        };
        buffer[..length].to_vec()
    }
}
