//! Kubernetes objects, each with the fields that are used, and what they mean to the mesh. Knows no API server.

mod api;
mod authorization;
mod peer;
mod place;
mod pod;
mod service;

use std::fmt::Debug;

use serde::de::DeserializeOwned;
use serde_json::Value;

pub use api::{AuthorizationPolicy, EndpointSlice, Namespace, Node, PeerAuthentication, Pod, Service};
pub use authorization::Verdict;
pub(crate) use authorization::strings;

use super::objects::{Change, Id, Kind, Mesh, Object, Version};

/// A kind of object that is watched.
pub trait Watched: kube::Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static {
    /// What it becomes.
    const KIND: Kind;

    /// Whether it is defined by a CRD that may be absent.
    const IS_CUSTOM: bool = false;

    /// What it means; `None`: nothing to the mesh.
    ///
    /// # Errors
    /// It cannot be understood.
    fn read(&self, mesh: &Mesh) -> Result<Option<Object>, Refusal>;

    /// What its status is to say; `None`: nothing.
    fn verdict(&self, _mesh: &Mesh) -> Option<Verdict> {
        None
    }

    /// Its status as it is, of kinds that get a verdict.
    fn status(&self) -> Option<&Value> {
        None
    }

    /// What it is called.
    fn id(&self) -> Id {
        let meta = self.meta();
        Id::new(meta.namespace.as_deref().unwrap_or_default(), meta.name.as_deref().unwrap_or_default())
    }

    /// What a source says of this version. `Err` beside it: why it was refused.
    fn version(&self, mesh: &Mesh) -> (Option<Version>, Option<String>) {
        match self.read(mesh) {
            Ok(object) => (object.map(Version::Good), None),
            Err(Refusal { reason, instead }) => {
                (Some(Version::Bad { kind: Self::KIND, id: self.id(), instead }), Some(format!("{} {}: {reason}", Self::KIND, self.id())))
            }
        }
    }

    /// What has changed when this is its newest version.
    fn change(&self, mesh: &Mesh) -> (Change, Option<String>) {
        let (version, refused) = self.version(mesh);
        let change = version.map_or_else(|| Change::Remove(Self::KIND, self.id()), Change::Put);
        (change, refused)
    }
}

/// Why an object cannot be used.
#[derive(Clone, Debug, PartialEq)]
pub struct Refusal {
    /// A sentence about it.
    pub reason: String,
    /// What takes its place when no version of it was ever understood.
    pub instead: Option<Object>,
}

impl From<String> for Refusal {
    /// Nothing takes its place.
    fn from(reason: String) -> Self {
        Self { reason, instead: None }
    }
}
