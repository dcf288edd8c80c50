//! What telemetry says about the two ends of a connection.

use crate::base::Str;
use crate::identity::SpiffeId;
use crate::mesh::{Service, Workload};
use crate::telemetry::tcp::{Party, ServiceName};

/// A workload as a party. `principal` only if TLS proves it, or if it is the identity that TLS will be asked for.
pub(super) fn party(workload: Option<&Workload>, principal: Option<&SpiffeId>) -> Party {
    let some = |text: &Str| (!text.is_empty()).then(|| text.clone());
    let principal = principal.map(|id| Str::from(id.to_string()));
    match workload {
        None => Party { principal, ..Party::default() },
        Some(workload) => Party {
            pod: some(&workload.name),
            workload: some(&workload.workload_name),
            namespace: some(&workload.namespace),
            app: some(&workload.canonical_name),
            version: some(&workload.canonical_revision),
            cluster: some(&workload.cluster_id),
            principal,
        },
    }
}

/// A service by its names.
pub(super) fn service_name(service: &Service) -> ServiceName {
    ServiceName { hostname: service.hostname.clone(), name: service.name.clone(), namespace: service.namespace.clone() }
}
