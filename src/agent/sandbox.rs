//! What a CNI call asks of the agent: to have a pod in the mesh before its first container starts.

use std::future::Future;
use std::net::IpAddr;
use std::time::Duration;

use crate::base::{Result, Str};
use crate::net::NetNs;

/// A pod's sandbox, as the container runtime has just made it.
#[derive(Clone, Debug)]
pub struct Sandbox {
    /// The pod's UID.
    pub uid: Str,
    /// The pod's namespace.
    pub namespace: Str,
    /// The pod's name.
    pub name: Str,
    /// The sandbox container's id.
    pub container_id: Str,
    /// Its network namespace.
    pub netns: NetNs,
    /// The addresses that the plugins before gave it.
    pub ips: Vec<IpAddr>,
}

/// The answer to an addition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The pod is not to be in the mesh; the text says why.
    NotInMesh(&'static str),
    /// The proxy serves it and its rules stand.
    Enrolled,
}

/// What takes the calls.
pub trait Sandboxes: Send + Sync + 'static {
    /// Returns when the pod is enrolled (the proxy serves it and the rules stand), or is not to be; bounded by `limit`.
    fn add(&self, sandbox: Sandbox, limit: Duration) -> impl Future<Output = Result<Verdict>> + Send;

    /// The sandbox is being taken down.
    fn del(&self, uid: &str, container_id: &str) -> impl Future<Output = ()> + Send;
}
