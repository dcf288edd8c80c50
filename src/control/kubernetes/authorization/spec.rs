//! The policy as it is written. A field that is not known is an error: it could narrow what the rest says.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::Value;

use crate::control::objects::Labels;

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct Spec {
    pub(super) selector: Option<Selector>,
    pub(super) action: Option<String>,
    pub(super) rules: Option<Vec<Rule>>,
    // Of actions that are not enforced here.
    #[allow(dead_code, reason = "may be there")]
    provider: Option<IgnoredAny>,
    // Looked at before.
    #[allow(dead_code, reason = "may be there, empty")]
    target_ref: Option<IgnoredAny>,
    #[allow(dead_code, reason = "may be there, empty")]
    target_refs: Option<IgnoredAny>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(in super::super) struct Selector {
    match_labels: Option<BTreeMap<String, String>>,
}

impl Selector {
    pub(in super::super) fn labels(&self) -> Labels {
        self.match_labels.iter().flatten().collect()
    }
}

/// The selector of a policy that is wrong elsewhere; `None` when it has none, or none that can be read.
pub(in super::super) fn readable_selector(spec: &Value) -> Option<Selector> {
    Selector::deserialize(spec.get("selector")?).ok().filter(|selector| !selector.labels().is_empty())
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Rule {
    pub(super) from: Option<Vec<From>>,
    pub(super) to: Option<Vec<To>>,
    pub(super) when: Option<Vec<Condition>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct From {
    pub(super) source: Source,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct To {
    pub(super) operation: Operation,
}

type Values = Option<Vec<String>>;

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct Source {
    pub(super) principals: Values,
    pub(super) not_principals: Values,
    pub(super) namespaces: Values,
    pub(super) not_namespaces: Values,
    pub(super) ip_blocks: Values,
    pub(super) not_ip_blocks: Values,
    pub(super) service_accounts: Values,
    pub(super) not_service_accounts: Values,
    pub(super) request_principals: Values,
    pub(super) not_request_principals: Values,
    pub(super) remote_ip_blocks: Values,
    pub(super) not_remote_ip_blocks: Values,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct Operation {
    pub(super) ports: Values,
    pub(super) not_ports: Values,
    pub(super) hosts: Values,
    pub(super) not_hosts: Values,
    pub(super) methods: Values,
    pub(super) not_methods: Values,
    pub(super) paths: Values,
    pub(super) not_paths: Values,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Condition {
    pub(super) key: String,
    #[serde(default)]
    pub(super) values: Values,
    #[serde(default)]
    pub(super) not_values: Values,
}
