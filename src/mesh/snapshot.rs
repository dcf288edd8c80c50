//! The mesh at one moment.

use std::collections::BTreeMap;
use std::sync::Arc;

use rpds::{HashTrieMapSync, RedBlackTreeMapSync};
use serde::Serialize;

use super::address::{NamespacedHostname, NetworkAddress, NetworkCidr};
use super::index::Index;
use super::policy::{Policy, UnusablePolicy};
use super::service::{Endpoint, Service};
use super::workload::Workload;
use crate::base::Str;

/// An immutable snapshot. Clones share everything; an edit copies only what it changes.
#[derive(Clone, Debug)]
pub struct Mesh {
    pub(super) version: u64,
    /// Counts workloads as they come, so that of two with one address the later can be told.
    pub(super) arrivals: u64,
    pub(super) workloads: HashTrieMapSync<Str, Arrived>,
    pub(super) by_address: Index<NetworkAddress, Str, Arrived>,
    pub(super) by_hostname: Index<NamespacedHostname, Str, Arrived>,
    /// Namespace and pod name.
    pub(super) by_name: Index<(Str, Str), Str, Arrived>,
    pub(super) services: HashTrieMapSync<NamespacedHostname, Arc<Service>>,
    pub(super) services_by_hostname: Index<Str, NamespacedHostname, Arc<Service>>,
    pub(super) by_vip: Index<NetworkAddress, NamespacedHostname, Arc<Service>>,
    pub(super) by_cidr: Index<NetworkCidr, NamespacedHostname, Arc<Service>>,
    /// How many services have a range of that prefix length; a lookup tries only these lengths.
    pub(super) cidr_lengths: RedBlackTreeMapSync<(Family, u8), usize>,
    /// By service, known or not: a service that comes or comes again finds its endpoints here.
    pub(super) endpoints: Index<NamespacedHostname, Str, Arc<Workload>>,
    pub(super) policies: HashTrieMapSync<Str, Arc<Policy>>,
    /// Of namespace scope by namespace, of global scope under `None`.
    pub(super) scoped_policies: Index<Option<Str>, Str, Arc<Policy>>,
    /// Few: a control plane that sends such is broken.
    pub(super) unusable_policies: RedBlackTreeMapSync<Str, Arc<UnusablePolicy>>,
}

#[derive(Clone, Debug)]
pub(super) struct Arrived {
    pub(super) workload: Arc<Workload>,
    pub(super) arrival: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Family {
    V4,
    V6,
}

impl Default for Mesh {
    fn default() -> Self {
        Self {
            version: 0,
            arrivals: 0,
            workloads: HashTrieMapSync::new_sync(),
            by_address: Index::default(),
            by_hostname: Index::default(),
            by_name: Index::default(),
            services: HashTrieMapSync::new_sync(),
            services_by_hostname: Index::default(),
            by_vip: Index::default(),
            by_cidr: Index::default(),
            cidr_lengths: RedBlackTreeMapSync::new_sync(),
            endpoints: Index::default(),
            policies: HashTrieMapSync::new_sync(),
            scoped_policies: Index::default(),
            unusable_policies: RedBlackTreeMapSync::new_sync(),
        }
    }
}

impl Mesh {
    /// Grows by one with each publication.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// How many workloads are known.
    pub fn workload_count(&self) -> usize {
        self.workloads.size()
    }

    /// How many services are known.
    pub fn service_count(&self) -> usize {
        self.services.size()
    }

    /// How many policies are known.
    pub fn policy_count(&self) -> usize {
        self.policies.size()
    }

    /// All workloads, in no order.
    pub fn workloads(&self) -> impl Iterator<Item = &Arc<Workload>> {
        self.workloads.values().map(|arrived| &arrived.workload)
    }

    /// All services, in no order.
    pub fn services(&self) -> impl Iterator<Item = &Arc<Service>> {
        self.services.values()
    }

    /// All policies with their keys, in no order.
    pub fn policies(&self) -> impl Iterator<Item = (&Str, &Arc<Policy>)> {
        self.policies.iter()
    }

    /// Policies that workloads name and that are not known, with the number of those workloads.
    pub fn missing_policies(&self) -> BTreeMap<Str, usize> {
        let mut missing = BTreeMap::new();
        for key in self.workloads().flat_map(|workload| &workload.authorization_policies) {
            if !self.policies.contains_key(key) && !self.unusable_policies.contains_key(key) {
                *missing.entry(key.clone()).or_default() += 1;
            }
        }
        missing
    }

    /// What the configuration dump shows, in a fixed order.
    pub fn dump(&self) -> Dump<'_> {
        let mut workloads: Vec<&Workload> = self.workloads().map(Arc::as_ref).collect();
        workloads.sort_by(|a, b| a.uid.cmp(&b.uid));
        let mut services: Vec<ServiceDump<'_>> =
            self.services().map(|service| ServiceDump { service, endpoints: self.endpoint_map(&service.key()) }).collect();
        services.sort_by(|a, b| (&a.service.hostname, &a.service.namespace).cmp(&(&b.service.hostname, &b.service.namespace)));
        let mut policies: Vec<(&Str, &Policy)> = self.policies().map(|(key, policy)| (key, policy.as_ref())).collect();
        policies.sort_by_key(|(key, _)| *key);
        let staged_services = self
            .endpoints
            .keys()
            .filter(|key| !self.services.contains_key(*key))
            .map(|key| (key.clone(), self.endpoint_map(key)))
            .collect();
        Dump { workloads, services, policies: policies.into_iter().map(|(_, policy)| policy).collect(), staged_services }
    }

    fn endpoint_map(&self, service: &NamespacedHostname) -> BTreeMap<Str, Endpoint> {
        self.endpoints(service).map(|endpoint| (endpoint.workload.uid.clone(), endpoint)).collect()
    }
}

/// The mesh's part of the configuration dump.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Dump<'a> {
    /// By uid.
    pub workloads: Vec<&'a Workload>,
    /// By host name.
    services: Vec<ServiceDump<'a>>,
    /// By key.
    pub policies: Vec<&'a Policy>,
    /// Endpoints of services that are not known.
    pub staged_services: BTreeMap<NamespacedHostname, BTreeMap<Str, Endpoint>>,
}

#[derive(Debug, Serialize)]
struct ServiceDump<'a> {
    #[serde(flatten)]
    service: &'a Service,
    endpoints: BTreeMap<Str, Endpoint>,
}
