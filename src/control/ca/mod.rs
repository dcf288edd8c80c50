//! The certificate authority: its key on disk, certificate requests, and who may have which certificate.

mod authority;
mod csr;
mod disk;
mod service;
#[cfg(test)]
mod tests;

pub use authority::{Authority, Issued};
pub use service::Ca;
