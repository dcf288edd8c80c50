//! Services and their slices.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use super::place::{annotated_distribution, distribution, labels};
use super::{Refusal, Watched, api};
use crate::base::Str;
use crate::control::objects::{Endpoint, EndpointSlice, Families, Kind, Mesh, Object, Port, Service, Target};
use crate::wire::workload::AppProtocol;

/// The domain of services' names.
const DOMAIN: &str = "svc.cluster.local";

/// Names the service that a slice belongs to.
const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// Ports on which the server speaks first: they are TCP unless something else is said.
const SERVER_FIRST: [u16; 4] = [25, 53, 3306, 27017];

impl Watched for api::Service {
    const KIND: Kind = Kind::Service;

    fn read(&self, _mesh: &Mesh) -> Result<Option<Object>, Refusal> {
        let spec = &self.spec;
        if spec.r#type.as_deref() == Some("ExternalName") {
            // A name for something else: who looks it up gets the other's address.
            return Ok(None);
        }
        let id = self.id();
        let service = Service {
            hostname: format!("{}.{}.{DOMAIN}", id.name, id.namespace).into(),
            id,
            vips: self.vips()?,
            ports: ports(spec.ports.as_deref().unwrap_or_default()),
            selector: spec.selector.iter().flatten().collect(),
            families: families(spec.ip_families.as_deref().unwrap_or_default()),
            local: spec.internal_traffic_policy.as_deref() == Some("Local"),
            distribution: spec.traffic_distribution.as_deref().and_then(distribution).or_else(|| annotated_distribution(&self.metadata)),
            publish_not_ready: spec.publish_not_ready_addresses,
            age: 0,
        };
        Ok(Some(Object::Service(Arc::new(service))))
    }
}

impl api::Service {
    fn vips(&self) -> Result<Vec<IpAddr>, Refusal> {
        let mut texts: Vec<&str> = self.spec.cluster_ips.iter().flatten().map(String::as_str).collect();
        if texts.is_empty() {
            texts.extend(self.spec.cluster_ip.as_deref());
        }
        let texts = texts.into_iter().filter(|text| !text.is_empty() && *text != "None");
        texts.map(|text| text.parse().map_err(|_| format!("the address {text:?} is none").into())).collect()
    }
}

/// Proxies know a port by its number alone. What is not TCP must not take the place of what is; where both lead to the
/// same port, both are sent as they are.
fn ports(all: &[api::ServicePort]) -> Vec<Port> {
    let is_tcp = |port: &api::ServicePort| port.protocol.as_deref().is_none_or(|protocol| protocol == "TCP");
    let tcp: BTreeMap<u16, Target> = all.iter().filter(|port| is_tcp(port)).filter_map(port).map(|port| (port.port, port.target)).collect();
    let is_hidden = |port: &Port| tcp.get(&port.port).is_some_and(|target| *target != port.target);
    all.iter().filter_map(|spec| port(spec).filter(|port| is_tcp(spec) || !is_hidden(port))).collect()
}

/// `None`: its number or its target's is none of a port.
fn port(port: &api::ServicePort) -> Option<Port> {
    let number = port.port?;
    Some(Port {
        name: port.name.as_deref().unwrap_or_default().into(),
        port: number,
        target: match &port.target_port {
            None | Some(api::TargetPort::Number(0)) => Target::Number(number),
            Some(api::TargetPort::Number(target)) => Target::Number(u16::try_from(*target).ok()?),
            Some(api::TargetPort::Name(name)) => Target::Name(name.as_str().into()),
        },
        protocol: protocol(port, number),
    })
}

