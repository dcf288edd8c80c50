//! Who owns an address or a name.

use std::cmp::Reverse;
use std::sync::Arc;

use ipnet::IpNet;

use super::address::{NamespacedHostname, NetworkAddress, NetworkCidr};
use super::policy::{Policy, UnusablePolicy};
use super::service::{Endpoint, Service};
use super::snapshot::{Arrived, Family, Mesh};
use super::workload::{Health, LocalWorkload, Protocol, Workload};
use crate::base::Str;

/// Whose an address or a name is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Owner {
    /// A service's.
    Service(Arc<Service>),
    /// A workload's.
    Workload(Arc<Workload>),
}

impl Mesh {
    /// The workload with that uid.
    pub fn workload(&self, uid: &str) -> Option<&Arc<Workload>> {
        self.workloads.get(uid).map(|arrived| &arrived.workload)
    }

    /// The workload with that address of its own. Of several: a pod before others, then one with HBONE, then a healthy one,
    /// then the one that was heard of last.
    pub fn workload_at(&self, address: &NetworkAddress) -> Option<&Arc<Workload>> {
        best_workload(self.by_address.members(address))
    }

    /// The workload of a pod that runs on `node`; without a node's name, on any.
    pub fn local_workload(&self, local: &LocalWorkload, node: Option<&str>) -> Option<&Arc<Workload>> {
        let key = (local.namespace.clone(), local.name.clone());
        best_workload(self.by_name.members(&key).filter(|arrived| {
            let workload = &arrived.workload;
            workload.service_account == local.service_account
                // Pods of other clusters may have the same name; they run elsewhere.
                && (workload.node.is_empty() || node.is_none_or(|node| *workload.node == *node))
        }))
    }

    /// The service with that key.
    pub fn service(&self, key: &NamespacedHostname) -> Option<&Arc<Service>> {
        self.services.get(key)
    }

    /// The best service with that host name that a client of that namespace can see.
    pub fn service_named(&self, hostname: &str, client: Option<&str>) -> Option<&Arc<Service>> {
        best_service(self.services_by_hostname.members(&Str::from(hostname)), client)
    }

    /// All services with that host name, by namespace.
    pub fn services_named(&self, hostname: &str) -> impl Iterator<Item = &Arc<Service>> {
        self.services_by_hostname.members(&Str::from(hostname))
    }

    /// The best service that a client of that namespace can see and that has that virtual address.
    pub fn service_at_vip(&self, address: &NetworkAddress, client: Option<&str>) -> Option<&Arc<Service>> {
        best_service(self.by_vip.members(address), client)
    }

    /// The best service that a client of that namespace can see and that has the address in a range: one of the client's
    /// namespace before others, then the longer prefix, then a canonical one, then the first by key.
    pub fn service_at_range(&self, address: &NetworkAddress, client: Option<&str>) -> Option<&Arc<Service>> {
        let family = if address.ip.is_ipv4() { Family::V4 } else { Family::V6 };
        self.cidr_lengths
            .keys()
            .filter(|(of, _)| *of == family)
            .filter_map(|(_, length)| Some((*length, range_of(address, *length)?)))
            .flat_map(|(length, range)| self.by_cidr.members(&range).map(move |service| (length, service)))
            .filter(|(_, service)| service.visible_to(client))
            .min_by_key(|(length, service)| (Reverse(is_of(service, client)), Reverse(*length), Reverse(service.canonical), service.key()))
            .map(|(_, service)| service)
    }

    /// Whose an address is, for a client of that namespace.
    ///
    /// This is the only place where precedence is decided. An exact virtual address comes first: somebody declared it to be
    /// the front of a service, with its ports and its waypoint, and to go round these because an endpoint has the same
    /// address would go round a policy. A workload's own address comes before a range, which speaks only for addresses
    /// that nobody else claims.
    pub fn owner(&self, address: &NetworkAddress, client: Option<&str>) -> Option<Owner> {
        if let Some(service) = self.service_at_vip(address, client) {
            return Some(Owner::Service(service.clone()));
        }
        if let Some(workload) = self.workload_at(address) {
            return Some(Owner::Workload(workload.clone()));
        }
        self.service_at_range(address, client).map(|service| Owner::Service(service.clone()))
    }

    /// Whose a host name in a namespace is: a service's, or else a workload's.
    pub fn owner_of_name(&self, name: &NamespacedHostname) -> Option<Owner> {
        if let Some(service) = self.service(name) {
            return Some(Owner::Service(service.clone()));
        }
        best_workload(self.by_hostname.members(name)).map(|workload| Owner::Workload(workload.clone()))
    }

    /// All endpoints of a service, healthy or not, by uid.
    pub fn endpoints(&self, service: &NamespacedHostname) -> impl Iterator<Item = Endpoint> {
        self.endpoints.members(service).map(|workload| Endpoint { workload: workload.clone(), service: service.clone() })
    }

    /// The policy with that key.
    pub fn policy(&self, key: &str) -> Option<&Arc<Policy>> {
        self.policies.get(key)
    }

    /// Policies that arrived and could not be understood, by key.
    pub fn unusable_policies(&self) -> impl Iterator<Item = (&Str, &Arc<UnusablePolicy>)> {
        self.unusable_policies.iter()
    }

    /// Policies of namespace scope of that namespace, by key.
    pub fn namespace_policies(&self, namespace: &Str) -> impl Iterator<Item = (&Str, &Arc<Policy>)> {
        self.scoped_policies.group(&Some(namespace.clone()))
    }

    /// Policies of global scope, by key.
    pub fn global_policies(&self) -> impl Iterator<Item = (&Str, &Arc<Policy>)> {
        self.scoped_policies.group(&None)
    }
}

fn best_workload<'a>(candidates: impl Iterator<Item = &'a Arrived>) -> Option<&'a Arc<Workload>> {
    candidates
        .max_by_key(|arrived| {
            let workload = &arrived.workload;
            let pod = workload.uid.contains("//Pod/");
            (pod, workload.protocol == Protocol::HBONE, workload.status == Health::Healthy, arrived.arrival)
        })
        .map(|arrived| &arrived.workload)
}

fn best_service<'a>(candidates: impl Iterator<Item = &'a Arc<Service>>, client: Option<&str>) -> Option<&'a Arc<Service>> {
    candidates.filter(|service| service.visible_to(client)).min_by_key(|service| (!is_of(service, client), !service.canonical))
}

fn is_of(service: &Service, namespace: Option<&str>) -> bool {
    namespace.is_some_and(|namespace| *service.namespace == *namespace)
}

fn range_of(address: &NetworkAddress, length: u8) -> Option<NetworkCidr> {
    let cidr = IpNet::new(address.ip, length).ok()?;
    Some(NetworkCidr::new(address.network.clone(), cidr))
}
