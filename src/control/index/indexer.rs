//! Changes of objects in, one index after the other out.

mod dirty;
mod encode;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use rpds::RedBlackTreeMapSync;

use super::tables::{self, Table};
use super::{Delta, Index, Resources, Type};
use crate::base::Str;
use crate::control::objects::{
    AuthorizationPolicy, Change, EndpointSlice, Id, Kind, Mesh, Namespace, Node, Object, PeerAuthentication, Pod, Service, Version,
};

use dirty::Dirty;

/// Holds the objects and what the last index made of them.
///
/// [`Indexer::apply`] for changes as they come, [`Indexer::publish`] when those so far are to be seen.
#[derive(Debug)]
pub struct Indexer {
    mesh: Mesh,
    nodes: Table<Node>,
    namespaces: Table<Namespace>,
    services: Table<Service>,
    slices: Table<EndpointSlice>,
    peers: Table<PeerAuthentication>,
    policies: Table<AuthorizationPolicy>,
    /// Service to its slices.
    slices_of: BTreeMap<Id, BTreeSet<Id>>,
    /// Host name to the services that have it, the one that is meant first.
    hosts: BTreeMap<Str, BTreeSet<(u64, Id)>>,
    /// What is published next.
    next: Index,
    published: Arc<Index>,
    /// Names of resources that may be different in `next`, in the order of [`Type`].
    touched: [BTreeSet<Str>; 2],
    /// Something else may be different.
    is_moved: bool,
}

/// What became of some changes.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// Resources that were encoded.
    pub encoded: usize,
    /// Objects that were not understood and whose version before is in force.
    pub kept: Vec<String>,
    /// Policies that were not understood and in whose place everything is refused.
    pub refused: Vec<String>,
}

impl Default for Indexer {
    fn default() -> Self {
        Self {
            mesh: Mesh { trust_domain: Str::default(), root_namespace: Str::default() },
            nodes: Table::default(),
            namespaces: Table::default(),
            services: Table::default(),
            slices: Table::default(),
            peers: Table::default(),
            policies: Table::default(),
            slices_of: BTreeMap::new(),
            hosts: BTreeMap::new(),
            next: Index::default(),
            published: Arc::default(),
            touched: [BTreeSet::new(), BTreeSet::new()],
            is_moved: false,
        }
    }
}

impl Indexer {
    /// Takes changes over. Only resources that depend on objects which really changed are made anew.
    pub fn apply(&mut self, mesh: &Mesh, changes: Vec<Change>) -> Applied {
        let mut applied = Applied::default();
        let mut dirty = Dirty::default();
        let is_other_mesh = self.mesh != *mesh;
        if is_other_mesh {
            self.forget_resources();
            self.mesh = mesh.clone();
            self.next.trust_domain = mesh.trust_domain.clone();
        }
        for change in changes {
            match change {
                Change::Put(version) => self.put(version, &mut dirty, &mut applied),
                Change::Remove(kind, id) => self.set(kind, &id, None, &mut dirty),
                Change::Replace(kind, versions) => {
                    let named: BTreeSet<&Id> = versions.iter().map(Version::id).collect();
                    let gone: Vec<Id> = self.ids(kind).into_iter().filter(|id| !named.contains(id)).collect();
                    gone.iter().for_each(|id| self.set(kind, id, None, &mut dirty));
                    versions.into_iter().for_each(|version| self.put(version, &mut dirty, &mut applied));
                }
            }
        }
        if is_other_mesh {
            dirty.everything(self);
        }
        applied.encoded = self.encode(dirty);
        applied
    }

    /// Whether there is something to publish.
    pub fn is_pending(&self) -> bool {
        self.published.generation == 0 || self.is_moved || self.delta(Type::Address) || self.delta(Type::Authorization)
    }

    /// The index of all changes so far.
    pub fn publish(&mut self) -> Arc<Index> {
        let mut next = self.next.clone();
        next.generation = self.published.generation + 1;
        next.last = [Type::Address, Type::Authorization].map(|of| self.since(of));
        self.touched = [BTreeSet::new(), BTreeSet::new()];
        self.is_moved = false;
        self.published = Arc::new(next);
        Arc::clone(&self.published)
    }

    /// What is published next.
    #[cfg(test)]
    pub(crate) fn current(&self) -> &Index {
        &self.next
    }

    fn since(&self, of: Type) -> Delta {
        self.next.resources(of).since_of(self.published.resources(of), self.touched[of as usize].iter())
    }

    fn delta(&self, of: Type) -> bool {
        !self.touched[of as usize].is_empty() && !self.since(of).is_empty()
    }

    fn forget_resources(&mut self) {
        for of in [Type::Address, Type::Authorization] {
            self.touched[of as usize].extend(self.next.resources(of).iter().map(|resource| resource.name.clone()));
        }
        self.next.addresses = Resources::default();
        self.next.policies = Resources::default();
        self.next.by_ip = Default::default();
        self.next.endpoints = Default::default();
        self.is_moved = true;
    }

    fn put(&mut self, version: Version, dirty: &mut Dirty, applied: &mut Applied) {
        match version {
            Version::Good(object) => self.set(object.kind(), &object.id().clone(), Some(object), dirty),
            Version::Bad { kind, id, instead } => {
                if self.has_good(kind, &id) {
                    applied.kept.push(format!("{kind} {id}"));
                    return;
                }
                if instead.is_some() && self.get(kind, &id) != instead {
                    applied.refused.push(format!("{kind} {id}"));
                }
                self.set(kind, &id, instead, dirty);
            }
        }
    }

