//! `mesh.yaml`: pods, services and policies of a mesh without Kubernetes, read by `control` and by `agent`.

mod check;
mod loaded;
mod parse;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::base::{Error, Result, code};

pub use loaded::{Kind, Loaded, load, parse};

/// The whole file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct MeshFile {
    /// Default `cluster.local`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trust_domain: Option<String>,
    /// Names are unique within a namespace.
    #[serde(default)]
    pub pods: Vec<Pod>,
    /// Names are unique within a namespace.
    #[serde(default)]
    pub services: Vec<Service>,
    /// Names are unique within a namespace.
    #[serde(default)]
    pub policies: Vec<Policy>,
}

impl MeshFile {
    /// The file's text: what [`parse`] reads back as an equal value.
    ///
    /// # Errors
    /// A value that YAML cannot carry.
    pub fn to_yaml(&self) -> Result<String> {
        serde_saphyr::to_string(self).map_err(|error| Error::caused(&code::INTERNAL, "mesh file to YAML", error))
    }

    /// The trust domain, with its default.
    pub fn trust_domain(&self) -> &str {
        self.trust_domain.as_deref().unwrap_or(DEFAULT_TRUST_DOMAIN)
    }
}

/// The trust domain of a file that names none.
pub const DEFAULT_TRUST_DOMAIN: &str = "cluster.local";

/// One pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Pod {
    /// Name, unique in the namespace.
    pub name: String,
    /// Default `default`.
    #[serde(default = "default_name")]
    pub namespace: String,
    /// Default `default`.
    #[serde(default = "default_name")]
    pub service_account: String,
    /// Default: made of namespace and name. Kubernetes gives pods a UID; a new one means another pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<String>,
    /// The node it runs on.
    pub node: String,
    /// Its addresses.
    pub ips: Vec<IpAddr>,
    /// Path of its network namespace on its node; needed where `ambient` is true.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub netns: Option<PathBuf>,
    /// Whether it is in the mesh.
    #[serde(default)]
    pub ambient: bool,
    /// Matched by the selectors of services and policies.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Default true.
    #[serde(default = "yes")]
    pub ready: bool,
}

impl Pod {
    /// The given uid, or the one made of namespace and name: stable for as long as the pod is named so.
    pub fn effective_uid(&self) -> String {
        self.uid.clone().unwrap_or_else(|| format!("{}.{}", self.namespace, self.name))
    }
}

/// One service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Service {
    /// Name, unique in the namespace.
    pub name: String,
    /// Default `default`.
    #[serde(default = "default_name")]
    pub namespace: String,
    /// Default `name.namespace.svc.cluster.local`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    /// Virtual addresses.
    #[serde(default)]
    pub vips: Vec<IpAddr>,
    /// Service port to target port.
    pub ports: BTreeMap<u16, u16>,
    /// Pods of the same namespace with all these labels are its endpoints; empty selects none.
    #[serde(default)]
    pub selector: BTreeMap<String, String>,
}

impl Service {
    /// The given host name, or `name.namespace.svc.cluster.local`.
    pub fn effective_hostname(&self) -> String {
        self.hostname.clone().unwrap_or_else(|| format!("{}.{}.svc.cluster.local", self.name, self.namespace))
    }
}

/// One L4 authorization policy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Policy {
    /// Name, unique in the namespace.
    pub name: String,
    /// The namespace whose pods it protects.
    #[serde(default = "default_name")]
    pub namespace: String,
    /// Protects only pods with all these labels; empty: all pods of the namespace.
    #[serde(default)]
    pub selector: BTreeMap<String, String>,
    /// Applies to all namespaces; cannot be combined with a selector.
    #[serde(default)]
    pub global: bool,
    /// Allow or Deny.
    pub action: Action,
    /// Evaluated and logged, not enforced.
    #[serde(default)]
    pub dry_run: bool,
    /// Any rule may match; within a rule all fields that are given must.
    #[serde(default)]
    pub rules: Vec<Rule>,
}

/// What a policy does to a connection that matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Action {
    /// Lets it through, and by being there refuses what no allow policy matches.
    Allow,
    /// Refuses it.
    Deny,
}

/// One rule. A value `*` matches anything present, `a*` a prefix, `*a` a suffix.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Rule {
    /// Identities without `spiffe://`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub principals: Vec<String>,
    /// None of these identities.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub not_principals: Vec<String>,
    /// Namespaces of the client's identity.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub namespaces: Vec<String>,
    /// None of these namespaces.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub not_namespaces: Vec<String>,
    /// Client addresses.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub source_ips: Vec<IpNet>,
    /// None of these client addresses.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub not_source_ips: Vec<IpNet>,
    /// Ports of the pod.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<u16>,
    /// None of these ports.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub not_ports: Vec<u16>,
}

fn default_name() -> String {
    "default".to_owned()
}

fn yes() -> bool {
    true
}
