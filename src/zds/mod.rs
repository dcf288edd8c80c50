//! The wire between node agent and node proxy: which pods to serve, and their network namespaces.
//!
//! [`codec`] knows the messages, [`client`] is the proxy's side, [`server`] the agent's.

pub mod client;
pub mod codec;
pub mod pods;
pub mod server;

pub use codec::WorkloadInfo;
