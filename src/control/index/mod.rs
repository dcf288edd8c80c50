//! The mesh as wire resources: objects in, resources out. Knows no sockets, no files and no clock.
//!
//! An [`Index`] never changes and costs next to nothing to copy: those made one after the other share all that stayed the
//! same. An [`Indexer`] makes them, and touches only what depends on the objects that changed.

#[cfg(test)]
pub(in crate::control) mod golden;
mod hash;
mod indexer;
mod peer;
#[cfg(test)]
mod random;
mod resources;
mod service;
mod tables;
#[cfg(test)]
mod tests;
mod workload;

use std::collections::BTreeSet;
use std::sync::Arc;

use rpds::RedBlackTreeMapSync;

use crate::base::Str;
use crate::control::objects::{Id, Phase, Pod};
use crate::wire::{ADDRESS_TYPE, AUTHORIZATION_TYPE};

pub use indexer::{Applied, Indexer};
pub use resources::{Delta, Resource, Resources};

use resources::Sets;

/// The name of the only cluster; proxies send it in their `clusterid` header.
const CLUSTER: &str = "Kubernetes";

/// The only network has no name.
const NETWORK: &str = "";

/// The types that are served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Type {
    /// Workloads and services.
    Address,
    /// L4 policies.
    Authorization,
}

impl Type {
    /// The type of that URL.
    pub fn from_url(url: &str) -> Option<Self> {
        match url {
            ADDRESS_TYPE => Some(Type::Address),
            AUTHORIZATION_TYPE => Some(Type::Authorization),
            _ => None,
        }
    }

    /// Its URL.
    pub fn url(self) -> &'static str {
        match self {
            Type::Address => ADDRESS_TYPE,
            Type::Authorization => AUTHORIZATION_TYPE,
        }
    }
}

/// An account: namespace and name.
pub type Account = (Str, Str);

/// One state of the mesh.
#[derive(Clone, Debug, Default)]
pub struct Index {
    trust_domain: Str,
    /// 0 is the empty index.
    generation: u64,
    addresses: Resources,
    policies: Resources,
    /// Since the generation before, in the order of [`Type`].
    last: [Delta; 2],
    /// `network/ip` to names of addresses.
    by_ip: Sets<Str>,
    /// Name of a service to the names of its workloads.
    endpoints: Sets<Str>,
    pods: RedBlackTreeMapSync<Id, Arc<Pod>>,
    /// Name of a node to the pods that are placed on it.
    nodes: Sets<Id>,
}

/// Which pod a name stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodRef {
    /// Its UID.
    pub uid: Str,
    /// The node that it is placed on; empty: none yet.
    pub node: Str,
    /// Its service account.
    pub service_account: Str,
}

impl Index {
    /// As if it had come after that one.
    #[cfg(test)]
    pub(crate) fn after(mut self, previous: &Index) -> Self {
        self.generation = previous.generation + 1;
        self.last = [Type::Address, Type::Authorization].map(|of| self.diff(previous, of));
        self
    }

    /// How many indexes were made before this one.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// The trust domain of all identities.
    pub fn trust_domain(&self) -> &str {
        &self.trust_domain
    }

    /// All resources of a type.
    pub fn resources(&self, of: Type) -> &Resources {
        match of {
            Type::Address => &self.addresses,
            Type::Authorization => &self.policies,
        }
    }

    /// What is different from the index of the generation before.
    pub fn last_delta(&self, of: Type) -> &Delta {
        &self.last[of as usize]
    }

    /// What is different from an earlier index.
    pub fn diff(&self, earlier: &Index, of: Type) -> Delta {
        self.resources(of).since(earlier.resources(of))
    }

    /// The resources that a client means by `name`: a resource's name, `network/ip`, or a service, which brings its
    /// workloads along. Empty: unknown.
    pub fn resolve(&self, of: Type, name: &str) -> Vec<Arc<Resource>> {
        let all = self.resources(of);
        let direct: Vec<&str> = match (all.get(name), of) {
            (Some(resource), _) => vec![&*resource.name],
            (None, Type::Address) => self.by_ip.of(name).map(AsRef::as_ref).collect(),
            (None, Type::Authorization) => Vec::new(),
        };
        let mut names: BTreeSet<&str> = direct.iter().copied().collect();
        if of == Type::Address {
            names.extend(direct.iter().flat_map(|name| self.endpoints.of(name)).map(AsRef::as_ref));
        }
        names.into_iter().filter_map(|name| all.get(name)).cloned().collect()
    }

    /// The workloads that run on a node.
    pub fn workloads_on(&self, node: &str) -> impl Iterator<Item = &Arc<Resource>> {
        self.nodes.of(node).filter_map(|pod| self.addresses.get(&workload::name(pod)))
    }

    /// The nodes on which pods are placed.
    pub fn nodes(&self) -> impl Iterator<Item = &Str> {
        self.nodes.keys()
    }

    /// The pod of that name, whether it is in the mesh or not, and whether it runs already or not.
    pub fn pod(&self, namespace: &str, name: &str) -> Option<PodRef> {
        let pod = self.pods.get(&Id::new(namespace, name))?;
        Some(PodRef { uid: pod.uid.clone(), node: pod.node.clone(), service_account: pod.service_account.clone() })
    }

    /// Whether a pod of that account runs on that node, or is about to.
    ///
    /// Also one that is not in the mesh: a proxy asks for the certificate of a pod that joins as soon as its agent has
    /// told it, and the two learn of the pod independently, so that this index may still be the one before. A proxy
    /// that lies can use no more than the accounts of its own node, which run under the same kernel as itself. (The
    /// reference's authority does the same.)
    pub fn runs_on(&self, node: &str, namespace: &str, service_account: &str) -> bool {
        let is_it =
            |pod: &Arc<Pod>| *pod.id.namespace == *namespace && *pod.service_account == *service_account && pod.phase != Phase::Failed;
        self.nodes.of(node).filter_map(|pod| self.pods.get(pod)).any(is_it)
    }
}
