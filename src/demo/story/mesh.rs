//! The live mesh: lab, applications and all roles as child processes, driven through the mesh file.

mod roles;

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde_json::Value;

use super::leftover;
use crate::base::{Error, Result, code};
use crate::config::meshfile::{MeshFile, Pod, Service};
use crate::demo::lab::{Child, Lab, Place, PodSpec};
use crate::demo::pod::{ECHO_PORT, Said};
use crate::demo::wait::wait_for;

/// Virtual address of the service in front of `server`.
pub const SERVICE: Ipv4Addr = Ipv4Addr::new(10, 77, 99, 1);
/// Its port.
pub const SERVICE_PORT: u16 = 80;
/// The pods that are enrolled.
pub const MESHED: [&str; 3] = ["client", "local", "server"];
/// An address of the pod `outside` that the mesh file will say is another workload's.
pub const STOLEN: Ipv4Addr = Ipv4Addr::new(10, 77, 2, 66);

/// For something that takes a fraction of it.
const PATIENCE: Duration = Duration::from_secs(30);
const CONTROL_PORT: u16 = 15012;

/// Where the health of a node's proxy is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Port {
    /// 15000, for operators.
    Admin = 15000,
    /// 15020, for Prometheus.
    Stats = 15020,
    /// 15021, for kubelet.
    Ready = 15021,
}

/// Everything that runs.
#[derive(Debug)]
pub struct Mesh {
    lab: Lab,
    program: PathBuf,
    file: MeshFile,
    children: Vec<Child>,
    started: usize,
}

impl Mesh {
    /// Builds the lab in `dir`, starts every role of `program` and waits until all are ready. No pod is enrolled.
    ///
    /// # Errors
    /// The machine does not allow it, or a child does not come up.
    pub fn start(dir: &Path, program: &Path) -> Result<Self> {
        let mut mesh = Self::without_roles(dir, program)?;
        mesh.start_control()?;
        for node in 1..=2 {
            mesh.start_agent(node, &[])?;
            mesh.start_proxy(node, &[])?;
        }
        for node in 1..=2 {
            mesh.wait_until_ready(node)?;
        }
        Ok(mesh)
    }

    /// Builds the lab in `dir` and starts the applications: control plane, agents and proxies are the caller's to start.
    ///
    /// # Errors
    /// The machine does not allow it, or a child does not come up.
    pub fn without_roles(dir: &Path, program: &Path) -> Result<Self> {
        let pods = [
            PodSpec { name: "client", node: 1, hosts: &[10] },
            PodSpec { name: "local", node: 1, hosts: &[20] },
            PodSpec { name: "server", node: 2, hosts: &[10] },
            PodSpec { name: "outside", node: 2, hosts: &[20, STOLEN.octets()[3]] },
        ];
        let lab = Lab::two_nodes(dir, &pods)?;
        let file = mesh_file(&lab);
        let mut mesh = Self { lab, program: program.to_owned(), file, children: Vec::new(), started: 0 };
        mesh.write()?;
        let apps = ["server", "local", "outside"];
        for pod in apps {
            let place = mesh.lab.pod(pod)?.clone();
            mesh.start_child(&place, &format!("app-{pod}"), &["demo-pod", "serve"], &[])?;
        }
        for pod in apps {
            mesh.child(&format!("app-{pod}"))?.wait_for_output("listening", PATIENCE)?;
        }
        Ok(mesh)
    }

    /// Nodes and pods.
    pub fn lab(&self) -> &Lab {
        &self.lab
    }

    /// # Errors
    /// `DEMO_CHILD`: one of the processes ended.
    pub fn check(&mut self) -> Result<()> {
        self.children.iter_mut().try_for_each(Child::check)
    }

    /// Like [`wait_for`], and ends at once when a child does.
    ///
    /// # Errors
    /// `limit` is over, a child ended, or the probe gave an error.
    pub fn until<T>(&mut self, limit: Duration, what: &str, mut probe: impl FnMut(&mut Self) -> Option<T>) -> Result<T> {
        wait_for(limit, what, || match self.check() {
            Err(error) => Some(Err(error)),
            Ok(()) => probe(self).map(Ok),
        })?
    }