/// What is said to be spoken, by `appProtocol` or by the port's name up to its first `-`.
fn protocol(port: &api::ServicePort, number: u16) -> AppProtocol {
    if port.protocol.as_deref() == Some("UDP") {
        return AppProtocol::Unknown;
    }
    let said = match port.app_protocol.as_deref() {
        Some("kubernetes.io/h2c") => return AppProtocol::Http2,
        Some("kubernetes.io/ws") => return AppProtocol::Http11,
        Some("kubernetes.io/wss") => return AppProtocol::Tls,
        Some(said) => said,
        None => port.name.as_deref().unwrap_or_default(),
    };
    let said = said.to_ascii_lowercase();
    if said.starts_with("grpc-web") {
        return AppProtocol::Unknown;
    }
    match said.split('-').next().unwrap_or_default() {
        "http" => AppProtocol::Http11,
        "http2" => AppProtocol::Http2,
        "grpc" => AppProtocol::Grpc,
        "tcp" => AppProtocol::Tcp,
        "tls" | "https" => AppProtocol::Tls,
        "udp" | "mongo" | "redis" | "mysql" | "hbone" | "http_proxy" => AppProtocol::Unknown,
        _ if SERVER_FIRST.contains(&number) => AppProtocol::Tcp,
        _ => AppProtocol::Unknown,
    }
}

fn families(names: &[String]) -> Families {
    match names {
        [one] if one == "IPv4" => Families::V4,
        [one] if one == "IPv6" => Families::V6,
        [_, _] => Families::Dual,
        _ => Families::Automatic,
    }
}

impl Watched for api::EndpointSlice {
    const KIND: Kind = Kind::EndpointSlice;

    fn read(&self, _mesh: &Mesh) -> Result<Option<Object>, Refusal> {
        let labels = labels(&self.metadata);
        let Some(service) = labels.get(SERVICE_NAME) else { return Ok(None) };
        if self.address_type == "FQDN" {
            return Ok(None);
        }
        let id = self.id();
        let mut endpoints = Vec::new();
        for endpoint in self.endpoints.iter().flatten() {
            match endpoint.target_ref.as_ref().filter(|target| target.kind.as_deref() == Some("Pod")) {
                Some(target) if target.namespace.as_deref().unwrap_or(&id.namespace) == &*id.namespace => {
                    let text = |text: &Option<String>| Str::from(text.as_deref().unwrap_or_default());
                    endpoints.push(Endpoint::Pod { name: text(&target.name), uid: text(&target.uid) });
                }
                // A service has no pods of other namespaces.
                Some(_) => {}
                None => {
                    let ready = endpoint.conditions.ready != Some(false);
                    for text in endpoint.addresses.iter().flatten() {
                        let ip = text.parse().map_err(|_| format!("the address {text:?} is none"))?;
                        endpoints.push(Endpoint::Address { ip, ready });
                    }
                }
            }
        }
        let is_tcp = |port: &&api::EndpointPort| port.protocol.as_deref().is_none_or(|protocol| protocol == "TCP");
        let ports = self.ports.iter().flatten().filter(is_tcp);
        let ports = ports.filter_map(|port| Some((port.name.as_deref().unwrap_or_default().into(), port.port?))).collect();
        Ok(Some(Object::EndpointSlice(Arc::new(EndpointSlice { id, service: service.clone(), ports, endpoints }))))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_number_that_tcp_and_udp_share_leads_where_tcp_leads() {
        let of = |ports: &serde_json::Value| -> Vec<(u16, Target)> {
            let read: Vec<api::ServicePort> = serde_json::from_value(ports.clone()).unwrap();
            super::ports(&read).into_iter().map(|port| (port.port, port.target)).collect()
        };
        let port = |protocol: &str, target: serde_json::Value| json!({"port": 443, "protocol": protocol, "targetPort": target});
        let (tcp, udp) = (port("TCP", json!(8443)), port("UDP", json!(8444)));
        let expected = [(443, Target::Number(8443))];
        assert_eq!(of(&json!([tcp, udp])), expected);
        assert_eq!(of(&json!([udp, tcp])), expected);
        assert_eq!(of(&json!([{"port": 443, "targetPort": 8443}, udp])), expected, "what says nothing is TCP");
        assert_eq!(of(&json!([tcp, port("UDP", json!("quic"))])), expected);
        assert_eq!(of(&json!([udp])), [(443, Target::Number(8444))], "alone it stays");
        assert_eq!(of(&json!([port("UDP", json!(8443)), tcp])).len(), 2, "the same port is sent twice, as istiod does");
    }
}
