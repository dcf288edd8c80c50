//! What is known of the mesh: workloads, services and policies as one immutable snapshot, its lookups, and load balancing.
//!
//! [`Mesh`] is plain data without sockets or clock; [`MeshStore`] publishes one snapshot after the other.

mod address;
mod edit;
mod index;
mod lookup;
mod policy;
pub mod resolve;
mod service;
mod snapshot;
mod store;
mod workload;

#[cfg(test)]
pub(crate) mod fixture;
#[cfg(test)]
mod tests;

pub use address::{GatewayAddress, GatewayDestination, NamespacedHostname, NetworkAddress, NetworkCidr};
pub use edit::Edit;
pub use lookup::Owner;
pub use policy::{Action, Match, Policy, Scope, ServiceAccountMatch, StringMatch, UnusablePolicy};
pub use resolve::{Resolution, Upstream, resolve_upstream};
pub use service::{
    Endpoint, HealthPolicy, IpFamilies, LoadBalancer, LoadBalancerMode, Ports, RoutingPreference, Service, Visibility, WeightedWaypoint,
};
pub use snapshot::{Dump, Mesh};
pub use store::MeshStore;
pub use workload::{ApplicationProtocol, ApplicationTunnel, Health, LocalWorkload, Locality, NetworkMode, Protocol, Workload};
