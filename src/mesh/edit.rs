//! Changes of the mesh. Each removes all that the old state had put into the indexes, so nothing is left dangling.

use std::sync::Arc;

use super::address::{NamespacedHostname, NetworkCidr};
use super::policy::{Policy, Scope, UnusablePolicy};
use super::service::Service;
use super::snapshot::{Arrived, Family, Mesh};
use super::workload::Workload;
use crate::base::Str;

/// A mesh that is being changed; [`super::MeshStore::edit`] publishes the outcome as one.
#[derive(Debug)]
pub struct Edit {
    pub(super) mesh: Mesh,
    touched: usize,
}

impl Edit {
    pub(super) fn new(mesh: Mesh) -> Self {
        Self { mesh, touched: 0 }
    }

    /// The mesh with the changes so far.
    pub fn mesh(&self) -> &Mesh {
        &self.mesh
    }

    /// How many entries of maps and indexes were written or removed so far; 0 means nothing changed.
    pub fn touched(&self) -> usize {
        self.touched
    }

    /// Adds a workload, or puts it in the place of the one with its uid. An equal one changes nothing.
    pub fn upsert_workload(&mut self, mut workload: Workload) {
        for ip in &mut workload.workload_ips {
            *ip = ip.to_canonical();
        }
        if self.mesh.workload(&workload.uid).is_some_and(|known| **known == workload) {
            return;
        }
        self.remove_workload(&workload.uid.clone());
        let workload = Arc::new(workload);
        let uid = workload.uid.clone();
        self.mesh.arrivals += 1;
        let arrived = Arrived { workload: workload.clone(), arrival: self.mesh.arrivals };
        for address in workload.own_addresses() {
            self.mesh.by_address.insert(address, uid.clone(), arrived.clone());
            self.touched += 1;
        }
        if !workload.hostname.is_empty() {
            self.mesh.by_hostname.insert(hostname_of(&workload), uid.clone(), arrived.clone());
            self.touched += 1;
        }
        for service in workload.services.keys() {
            self.mesh.endpoints.insert(service.clone(), uid.clone(), workload.clone());
            self.touched += 1;
        }
        self.mesh.by_name.insert((workload.namespace.clone(), workload.name.clone()), uid.clone(), arrived.clone());
        self.mesh.workloads.insert_mut(uid, arrived);
        self.touched += 2;
    }

    /// Removes the workload and with it its endpoints; whether there was one.
    pub fn remove_workload(&mut self, uid: &str) -> bool {
        let Some(workload) = self.mesh.workload(uid).cloned() else { return false };
        let uid = &workload.uid;
        for address in workload.own_addresses() {
            self.mesh.by_address.remove(&address, uid);
            self.touched += 1;
        }
        if !workload.hostname.is_empty() {
            self.mesh.by_hostname.remove(&hostname_of(&workload), uid);
            self.touched += 1;
        }
        for service in workload.services.keys() {
            self.mesh.endpoints.remove(service, uid);
            self.touched += 1;
        }
        self.mesh.by_name.remove(&(workload.namespace.clone(), workload.name.clone()), uid);
        self.mesh.workloads.remove_mut(uid);
        self.touched += 2;
        true
    }

    /// Adds a service, or puts it in the place of the one with its key. Its endpoints are there already, or come.
    pub fn upsert_service(&mut self, mut service: Service) {
        for vip in &mut service.vips {
            vip.ip = vip.ip.to_canonical();
        }
        for range in &mut service.cidr_vips {
            *range = NetworkCidr::new(range.network.clone(), range.cidr);
        }
        // A range given twice is one range: it is counted by length below.
        service.cidr_vips.sort();
        service.cidr_vips.dedup();
        let key = service.key();
        if self.mesh.services.get(&key).is_some_and(|known| **known == service) {
            return;
        }
        self.remove_service(&key);
        let service = Arc::new(service);
        for vip in &service.vips {
            self.mesh.by_vip.insert(vip.clone(), key.clone(), service.clone());
            self.touched += 1;
        }
        for range in &service.cidr_vips {
            self.mesh.by_cidr.insert(range.clone(), key.clone(), service.clone());
            self.count_length(range, true);
            self.touched += 1;
        }
        self.mesh.services_by_hostname.insert(service.hostname.clone(), key.clone(), service.clone());
        self.mesh.services.insert_mut(key, service);
        self.touched += 2;
    }

