//! A workload: a pod, a virtual machine or an external endpoint.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::{Deserialize, Serialize, Serializer};

use super::address::{GatewayAddress, NamespacedHostname, NetworkAddress};
use super::service::Ports;
use crate::base::{Result, Str};
use crate::identity::SpiffeId;

/// One workload, with the names that the configuration dump and the local file use.
///
/// Written out, `services` is the list of its services; read in, it is the map from service to ports.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Workload {
    /// Identifies it in the whole mesh.
    #[serde(default = "empty", skip_serializing_if = "is_empty")]
    pub uid: Str,
    /// Its addresses within `network`.
    pub workload_ips: Vec<IpAddr>,
    /// Resolved when there are no addresses.
    #[serde(default = "empty", skip_serializing_if = "is_empty")]
    pub hostname: Str,
    /// The network of its addresses; other networks reach it through `network_gateway`.
    #[serde(default = "empty", skip_serializing_if = "is_empty")]
    pub network: Str,
    /// How it is reached.
    #[serde(default)]
    pub protocol: Protocol,
    /// Whether its addresses are its own.
    #[serde(default)]
    pub network_mode: NetworkMode,
    /// Mandatory hop for traffic to its addresses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waypoint: Option<GatewayAddress>,
    /// The way to it from other networks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network_gateway: Option<GatewayAddress>,
    /// Pod name.
    #[serde(default = "empty")]
    pub name: Str,
    /// Part of its identity.
    pub namespace: Str,
    /// Part of its identity.
    #[serde(default = "cluster_local", skip_serializing_if = "is_empty")]
    pub trust_domain: Str,
    /// Part of its identity.
    #[serde(default = "default_name", skip_serializing_if = "is_empty")]
    pub service_account: Str,
    /// The node it runs on.
    #[serde(default = "empty", skip_serializing_if = "is_empty")]
    pub node: Str,
    /// Name of its controller, for telemetry.
    #[serde(default = "empty", skip_serializing_if = "is_empty")]
    pub workload_name: Str,
    /// Kind of its controller in lower case, for telemetry.
    #[serde(default = "empty", skip_serializing_if = "is_empty")]
    pub workload_type: Str,
    /// Name of its application, for telemetry.
    #[serde(default = "empty", skip_serializing_if = "is_empty")]
    pub canonical_name: Str,
    /// Version of its application, for telemetry.
    #[serde(default = "empty", skip_serializing_if = "is_empty")]
    pub canonical_revision: Str,
    /// It speaks HBONE by itself, no node proxy serves it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub native_tunnel: bool,
    /// How the last hop inside the pod is spoken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub application_tunnel: Option<ApplicationTunnel>,
    /// Policies attached by selector: keys `namespace/name`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub authorization_policies: Vec<Str>,
    /// Whether it takes traffic as an endpoint.
    #[serde(default)]
    pub status: Health,
    /// Cluster it belongs to.
    #[serde(default = "kubernetes")]
    pub cluster_id: Str,
    /// Where it is.
    #[serde(default, skip_serializing_if = "Locality::is_empty")]
    pub locality: Locality,
    /// Services it is an endpoint of, with the ports it names itself.
    #[serde(serialize_with = "keys", skip_serializing_if = "BTreeMap::is_empty")]
    pub services: BTreeMap<NamespacedHostname, Ports>,
    /// Load-balancing weight; 0 is never chosen.
    #[serde(default = "one")]
    pub capacity: u32,
}

impl Workload {
    /// A workload with the defaults that absent fields have, and no address.
    pub fn new(uid: impl Into<Str>, name: impl Into<Str>, namespace: impl Into<Str>) -> Self {
        Self {
            uid: uid.into(),
            workload_ips: Vec::new(),
            hostname: empty(),
            network: empty(),
            protocol: Protocol::default(),
            network_mode: NetworkMode::default(),
            waypoint: None,
            network_gateway: None,
            name: name.into(),
            namespace: namespace.into(),
            trust_domain: cluster_local(),
            service_account: default_name(),
            node: empty(),
            workload_name: empty(),
            workload_type: empty(),
            canonical_name: empty(),
            canonical_revision: empty(),
            native_tunnel: false,
            application_tunnel: None,
            authorization_policies: Vec::new(),
            status: Health::default(),
            cluster_id: kubernetes(),
            locality: Locality::default(),
            services: BTreeMap::new(),
            capacity: 1,
        }
    }

