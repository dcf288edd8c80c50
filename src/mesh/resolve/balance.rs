//! Which endpoint of a service takes a connection.

use std::net::SocketAddr;
use std::sync::Arc;

use rand::{Rng, RngCore};

use super::{Upstream, best_ip};
use crate::base::{Error, Result, code};
use crate::mesh::service::{Endpoint, LoadBalancerMode, RoutingPreference, Service};
use crate::mesh::snapshot::Mesh;
use crate::mesh::workload::Workload;

/// What the connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// The client's bytes: the service must have the port.
    Traffic,
    /// A tunnel to a waypoint: a workload that takes tunnels itself needs no port in the service.
    Waypoint,
}

struct Candidate {
    endpoint: Endpoint,
    port: u16,
}

/// Chooses by health, port, preferences, then chance weighted by capacity.
pub(super) fn choose(
    mesh: &Mesh,
    source: &Workload,
    service: &Arc<Service>,
    destination: SocketAddr,
    purpose: Purpose,
    rng: &mut dyn RngCore,
) -> Result<Upstream> {
    let port = destination.port();
    let key = service.key();
    if purpose == Purpose::Traffic && !service.ports.contains_key(&port) {
        return Err(Error::new(&code::NO_HEALTHY_UPSTREAM, format!("service {key} has no port {port}")));
    }
    let mut known = 0;
    let candidates: Vec<Candidate> = mesh
        .endpoints(&key)
        .inspect(|_| known += 1)
        .filter(|endpoint| service.takes(endpoint.workload.status) && has_place(&endpoint.workload, source, service, destination))
        .filter_map(|endpoint| Some(Candidate { port: target_port(service, &endpoint, port, purpose)?, endpoint }))
        .collect();
    let usable = candidates.len();
    let chosen = draw(prefer(candidates, source, service), rng).ok_or_else(|| {
        let detail =
            format!("service {key} port {port}: of {known} endpoints {usable} are usable, none of them preferred and with a weight");
        Error::new(&code::NO_HEALTHY_UPSTREAM, detail)
    })?;
    Upstream::reach(source, chosen.endpoint.workload, Some(service.clone()), chosen.port, destination.ip())
}

/// Whether there is anywhere to send to: an address that the service allows, a name, or a gateway of its network.
fn has_place(workload: &Workload, source: &Workload, service: &Service, destination: SocketAddr) -> bool {
    if workload.network != source.network && workload.network_gateway.is_some() {
        return true;
    }
    if workload.workload_ips.is_empty() {
        !workload.hostname.is_empty()
    } else {
        best_ip(workload, service.ip_families, destination.ip()).is_some()
    }
}

fn target_port(service: &Service, endpoint: &Endpoint, port: u16, purpose: Purpose) -> Option<u16> {
    let own_tunnel = || {
        let tunnel = endpoint.workload.application_tunnel.as_ref();
        (purpose == Purpose::Waypoint && tunnel.is_some_and(|tunnel| tunnel.port.is_some())).then_some(port)
    };
    // 0 means that the endpoints name the port.
    let common = || service.ports.get(&port).copied().filter(|target| *target != 0);
    endpoint.port(port).or_else(common).or_else(own_tunnel)
}

fn prefer(candidates: Vec<Candidate>, source: &Workload, service: &Service) -> Vec<Candidate> {
    let Some(balancer) = &service.load_balancer else { return candidates };
    let strict = match balancer.mode {
        LoadBalancerMode::Strict => true,
        LoadBalancerMode::Failover => false,
        LoadBalancerMode::Standard | LoadBalancerMode::Passthrough => return candidates,
    };
    let preferences = &balancer.routing_preferences;
    let mut ranked: Vec<(usize, Candidate)> = candidates
        .into_iter()
        .map(|candidate| (rank(preferences, source, &candidate.endpoint.workload), candidate))
        .filter(|(rank, _)| !strict || rank.matches == preferences.len())
        .map(|(rank, candidate)| (rank.order, candidate))
        .collect();
    let best = ranked.iter().map(|(rank, _)| *rank).max().unwrap_or(0);
    ranked.retain(|(rank, _)| *rank == best);
    ranked.into_iter().map(|(_, candidate)| candidate).collect()
}

struct Rank {
    matches: usize,
    order: usize,
}

/// Counts preferences that match, from the first up to the first mismatch.
///
/// NETWORK in the first place is special: any endpoint of the client's network comes before any other, and locality still
/// orders the endpoints on either side.
fn rank(preferences: &[RoutingPreference], source: &Workload, workload: &Workload) -> Rank {
    let mut matches = 0;
    let mut bonus = 0;
    for (place, preference) in preferences.iter().enumerate() {
        let network_first = place == 0 && *preference == RoutingPreference::Network;
        if same(*preference, source, workload) {
            matches += 1;
            if network_first {
                bonus = preferences.len() - 1;
            }
        } else if !network_first {
            break;
        }
    }
    Rank { matches, order: matches + bonus }
}

fn same(preference: RoutingPreference, a: &Workload, b: &Workload) -> bool {
    match preference {
        RoutingPreference::Region => a.locality.region == b.locality.region,
        RoutingPreference::Zone => a.locality.zone == b.locality.zone,
        RoutingPreference::Subzone => a.locality.subzone == b.locality.subzone,
        RoutingPreference::Node => a.node == b.node,
        RoutingPreference::Cluster => a.cluster_id == b.cluster_id,
        RoutingPreference::Network => a.network == b.network,
    }
}

fn draw(candidates: Vec<Candidate>, rng: &mut dyn RngCore) -> Option<Candidate> {
    let weight = |candidate: &Candidate| u64::from(candidate.endpoint.workload.capacity);
    let total: u64 = candidates.iter().map(weight).sum();
    if total == 0 {
        return None;
    }
    let mut left = rng.random_range(0..total);
    candidates.into_iter().find(|candidate| match left.checked_sub(weight(candidate)) {
        Some(rest) => {
            left = rest;
            false
        }
        None => true,
    })
}