    /// Changes the mesh file; control plane and agents see the old or the new one, never half of it.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn edit(&mut self, change: impl FnOnce(&mut MeshFile)) -> Result<()> {
        change(&mut self.file);
        self.write()
    }

    /// Puts the pods into the mesh, or takes them out.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn enrol(&mut self, ambient: bool) -> Result<()> {
        self.edit(|file| {
            for pod in file.pods.iter_mut().filter(|pod| MESHED.contains(&pod.name.as_str())) {
                pod.ambient = ambient;
            }
        })
    }

    /// Waits until traffic between client and server goes through a tunnel that both proxies know of.
    ///
    /// # Errors
    /// It does not within a bounded time.
    pub fn wait_until_enrolled(&mut self) -> Result<()> {
        let (to, mark) = (SocketAddr::from((self.lab.pod("server")?.ip(), ECHO_PORT)), self.log_mark());
        self.until(PATIENCE, "traffic between the pods goes through the mesh", |mesh| {
            let said = mesh.say("client", to, "is this the mesh?").ok()?;
            let through = |node| mesh.access_log(node, &mark).iter().any(|line| text(line, "dst.hbone_addr") == to.to_string());
            (said.outcome == crate::demo::pod::Outcome::Echoed && through(1) && through(2)).then_some(())
        })
    }

    /// Waits until no rule is left in the pods.
    ///
    /// # Errors
    /// There still is one after a bounded time.
    pub fn wait_until_left(&mut self) -> Result<()> {
        self.until(PATIENCE, "the pods have left the mesh", |mesh| {
            let mut places = MESHED.iter().filter_map(|name| mesh.lab.pod(name).ok());
            places.all(|place| leftover::rules(place).is_ok_and(|left| left.is_empty())).then_some(())
        })
    }

    /// Runs an application in a pod to its end and reads the report it prints.
    ///
    /// # Errors
    /// It failed, or took longer than `limit`.
    pub fn run<T: DeserializeOwned>(&mut self, pod: &str, arguments: &[&str], limit: Duration) -> Result<T> {
        self.started += 1;
        let name = format!("client-{:04}-{}", self.started, arguments.first().copied().unwrap_or_default());
        let mut command = self.command();
        command.arg("demo-pod").args(arguments);
        let output = self.lab.start(self.lab.pod(pod)?, &name, command)?.finish(limit)?;
        let _ = std::fs::remove_file(self.lab.log(&name));
        let line = output.lines().last().unwrap_or_default();
        serde_json::from_str(line).map_err(|error| Error::caused(&code::DEMO_CHILD, format!("{name} said {output:?}"), error))
    }

    /// Lets `pod` say `text` to `to` and wait for the echo.
    ///
    /// # Errors
    /// The application failed; a refused connection is no error.
    pub fn say(&mut self, pod: &str, to: SocketAddr, text: &str) -> Result<Said> {
        self.run(pod, &["say", &to.to_string(), text], PATIENCE)
    }

    /// Starts an application in a pod that goes on.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start_application(&mut self, pod: &str, name: &str, arguments: &[&str]) -> Result<Child> {
        let mut command = self.command();
        command.arg("demo-pod").args(arguments);
        self.lab.start(self.lab.pod(pod)?, name, command)
    }

    /// Where the access logs end now.
    pub fn log_mark(&self) -> LogMark {
        LogMark([1, 2].map(|node| self.proxy_output(node).len()))
    }

    /// Lines of a node's access log since `mark`.
    pub fn access_log(&self, node: u8, mark: &LogMark) -> Vec<Value> {
        let output = self.proxy_output(node);
        let from = mark.0.get(usize::from(node.saturating_sub(1))).copied().unwrap_or_default();
        let lines = output.get(from..).unwrap_or_default().lines();
        lines.filter_map(|line| serde_json::from_str::<Value>(line).ok()).filter(|line| !text(line, "src.addr").is_empty()).collect()
    }

    /// Processor time that both proxies have used, seconds.
    ///
    /// # Errors
    /// One of them ended.
    pub fn proxy_cpu(&self) -> Result<f64> {
        let proxies = self.children.iter().filter(|child| child.name().starts_with("proxy-"));
        proxies.map(|proxy| proxy.cpu().map(|time| time.as_secs_f64())).sum()
    }

    /// Processor time that the server application has used, seconds.
    ///
    /// # Errors
    /// It ended.
    pub fn server_cpu(&self) -> Result<f64> {
        let server = self.children.iter().find(|child| child.name() == "app-server");
        server.ok_or_else(|| Error::internal("the server is a child"))?.cpu().map(|time| time.as_secs_f64())
    }

    /// All child processes.
    pub fn children(&self) -> &[Child] {
        &self.children
    }

    /// The mesh file.
    pub fn mesh_file(&self) -> PathBuf {
        self.lab.dir().join("mesh.yaml")
    }

    /// Where the control plane keeps keys and tokens.
    pub fn state_dir(&self) -> PathBuf {
        self.lab.dir().join("control")
    }

    /// The control plane's address.
    ///
    /// # Errors
    /// Never: the lab has a node 1.
    pub fn control_address(&self) -> Result<String> {
        Ok(format!("https://{}:{CONTROL_PORT}", self.lab.node(1)?.ip()))
    }

    /// Waits until a node's proxy says that it is ready.
    ///
    /// # Errors
    /// It does not within a bounded time.
    pub fn wait_until_ready(&mut self, node: u8) -> Result<()> {
        self.until(PATIENCE, &format!("the proxy of node{node} is ready"), |mesh| mesh.ready(node).then_some(()))
    }

    /// The token that names a node to the control plane.
    pub fn token(&self, node: u8) -> PathBuf {
        self.state_dir().join("tokens").join(format!("node{node}"))
    }

    /// The socket of a node's agent.
    pub fn zds_socket(&self, node: u8) -> PathBuf {
        self.lab.dir().join(format!("zds-node{node}.sock"))
    }

    /// The program with an environment that does not depend on the caller's.
    fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.env_clear().env("RUST_LOG", std::env::var("RUST_LOG").unwrap_or_else(|_| "info".to_owned()));
        if let Ok(backtrace) = std::env::var("RUST_BACKTRACE") {
            command.env("RUST_BACKTRACE", backtrace);
        }
        command
    }

    /// The running child of that name.
    ///
    /// # Errors
    /// There is none.
    pub fn child(&mut self, name: &str) -> Result<&mut Child> {
        let found = self.children.iter_mut().find(|child| child.name() == name);
        found.ok_or_else(|| Error::internal(format!("{name} is not a child")))
    }

    fn proxy_output(&self, node: u8) -> String {
        let name = format!("proxy-node{node}");
        self.children.iter().find(|child| child.name() == name).map(Child::output).unwrap_or_default()
    }

    /// Whether a node's proxy says that it is ready.
    pub fn ready(&self, node: u8) -> bool {
        self.http(node, Port::Ready, "GET", "/healthz/ready").is_ok_and(|answer| answer.starts_with("HTTP/1.1 200"))
    }

    /// The admin API's answer on a node.
    ///
    /// # Errors
    /// It does not answer.
    pub fn admin(&self, node: u8, path: &str) -> Result<String> {
        self.http(node, Port::Admin, "GET", path)
            .map_err(|error| Error::caused(&code::DEMO_CHILD, format!("admin API of node{node}, {path}"), error))
    }

    /// What a node's proxy answers to an HTTP request: head and body.
    ///
    /// # Errors
    /// It does not answer.
    pub fn http(&self, node: u8, port: Port, method: &str, path: &str) -> std::io::Result<String> {
        let place = self.lab.node(node).map_err(std::io::Error::other)?;
        let limit = Duration::from_secs(2);
        let to = SocketAddr::from((Ipv4Addr::LOCALHOST, port as u16));
        let mut stream = place.netns.run(|| TcpStream::connect_timeout(&to, limit))??;
        stream.set_read_timeout(Some(limit))?;
        stream.write_all(format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").as_bytes())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    }

    /// Renamed into place.
    fn write(&self) -> Result<()> {
        let (path, new) = (self.mesh_file(), self.lab.dir().join(".mesh.yaml.new"));
        let written = std::fs::write(&new, self.file.to_yaml()?).and_then(|()| std::fs::rename(&new, &path));
        written.map_err(|error| Error::caused(&code::BAD_FILE, path.display().to_string(), error))
    }
}

/// A moment in the access logs.
#[derive(Clone, Debug)]
pub struct LogMark([usize; 2]);

/// A field of an access log line; empty when it is not there.
pub fn text<'a>(line: &'a Value, field: &str) -> &'a str {
    line.get(field).and_then(Value::as_str).unwrap_or_default()
}

fn mesh_file(lab: &Lab) -> MeshFile {
    let pods = lab.pods().map(|place| Pod { ips: vec![place.ip().into()], ..pod(place, &place.name) }).collect();
    let service = Service {
        name: "server".to_owned(),
        namespace: "default".to_owned(),
        hostname: None,
        vips: vec![SERVICE.into()],
        ports: [(SERVICE_PORT, ECHO_PORT)].into(),
        selector: [("app".to_owned(), "server".to_owned())].into(),
    };
    MeshFile { trust_domain: None, pods, services: vec![service], policies: Vec::new() }
}

/// A pod called `name` in the namespace of `place`, not enrolled, with all its addresses.
pub(super) fn pod(place: &Place, name: &str) -> Pod {
    Pod {
        name: name.to_owned(),
        namespace: "default".to_owned(),
        service_account: name.to_owned(),
        uid: None,
        node: format!("node{}", place.node),
        ips: place.ips.iter().copied().map(Into::into).collect(),
        netns: Some(place.path.clone()),
        ambient: false,
        labels: [("app".to_owned(), name.to_owned())].into(),
        ready: true,
    }
}
