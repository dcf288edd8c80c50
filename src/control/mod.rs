//! The control plane: mesh objects from a source → resources for proxies, and the certificate authority.

pub mod ads;
pub mod ca;
pub mod index;
pub mod tokens;
