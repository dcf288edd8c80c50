//! One response: what is good in it goes into the mesh as one publication, what is not is named.

use std::collections::BTreeMap;

use crate::base::Str;
use crate::mesh::{Edit, MeshStore, Policy};
use crate::wire::discovery::{DeltaDiscoveryResponse, Resource};
use crate::wire::{ADDRESS_TYPE, AUTHORIZATION_TYPE};
use crate::xds::convert::{self, Converted, RefusedPolicy};

/// The kinds of resources, in the order in which they are asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Workloads and services.
    Address,
    /// Policies.
    Authorization,
}

impl Kind {
    pub(super) const ALL: [Kind; 2] = [Kind::Address, Kind::Authorization];

    pub(super) fn type_url(self) -> &'static str {
        match self {
            Kind::Address => ADDRESS_TYPE,
            Kind::Authorization => AUTHORIZATION_TYPE,
        }
    }

    pub(super) fn of(type_url: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.type_url() == type_url)
    }
}

/// Names and versions of what is held, for the next stream.
///
/// A resource that was rejected is held with an empty version: the control plane sends it again, and says so if it is gone.
#[derive(Debug, Default)]
pub(super) struct Held {
    addresses: BTreeMap<String, String>,
    authorizations: BTreeMap<String, String>,
}

impl Held {
    pub(super) fn of(&mut self, kind: Kind) -> &mut BTreeMap<String, String> {
        match kind {
            Kind::Address => &mut self.addresses,
            Kind::Authorization => &mut self.authorizations,
        }
    }

    /// Notes what a response did and returns what it rejected.
    pub(super) fn note(&mut self, kind: Kind, applied: Applied) -> Vec<Rejection> {
        let versions = self.of(kind);
        for (name, version) in applied.held {
            match version {
                Some(version) => versions.insert(name, version),
                None => versions.remove(&name),
            };
        }
        applied.rejections
    }
}

/// A resource that was rejected.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Rejection {
    pub(super) name: String,
    pub(super) reason: String,
}

/// What one resource is, before the mesh is touched.
enum Change {
    Address(Converted),
    Policy(Policy),
    Rejected(String),
    RejectedPolicy(RefusedPolicy),
}

/// What a response did.
#[derive(Debug, Default)]
pub(super) struct Applied {
    pub(super) rejections: Vec<Rejection>,
    /// Names in order, with the version that is held now, or none if it was removed.
    held: Vec<(String, Option<String>)>,
}

/// Converts a response and applies it: resources as listed, then removals.
pub(super) fn apply(store: &MeshStore, kind: Kind, response: DeltaDiscoveryResponse) -> Applied {
    let changes: Vec<(String, String, Change)> = response
        .resources
        .into_iter()
        .map(|resource| {
            let change = convert(kind, &resource);
            (resource.name, resource.version, change)
        })
        .collect();
    let mut applied = Applied::default();
    store.edit(|edit| {
        for (name, version, change) in changes {
            let reason = put(edit, &name, change);
            applied.held.push((name.clone(), Some(if reason.is_none() { version } else { String::new() })));
            applied.rejections.extend(reason.map(|reason| Rejection { name, reason }));
        }
        for name in response.removed_resources {
            match kind {
                Kind::Address => edit.remove_address(&name),
                Kind::Authorization => edit.remove_policy(&name),
            };
            applied.held.push((name, None));
        }
    });
    applied
}

fn convert(kind: Kind, resource: &Resource) -> Change {
    let Some(body) = &resource.resource else { return Change::Rejected("no body".to_owned()) };
    if body.type_url != kind.type_url() {
        return Change::Rejected(format!("its type is {:?}", body.type_url));
    }
    match kind {
        Kind::Address => convert::address(&resource.name, &body.value).map_or_else(Change::Rejected, Change::Address),
        Kind::Authorization => convert::policy(&resource.name, &body.value).map_or_else(Change::RejectedPolicy, Change::Policy),
    }
}

/// Puts a change into the mesh; the reason if it was rejected.
fn put(edit: &mut Edit, name: &str, change: Change) -> Option<String> {
    match change {
        Change::Address(Converted::Workload(workload)) => edit.upsert_workload(*workload),
        Change::Address(Converted::Service(service)) => edit.upsert_service(*service),
        Change::Policy(policy) => edit.upsert_policy(Str::from(name), policy),
        Change::Rejected(reason) => return Some(reason),
        Change::RejectedPolicy(refused) => {
            if let Some(unusable) = refused.unusable {
                edit.upsert_unusable_policy(Str::from(name), unusable);
            }
            return Some(refused.reason);
        }
    }
    None
}
