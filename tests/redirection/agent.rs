//! The whole agent: a mesh file on one side, a proxy on the other, a pod between.

use std::collections::HashMap;
use std::net::TcpListener;
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::task::JoinHandle;
use warren::agent;
use warren::agent::discovery::FileDiscovery;
use warren::agent::reconcile::Settings;
use warren::agent::redirect::nft::Nft;
use warren::agent::redirect::{Redirect, State};
use warren::base::drain::{self, Trigger};
use warren::base::{Error, Result, code};
use warren::net::NetNs;
use warren::net::netns::NetNsId;
use warren::zds::WorkloadInfo;
use warren::zds::client::{Client, Status};
use warren::zds::pods::Serve;

use crate::world::{Accepted, Dial, World, accept, both_families, connect, listen, talk};

/// A proxy that only listens.
#[derive(Clone, Default)]
pub(crate) struct Listening(Arc<Mutex<HashMap<String, (WorkloadInfo, TcpListener)>>>);

impl Serve for Listening {
    async fn start(&mut self, uid: &str, info: &WorkloadInfo, netns: NetNs) -> Result<()> {
        self.0.lock().insert(uid.to_owned(), (info.clone(), listen(&netns, 15001)));
        Ok(())
    }

    async fn stop(&mut self, uid: &str) {
        self.0.lock().remove(uid);
    }
}

impl Listening {
    pub(crate) fn accept(&self) -> Accepted {
        let listener = self.0.lock().values().next().expect("the pod is served").1.try_clone().expect("clone");
        accept(&listener)
    }

    pub(crate) fn accounts(&self) -> Vec<String> {
        self.0.lock().values().map(|(info, _)| info.service_account.clone()).collect()
    }
}

struct Mesh<'a> {
    world: &'a World,
    directory: tempfile::TempDir,
    served: Listening,
    status: tokio::sync::watch::Receiver<Status>,
    _proxy: Trigger,
}

impl<'a> Mesh<'a> {
    fn new(world: &'a World) -> Self {
        let directory = tempfile::tempdir().expect("temporary directory");
        let served = Listening::default();
        let (client, status) = Client::new(directory.path().join("zds.sock"), served.clone());
        let (proxy, watch) = drain::new();
        world.spawn(async move { client.run(watch).await });
        Self { world, directory, served, status, _proxy: proxy }
    }

    fn file(&self) -> PathBuf {
        self.directory.path().join("mesh.yaml")
    }

    fn write(&self, ambient: bool, service_account: &str) {
        let netns = self.world.pod_path();
        let (netns, ip) = (netns.display(), self.world.family.pod);
        let text = format!(
            "pods:\n- name: app\n  node: here\n  serviceAccount: {service_account}\n  ips: [\"{ip}\"]\n  netns: {netns}\n  ambient: {ambient}\n"
        );
        std::fs::write(self.file(), text).expect("mesh file");
    }

    fn agent(&self, keep_on_exit: bool) -> (Trigger, JoinHandle<Result<()>>) {
        self.agent_with(Nft::default(), keep_on_exit)
    }

    fn agent_with(&self, redirect: impl Redirect + 'static, keep_on_exit: bool) -> (Trigger, JoinHandle<Result<()>>) {
        let (file, socket): (PathBuf, PathBuf) = (self.file(), self.directory.path().join("zds.sock"));
        let settings = Settings { keep_on_exit, ..Settings::default() };
        let (trigger, watch) = drain::new();
        let agent = self.world.spawn(async move {
            let discovery = FileDiscovery::new(file, "here".into())?;
            agent::run(discovery, redirect, &socket, settings, agent::Surroundings::none(), watch).await.map(|_| ())
        });
        (trigger, agent)
    }

    fn end(&self, (trigger, agent): (Trigger, JoinHandle<Result<()>>)) {
        assert!(self.world.wait(trigger.drain(Duration::from_secs(8))), "the agent ends by itself");
        self.world.wait(agent).expect("no panic").expect("no error");
    }

    fn until(&self, holds: impl Fn(&Status) -> bool) {
        self.world.wait(self.status.clone().wait_for(|status| holds(status))).expect("the proxy runs");
    }

    /// A connection of the application that arrives at the proxy.
    fn captured(&self) -> (std::net::TcpStream, std::net::TcpStream) {
        let client = connect(&self.world.pod, self.world.family.host, 8080, Dial::default());
        let arrived = self.served.accept();
        assert_eq!(arrived.original, Some((self.world.family.host, 8080)));
        (client, arrived.stream)
    }
}

#[test]
fn a_pod_joins_and_leaves_by_the_file() {
    both_families(|world| {
        let mesh = Mesh::new(world);
        let server = listen(&world.host, 8080);
        mesh.write(true, "client");
        let agent = mesh.agent(false);
        world.until(State::Redirecting);
        mesh.until(|status| status.ready() && status.served == 1);
        let (mut client, mut end) = mesh.captured();
        talk(&mut client, &mut end);

        mesh.write(false, "client");
        world.until(State::Holding);
        let mut direct = connect(&world.pod, world.family.host, 8080, Dial::default());
        talk(&mut direct, &mut accept(&server).stream);
        talk(&mut client, &mut end);
        drop((client, end));
        world.until(State::Absent);
        mesh.until(|status| status.served == 0);
        assert_eq!(world.policy_rules(), 0);
        mesh.end(agent);
    });
}

