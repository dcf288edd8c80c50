//! The mesh as wire resources: objects in, resources out. Knows no sockets, no files and no clock.
//!
//! An [`Index`] never changes. Each resource is encoded once; an index made after another shares every resource that
//! stayed the same, so that comparing two of them costs a pointer per resource.

mod address;
mod hash;
mod policy;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use bytes::Bytes;
use prost::Message;

use crate::base::Str;
use crate::config::meshfile::MeshFile;
use crate::wire::{ADDRESS_TYPE, AUTHORIZATION_TYPE};

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

/// One resource as it goes on the wire.
#[derive(Debug, PartialEq, Eq)]
pub struct Resource {
    /// A workload's uid, or `namespace/name` of a service (its host name) or a policy.
    pub name: Str,
    /// xxhash64 of `body` in hex without leading zeros: equal bytes have equal versions, also after a restart, and the
    /// versions are those that istiod gives the same bytes.
    pub version: Str,
    /// The encoded message.
    pub body: Bytes,
    /// What else it is found by: `network/ip`.
    pub aliases: Vec<Str>,
}

/// Resources by name.
pub type Resources = BTreeMap<Str, Arc<Resource>>;

/// What became different from one index to the next.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Delta {
    /// New or changed.
    pub changed: Vec<Arc<Resource>>,
    /// No longer there.
    pub removed: Vec<Str>,
}

impl Delta {
    /// Whether nothing is different.
    pub fn is_empty(&self) -> bool {
        self.changed.is_empty() && self.removed.is_empty()
    }
}

/// An account: namespace and name.
pub type Account = (Str, Str);

/// A pod as authorization knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodRef {
    /// Kubernetes gives each pod its own.
    pub uid: Str,
    /// Where it runs.
    pub node: Str,
    /// In its namespace.
    pub service_account: Str,
}

/// One state of the mesh.
#[derive(Debug, Default)]
pub struct Index {
    pods: HashMap<(Str, Str), PodRef>,
    trust_domain: String,
    /// 0 is the empty index.
    generation: u64,
    addresses: Resources,
    policies: Resources,
    /// Since the generation before, in the order of [`Type`].
    last: [Delta; 2],
    /// `network/ip` to names of addresses.
    by_ip: HashMap<Str, Vec<Str>>,
    /// Name of a service to the names of its workloads.
    endpoints: HashMap<Str, Vec<Str>>,
    /// Workloads and accounts of each node.
    nodes: BTreeMap<Str, Node>,
}

/// What runs on a node.
#[derive(Debug, Default)]
struct Node {
    workloads: Vec<Str>,
    accounts: BTreeSet<Account>,
}

impl Index {
    /// The index of `mesh`, following `previous`.
    ///
    /// Names that `mesh` holds twice count once: the first wins.
    pub fn build(mesh: &MeshFile, previous: &Index) -> Self {
        let mut index = Index { trust_domain: mesh.trust_domain().to_owned(), generation: previous.generation + 1, ..Index::default() };
        for pod in &mesh.pods {
            let workload = address::workload(mesh, pod);
            let (uid, node) = (pod.effective_uid().as_str().into(), pod.node.as_str().into());
            let known = PodRef { uid, node, service_account: pod.service_account.as_str().into() };
            index.pods.insert((pod.namespace.as_str().into(), pod.name.as_str().into()), known);
            let node = index.nodes.entry(pod.node.as_str().into()).or_default();
            node.accounts.insert((pod.namespace.as_str().into(), pod.service_account.as_str().into()));
            let name: Str = workload.uid.as_str().into();
            node.workloads.push(name.clone());
            for service in workload.services.keys() {
                index.endpoints.entry(service.as_str().into()).or_default().push(name.clone());
            }
            index.add_address(name, &address::of_workload(workload), &pod.ips, previous);
        }
        let mut hostnames = BTreeSet::new();
        for service in &mesh.services {
            let canonical = hostnames.insert(service.effective_hostname());
            let message = address::service(service, canonical);
            index.add_address(address::service_name(service).as_str().into(), &message, &service.vips, previous);
        }
        for policy in &mesh.policies {
            let name: Str = policy::name(policy).as_str().into();
            let body = policy::authorization(policy).encode_to_vec();
            add(&mut index.policies, &previous.policies, name, body, Vec::new());
        }
        index.last = [diff(&previous.addresses, &index.addresses), diff(&previous.policies, &index.policies)];
        index
    }

