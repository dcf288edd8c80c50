//! The certificate authority: its key on disk, certificate requests, and who may have which certificate.

mod authority;
mod csr;
mod disk;
mod service;
#[cfg(test)]
mod tests;

pub(crate) use authority::Purpose;
pub use authority::{Authority, Issued};
pub use service::Ca;
pub(crate) use service::MAX_MESSAGE;
