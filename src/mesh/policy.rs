//! An authorization policy, parsed: what could not be understood never becomes one of these.

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::base::Str;

/// One policy, with the names that the configuration dump and the local file use.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Policy {
    /// Name.
    pub name: Str,
    /// Namespace.
    pub namespace: Str,
    /// Which workloads it is for.
    pub scope: Scope,
    /// What it does with what it matches.
    pub action: Action,
    /// Rules (any), of clauses (all), of matches (any). No rules: matches nothing. No clauses or no matches: matches.
    pub rules: Vec<Vec<Vec<Match>>>,
    /// Evaluated and reported, not enforced.
    pub dry_run: bool,
}

impl Policy {
    /// `namespace/name`, by which workloads refer to it.
    pub fn key(&self) -> Str {
        Str::from(format!("{}/{}", self.namespace, self.name))
    }
}

/// A policy that arrived and could not be understood, with nothing older in force in its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnusablePolicy {
    /// Its namespace, as far as that could be read.
    pub namespace: Str,
    /// Its scope; [`Scope::WorkloadSelector`] if that is what could not be understood.
    pub scope: Scope,
    /// What is wrong with it.
    pub reason: String,
}

/// Which workloads a policy is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Scope {
    /// All.
    Global,
    /// Those of its namespace.
    Namespace,
    /// Those that name it.
    WorkloadSelector,
}

/// What a policy does with what it matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Action {
    /// Lets it through, and by being there refuses what no allow policy matches.
    Allow,
    /// Refuses it.
    Deny,
}

/// All fields that are set must match. Of a field's values any may match, of a `not_` field's values none may.
/// Without any field it matches nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
#[allow(missing_docs, reason = "each field is the one before it, negated")]
pub struct Match {
    /// Namespace of the peer's identity; empty without an identity.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub namespaces: Vec<StringMatch>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub not_namespaces: Vec<StringMatch>,
    /// The peer's identity without `spiffe://`; nothing matches a peer without identity.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub principals: Vec<StringMatch>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub not_principals: Vec<StringMatch>,
    /// Address of the peer.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub source_ips: Vec<IpNet>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub not_source_ips: Vec<IpNet>,
    /// Address that the peer asked for.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub destination_ips: Vec<IpNet>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub not_destination_ips: Vec<IpNet>,
    /// Port that the peer asked for.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub destination_ports: Vec<u16>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub not_destination_ports: Vec<u16>,
    /// Namespace and service account of the peer's identity, of any trust domain.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub service_accounts: Vec<ServiceAccountMatch>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub not_service_accounts: Vec<ServiceAccountMatch>,
}

impl Match {
    /// Whether no field is set.
    pub fn is_empty(&self) -> bool {
        *self == Match::default()
    }
}

/// What a text must be, case-sensitively.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum StringMatch {
    /// Equal.
    Exact(Str),
    /// Begin so.
    Prefix(Str),
    /// End so.
    Suffix(Str),
    /// Not empty.
    Presence(),
}

impl StringMatch {
    /// Whether the text is so.
    pub fn matches(&self, text: &str) -> bool {
        match self {
            StringMatch::Exact(value) => text == &**value,
            StringMatch::Prefix(value) => text.starts_with(&**value),
            StringMatch::Suffix(value) => text.ends_with(&**value),
            StringMatch::Presence() => !text.is_empty(),
        }
    }
}

/// A service account of a namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ServiceAccountMatch {
    /// Its namespace.
    pub namespace: Str,
    /// Its name.
    pub service_account: Str,
}
