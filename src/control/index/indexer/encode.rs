//! Objects that changed → resources.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use prost::Message;

use super::dirty::Dirty;
use super::{Indexer, service_of};
use crate::base::Str;
use crate::control::index::{Resource, Type, peer, service, workload};
use crate::control::objects::{Endpoint, EndpointSlice, Id, Mode, PeerAuthentication, Pod, Service};
use crate::wire::authorization::Authorization;
use crate::wire::workload::{Address, Service as WireService, Workload, address::Type as Kind};

impl Indexer {
    /// Makes the resources anew; returns how many.
    pub(super) fn encode(&mut self, dirty: Dirty) -> usize {
        let mut made = BTreeSet::new();
        let mut count = 0;
        for id in &dirty.pods {
            match self.next.pods.get(id).filter(|pod| workload::is_workload(pod)).cloned() {
                Some(pod) => {
                    count += 1;
                    self.put_workload(self.workload(&pod), &pod.ips);
                }
                None => self.remove_address(&workload::name(id)),
            }
        }
        for service in dirty.services.iter().filter_map(|id| self.services.get(id)).cloned().collect::<Vec<_>>() {
            count += 1;
            made.insert(service.resource_name());
            self.put_service(&service);
        }
        for slice in dirty.slices.iter().filter_map(|id| self.slices.get(id)).cloned().collect::<Vec<_>>() {
            let names = self.put_endpoints(&slice);
            count += names.len();
            made.extend(names);
        }
        for name in dirty.addresses.difference(&made) {
            self.remove_address(name);
        }
        count + self.encode_policies(&dirty)
    }

    fn encode_policies(&mut self, dirty: &Dirty) -> usize {
        let mut made: Vec<(Str, Option<Authorization>)> = Vec::new();
        for id in &dirty.policies {
            let policy = self.policies.get(id);
            made.push((id.to_string().into(), policy.map(|policy| policy.message.clone())));
        }
        for id in &dirty.peers {
            let effect = self.peers.get(id).filter(|policy| self.is_selective(policy)).map(|policy| self.effect(policy));
            let message = match effect {
                Some(peer::Effect::Ports(rules)) => Some(peer::converted(id, rules)),
                _ => None,
            };
            made.push((peer::converted_name(id), message));
        }
        if dirty.is_first_peer {
            let root = &self.mesh.root_namespace;
            made.push((peer::strict_name(root), (!self.peers.is_empty()).then(|| peer::strict(root))));
        }
        let count = made.iter().filter(|(_, message)| message.is_some()).count();
        for (name, message) in made {
            match message {
                Some(message) => self.put_policy(name, message.encode_to_vec()),
                None => self.remove_policy(&name),
            }
        }
        count
    }

    fn workload(&self, pod: &Pod) -> Workload {
        let node = self.nodes.get(&Id { namespace: Str::default(), name: pod.node.clone() });
        let services = self.services.within(&pod.id.namespace).filter(|service| self.has_endpoint(service, pod));
        Workload {
            services: workload::services(pod, services.map(AsRef::as_ref)),
            authorization_policies: self.attached(pod),
            ..workload::of_pod(pod, &self.mesh.trust_domain, node.map(|node| &node.locality))
        }
    }

    /// Pods that are not ready are endpoints too, their status says so.
    fn has_endpoint(&self, service: &Service, pod: &Pod) -> bool {
        if !service.selector.is_empty() {
            return pod.labels.has_all(&service.selector);
        }
        let slices = self.slices_of.get(&service.id).into_iter().flatten().filter_map(|id| self.slices.get(id));
        slices.flat_map(|slice| &slice.endpoints).any(|endpoint| match endpoint {
            Endpoint::Pod { name, uid } => *name == pod.id.name && *uid == pod.uid,
            Endpoint::Address { .. } => false,
        })
    }

    /// Names of the policies that a pod's workload has to name, sorted.
    fn attached(&self, pod: &Pod) -> Vec<String> {
        let root = &self.mesh.root_namespace;
        let own = self.policies.within(&pod.id.namespace);
        let others = self.policies.within(root).filter(|_| *root != pod.id.namespace);
        let selected = own.chain(others).filter(|policy| policy.attaches_to(pod));
        let mut names: Vec<String> = selected.map(|policy| policy.id.to_string()).collect();
        let all = self.peers.within(&pod.id.namespace).map(AsRef::as_ref);
        let policy = peer::oldest(all.filter(|policy| self.is_selective(policy) && pod.labels.has_all(&policy.selector)));
        let effect = match policy {
            Some(policy) => self.effect(policy),
            None if self.is_strict(&pod.id.namespace) => peer::Effect::Strict,
            None => peer::Effect::Open,
        };
        match (effect, policy) {
            (peer::Effect::Strict, _) => names.push(peer::strict_name(root).to_string()),
            (peer::Effect::Ports(_), Some(policy)) => names.push(peer::converted_name(&policy.id).to_string()),
            _ => {}
        }
        names.sort();
        names
    }

