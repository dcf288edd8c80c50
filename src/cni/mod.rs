//! The chained CNI plugin: what the container runtime calls for each pod, and what it tells the node agent.
//!
//! The plugin decides nothing by itself. It hands the pod's network namespace to the agent of its node and waits until the
//! agent says that the pod is served, or is not to be. When nobody answers, pods that may be in the mesh are not started.

pub mod message;
pub mod outside;
pub mod plugin;
pub mod spec;

/// The name of the plugin's program and of its entry in the configuration.
pub const NAME: &str = "warren";

/// Where the agent listens unless the entry says otherwise.
pub const SOCKET: &str = "/var/run/warren/cni.sock";
