//! The control plane: mesh objects from a source → resources for proxies, and the certificate authority.

mod accept;
pub mod ads;
mod api;
pub mod auth;
pub mod ca;
#[cfg(test)]
mod fake;
mod follow;
mod foundation;
mod gate;
mod health;
pub mod index;
pub mod kubernetes;
mod metrics;
pub mod objects;
mod publish;
mod server;
pub mod source;
mod status;
mod tls;
pub mod tokens;

pub use server::{Cluster, Control, Settings};

/// Lines that a stranger can cause with each kind of refusal in one second.
const LINES_PER_SECOND: u32 = 3;