#[test]
fn an_agent_that_is_replaced_disturbs_nothing_and_one_that_ends_cleans_up() {
    both_families(|world| {
        let mesh = Mesh::new(world);
        mesh.write(true, "client");
        let agent = mesh.agent(true);
        world.until(State::Redirecting);
        let (mut client, mut end) = mesh.captured();

        mesh.end(agent);
        mesh.until(|status| !status.connected);
        world.until(State::Redirecting);
        talk(&mut client, &mut end);
        mesh.captured();

        let agent = mesh.agent(false);
        mesh.until(|status| status.ready() && status.served == 1);
        talk(&mut client, &mut end);
        drop((client, end));
        mesh.end(agent);
        world.until(State::Absent);
        assert_eq!((world.policy_rules(), mesh.served.accounts().len()), (0, 0));
    });
}

#[test]
fn a_broken_file_changes_nothing_and_another_identity_is_told_to_the_proxy() {
    both_families(|world| {
        let mesh = Mesh::new(world);
        mesh.write(true, "client");
        let agent = mesh.agent(false);
        world.until(State::Redirecting);
        std::fs::write(mesh.file(), "pods: [").expect("mesh file");
        mesh.write(true, "other");
        world.wait(async {
            let mut look = tokio::time::interval(Duration::from_millis(10));
            while mesh.served.accounts() != ["other"] {
                look.tick().await;
            }
        });
        mesh.captured();
        mesh.end(agent);
    });
}

/// The real thing, failing the first times.
struct Flaky(Nft, AtomicUsize);

impl Redirect for Flaky {
    async fn state(&self, netns: &NetNs) -> Result<State> {
        self.0.state(netns).await
    }

    async fn apply(&self, netns: &NetNs) -> Result<()> {
        match self.1.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)) {
            Ok(_) => Err(Error::new(&code::REDIRECT_FAILED, "not now")),
            Err(_) => self.0.apply(netns).await,
        }
    }

    async fn hold(&self, netns: &NetNs) -> Result<()> {
        self.0.hold(netns).await
    }

    async fn remove(&self, netns: &NetNs) -> Result<()> {
        self.0.remove(netns).await
    }

    async fn connections(&self, netns: &NetNs) -> Result<usize> {
        self.0.connections(netns).await
    }
}

#[test]
fn a_failure_is_tried_again() {
    both_families(|world| {
        let mesh = Mesh::new(world);
        mesh.write(true, "client");
        let agent = mesh.agent_with(Flaky(Nft::default(), AtomicUsize::new(3)), false);
        world.until(State::Redirecting);
        mesh.captured();
        mesh.end(agent);
    });
}

/// The real thing, except in one namespace, where nothing ever answers.
struct Stuck(Nft, NetNsId);

impl Stuck {
    async fn or_never(&self, netns: &NetNs) -> &Nft {
        if netns.id() == self.1 {
            std::future::pending::<()>().await;
        }
        &self.0
    }
}

impl Redirect for Stuck {
    async fn state(&self, netns: &NetNs) -> Result<State> {
        self.or_never(netns).await.state(netns).await
    }

    async fn apply(&self, netns: &NetNs) -> Result<()> {
        self.or_never(netns).await.apply(netns).await
    }

    async fn hold(&self, netns: &NetNs) -> Result<()> {
        self.or_never(netns).await.hold(netns).await
    }

    async fn remove(&self, netns: &NetNs) -> Result<()> {
        self.or_never(netns).await.remove(netns).await
    }

    async fn connections(&self, netns: &NetNs) -> Result<usize> {
        self.or_never(netns).await.connections(netns).await
    }
}

#[test]
fn a_pod_that_is_stuck_holds_up_neither_another_nor_the_end() {
    both_families(|world| {
        let mesh = Mesh::new(world);
        mesh.write(true, "client");
        let text = std::fs::read_to_string(mesh.file()).expect("mesh file");
        let stuck = format!("/proc/self/fd/{}", world.host.as_fd().as_raw_fd());
        let stuck = format!("- {{name: a, node: here, ips: [10.1.1.1], netns: {stuck}, ambient: true}}\n");
        std::fs::write(mesh.file(), text + &stuck).expect("mesh file");
        let redirect = || Stuck(Nft::default(), world.host.id());
        let agent = mesh.agent_with(redirect(), true);
        world.until(State::Redirecting);
        mesh.end(agent);
        // What the proxy knows of the first agent must not be taken for the second's: one that has not read its pods
        // yet has none to take out.
        mesh.until(|status| !status.connected);

        let (trigger, agent) = mesh.agent_with(redirect(), false);
        mesh.until(|status| status.ready() && status.served == 2);
        let end = world.spawn(async move { trigger.drain(Duration::from_secs(8)).await });
        world.until(State::Absent);
        agent.abort();
        assert!(world.wait(end).expect("no panic"));
    });
}

#[test]
fn the_nodes_own_namespace_is_never_redirected() {
    both_families(|world| {
        let mesh = Mesh::new(world);
        mesh.write(true, "client");
        let text = std::fs::read_to_string(mesh.file()).expect("mesh file");
        let own = Path::new("/proc/self/ns/net").display().to_string();
        std::fs::write(mesh.file(), text.replace(&world.pod_path().display().to_string(), &own)).expect("mesh file");
        let agent = mesh.agent(false);
        mesh.until(|status| status.connected && status.snapshot);
        let own = NetNs::current().expect("own namespace");
        assert_eq!(world.wait(Nft::default().state(&own)).expect("state"), State::Absent);
        assert!(mesh.served.accounts().is_empty());
        mesh.end(agent);
    });
}
