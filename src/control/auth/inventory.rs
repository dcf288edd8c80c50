//! What has to be known of a mesh in order to say who may have what.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use crate::control::index::{Index, PodRef};

/// The pods of a mesh and where they run.
pub trait Inventory: Send + Sync + 'static {
    /// The pod of that name.
    fn pod(&self, namespace: &str, name: &str) -> Option<PodRef>;

    /// Whether a pod of that account runs on that node.
    fn runs_on(&self, node: &str, namespace: &str, service_account: &str) -> bool;

    /// The trust domain of all identities.
    fn trust_domain(&self) -> &str;
}

impl Inventory for Index {
    fn pod(&self, namespace: &str, name: &str) -> Option<PodRef> {
        Index::pod(self, namespace, name)
    }

    fn runs_on(&self, node: &str, namespace: &str, service_account: &str) -> bool {
        Index::runs_on(self, node, namespace, service_account)
    }

    fn trust_domain(&self) -> &str {
        Index::trust_domain(self)
    }
}

/// Waits until the inventory answers; `None`: it did not within `limit`. What is asked about is often newer than what has
/// been heard of: a proxy learns of a pod from its node, this process from the API server.
pub(crate) async fn settled<I: Inventory, T>(
    inventory: &watch::Receiver<Arc<I>>,
    limit: Duration,
    mut answer: impl FnMut(&I) -> Option<T>,
) -> Option<T> {
    let mut inventory = inventory.clone();
    let mut found = answer(&inventory.borrow_and_update());
    if found.is_none() && !limit.is_zero() {
        let wait = inventory.wait_for(|state| {
            found = answer(state);
            found.is_some()
        });
        let _ = tokio::time::timeout(limit, wait).await;
    }
    found
}
