//! The objects that an index is made of, from whatever source: cut down to what decides about resources.
//!
//! Values are parsed here already: who holds one of these need not ask again whether an address is one.

mod labels;
mod policy;
mod service;

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use crate::base::Str;

pub use labels::Labels;
pub use policy::{AuthorizationPolicy, Mode, PeerAuthentication, Scope};
pub use service::{Distribution, Endpoint, EndpointSlice, Families, Port, Service, Target};

/// What an object is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// A machine; only where it stands matters.
    Node,
    /// What it says for the services in it.
    Namespace,
    /// Becomes a workload.
    Pod,
    /// Becomes a service.
    Service,
    /// Endpoints of a service that are not found by its selector.
    EndpointSlice,
    /// Whether pods accept connections without identity.
    PeerAuthentication,
    /// Becomes an authorization.
    AuthorizationPolicy,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::Node => "Node",
            Kind::Namespace => "Namespace",
            Kind::Pod => "Pod",
            Kind::Service => "Service",
            Kind::EndpointSlice => "EndpointSlice",
            Kind::PeerAuthentication => "PeerAuthentication",
            Kind::AuthorizationPolicy => "AuthorizationPolicy",
        })
    }
}

/// Names an object among those of its kind. Objects without a namespace have an empty one.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Id {
    /// Its namespace.
    pub namespace: Str,
    /// Its name.
    pub name: Str,
}

impl Id {
    /// Of an object in a namespace.
    pub fn new(namespace: impl Into<Str>, name: impl Into<Str>) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }
}

/// `namespace/name`, or the name alone.
impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.namespace.is_empty() {
            true => f.write_str(&self.name),
            false => write!(f, "{}/{}", self.namespace, self.name),
        }
    }
}

/// One version of one object.
#[derive(Clone, Debug, PartialEq)]
pub enum Object {
    /// See [`Kind::Node`].
    Node(Arc<Node>),
    /// See [`Kind::Namespace`].
    Namespace(Arc<Namespace>),
    /// See [`Kind::Pod`].
    Pod(Arc<Pod>),
    /// See [`Kind::Service`].
    Service(Arc<Service>),
    /// See [`Kind::EndpointSlice`].
    EndpointSlice(Arc<EndpointSlice>),
    /// See [`Kind::PeerAuthentication`].
    PeerAuthentication(Arc<PeerAuthentication>),
    /// See [`Kind::AuthorizationPolicy`].
    AuthorizationPolicy(Arc<AuthorizationPolicy>),
}

impl Object {
    /// What it is.
    pub fn kind(&self) -> Kind {
        match self {
            Object::Node(_) => Kind::Node,
            Object::Namespace(_) => Kind::Namespace,
            Object::Pod(_) => Kind::Pod,
            Object::Service(_) => Kind::Service,
            Object::EndpointSlice(_) => Kind::EndpointSlice,
            Object::PeerAuthentication(_) => Kind::PeerAuthentication,
            Object::AuthorizationPolicy(_) => Kind::AuthorizationPolicy,
        }
    }

    /// What it is called.
    pub fn id(&self) -> &Id {
        match self {
            Object::Node(object) => &object.id,
            Object::Namespace(object) => &object.id,
            Object::Pod(object) => &object.id,
            Object::Service(object) => &object.id,
            Object::EndpointSlice(object) => &object.id,
            Object::PeerAuthentication(object) => &object.id,
            Object::AuthorizationPolicy(object) => &object.id,
        }
    }
}

/// What has happened to objects.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    /// One is new or has another version.
    Put(Version),
    /// One is gone.
    Remove(Kind, Id),
    /// These are all of that kind.
    Replace(Kind, Vec<Version>),
}

/// A version of an object as its source has it.
#[derive(Clone, Debug, PartialEq)]
pub enum Version {
    /// It was understood.
    Good(Object),
    /// It was not: the version before stays in force, and where there is none, the stand-in takes its place.
    Bad {
        /// What it is.
        kind: Kind,
        /// What it is called.
        id: Id,
        /// `None`: nothing stands in its place.
        instead: Option<Object>,
    },
}

impl Version {
    /// What it is called.
    pub fn id(&self) -> &Id {
        match self {
            Version::Good(object) => object.id(),
            Version::Bad { id, .. } => id,
        }
    }
}

/// What is the same for the whole mesh.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mesh {
    /// The trust domain of all identities.
    pub trust_domain: Str,
    /// Policies in this namespace are for all namespaces.
    pub root_namespace: Str,
}

/// Where a node stands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Locality {
    /// Label `topology.kubernetes.io/region`.
    pub region: Str,
    /// Label `topology.kubernetes.io/zone`.
    pub zone: Str,
    /// Label `topology.istio.io/subzone`.
    pub subzone: Str,
}

/// A machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Without namespace.
    pub id: Id,
    /// Where it stands.
    pub locality: Locality,
}

/// A namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Namespace {
    /// Without namespace.
    pub id: Id,
    /// For the services in it that say nothing themselves.
    pub distribution: Option<Distribution>,
}

/// How far a pod's life has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// It runs or is about to.
    Live,
    /// All its containers ended well.
    Succeeded,
    /// Its containers ended, not all of them well.
    Failed,
}

/// How a pod is reached in the mesh.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tunnel {
    /// In clear.
    None,
    /// Through its node's proxy.
    Hbone,
    /// It ends the tunnel itself.
    Native,
}

/// A pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// Namespace and name.
    pub id: Id,
    /// Another UID is another pod, whatever its name.
    pub uid: Str,
    /// Empty: not placed yet.
    pub node: Str,
    /// Its service account.
    pub service_account: Str,
    /// Empty: not running yet.
    pub ips: Vec<IpAddr>,
    /// Its labels.
    pub labels: Labels,
    /// What it is a part of: its Deployment, StatefulSet, CronJob or itself.
    pub workload_name: Str,
    /// Its TCP ports that have a name.
    pub ports: Vec<(Str, u16)>,
    /// How far its life has come.
    pub phase: Phase,
    /// It is ready and is not being deleted.
    pub ready: bool,
    /// It has its node's addresses.
    pub host_network: bool,
    /// How it is reached.
    pub tunnel: Tunnel,
}
