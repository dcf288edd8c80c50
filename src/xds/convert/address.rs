//! Workloads and services.

use std::collections::BTreeMap;

use ipnet::IpNet;
use prost::Message;

use super::{Refusal, ip, known, port};
use crate::base::Str;
use crate::mesh::{
    ApplicationProtocol, ApplicationTunnel, GatewayAddress, GatewayDestination, Health, HealthPolicy, IpFamilies, LoadBalancer,
    LoadBalancerMode, Locality, NamespacedHostname, NetworkAddress, NetworkCidr, NetworkMode, Ports, Protocol, RoutingPreference, Service,
    Visibility, WeightedWaypoint, Workload,
};
use crate::wire::workload as wire;

/// What an address resource is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Converted {
    /// A workload.
    Workload(Box<Workload>),
    /// A service.
    Service(Box<Service>),
}

/// Decodes an address resource of that name.
///
/// # Errors
/// The reason why it is refused; also if its name is not its own, because it could never be removed again.
pub fn address(name: &str, bytes: &[u8]) -> Result<Converted, Refusal> {
    let message = wire::Address::decode(bytes).map_err(|error| format!("not an Address: {error}"))?;
    let (converted, own_name) = match message.r#type {
        Some(wire::address::Type::Workload(message)) => {
            let workload = workload(message)?;
            let uid = workload.uid.to_string();
            (Converted::Workload(Box::new(workload)), uid)
        }
        Some(wire::address::Type::Service(message)) => {
            let service = service(message)?;
            let key = service.key().to_string();
            (Converted::Service(Box::new(service)), key)
        }
        None => return Err("neither a workload nor a service".to_owned()),
    };
    if own_name == name { Ok(converted) } else { Err(format!("the resource calls itself {own_name:?}")) }
}

fn workload(message: wire::Workload) -> Result<Workload, Refusal> {
    if message.uid.is_empty() {
        return Err("uid: empty".to_owned());
    }
    let or = |text: String, default: &str| if text.is_empty() { Str::from(default) } else { Str::from(text) };
    let workload_type = match known::<wire::WorkloadType>("workload_type", message.workload_type) {
        Ok(kind) => kind.as_str_name().to_ascii_lowercase(),
        // A label of telemetry is no reason to lose the workload.
        Err(_) => "deployment".to_owned(),
    };
    let services: Result<BTreeMap<_, _>, Refusal> = message.services.into_iter().map(|(key, list)| service_ports(&key, list)).collect();
    Ok(Workload {
        workload_ips: message.addresses.iter().map(|bytes| ip("addresses", bytes)).collect::<Result<_, _>>()?,
        hostname: message.hostname.into(),
        network: message.network.into(),
        protocol: match known("tunnel_protocol", message.tunnel_protocol)? {
            wire::TunnelProtocol::None => Protocol::TCP,
            wire::TunnelProtocol::Hbone => Protocol::HBONE,
            wire::TunnelProtocol::LegacyIstioMtls => return Err("tunnel_protocol: LEGACY_ISTIO_MTLS is not supported".to_owned()),
        },
        network_mode: match known("network_mode", message.network_mode)? {
            wire::NetworkMode::Standard => NetworkMode::Standard,
            wire::NetworkMode::HostNetwork => NetworkMode::HostNetwork,
        },
        waypoint: message.waypoint.map(|gateway| self::gateway("waypoint", gateway)).transpose()?,
        network_gateway: message.network_gateway.map(|gateway| self::gateway("network_gateway", gateway)).transpose()?,
        name: message.name.into(),
        namespace: message.namespace.into(),
        trust_domain: or(message.trust_domain, "cluster.local"),
        service_account: or(message.service_account, "default"),
        node: message.node.into(),
        workload_name: message.workload_name.into(),
        workload_type: workload_type.into(),
        canonical_name: message.canonical_name.into(),
        canonical_revision: message.canonical_revision.into(),
        native_tunnel: message.native_tunnel,
        application_tunnel: message.application_tunnel.map(application_tunnel).transpose()?,
        authorization_policies: message.authorization_policies.into_iter().map(Str::from).collect(),
        status: match known("status", message.status)? {
            wire::WorkloadStatus::Healthy => Health::Healthy,
            wire::WorkloadStatus::Unhealthy => Health::Unhealthy,
        },
        cluster_id: or(message.cluster_id, "Kubernetes"),
        locality: message.locality.map(locality).unwrap_or_default(),
        services: services?,
        capacity: message.capacity.unwrap_or(1),
        uid: message.uid.into(),
    })
}

