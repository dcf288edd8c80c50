//! Redirection inside a pod's network namespace: what is wanted as a plan, and back-ends that put it into the kernel.

pub(super) mod inside;
pub mod nft;
pub mod plan;
pub mod routes;

use std::future::Future;
use std::net::{Ipv4Addr, Ipv6Addr};

use crate::base::Result;
use crate::net::NetNs;

pub(super) use inside::has_ipv6;

/// Where the proxy listens inside a pod.
pub mod port {
    /// What the pod's applications open.
    pub const OUTBOUND: u16 = 15001;
    /// Plaintext that arrives for the pod.
    pub const INBOUND: u16 = 15006;
    /// Tunnels that arrive for the pod.
    pub const TUNNEL: u16 = 15008;
}

/// Choices of the operator.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Options {
    /// From this address kubelet's probes arrive; they reach the application directly.
    pub probe_v4: Ipv4Addr,
    /// The same for IPv6.
    pub probe_v6: Ipv6Addr,
}

impl Default for Options {
    /// The addresses that the reference node agent uses.
    fn default() -> Self {
        let probe_v6 = Ipv6Addr::new(0xfd16, 0x9254, 0x7127, 0x1337, 0xffff, 0xffff, 0xffff, 0xffff);
        Self { probe_v4: Ipv4Addr::new(169, 254, 7, 127), probe_v6 }
    }
}

/// What is in force in a namespace, as read back from the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Nothing of ours.
    Absent,
    /// New connections go to the proxy, exactly as wanted.
    Redirecting,
    /// New connections go direct, redirected ones live on.
    Holding,
    /// Something of ours that is not as it must be: another version, other options, or somebody changed it.
    Outdated,
}

/// A way to redirect. Every operation may be repeated, and finishes or changes nothing.
pub trait Redirect: Send + Sync {
    /// Reads back what is in force.
    fn state(&self, netns: &NetNs) -> impl Future<Output = Result<State>> + Send;

    /// Redirects new connections to the proxy. Those that are open, redirected or not, live on.
    fn apply(&self, netns: &NetNs) -> impl Future<Output = Result<()>> + Send;

    /// Lets new connections go direct. Those that are redirected live on.
    fn hold(&self, netns: &NetNs) -> impl Future<Output = Result<()>> + Send;

    /// Removes everything. Connections that are redirected break.
    fn remove(&self, netns: &NetNs) -> impl Future<Output = Result<()>> + Send;

    /// How many redirected or tunnelled connections are open.
    fn connections(&self, netns: &NetNs) -> impl Future<Output = Result<usize>> + Send;
}
