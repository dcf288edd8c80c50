//! The control plane: mesh objects from a source → resources for proxies, and the certificate authority.

pub mod ads;
pub mod ca;
mod follow;
mod gate;
mod health;
pub mod index;
mod quiet;
mod server;
pub mod source;
mod tls;
pub mod tokens;

pub use server::{Control, Settings};
