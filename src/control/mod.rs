//! The control plane: mesh objects from a source → resources for proxies, and the certificate authority.

pub mod ads;
pub mod ca;
mod follow;
mod gate;
mod health;
pub mod index;
pub mod kubernetes;
pub mod objects;
mod server;
pub mod source;
mod tls;
pub mod tokens;

pub use server::{Control, Settings};

/// Lines that a stranger can cause with each kind of refusal in one second.
const LINES_PER_SECOND: u32 = 3;
