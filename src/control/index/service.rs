//! Services.

use super::NETWORK;
use crate::base::addr::ip_to_bytes;
use crate::control::objects::{Distribution, Families, Pod, Port, Service, Target};
use crate::wire::workload::load_balancing::{HealthPolicy, Mode, Scope};
use crate::wire::workload::{IpFamilies, LoadBalancing, NetworkAddress, Port as WirePort, Service as WireService};

/// The resource of a service. `inherited`: what its namespace says.
pub(super) fn service(service: &Service, inherited: Option<Distribution>, is_canonical: bool) -> WireService {
    WireService {
        name: service.id.name.to_string(),
        namespace: service.id.namespace.to_string(),
        hostname: service.hostname.to_string(),
        addresses: service
            .vips
            .iter()
            .map(|ip| NetworkAddress { network: NETWORK.to_owned(), address: ip_to_bytes(*ip), length: None })
            .collect(),
        ports: service.ports.iter().map(port).collect(),
        load_balancing: load_balancing(service, inherited),
        ip_families: match service.families {
            Families::Automatic => IpFamilies::Automatic,
            Families::V4 => IpFamilies::Ipv4Only,
            Families::V6 => IpFamilies::Ipv6Only,
            Families::Dual => IpFamilies::Dual,
        }
        .into(),
        canonical: is_canonical,
        ..WireService::default()
    }
}

/// The service's ports at a pod. A port that the pod does not name is not there.
pub(super) fn ports_at(service: &Service, pod: &Pod) -> Vec<WirePort> {
    let target = |port: &Port| match &port.target {
        Target::Number(number) => Some(*number),
        Target::Name(name) => pod.ports.iter().find(|(known, _)| known == name).map(|(_, number)| *number),
    };
    let at_pod =
        |port: &Port| Some(WirePort { service_port: u32::from(port.port), target_port: u32::from(target(port)?), ..WirePort::default() });
    service.ports.iter().filter_map(at_pod).collect()
}

/// A target that is a name differs from pod to pod and is left out here.
fn port(port: &Port) -> WirePort {
    WirePort {
        service_port: u32::from(port.port),
        target_port: match port.target {
            Target::Number(number) => u32::from(number),
            Target::Name(_) => 0,
        },
        app_protocol: port.protocol.into(),
    }
}

fn load_balancing(service: &Service, inherited: Option<Distribution>) -> Option<LoadBalancing> {
    let (mode, preferred): (Mode, &[Scope]) = match service.distribution.or(inherited) {
        _ if service.local => (Mode::Strict, &[Scope::Node]),
        Some(Distribution::SameZone) => (Mode::Failover, &[Scope::Network, Scope::Region, Scope::Zone]),
        Some(Distribution::SameNode) => (Mode::Failover, &[Scope::Network, Scope::Region, Scope::Zone, Scope::Subzone, Scope::Node]),
        Some(Distribution::Any) | None => (Mode::UnspecifiedMode, &[]),
    };
    let health = if service.publish_not_ready { HealthPolicy::AllowAll } else { HealthPolicy::OnlyHealthy };
    let is_default = mode == Mode::UnspecifiedMode && health == HealthPolicy::OnlyHealthy;
    (!is_default).then(|| LoadBalancing {
        routing_preference: preferred.iter().map(|scope| i32::from(*scope)).collect(),
        mode: mode.into(),
        health_policy: health.into(),
    })
}
