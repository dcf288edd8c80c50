//! What has to be made anew because an object has changed.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::{Indexer, service_of};
use crate::base::Str;
use crate::control::index::workload;
use crate::control::objects::{Endpoint, EndpointSlice, Id, Object, PeerAuthentication, Pod, Scope, Service};

/// The objects whose resources may be different.
#[derive(Debug, Default)]
pub(super) struct Dirty {
    pub(super) pods: BTreeSet<Id>,
    pub(super) services: BTreeSet<Id>,
    pub(super) slices: BTreeSet<Id>,
    pub(super) policies: BTreeSet<Id>,
    pub(super) peers: BTreeSet<Id>,
    /// Addresses that there were; those that are not made again are gone.
    pub(super) addresses: BTreeSet<Str>,
    /// There is the first PeerAuthentication or the last is gone.
    pub(super) is_first_peer: bool,
}

impl Dirty {
    /// What depends on a version of an object. To be asked while `of` holds that version.
    pub(super) fn depends_on(&mut self, object: &Object, of: &Indexer) {
        match object {
            Object::Node(node) => self.pods.extend(of.next.nodes.of(&node.id.name).cloned()),
            Object::Namespace(namespace) => {
                self.services.extend(of.services.within(&namespace.id.name).map(|service| service.id.clone()));
            }
            Object::Pod(pod) => {
                self.pods.insert(pod.id.clone());
            }
            Object::Service(service) => self.service(service, of),
            Object::EndpointSlice(slice) => self.slice(slice, of),
            Object::PeerAuthentication(policy) => self.peer(policy, of),
            Object::AuthorizationPolicy(policy) => {
                self.policies.insert(policy.id.clone());
                match &policy.scope {
                    Scope::Pods { everywhere: true, .. } => self.add_pods(of.next.pods.values(), |pod| policy.attaches_to(pod)),
                    Scope::Pods { .. } => self.add_pods(of.pods_within(&policy.id.namespace), |pod| policy.attaches_to(pod)),
                    Scope::Global | Scope::Namespace => {}
                }
            }
        }
    }

    /// All there is.
    pub(super) fn everything(&mut self, of: &Indexer) {
        self.pods.extend(of.next.pods.keys().cloned());
        self.services.extend(of.services.ids().cloned());
        self.slices.extend(of.slices.ids().cloned());
        self.policies.extend(of.policies.ids().cloned());
        self.peers.extend(of.peers.ids().cloned());
        self.is_first_peer = true;
    }

    fn service(&mut self, service: &Service, of: &Indexer) {
        self.services.insert(service.id.clone());
        self.addresses.insert(service.resource_name());
        // Another one may be meant by its host name now.
        self.services.extend(of.hosts.get(&service.hostname).into_iter().flatten().map(|(_, id)| id.clone()));
        if !service.selector.is_empty() {
            self.add_pods(of.pods_within(&service.id.namespace), |pod| pod.labels.has_all(&service.selector));
        }
        for slice in of.slices_of.get(&service.id).into_iter().flatten().filter_map(|id| of.slices.get(id)) {
            self.slice(slice, of);
        }
    }

    fn slice(&mut self, slice: &EndpointSlice, of: &Indexer) {
        self.slices.insert(slice.id.clone());
        // Pods are found by the selector where there is one.
        let is_by_hand = of.services.get(&service_of(slice)).is_some_and(|service| service.selector.is_empty());
        for endpoint in &slice.endpoints {
            match endpoint {
                Endpoint::Address { ip, .. } => {
                    self.addresses.insert(workload::endpoint_name(&slice.id, *ip).into());
                }
                Endpoint::Pod { name, .. } if is_by_hand => {
                    self.pods.insert(Id { namespace: slice.id.namespace.clone(), name: name.clone() });
                }
                Endpoint::Pod { .. } => {}
            }
        }
    }

    fn peer(&mut self, policy: &PeerAuthentication, of: &Indexer) {
        self.peers.insert(policy.id.clone());
        self.is_first_peer = true;
        let namespace = &policy.id.namespace;
        let is_root = *namespace == of.mesh.root_namespace;
        match (policy.selector.is_empty(), is_root) {
            (true, true) => {
                self.add_pods(of.next.pods.values(), |_| true);
                self.peers.extend(of.peers.ids().cloned());
            }
            (true, false) => {
                self.add_pods(of.pods_within(namespace), |_| true);
                self.peers.extend(of.peers.within(namespace).map(|peer| peer.id.clone()));
            }
            (false, _) => self.add_pods(of.pods_within(namespace), |pod| pod.labels.has_all(&policy.selector)),
        }
    }

    fn add_pods<'a>(&mut self, pods: impl Iterator<Item = &'a Arc<Pod>>, which: impl Fn(&Pod) -> bool) {
        self.pods.extend(pods.filter(|pod| which(pod)).map(|pod| pod.id.clone()));
    }
}
