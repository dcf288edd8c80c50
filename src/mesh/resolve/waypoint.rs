//! The waypoint that traffic to a service or to a workload must pass.

use std::net::SocketAddr;

use rand::{Rng, RngCore};

use super::{Upstream, balance};
use crate::base::{Error, Result, code};
use crate::mesh::address::{GatewayAddress, GatewayDestination};
use crate::mesh::lookup::Owner;
use crate::mesh::service::Service;
use crate::mesh::snapshot::Mesh;
use crate::mesh::workload::Workload;

/// The waypoint between `source` and the owner of what it dialled, with the port that takes the tunnel.
///
/// There is none if the owner has none, or if `source` is itself a workload of that waypoint: it is behind the policy that
/// the waypoint stands for, and sending it to itself would go round in circles.
///
/// # Errors
/// `UNKNOWN_WAYPOINT` if the named one is not known; as [`super::route`] if it is known and cannot be reached.
pub fn waypoint_for(
    mesh: &Mesh,
    source: &Workload,
    owner: &Owner,
    destination: SocketAddr,
    rng: &mut dyn RngCore,
) -> Result<Option<Upstream>> {
    let gateway = match owner {
        Owner::Service(service) => of_service(service, rng),
        Owner::Workload(workload) => workload.waypoint.as_ref(),
    };
    match gateway {
        Some(gateway) => resolve(mesh, source, gateway, destination, rng),
        None => Ok(None),
    }
}

/// One of the weighted waypoints by its share, or the single one if these carry no weight.
fn of_service<'a>(service: &'a Service, rng: &mut dyn RngCore) -> Option<&'a GatewayAddress> {
    let total: u64 = service.weighted_waypoints.iter().map(|waypoint| u64::from(waypoint.weight)).sum();
    if total == 0 {
        return service.waypoint.as_ref();
    }
    let mut left = rng.random_range(0..total);
    let drawn = service.weighted_waypoints.iter().find(|waypoint| match left.checked_sub(u64::from(waypoint.weight)) {
        Some(rest) => {
            left = rest;
            false
        }
        None => true,
    });
    drawn.map(|waypoint| &waypoint.destination)
}

fn resolve(
    mesh: &Mesh,
    source: &Workload,
    gateway: &GatewayAddress,
    destination: SocketAddr,
    rng: &mut dyn RngCore,
) -> Result<Option<Upstream>> {
    // A waypoint is named by the control plane, so visibility does not count.
    let (owner, dialled) = match &gateway.destination {
        GatewayDestination::Address(address) => (mesh.owner(address, None), address.ip),
        GatewayDestination::Hostname(name) => (mesh.owner_of_name(name), destination.ip()),
    };
    let port = gateway.hbone_mtls_port;
    match owner {
        None => Err(Error::new(&code::UNKNOWN_WAYPOINT, format!("unknown waypoint: {gateway}"))),
        Some(Owner::Workload(workload)) if workload.uid == source.uid => Ok(None),
        Some(Owner::Workload(workload)) => Upstream::reach(source, workload, None, port, dialled).map(Some),
        Some(Owner::Service(service)) => {
            if mesh.endpoints(&service.key()).any(|endpoint| endpoint.workload.uid == source.uid) {
                return Ok(None);
            }
            let dialled = SocketAddr::new(dialled, port);
            balance::choose(mesh, source, &service, dialled, balance::Purpose::Waypoint, rng).map(Some)
        }
    }
}
