//! Policies.

use std::collections::BTreeMap;

use super::{Id, Labels, Pod};
use crate::wire::authorization::Authorization;

/// Who may connect, as far as addresses and identities tell.
#[derive(Clone, Debug, PartialEq)]
pub struct AuthorizationPolicy {
    /// Namespace and name.
    pub id: Id,
    /// Which pods it is for.
    pub scope: Scope,
    /// What proxies are sent.
    pub message: Authorization,
    /// It refuses everything in the place of one that could not be understood.
    pub is_stand_in: bool,
}

impl AuthorizationPolicy {
    /// Whether a pod's workload has to name it. Proxies find policies of whole namespaces by themselves.
    pub fn attaches_to(&self, pod: &Pod) -> bool {
        match &self.scope {
            Scope::Global | Scope::Namespace => false,
            // A selector without labels selects nothing, as elsewhere.
            Scope::Pods { labels, everywhere } => {
                (*everywhere || pod.id.namespace == self.id.namespace) && !labels.is_empty() && pod.labels.has_all(labels)
            }
        }
    }
}

/// Which pods a policy is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scope {
    /// All.
    Global,
    /// Those of its namespace.
    Namespace,
    /// Those with these labels.
    Pods {
        /// None: no pod.
        labels: Labels,
        /// In all namespaces.
        everywhere: bool,
    },
}

/// Whether pods accept connections that show no identity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerAuthentication {
    /// Namespace and name.
    pub id: Id,
    /// Seconds since 1970. Of several for the same pods the oldest counts.
    pub created: i64,
    /// Pods of its namespace with these labels; empty: its namespace, and in the root namespace the mesh.
    pub selector: Labels,
    /// For all ports that are not named.
    pub mode: Mode,
    /// By port of the pod; for policies with a selector.
    pub ports: BTreeMap<u16, Mode>,
    /// It takes the place of one that could not be understood.
    pub is_stand_in: bool,
}

/// What one says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// What is said one level up.
    #[default]
    Unset,
    /// They do. To disable mutual TLS means the same: there is nothing to switch off.
    Permissive,
    /// They do not.
    Strict,
}