    fn effect(&self, policy: &PeerAuthentication) -> peer::Effect {
        peer::effect(policy, self.is_strict(&policy.id.namespace))
    }

    /// Whether it is for some pods of its namespace. In the root namespace policies are for the mesh.
    fn is_selective(&self, policy: &PeerAuthentication) -> bool {
        !policy.selector.is_empty() && policy.id.namespace != self.mesh.root_namespace
    }

    /// What is said for a namespace as a whole.
    fn is_strict(&self, namespace: &Str) -> bool {
        let said = |namespace: &Str| {
            peer::mode(self.peers.within(namespace).map(AsRef::as_ref).filter(|policy: &&PeerAuthentication| policy.selector.is_empty()))
        };
        match said(namespace) {
            Mode::Unset => said(&self.mesh.root_namespace) == Mode::Strict,
            mode => mode == Mode::Strict,
        }
    }

    fn put_service(&mut self, object: &Service) {
        let namespace = self.namespaces.get(&Id { namespace: Str::default(), name: object.id.namespace.clone() });
        let inherited = namespace.and_then(|namespace| namespace.distribution);
        let meant = self.hosts.get(&object.hostname).and_then(|all| all.first());
        let is_canonical = meant.is_none_or(|(_, id)| *id == object.id);
        let message: WireService = service::service(object, inherited, is_canonical);
        self.put_address(object.resource_name(), Kind::Service(message), &object.vips, Vec::new());
    }

    /// Returns the names of the workloads. Endpoints of a service that does not exist are nothing.
    fn put_endpoints(&mut self, slice: &EndpointSlice) -> BTreeSet<Str> {
        let Some(service) = self.services.get(&service_of(slice)).cloned() else { return BTreeSet::new() };
        let mut names = BTreeSet::new();
        for endpoint in &slice.endpoints {
            let Endpoint::Address { ip, ready } = endpoint else { continue };
            // An address that is listed twice is one endpoint: the first.
            if names.insert(workload::endpoint_name(&slice.id, *ip).into()) {
                self.put_workload(workload::of_endpoint(slice, *ip, *ready, &service, &self.mesh.trust_domain), &[*ip]);
            }
        }
        names
    }

    fn put_workload(&mut self, workload: Workload, ips: &[IpAddr]) {
        let services = workload.services.keys().map(|name| name.as_str().into()).collect();
        self.put_address(workload.uid.as_str().into(), Kind::Workload(workload), ips, services);
    }

    fn put_address(&mut self, name: Str, message: Kind, ips: &[IpAddr], services: Vec<Str>) {
        let body = Address { r#type: Some(message) }.encode_to_vec();
        let aliases: Vec<Str> = ips.iter().map(|ip| workload::alias(*ip)).collect();
        if let Some(old) = self.next.addresses.get(&name)
            && old.body == body
            && old.aliases == aliases
        {
            return;
        }
        self.remove_address(&name);
        aliases.iter().for_each(|alias| self.next.by_ip.add(alias, name.clone()));
        services.iter().for_each(|service| self.next.endpoints.add(service, name.clone()));
        self.touched[Type::Address as usize].insert(name.clone());
        self.next.addresses.put(Arc::new(Resource::new(name, body, aliases, services)));
    }

    fn remove_address(&mut self, name: &str) {
        let Some(old) = self.next.addresses.get(name).cloned() else { return };
        old.aliases.iter().for_each(|alias| self.next.by_ip.remove(alias, name));
        old.services.iter().for_each(|service| self.next.endpoints.remove(service, name));
        self.touched[Type::Address as usize].insert(old.name.clone());
        self.next.addresses.remove(name);
    }

    fn put_policy(&mut self, name: Str, body: Vec<u8>) {
        if self.next.policies.get(&name).is_some_and(|old| old.body == body) {
            return;
        }
        self.touched[Type::Authorization as usize].insert(name.clone());
        self.next.policies.put(Arc::new(Resource::new(name, body, Vec::new(), Vec::new())));
    }

    fn remove_policy(&mut self, name: &str) {
        let Some(old) = self.next.policies.get(name).cloned() else { return };
        self.touched[Type::Authorization as usize].insert(old.name.clone());
        self.next.policies.remove(name);
    }
}
