//! Pods, and other endpoints → workloads.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::service::ports_at;
use super::{CLUSTER, NETWORK};
use crate::base::Str;
use crate::base::addr::ip_to_bytes;
use crate::control::objects::{EndpointSlice, Id, Locality, Phase, Pod, Service, Tunnel};
use crate::wire::workload::{
    Locality as WireLocality, NetworkMode, Port, PortList, TunnelProtocol, Workload, WorkloadStatus, WorkloadType,
};

/// Left out on the wire when it is this: what proxies put there.
const DEFAULT_TRUST_DOMAIN: &str = "cluster.local";

/// What a pod's workload is called.
pub(super) fn name(pod: &Id) -> String {
    format!("{CLUSTER}//Pod/{}/{}", pod.namespace, pod.name)
}

/// What the workload of an endpoint is called.
pub(super) fn endpoint_name(slice: &Id, ip: IpAddr) -> String {
    format!("{CLUSTER}/discovery.k8s.io/EndpointSlice/{}/{}/{ip}", slice.namespace, slice.name)
}

/// Whether the pod is one to talk to.
pub(super) fn is_workload(pod: &Pod) -> bool {
    pod.phase == Phase::Live && !pod.ips.is_empty()
}

/// A pod's workload, as far as the pod and its place tell.
pub(super) fn of_pod(pod: &Pod, trust_domain: &str, locality: Option<&Locality>) -> Workload {
    let label = |keys: &[&str]| keys.iter().find_map(|key| pod.labels.get(key)).map(|value| value.to_string());
    Workload {
        uid: name(&pod.id),
        name: pod.id.name.to_string(),
        namespace: pod.id.namespace.to_string(),
        addresses: pod.ips.iter().map(|ip| ip_to_bytes(*ip)).collect(),
        network: NETWORK.to_owned(),
        tunnel_protocol: match pod.tunnel {
            Tunnel::None => TunnelProtocol::None,
            Tunnel::Hbone | Tunnel::Native => TunnelProtocol::Hbone,
        }
        .into(),
        native_tunnel: pod.tunnel == Tunnel::Native,
        trust_domain: named_trust_domain(trust_domain),
        service_account: pod.service_account.to_string(),
        node: pod.node.to_string(),
        canonical_name: label(&["service.istio.io/canonical-name", "app.kubernetes.io/name", "app"])
            .unwrap_or_else(|| pod.workload_name.to_string()),
        canonical_revision: label(&["service.istio.io/canonical-revision", "app.kubernetes.io/version", "version"])
            .unwrap_or_else(|| "latest".to_owned()),
        workload_type: WorkloadType::Pod.into(),
        workload_name: pod.workload_name.to_string(),
        status: status(pod.ready).into(),
        cluster_id: CLUSTER.to_owned(),
        locality: locality.filter(|locality| **locality != Locality::default()).map(|locality| WireLocality {
            region: locality.region.to_string(),
            zone: locality.zone.to_string(),
            subzone: locality.subzone.to_string(),
        }),
        network_mode: mode(pod.host_network).into(),
        ..Workload::default()
    }
}

/// The workload of an endpoint that is no pod. Its address may be that of something else too, as host addresses are.
pub(super) fn of_endpoint(slice: &EndpointSlice, ip: IpAddr, ready: bool, service: &Service, trust_domain: &str) -> Workload {
    let target = |name: &str| slice.ports.iter().find(|(known, _)| **known == *name).map(|(_, port)| u32::from(*port));
    let ports = service
        .ports
        .iter()
        .filter_map(|port| Some(Port { service_port: u32::from(port.port), target_port: target(&port.name)?, ..Port::default() }));
    Workload {
        uid: endpoint_name(&slice.id, ip),
        name: slice.id.name.to_string(),
        namespace: slice.id.namespace.to_string(),
        addresses: vec![ip_to_bytes(ip)],
        network: NETWORK.to_owned(),
        trust_domain: named_trust_domain(trust_domain),
        services: BTreeMap::from([(service.resource_name().to_string(), PortList { ports: ports.collect() })]),
        status: status(ready).into(),
        cluster_id: CLUSTER.to_owned(),
        network_mode: mode(true).into(),
        ..Workload::default()
    }
}

/// The services of a pod with its ports.
pub(super) fn services<'a>(pod: &Pod, services: impl Iterator<Item = &'a Service>) -> BTreeMap<String, PortList> {
    services.map(|service| (service.resource_name().to_string(), PortList { ports: ports_at(service, pod) })).collect()
}

/// What an address is looked up by.
pub(super) fn alias(ip: IpAddr) -> Str {
    format!("{NETWORK}/{ip}").into()
}

fn named_trust_domain(trust_domain: &str) -> String {
    if trust_domain == DEFAULT_TRUST_DOMAIN { String::new() } else { trust_domain.to_owned() }
}

fn status(ready: bool) -> WorkloadStatus {
    if ready { WorkloadStatus::Healthy } else { WorkloadStatus::Unhealthy }
}

fn mode(is_host: bool) -> NetworkMode {
    if is_host { NetworkMode::HostNetwork } else { NetworkMode::Standard }
}
