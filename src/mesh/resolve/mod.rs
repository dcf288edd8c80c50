//! Where a connection goes: pure functions of one snapshot, the source workload, the destination and a source of chance.

mod balance;
mod waypoint;

#[cfg(test)]
mod tests;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use rand::RngCore;

use super::address::NetworkAddress;
use super::lookup::Owner;
use super::service::{IpFamilies, Service};
use super::snapshot::Mesh;
use super::workload::Workload;
use crate::base::{Error, Result, Str, code};
use crate::identity::SpiffeId;

pub use waypoint::waypoint_for;

/// The next hop of a connection, waypoints included.
#[derive(Clone, Debug)]
pub enum Route {
    /// As the client dialled, without a tunnel: nobody in the mesh owns the address, or its service asks for no balancing.
    Passthrough,
    /// To a workload, by its protocol.
    Direct(Upstream),
    /// Through a tunnel to a waypoint, which is told the address that the client dialled.
    Waypoint {
        /// The waypoint.
        waypoint: Upstream,
        /// Whose the address is that the client dialled.
        owner: Owner,
    },
}

/// Where a connection goes if no waypoint is in the way.
#[derive(Clone, Debug)]
pub enum Resolution {
    /// As the client dialled, without a tunnel: nobody in the mesh owns the address, or its service asks for no balancing.
    Passthrough,
    /// To a workload.
    Upstream(Upstream),
}

/// A workload that was chosen, and the address it is reached at.
#[derive(Clone, Debug)]
pub struct Upstream {
    /// The workload.
    pub workload: Arc<Workload>,
    /// The service that was dialled, if one was.
    pub service: Option<Arc<Service>>,
    /// Its address and target port. Through its tunnel this is the `:authority`; the tunnel itself is on the HBONE port of the same IP.
    pub addr: SocketAddr,
    /// SPIFFE ids accepted beside the workload's own.
    pub subject_alt_names: Vec<Str>,
}

/// The next hop of a connection of `source` to `destination`: resolves the owner of the address once, then its waypoint,
/// then the workload.
///
/// # Errors
/// `NO_HEALTHY_UPSTREAM`, `NO_ROUTE`, `UNKNOWN_WAYPOINT`; `UNSUPPORTED` for workloads of other networks and for those that
/// have only a host name.
pub fn route(mesh: &Mesh, source: &Workload, destination: SocketAddr, rng: &mut dyn RngCore) -> Result<Route> {
    let Some(owner) = owner(mesh, source, destination.ip()) else { return Ok(Route::Passthrough) };
    if let Some(waypoint) = waypoint_for(mesh, source, &owner, destination, rng)? {
        return Ok(Route::Waypoint { waypoint, owner });
    }
    Ok(match upstream_of(mesh, source, owner, destination, rng)? {
        Resolution::Passthrough => Route::Passthrough,
        Resolution::Upstream(upstream) => Route::Direct(upstream),
    })
}

/// Where a connection of `source` to `destination` goes, waypoints left aside; [`route`] takes them into account.
///
/// # Errors
/// As [`route`].
pub fn resolve_upstream(mesh: &Mesh, source: &Workload, destination: SocketAddr, rng: &mut dyn RngCore) -> Result<Resolution> {
    match owner(mesh, source, destination.ip()) {
        Some(owner) => upstream_of(mesh, source, owner, destination, rng),
        None => Ok(Resolution::Passthrough),
    }
}

fn owner(mesh: &Mesh, source: &Workload, ip: IpAddr) -> Option<Owner> {
    mesh.owner(&NetworkAddress::new(source.network.clone(), ip), Some(&source.namespace))
}

fn upstream_of(mesh: &Mesh, source: &Workload, owner: Owner, destination: SocketAddr, rng: &mut dyn RngCore) -> Result<Resolution> {
    match owner {
        Owner::Service(service) if service.is_passthrough() => Ok(Resolution::Passthrough),
        Owner::Service(service) => {
            let upstream = balance::choose(mesh, source, &service, destination, balance::Purpose::Traffic, rng)?;
            Ok(Resolution::Upstream(upstream))
        }
        Owner::Workload(workload) => {
            Ok(Resolution::Upstream(Upstream::reach(source, workload, None, destination.port(), destination.ip())?))
        }
    }
}

impl Upstream {
    /// Who may answer: the workload itself, and the identities that its service accepts beside it.
    ///
    /// # Errors
    /// `BAD_SPIFFE_ID` if the workload has no usable identity. A name of the service that is none is left out: it could
    /// not match anybody.
    pub fn identities(&self) -> Result<Vec<SpiffeId>> {
        let mut identities = vec![self.workload.identity()?];
        for name in &self.subject_alt_names {
            match name.parse::<SpiffeId>() {
                Ok(identity) if identities.contains(&identity) => {}
                Ok(identity) => identities.push(identity),
                Err(error) => tracing::debug!(workload = %self.workload.uid, %error, "a name of the service is no identity"),
            }
        }
        Ok(identities)
    }

    /// A workload at the best of its addresses for a client that dialled `dialled`.
    fn reach(source: &Workload, workload: Arc<Workload>, service: Option<Arc<Service>>, port: u16, dialled: IpAddr) -> Result<Self> {
        let uid = &workload.uid;
        if workload.network != source.network {
            return Err(match &workload.network_gateway {
                Some(gateway) => Error::new(
                    &code::UNSUPPORTED,
                    format!("{uid} is on network {:?} behind gateway {gateway}: gateways between networks", workload.network),
                ),
                None => Error::new(&code::NO_ROUTE, format!("{uid} is on network {:?}, which has no gateway", workload.network)),
            });
        }
        let families = service.as_ref().and_then(|service| service.ip_families);
        let Some(ip) = best_ip(&workload, families, dialled) else {
            return Err(if workload.workload_ips.is_empty() && !workload.hostname.is_empty() {
                Error::new(&code::UNSUPPORTED, format!("{uid} has only the host name {}: resolving it", workload.hostname))
            } else {
                Error::new(&code::NO_ROUTE, format!("{uid} has no address that can be used"))
            });
        };
        let subject_alt_names = service.as_ref().map(|service| service.subject_alt_names.clone()).unwrap_or_default();
        Ok(Self { workload, service, addr: SocketAddr::new(ip, port), subject_alt_names })
    }
}

/// What the client dialled if it is the workload's; else one that the service allows, of the dialled family if there is one.
fn best_ip(workload: &Workload, families: Option<IpFamilies>, dialled: IpAddr) -> Option<IpAddr> {
    if workload.workload_ips.contains(&dialled) {
        return Some(dialled);
    }
    let allowed = |ip: &&IpAddr| match families {
        Some(IpFamilies::V4) => ip.is_ipv4(),
        Some(IpFamilies::V6) => ip.is_ipv6(),
        Some(IpFamilies::Dual) | None => true,
    };
    let same_family = workload.workload_ips.iter().filter(allowed).find(|ip| ip.is_ipv4() == dialled.is_ipv4());
    same_family.or_else(|| workload.workload_ips.iter().find(allowed)).copied()
}