    /// Its SPIFFE id.
    ///
    /// # Errors
    /// `BAD_SPIFFE_ID` if what the control plane says of it makes none.
    pub fn identity(&self) -> Result<SpiffeId> {
        SpiffeId::new(&self.trust_domain, &self.namespace, &self.service_account)
    }

    /// Its SPIFFE id without `spiffe://`.
    pub fn principal(&self) -> String {
        format!("{}/ns/{}/sa/{}", self.trust_domain, self.namespace, self.service_account)
    }

    /// Its addresses by which it can be found: none if they are its node's.
    pub fn own_addresses(&self) -> impl Iterator<Item = NetworkAddress> + '_ {
        let own = self.network_mode == NetworkMode::Standard;
        self.workload_ips.iter().filter(move |_| own).map(|ip| NetworkAddress::new(self.network.clone(), *ip))
    }

    /// Whether both have the same identity.
    pub fn same_identity(&self, other: &Workload) -> bool {
        self.trust_domain == other.trust_domain && self.namespace == other.namespace && self.service_account == other.service_account
    }
}

/// How a workload is reached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Protocol {
    /// As it is.
    #[default]
    TCP,
    /// Through a tunnel.
    HBONE,
}

/// Whose addresses a workload has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum NetworkMode {
    /// Its own.
    #[default]
    Standard,
    /// Its node's, so it is never found by address.
    HostNetwork,
}

/// Whether an endpoint takes traffic.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Health {
    /// It does.
    #[default]
    Healthy,
    /// Only for services that want unhealthy endpoints too.
    Unhealthy,
}

/// How the last hop inside the pod is spoken.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ApplicationTunnel {
    /// What is spoken.
    pub protocol: ApplicationProtocol,
    /// Where, if not on the port that was asked for.
    #[serde(default)]
    pub port: Option<u16>,
}

/// What an application tunnel speaks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum ApplicationProtocol {
    /// Nothing in front of the payload.
    #[default]
    NONE,
    /// A PROXY protocol version 2 header in front of the payload.
    PROXY,
}

/// Where a workload is; an empty part is a place like any other.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Locality {
    /// Region.
    #[serde(default = "empty")]
    pub region: Str,
    /// Zone within the region.
    #[serde(default = "empty")]
    pub zone: Str,
    /// Part of the zone.
    #[serde(default = "empty")]
    pub subzone: Str,
}

impl Locality {
    /// Whether nothing is known.
    pub fn is_empty(&self) -> bool {
        is_empty(&self.region) && is_empty(&self.zone) && is_empty(&self.subzone)
    }
}

impl Default for Locality {
    fn default() -> Self {
        Self { region: empty(), zone: empty(), subzone: empty() }
    }
}

/// What the node agent knows about a pod, by which its workload is found.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LocalWorkload {
    /// Pod name.
    pub name: Str,
    /// Namespace.
    pub namespace: Str,
    /// Service account.
    pub service_account: Str,
}

/// `account.namespace (name)`
impl std::fmt::Display for LocalWorkload {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{} ({})", self.service_account, self.namespace, self.name)
    }
}

fn keys<S: Serializer>(services: &BTreeMap<NamespacedHostname, Ports>, serializer: S) -> std::result::Result<S::Ok, S::Error> {
    serializer.collect_seq(services.keys())
}

fn empty() -> Str {
    Str::from("")
}

fn is_empty(text: &Str) -> bool {
    text.is_empty()
}

fn cluster_local() -> Str {
    Str::from("cluster.local")
}

fn default_name() -> Str {
    Str::from("default")
}

fn kubernetes() -> Str {
    Str::from("Kubernetes")
}

fn one() -> u32 {
    1
}
