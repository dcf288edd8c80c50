//! Small meshes for tests.

use std::net::SocketAddr;

use super::{Mesh, MeshStore, NamespacedHostname, NetworkAddress, Ports, Protocol, Service, Workload};
use crate::base::Str;

/// A pod with HBONE and one or more addresses separated by commas.
pub(crate) fn pod(namespace: &str, name: &str, ips: &str) -> Workload {
    let mut workload = Workload::new(format!("Kubernetes//Pod/{namespace}/{name}"), name, namespace);
    workload.workload_ips = ips.split(',').filter(|ip| !ip.is_empty()).map(|ip| ip.parse().expect("an IP")).collect();
    workload.protocol = Protocol::HBONE;
    workload.service_account = Str::from(name);
    workload.node = Str::from("node1");
    workload
}

/// `pod` as an endpoint of a service that leaves the ports to the service.
pub(crate) fn endpoint(mut workload: Workload, service: &str) -> Workload {
    workload.services.insert(service.parse().expect("namespace/hostname"), Ports::new());
    workload
}

/// A canonical service with virtual addresses of the empty network, separated by commas.
pub(crate) fn service(key: &str, vips: &str, ports: &[(u16, u16)]) -> Service {
    let key: NamespacedHostname = key.parse().expect("namespace/hostname");
    let name = key.hostname.split('.').next().expect("a first label").to_owned();
    let mut service = Service::new(name, key.namespace, key.hostname);
    service.vips = vips.split(',').filter(|ip| !ip.is_empty()).map(|ip| NetworkAddress::new("", ip.parse().expect("an IP"))).collect();
    service.ports = ports.iter().copied().collect();
    service.canonical = true;
    service
}

/// A snapshot with these.
pub(crate) fn mesh(workloads: impl IntoIterator<Item = Workload>, services: impl IntoIterator<Item = Service>) -> Mesh {
    let store = MeshStore::new(None);
    store.edit(|edit| {
        workloads.into_iter().for_each(|workload| edit.upsert_workload(workload));
        services.into_iter().for_each(|service| edit.upsert_service(service));
    });
    Mesh::clone(&store.snapshot())
}

/// `ip` of the empty network.
pub(crate) fn at(ip: &str) -> NetworkAddress {
    NetworkAddress::new("", ip.parse().expect("an IP"))
}

/// `ip:port`.
pub(crate) fn addr(text: &str) -> SocketAddr {
    text.parse().expect("ip:port")
}