fn service(message: wire::Service) -> Result<Service, Refusal> {
    if message.hostname.is_empty() {
        return Err("hostname: empty".to_owned());
    }
    let mut vips = Vec::new();
    let mut cidr_vips = Vec::new();
    for address in message.addresses {
        let ip = ip("addresses", &address.address)?;
        let full = if ip.is_ipv4() { 32 } else { 128 };
        match address.length {
            Some(length) if length != full => {
                let cidr = u8::try_from(length).ok().and_then(|length| IpNet::new(ip, length).ok());
                let cidr = cidr.ok_or_else(|| format!("addresses: {ip} has no prefix of {length} bits"))?;
                cidr_vips.push(NetworkCidr::new(address.network, cidr));
            }
            _ => vips.push(NetworkAddress::new(address.network, ip)),
        }
    }
    let weighted = |waypoint: wire::WeightedWaypoint| -> Result<WeightedWaypoint, Refusal> {
        let gateway = waypoint.destination.ok_or_else(|| "weighted_waypoints: no destination".to_owned())?;
        Ok(WeightedWaypoint { destination: self::gateway("weighted_waypoints", gateway)?, weight: waypoint.weight })
    };
    Ok(Service {
        name: message.name.into(),
        namespace: message.namespace.into(),
        hostname: message.hostname.into(),
        vips,
        cidr_vips,
        ports: ports("ports", message.ports)?,
        subject_alt_names: message.subject_alt_names.into_iter().map(Str::from).collect(),
        waypoint: message.waypoint.map(|gateway| self::gateway("waypoint", gateway)).transpose()?,
        weighted_waypoints: message.weighted_waypoints.into_iter().map(weighted).collect::<Result<_, _>>()?,
        load_balancer: message.load_balancing.map(load_balancer).transpose()?,
        ip_families: match known("ip_families", message.ip_families)? {
            wire::IpFamilies::Automatic => None,
            wire::IpFamilies::Ipv4Only => Some(IpFamilies::V4),
            wire::IpFamilies::Ipv6Only => Some(IpFamilies::V6),
            wire::IpFamilies::Dual => Some(IpFamilies::Dual),
        },
        canonical: message.canonical,
        visibility: match known("visibility", message.visibility)? {
            wire::service::Visibility::Public => Visibility::Public,
            wire::service::Visibility::Namespace => Visibility::Namespace,
        },
    })
}

fn service_ports(key: &str, list: wire::PortList) -> Result<(NamespacedHostname, Ports), Refusal> {
    let name = key.parse().map_err(|error| format!("services: {error}"))?;
    Ok((name, ports("services", list.ports)?))
}

/// A port number may come twice, for UDP and for TCP: the last one counts.
fn ports(of: &str, list: Vec<wire::Port>) -> Result<Ports, Refusal> {
    list.into_iter().map(|entry| Ok((port(of, entry.service_port)?, port(of, entry.target_port)?))).collect()
}

fn gateway(of: &str, message: wire::GatewayAddress) -> Result<GatewayAddress, Refusal> {
    let destination = match message.destination {
        None => return Err(format!("{of}: no destination")),
        Some(wire::gateway_address::Destination::Hostname(name)) => {
            GatewayDestination::Hostname(NamespacedHostname::new(name.namespace, name.hostname))
        }
        Some(wire::gateway_address::Destination::Address(address)) => {
            GatewayDestination::Address(NetworkAddress::new(address.network, ip(of, &address.address)?))
        }
    };
    Ok(GatewayAddress { destination, hbone_mtls_port: port(of, message.hbone_mtls_port)? })
}

fn application_tunnel(message: wire::ApplicationTunnel) -> Result<ApplicationTunnel, Refusal> {
    let protocol = match known("application_tunnel", message.protocol)? {
        wire::application_tunnel::Protocol::None => ApplicationProtocol::NONE,
        wire::application_tunnel::Protocol::Proxy => ApplicationProtocol::PROXY,
    };
    let port = port("application_tunnel", message.port)?;
    Ok(ApplicationTunnel { protocol, port: (port != 0).then_some(port) })
}

fn locality(message: wire::Locality) -> Locality {
    Locality { region: message.region.into(), zone: message.zone.into(), subzone: message.subzone.into() }
}

fn load_balancer(message: wire::LoadBalancing) -> Result<LoadBalancer, Refusal> {
    use wire::load_balancing::{HealthPolicy as WireHealth, Mode, Scope};
    let preference = |value: i32| match known("routing_preference", value)? {
        Scope::UnspecifiedScope => Err("routing_preference: unspecified".to_owned()),
        Scope::Region => Ok(RoutingPreference::Region),
        Scope::Zone => Ok(RoutingPreference::Zone),
        Scope::Subzone => Ok(RoutingPreference::Subzone),
        Scope::Node => Ok(RoutingPreference::Node),
        Scope::Cluster => Ok(RoutingPreference::Cluster),
        Scope::Network => Ok(RoutingPreference::Network),
    };
    Ok(LoadBalancer {
        routing_preferences: message.routing_preference.into_iter().map(preference).collect::<Result<_, Refusal>>()?,
        mode: match known("mode", message.mode)? {
            Mode::UnspecifiedMode => LoadBalancerMode::Standard,
            Mode::Strict => LoadBalancerMode::Strict,
            Mode::Failover => LoadBalancerMode::Failover,
            Mode::Passthrough => LoadBalancerMode::Passthrough,
        },
        health_policy: match known("health_policy", message.health_policy)? {
            WireHealth::OnlyHealthy => HealthPolicy::OnlyHealthy,
            WireHealth::AllowAll => HealthPolicy::AllowAll,
        },
    })
}
