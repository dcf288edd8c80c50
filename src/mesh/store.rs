//! The place where the current snapshot is.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use tokio::sync::watch;

use super::edit::Edit;
use super::snapshot::Mesh;
use super::workload::{LocalWorkload, Workload};
use crate::base::{Error, Result, Str, code, deadline};

/// Publishes snapshots. Readers never wait, writers wait for each other.
#[derive(Debug)]
pub struct MeshStore {
    current: ArcSwap<Mesh>,
    writer: Mutex<()>,
    published: watch::Sender<u64>,
    node: Option<Str>,
}

impl MeshStore {
    /// An empty mesh, seen from `node`; without one, workloads of all nodes count as local.
    pub fn new(node: Option<Str>) -> Self {
        Self {
            current: ArcSwap::from_pointee(Mesh::default()),
            writer: Mutex::new(()),
            published: watch::Sender::new(0),
            node: node.filter(|node| !node.is_empty()),
        }
    }

    /// The mesh now. Decide one connection on one snapshot.
    pub fn snapshot(&self) -> Arc<Mesh> {
        self.current.load_full()
    }

    /// Changes the mesh and publishes the outcome as one; what changes nothing is not published.
    pub fn edit<R>(&self, change: impl FnOnce(&mut Edit) -> R) -> R {
        let _writer = self.writer.lock();
        let mut edit = Edit::new(Mesh::clone(&self.current.load()));
        let outcome = change(&mut edit);
        if edit.touched() > 0 {
            edit.mesh.version += 1;
            let version = edit.mesh.version;
            self.current.store(Arc::new(edit.mesh));
            self.published.send_replace(version);
        }
        outcome
    }

    /// Tells of each publication by its version.
    pub fn changed(&self) -> watch::Receiver<u64> {
        self.published.subscribe()
    }

    /// The workload of a pod on this node, as soon as it is known.
    ///
    /// # Errors
    /// `UNKNOWN_LOCAL` if it is not known after `limit`; the usual limit is 5 s.
    pub async fn wait_local(&self, local: &LocalWorkload, limit: Duration) -> Result<Arc<Workload>> {
        let mut changed = self.changed();
        let found = async {
            loop {
                changed.mark_unchanged();
                if let Some(workload) = self.snapshot().local_workload(local, self.node.as_deref()) {
                    return Ok(workload.clone());
                }
                if changed.changed().await.is_err() {
                    return Err(Error::internal("the mesh store is gone while it is asked"));
                }
            }
        };
        deadline(limit, &code::UNKNOWN_LOCAL, format!("the control plane about workload {local}"), found).await?
    }
}
