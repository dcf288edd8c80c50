//! Who a workload is: SPIFFE ids, the certificates that prove them, where those come from and when they are renewed.

pub mod authority;
mod ca;
mod certificate;
pub(crate) mod fake;
mod queue;
mod spiffe;
mod store;

pub use authority::Authority;
pub use ca::{GrpcAuthority, GrpcAuthoritySettings};
pub use certificate::{Certificate, Facts, facts, peer_ids};
pub use fake::{FakeAuthority, FakeRoot};
pub use queue::Priority;
pub use spiffe::SpiffeId;
pub use store::{CertificateStore, Listed, ListedState};
