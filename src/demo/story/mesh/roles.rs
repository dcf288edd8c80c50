//! Starting and ending the processes of the mesh, one by one.

use std::net::{SocketAddr, TcpStream};
use std::process::ExitStatus;
use std::time::Duration;

use nix::sys::signal::Signal;

use super::{CONTROL_PORT, Mesh, PATIENCE};
use crate::base::{Error, Result};
use crate::demo::lab::{Child, Place};
use crate::demo::wait::wait_for;

impl Mesh {
    /// Starts the control plane on node 1 as the child `control` and waits until it listens.
    ///
    /// # Errors
    /// It does not come up.
    pub fn start_control(&mut self) -> Result<()> {
        let node = self.lab.node(1)?.clone();
        let (source, state) = (format!("file:{}", self.mesh_file().display()), self.state_dir().display().to_string());
        let (listen, san) = (format!("{}:{CONTROL_PORT}", node.ip()), node.ip().to_string());
        let arguments = ["control", "--source", &source, "--listen", &listen, "--state-dir", &state, "--san", &san];
        self.start_child(&node, "control", &arguments, &[])?;
        let listen = SocketAddr::from((node.ip(), CONTROL_PORT));
        self.until(PATIENCE, "the control plane listens", |_| {
            let connected = node.netns.run(|| TcpStream::connect_timeout(&listen, Duration::from_millis(200)));
            connected.ok()?.ok().map(drop)
        })
    }

    /// Starts a node's agent as the child `agent-nodeN`, with further arguments.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start_agent(&mut self, number: u8, further: &[&str]) -> Result<()> {
        let node = self.lab.node(number)?.clone();
        let (source, socket) = (format!("file:{}", self.mesh_file().display()), self.zds_socket(number).display().to_string());
        // The demo's connections have ended when a pod leaves: nothing has to be waited for long.
        let agent = ["agent", "--source", &source, "--node", &node.name, "--zds-socket", &socket, "--drain", "2"];
        let arguments: Vec<&str> = agent.into_iter().chain(further.iter().copied()).collect();
        self.start_child(&node, &format!("agent-{}", node.name), &arguments, &[])
    }

    /// Starts a node's proxy as the child `proxy-nodeN`; `overrides` come after its usual environment.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start_proxy(&mut self, number: u8, overrides: &[(&str, &str)]) -> Result<()> {
        self.start_proxy_as(&format!("proxy-node{number}"), number, overrides)
    }

    /// The same under another name: two proxies on one node during an upgrade.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start_proxy_as(&mut self, name: &str, number: u8, overrides: &[(&str, &str)]) -> Result<()> {
        let node = self.lab.node(number)?.clone();
        let (address, state, socket) = (self.control_address()?, self.state_dir(), self.zds_socket(number).display().to_string());
        let root = state.join("ca/root-cert.pem").display().to_string();
        let token = self.token(number).display().to_string();
        let mut environment = vec![
            ("NODE_NAME", node.name.as_str()),
            ("INPOD_UDS", &socket),
            ("XDS_ADDRESS", &address),
            ("XDS_ROOT_CA", &root),
            ("CA_ADDRESS", &address),
            ("CA_ROOT_CA", &root),
            ("AUTH_TOKEN", &token),
            ("LOG_FORMAT", "json"),
            ("ISTIO_META_DNS_CAPTURE", "false"),
        ];
        environment.extend(overrides);
        self.start_child(&node, name, &["proxy"], &environment)
    }

    /// Takes a child out of the mesh's hands: its end is no failure from now on. Dropping it kills it.
    ///
    /// # Errors
    /// There is none of that name.
    pub fn take(&mut self, name: &str) -> Result<Child> {
        let at = self.children.iter().position(|child| child.name() == name);
        let at = at.ok_or_else(|| Error::internal(format!("{name} is not a child")))?;
        Ok(self.children.remove(at))
    }

    /// Gives a child another name: what is said of that name is said of it from now on.
    ///
    /// # Errors
    /// There is none of that name.
    pub fn rename(&mut self, name: &str, other: &str) -> Result<()> {
        self.child(name)?.rename(other);
        Ok(())
    }

    /// Kills a child with SIGKILL.
    ///
    /// # Errors
    /// There is none of that name.
    pub fn kill(&mut self, name: &str) -> Result<()> {
        let mut child = self.take(name)?;
        child.signal(Signal::SIGKILL);
        wait_for(PATIENCE, &format!("{name} ends"), || child.ended()).map(drop)
    }

    /// Asks a child to end, and waits for it; `None` when it had to be killed.
    ///
    /// # Errors
    /// There is none of that name.
    pub fn terminate(&mut self, name: &str) -> Result<Option<ExitStatus>> {
        Ok(self.take(name)?.stop(PATIENCE))
    }

    /// Starts the program in `place`; it belongs to what runs until it is taken.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start_child(&mut self, place: &Place, name: &str, arguments: &[&str], environment: &[(&str, &str)]) -> Result<()> {
        let mut command = self.command();
        command.args(arguments).envs(environment.iter().copied());
        let child = self.lab.start(place, name, command)?;
        self.children.push(child);
        Ok(())
    }

    /// Ends everything, last started first: agents take their rules back while the proxies still serve.
    pub fn stop(self) {
        let (proxies, mut others): (Vec<Child>, Vec<Child>) =
            self.children.into_iter().partition(|child| child.name().starts_with("proxy-"));
        while let Some(child) = others.pop() {
            child.stop(Duration::from_secs(3));
        }
        for proxy in proxies {
            proxy.stop(Duration::from_secs(3));
        }
    }
}