    /// Whether a version is known that was understood.
    fn has_good(&self, kind: Kind, id: &Id) -> bool {
        match self.get(kind, id) {
            None => false,
            Some(Object::AuthorizationPolicy(policy)) => !policy.is_stand_in,
            Some(Object::PeerAuthentication(policy)) => !policy.is_stand_in,
            Some(_) => true,
        }
    }

    fn get(&self, kind: Kind, id: &Id) -> Option<Object> {
        match kind {
            Kind::Node => self.nodes.get(id).cloned().map(Object::Node),
            Kind::Namespace => self.namespaces.get(id).cloned().map(Object::Namespace),
            Kind::Pod => self.next.pods.get(id).cloned().map(Object::Pod),
            Kind::Service => self.services.get(id).cloned().map(Object::Service),
            Kind::EndpointSlice => self.slices.get(id).cloned().map(Object::EndpointSlice),
            Kind::PeerAuthentication => self.peers.get(id).cloned().map(Object::PeerAuthentication),
            Kind::AuthorizationPolicy => self.policies.get(id).cloned().map(Object::AuthorizationPolicy),
        }
    }

    fn ids(&self, kind: Kind) -> Vec<Id> {
        match kind {
            Kind::Node => self.nodes.ids().cloned().collect(),
            Kind::Namespace => self.namespaces.ids().cloned().collect(),
            Kind::Pod => self.next.pods.keys().cloned().collect(),
            Kind::Service => self.services.ids().cloned().collect(),
            Kind::EndpointSlice => self.slices.ids().cloned().collect(),
            Kind::PeerAuthentication => self.peers.ids().cloned().collect(),
            Kind::AuthorizationPolicy => self.policies.ids().cloned().collect(),
        }
    }

    /// Stores a version, or that there is none, and notes what depends on the one before and on this one.
    fn set(&mut self, kind: Kind, id: &Id, version: Option<Object>, dirty: &mut Dirty) {
        let before = self.get(kind, id);
        if before == version {
            return;
        }
        before.iter().for_each(|object| dirty.depends_on(object, self));
        self.store(kind, id, before, version.clone());
        version.iter().for_each(|object| dirty.depends_on(object, self));
    }

    fn store(&mut self, kind: Kind, id: &Id, before: Option<Object>, version: Option<Object>) {
        if let Some(object) = &before {
            self.unlink(object);
        }
        if let Some(object) = &version {
            self.link(object);
        }
        match version {
            Some(Object::Node(object)) => self.nodes.set(id, Some(object)),
            Some(Object::Namespace(object)) => self.namespaces.set(id, Some(object)),
            Some(Object::Pod(object)) => self.next.pods.insert_mut(id.clone(), object),
            Some(Object::Service(object)) => self.services.set(id, Some(object)),
            Some(Object::EndpointSlice(object)) => self.slices.set(id, Some(object)),
            Some(Object::PeerAuthentication(object)) => self.peers.set(id, Some(object)),
            Some(Object::AuthorizationPolicy(object)) => self.policies.set(id, Some(object)),
            None => match kind {
                Kind::Node => self.nodes.set(id, None),
                Kind::Namespace => self.namespaces.set(id, None),
                Kind::Pod => drop(self.next.pods.remove_mut(id)),
                Kind::Service => self.services.set(id, None),
                Kind::EndpointSlice => self.slices.set(id, None),
                Kind::PeerAuthentication => self.peers.set(id, None),
                Kind::AuthorizationPolicy => self.policies.set(id, None),
            },
        }
    }

    fn unlink(&mut self, object: &Object) {
        match object {
            Object::Pod(pod) => {
                self.next.nodes.remove(&pod.node, &pod.id);
                self.is_moved = true;
            }
            Object::Service(service) => {
                if let Some(all) = self.hosts.get_mut(&service.hostname) {
                    all.remove(&(service.age, service.id.clone()));
                    if all.is_empty() {
                        self.hosts.remove(&service.hostname);
                    }
                }
            }
            Object::EndpointSlice(slice) => {
                let service = service_of(slice);
                if let Some(all) = self.slices_of.get_mut(&service) {
                    all.remove(&slice.id);
                    if all.is_empty() {
                        self.slices_of.remove(&service);
                    }
                }
            }
            _ => {}
        }
    }

    fn link(&mut self, object: &Object) {
        match object {
            Object::Pod(pod) => {
                if !pod.node.is_empty() {
                    self.next.nodes.add(&pod.node, pod.id.clone());
                }
                self.is_moved = true;
            }
            Object::Service(service) => {
                self.hosts.entry(service.hostname.clone()).or_default().insert((service.age, service.id.clone()));
            }
            Object::EndpointSlice(slice) => {
                self.slices_of.entry(service_of(slice)).or_default().insert(slice.id.clone());
            }
            _ => {}
        }
    }

    fn pods_within(&self, namespace: &Str) -> impl Iterator<Item = &Arc<Pod>> {
        within(&self.next.pods, namespace)
    }
}

fn within<'a>(pods: &'a RedBlackTreeMapSync<Id, Arc<Pod>>, namespace: &Str) -> impl Iterator<Item = &'a Arc<Pod>> {
    let namespace = namespace.clone();
    pods.range(tables::first(&namespace)..).map(|(_, pod)| pod).take_while(move |pod| pod.id.namespace == namespace)
}

/// The service that a slice belongs to.
fn service_of(slice: &EndpointSlice) -> Id {
    Id { namespace: slice.id.namespace.clone(), name: slice.service.clone() }
}