    /// Removes the service; whether there was one. Workloads that name it stay its endpoints, should it come again.
    pub fn remove_service(&mut self, key: &NamespacedHostname) -> bool {
        let Some(service) = self.mesh.services.get(key).cloned() else { return false };
        for vip in &service.vips {
            self.mesh.by_vip.remove(vip, key);
            self.touched += 1;
        }
        for range in &service.cidr_vips {
            self.mesh.by_cidr.remove(range, key);
            self.count_length(range, false);
            self.touched += 1;
        }
        self.mesh.services_by_hostname.remove(&service.hostname, key);
        self.mesh.services.remove_mut(key);
        self.touched += 2;
        true
    }

    /// Removes the workload with that uid, or else the service `namespace/hostname`; whether there was one.
    pub fn remove_address(&mut self, name: &str) -> bool {
        self.remove_workload(name) || name.parse().is_ok_and(|key| self.remove_service(&key))
    }

    /// Adds a policy, or puts it in the place of the one with that key, usually [`Policy::key`].
    pub fn upsert_policy(&mut self, key: Str, policy: Policy) {
        if self.mesh.policies.get(&key).is_some_and(|known| **known == policy) {
            return;
        }
        self.remove_policy(&key);
        let policy = Arc::new(policy);
        if let Some(scope) = scope_of(&policy) {
            self.mesh.scoped_policies.insert(scope, key.clone(), policy.clone());
            self.touched += 1;
        }
        self.mesh.policies.insert_mut(key, policy);
        self.touched += 1;
    }

    /// Notes that a policy arrived and could not be understood. One that is in force under that key stays in force.
    pub fn upsert_unusable_policy(&mut self, key: Str, unusable: UnusablePolicy) {
        let known = self.mesh.unusable_policies.get(&key);
        if !self.mesh.policies.contains_key(&key) && known.is_none_or(|known| **known != unusable) {
            self.mesh.unusable_policies.insert_mut(key, Arc::new(unusable));
            self.touched += 1;
        }
    }

    /// Removes the policy, understood or not; whether there was one.
    pub fn remove_policy(&mut self, key: &str) -> bool {
        if self.mesh.unusable_policies.remove_mut(key) {
            self.touched += 1;
            return true;
        }
        let Some((key, policy)) = self.mesh.policies.get_key_value(key).map(|(key, policy)| (key.clone(), policy.clone())) else {
            return false;
        };
        if let Some(scope) = scope_of(&policy) {
            self.mesh.scoped_policies.remove(&scope, &key);
            self.touched += 1;
        }
        self.mesh.policies.remove_mut(&key);
        self.touched += 1;
        true
    }

    fn count_length(&mut self, range: &NetworkCidr, more: bool) {
        let family = if range.cidr.addr().is_ipv4() { Family::V4 } else { Family::V6 };
        let length = (family, range.cidr.prefix_len());
        let count = self.mesh.cidr_lengths.get(&length).copied().unwrap_or(0);
        match if more { count + 1 } else { count.saturating_sub(1) } {
            0 => {
                self.mesh.cidr_lengths.remove_mut(&length);
            }
            count => self.mesh.cidr_lengths.insert_mut(length, count),
        }
    }
}

fn hostname_of(workload: &Workload) -> NamespacedHostname {
    NamespacedHostname::new(workload.namespace.clone(), workload.hostname.clone())
}

/// Under which key of the scoped policies it is found; a selector's policy is found by its name only.
fn scope_of(policy: &Policy) -> Option<Option<Str>> {
    match policy.scope {
        Scope::Global => Some(None),
        Scope::Namespace => Some(Some(policy.namespace.clone())),
        Scope::WorkloadSelector => None,
    }
}
