//! Services, and endpoints that are named one by one.

use std::net::IpAddr;

use super::{Id, Labels};
use crate::base::Str;
use crate::wire::workload::AppProtocol;

/// A service.
#[derive(Clone, Debug, PartialEq)]
pub struct Service {
    /// Namespace and name.
    pub id: Id,
    /// Its DNS name, unique in its namespace.
    pub hostname: Str,
    /// Its virtual addresses; none: headless.
    pub vips: Vec<IpAddr>,
    /// Its ports, in the order written.
    pub ports: Vec<Port>,
    /// Empty: selects nothing, endpoints come from slices.
    pub selector: Labels,
    /// The families of its addresses.
    pub families: Families,
    /// Only endpoints on the client's node.
    pub local: bool,
    /// Which endpoints are preferred; `None`: what its namespace says.
    pub distribution: Option<Distribution>,
    /// Endpoints that are not ready are used too.
    pub publish_not_ready: bool,
    /// Among services of one host name that with the lowest is the one meant.
    pub age: u64,
}

impl Service {
    /// `namespace/hostname`: the name of its resource.
    pub fn resource_name(&self) -> Str {
        format!("{}/{}", self.id.namespace, self.hostname).into()
    }
}

/// One port of a service.
#[derive(Clone, Debug, PartialEq)]
pub struct Port {
    /// May be empty.
    pub name: Str,
    /// Of the service.
    pub port: u16,
    /// Of the endpoint.
    pub target: Target,
    /// What is spoken there, as far as it was said.
    pub protocol: AppProtocol,
}

/// A port of an endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// That one.
    Number(u16),
    /// The one that the pod has given this name.
    Name(Str),
}

/// Address families of a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Families {
    /// Not said.
    Automatic,
    /// IPv4 alone.
    V4,
    /// IPv6 alone.
    V6,
    /// Both.
    Dual,
}

/// Which endpoints of a service are preferred.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Distribution {
    /// None before another.
    Any,
    /// Those in the client's zone.
    SameZone,
    /// Those on the client's node, then those in its zone.
    SameNode,
}

/// Some endpoints of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointSlice {
    /// Namespace and name.
    pub id: Id,
    /// The name of the service, in the same namespace.
    pub service: Str,
    /// Its TCP ports: the name of the service's port, and the number at the endpoints.
    pub ports: Vec<(Str, u16)>,
    /// Its endpoints.
    pub endpoints: Vec<Endpoint>,
}

/// One endpoint of a slice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// A pod of the same namespace.
    Pod {
        /// Its name.
        name: Str,
        /// Its UID.
        uid: Str,
    },
    /// Something else at an address.
    Address {
        /// Where.
        ip: IpAddr,
        /// Whether it is to be used.
        ready: bool,
    },
}
