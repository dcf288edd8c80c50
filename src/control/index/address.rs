//! Pods and services → Address resources.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::policy;
use crate::base::Str;
use crate::base::addr::ip_to_bytes;
use crate::config::meshfile::{MeshFile, Pod, Service};
use crate::wire::workload::address::Type;
use crate::wire::workload::{
    Address, IpFamilies, NetworkAddress, Port, PortList, Service as WireService, TunnelProtocol, Workload, WorkloadStatus, WorkloadType,
};

/// The name of the only cluster; proxies send it in their `clusterid` header.
pub(super) const CLUSTER: &str = "Kubernetes";

/// The only network has no name.
const NETWORK: &str = "";

/// Left out on the wire when it is this: what proxies put there, whatever a mesh file without one may mean.
const DEFAULT_TRUST_DOMAIN: &str = "cluster.local";

/// What an address is looked up by.
pub(super) fn alias(ip: IpAddr) -> Str {
    format!("{NETWORK}/{ip}").into()
}

/// The workload of a pod.
pub(super) fn workload(mesh: &MeshFile, pod: &Pod) -> Workload {
    let label = |keys: &[&str]| keys.iter().find_map(|key| pod.labels.get(*key)).cloned();
    let workload_name = label(&["service.istio.io/workload-name"]).unwrap_or_else(|| pod.name.clone());
    let trust_domain = mesh.trust_domain();
    Workload {
        uid: format!("{CLUSTER}//Pod/{}/{}", pod.namespace, pod.name),
        name: pod.name.clone(),
        namespace: pod.namespace.clone(),
        addresses: pod.ips.iter().map(|ip| ip_to_bytes(*ip)).collect(),
        network: NETWORK.to_owned(),
        tunnel_protocol: match pod.ambient {
            true => TunnelProtocol::Hbone,
            false => TunnelProtocol::None,
        }
        .into(),
        trust_domain: if trust_domain == DEFAULT_TRUST_DOMAIN { String::new() } else { trust_domain.to_owned() },
        service_account: pod.service_account.clone(),
        node: pod.node.clone(),
        canonical_name: label(&["service.istio.io/canonical-name", "app.kubernetes.io/name", "app"])
            .unwrap_or_else(|| workload_name.clone()),
        canonical_revision: label(&["service.istio.io/canonical-revision", "app.kubernetes.io/version", "version"])
            .unwrap_or_else(|| "latest".to_owned()),
        workload_type: WorkloadType::Pod.into(),
        workload_name,
        services: services_of(mesh, pod),
        authorization_policies: policy::attached(mesh, pod),
        status: match pod.ready {
            true => WorkloadStatus::Healthy,
            false => WorkloadStatus::Unhealthy,
        }
        .into(),
        cluster_id: CLUSTER.to_owned(),
        ..Workload::default()
    }
}

/// Services whose selector fits; not-ready pods are members too, their status says so.
fn services_of(mesh: &MeshFile, pod: &Pod) -> BTreeMap<String, PortList> {
    let selected =
        |service: &&Service| service.namespace == pod.namespace && !service.selector.is_empty() && matches(&service.selector, pod);
    mesh.services.iter().filter(selected).map(|service| (service_name(service), PortList { ports: ports(service) })).collect()
}

/// Whether the pod has all these labels.
pub(super) fn matches(selector: &BTreeMap<String, String>, pod: &Pod) -> bool {
    selector.iter().all(|(key, value)| pod.labels.get(key) == Some(value))
}

/// `namespace/hostname`.
pub(super) fn service_name(service: &Service) -> String {
    format!("{}/{}", service.namespace, service.effective_hostname())
}

/// The resource of a service.
pub(super) fn service(service: &Service, canonical: bool) -> Address {
    let message = WireService {
        name: service.name.clone(),
        namespace: service.namespace.clone(),
        hostname: service.effective_hostname(),
        addresses: service
            .vips
            .iter()
            .map(|ip| NetworkAddress { network: NETWORK.to_owned(), address: ip_to_bytes(*ip), length: None })
            .collect(),
        ports: ports(service),
        ip_families: families(&service.vips).into(),
        canonical,
        ..WireService::default()
    };
    Address { r#type: Some(Type::Service(message)) }
}

/// The resource of a workload.
pub(super) fn of_workload(workload: Workload) -> Address {
    Address { r#type: Some(Type::Workload(workload)) }
}

fn ports(service: &Service) -> Vec<Port> {
    let port = |(service_port, target_port): (&u16, &u16)| Port {
        service_port: u32::from(*service_port),
        target_port: u32::from(*target_port),
        ..Port::default()
    };
    service.ports.iter().map(port).collect()
}

fn families(vips: &[IpAddr]) -> IpFamilies {
    match (vips.iter().any(IpAddr::is_ipv4), vips.iter().any(IpAddr::is_ipv6)) {
        (false, false) => IpFamilies::Automatic,
        (true, false) => IpFamilies::Ipv4Only,
        (false, true) => IpFamilies::Ipv6Only,
        (true, true) => IpFamilies::Dual,
    }
}
