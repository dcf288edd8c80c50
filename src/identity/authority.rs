//! What signs certificates.

use futures::future::BoxFuture;

use super::{Certificate, SpiffeId};
use crate::base::Result;

/// Signs a certificate for an identity.
pub trait Authority: Send + Sync + 'static {
    /// One certificate with a fresh key. Ends within a deadline of its own.
    fn sign<'a>(&'a self, id: &'a SpiffeId) -> BoxFuture<'a, Result<Certificate>>;
}