    fn add_address(&mut self, name: Str, message: &crate::wire::workload::Address, ips: &[IpAddr], previous: &Index) {
        if self.addresses.contains_key(&name) {
            return;
        }
        let aliases: Vec<Str> = ips.iter().map(|ip| address::alias(*ip)).collect();
        for alias in &aliases {
            self.by_ip.entry(alias.clone()).or_default().push(name.clone());
        }
        add(&mut self.addresses, &previous.addresses, name, message.encode_to_vec(), aliases);
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
        diff(earlier.resources(of), self.resources(of))
    }

    /// The resources that a client means by `name`: a resource's name, `network/ip`, or a service, which brings its
    /// workloads along. Empty: unknown.
    pub fn resolve(&self, of: Type, name: &str) -> Vec<Arc<Resource>> {
        let all = self.resources(of);
        let direct: Vec<&str> = match (all.get_key_value(name), of) {
            (Some((name, _)), _) => vec![name],
            (None, Type::Address) => self.by_ip.get(name).into_iter().flatten().map(AsRef::as_ref).collect(),
            (None, Type::Authorization) => Vec::new(),
        };
        let mut names: BTreeSet<&str> = direct.iter().copied().collect();
        if of == Type::Address {
            names.extend(direct.iter().filter_map(|name| self.endpoints.get(*name)).flatten().map(AsRef::as_ref));
        }
        names.into_iter().filter_map(|name| all.get(name)).cloned().collect()
    }

    /// The workloads that run on a node.
    pub fn workloads_on(&self, node: &str) -> impl Iterator<Item = &Arc<Resource>> {
        self.nodes.get(node).into_iter().flat_map(|node| &node.workloads).filter_map(|name| self.addresses.get(name))
    }

    /// The nodes on which pods run.
    pub fn nodes(&self) -> impl Iterator<Item = &Str> {
        self.nodes.keys()
    }

    /// The pod of that name.
    pub fn pod(&self, namespace: &str, name: &str) -> Option<PodRef> {
        self.pods.get(&(namespace.into(), name.into())).cloned()
    }

    /// Whether a pod of that account runs on that node.
    ///
    /// Also one that is not in the mesh: a proxy asks for the certificate of a pod that joins as soon as its agent has
    /// told it, and the two read the same file independently, so that this index may still be the one before. A proxy
    /// that lies can use no more than the accounts of its own node, which run under the same kernel as itself. (The
    /// demonstration's impostor is one: its certificate is a genuine one of a pod outside the mesh.)
    pub fn runs_on(&self, node: &str, namespace: &str, service_account: &str) -> bool {
        let account = (namespace.into(), service_account.into());
        self.nodes.get(node).is_some_and(|node| node.accounts.contains(&account))
    }
}

fn add(to: &mut Resources, previous: &Resources, name: Str, body: Vec<u8>, aliases: Vec<Str>) {
    let resource = match previous.get(&name) {
        Some(old) if old.body == body && old.aliases == aliases => Arc::clone(old),
        _ => {
            let version = format!("{:x}", hash::xxh64(&body)).into();
            Arc::new(Resource { name: name.clone(), version, body: body.into(), aliases })
        }
    };
    to.entry(name).or_insert(resource);
}

fn diff(earlier: &Resources, now: &Resources) -> Delta {
    let is_same = |old: &Arc<Resource>, new: &Arc<Resource>| Arc::ptr_eq(old, new) || old == new;
    Delta {
        changed: now.values().filter(|new| !earlier.get(&new.name).is_some_and(|old| is_same(old, new))).cloned().collect(),
        removed: earlier.keys().filter(|name| !now.contains_key(*name)).cloned().collect(),
    }
}
