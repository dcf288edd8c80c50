//! A service: a name with virtual addresses in front of workloads.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::address::{GatewayAddress, NamespacedHostname, NetworkAddress, NetworkCidr};
use super::workload::{Health, Workload};
use crate::base::Str;

/// Service port to target port. Target 0 in a service: each endpoint names its own.
pub type Ports = BTreeMap<u16, u16>;

/// One service, with the names that the configuration dump and the local file use. Its endpoints are the mesh's to know.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Service {
    /// Short name, for telemetry.
    pub name: Str,
    /// Namespace, part of its key.
    pub namespace: Str,
    /// Host name, part of its key; may be a wildcard.
    pub hostname: Str,
    /// Virtual addresses; none for a headless service.
    pub vips: Vec<NetworkAddress>,
    /// Virtual address ranges.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub cidr_vips: Vec<NetworkCidr>,
    /// Its ports.
    pub ports: Ports,
    /// SPIFFE ids accepted beside those of its endpoints.
    #[serde(default)]
    pub subject_alt_names: Vec<Str>,
    /// Mandatory hop for traffic to the service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waypoint: Option<GatewayAddress>,
    /// If not empty: one of these is drawn for each connection instead of `waypoint`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub weighted_waypoints: Vec<WeightedWaypoint>,
    /// How an endpoint is chosen; absent: any healthy one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub load_balancer: Option<LoadBalancer>,
    /// Which addresses of its endpoints may be used; absent: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ip_families: Option<IpFamilies>,
    /// Wins among services that share a name or an address.
    #[serde(default)]
    pub canonical: bool,
    /// Who can see it.
    #[serde(default)]
    pub visibility: Visibility,
}

impl Service {
    /// A service with the defaults that absent fields have, and no address or port.
    pub fn new(name: impl Into<Str>, namespace: impl Into<Str>, hostname: impl Into<Str>) -> Self {
        Self {
            name: name.into(),
            namespace: namespace.into(),
            hostname: hostname.into(),
            vips: Vec::new(),
            cidr_vips: Vec::new(),
            ports: Ports::new(),
            subject_alt_names: Vec::new(),
            waypoint: None,
            weighted_waypoints: Vec::new(),
            load_balancer: None,
            ip_families: None,
            canonical: false,
            visibility: Visibility::default(),
        }
    }

    /// What identifies it.
    pub fn key(&self) -> NamespacedHostname {
        NamespacedHostname::new(self.namespace.clone(), self.hostname.clone())
    }

    /// Whether a client of that namespace may find it; a lookup on nobody's behalf sees all.
    pub fn visible_to(&self, namespace: Option<&str>) -> bool {
        self.visibility == Visibility::Public || namespace.is_none_or(|namespace| *self.namespace == *namespace)
    }

    /// Whether connections to it go where the client dialled.
    pub fn is_passthrough(&self) -> bool {
        self.load_balancer.as_ref().is_some_and(|balancer| balancer.mode == LoadBalancerMode::Passthrough)
    }

    /// Whether endpoints of that health may be chosen.
    pub fn takes(&self, health: Health) -> bool {
        health == Health::Healthy || self.load_balancer.as_ref().is_some_and(|balancer| balancer.health_policy == HealthPolicy::AllowAll)
    }
}

/// One of several waypoints.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct WeightedWaypoint {
    /// Which.
    pub destination: GatewayAddress,
    /// Its share, relative to the sum of all.
    pub weight: u32,
}

/// How an endpoint is chosen.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LoadBalancer {
    /// Most important first.
    #[serde(default)]
    pub routing_preferences: Vec<RoutingPreference>,
    /// What the preferences mean.
    #[serde(default)]
    pub mode: LoadBalancerMode,
    /// Which endpoints count.
    #[serde(default)]
    pub health_policy: HealthPolicy,
}

/// What client and endpoint should have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the names say it")]
pub enum RoutingPreference {
    Region,
    Zone,
    Subzone,
    Node,
    Cluster,
    Network,
}

/// What routing preferences mean.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum LoadBalancerMode {
    /// Nothing: any endpoint.
    #[default]
    Standard,
    /// All must match.
    Strict,
    /// The endpoints that match best.
    Failover,
    /// No balancing: the address that the client dialled.
    Passthrough,
}

/// Which endpoints count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum HealthPolicy {
    /// Healthy ones.
    #[default]
    OnlyHealthy,
    /// All.
    AllowAll,
}

/// Which addresses of an endpoint may be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum IpFamilies {
    /// Only IPv4.
    #[serde(rename = "IPv4")]
    V4,
    /// Only IPv6.
    #[serde(rename = "IPv6")]
    V6,
    /// Both.
    Dual,
}

/// Who can see a service.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Visibility {
    /// Everybody.
    #[default]
    Public,
    /// Clients of its own namespace.
    Namespace,
}

/// A workload as an endpoint of one service.
///
/// It is a view, not a copy: an endpoint exists exactly as long as its workload says so, whether the service is known or not.
#[derive(Clone, Debug)]
pub struct Endpoint {
    /// The workload.
    pub workload: Arc<Workload>,
    pub(super) service: NamespacedHostname,
}

impl Endpoint {
    /// The ports that the workload names for this service.
    pub fn ports(&self) -> Option<&Ports> {
        self.workload.services.get(&self.service)
    }

    /// The workload's port for a service port, if it names one.
    pub fn port(&self, service_port: u16) -> Option<u16> {
        self.ports()?.get(&service_port).copied().filter(|port| *port != 0)
    }
}

impl Serialize for Endpoint {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        #[serde(rename_all = "camelCase")]
        struct View<'a> {
            workload_uid: &'a str,
            port: Option<&'a Ports>,
            status: Health,
        }
        View { workload_uid: &self.workload.uid, port: self.ports(), status: self.workload.status }.serialize(serializer)
    }
}
