//! The certificate authority: where its key is kept, certificate requests, and who may have which certificate.

mod authority;
#[cfg(test)]
mod cases;
mod csr;
mod disk;
mod material;
pub(super) mod secret;
mod service;
#[cfg(test)]
mod tests;

pub(crate) use authority::Purpose;
pub use authority::{Authority, Issued};
pub use service::Ca;
pub(crate) use service::MAX_MESSAGE;
