//! AuthorizationPolicy: its L4 part as proxies enforce it, and what its status says about the rest.
//!
//! What cannot be enforced here makes a policy refuse more, never less: an ALLOW rule that asks for HTTP attributes is
//! dropped, a DENY rule is enforced without them.

mod rule;
mod spec;

use std::sync::Arc;

use serde::Deserialize;
use serde_json::Value;

use super::{Refusal, Watched, api};
use crate::control::objects::{AuthorizationPolicy, Kind, Mesh, Object, Scope};
use crate::wire::authorization::{self as wire, Action, Authorization};

use rule::Rules;
pub(crate) use rule::strings;
use spec::Spec;
pub(super) use spec::{Selector, readable_selector};

/// With the value `true` the policy is evaluated and logged, not enforced.
const DRY_RUN: &str = "istio.io/dry-run";

/// What a policy's status says about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Whether it is in force, as a whole or in part.
    pub accepted: bool,
    /// One word.
    pub reason: &'static str,
    /// For people.
    pub message: String,
}

impl Verdict {
    pub(super) fn attached() -> Self {
        Self { accepted: true, reason: "Accepted", message: "attached to ztunnel".to_owned() }
    }

    pub(super) fn invalid(message: String) -> Self {
        Self { accepted: false, reason: "Invalid", message }
    }

    /// It is not in force, and nothing about it is wrong.
    fn without_effect(message: &str) -> Self {
        Self { accepted: false, reason: "NoEffect", message: message.to_owned() }
    }

    fn unsupported(accepted: bool, message: String) -> Self {
        Self { accepted, reason: "UnsupportedValue", message }
    }
}

impl Watched for api::AuthorizationPolicy {
    const KIND: Kind = Kind::AuthorizationPolicy;
    const IS_CUSTOM: bool = true;

    fn read(&self, mesh: &Mesh) -> Result<Option<Object>, Refusal> {
        match self.convert(mesh) {
            Ok((policy, _)) => Ok(policy.map(|policy| Object::AuthorizationPolicy(Arc::new(policy)))),
            Err(reason) => Err(Refusal { reason, instead: self.refusal(mesh) }),
        }
    }

    fn verdict(&self, mesh: &Mesh) -> Option<Verdict> {
        match self.convert(mesh) {
            Ok((_, verdict)) => verdict,
            Err(reason) => Some(Verdict::invalid(format!(
                "{reason}. Until it is corrected, its last correct version or else a refusal of everything is in force."
            ))),
        }
    }

    fn status(&self) -> Option<&Value> {
        Some(&self.status)
    }
}

impl api::AuthorizationPolicy {
    /// `None` as the policy: proxies of nodes have nothing to do with it. `None` as the verdict: others judge it.
    fn convert(&self, mesh: &Mesh) -> Result<(Option<AuthorizationPolicy>, Option<Verdict>), String> {
        if self.is_for_waypoints() {
            let verdict =
                Verdict::without_effect("targetRefs are for waypoints: no waypoint has accepted the policy, so nothing enforces it");
            return Ok((None, (!self.is_judged_by_waypoints()).then_some(verdict)));
        }
        let spec = match &self.spec {
            Value::Null => Spec::default(),
            spec => Spec::deserialize(spec).map_err(|error| error.to_string())?,
        };
        let action = match spec.action.as_deref() {
            None | Some("ALLOW") => Action::Allow,
            Some("DENY") => Action::Deny,
            Some(action @ ("AUDIT" | "CUSTOM")) => {
                return Ok((None, Some(Verdict::unsupported(false, format!("ztunnel does not support the {action} action")))));
            }
            Some(action) => return Err(format!("the action {action:?} is not known")),
        };
        let id = self.id();
        let mut rules = Rules::new(action, &id.namespace);
        for (index, rule) in spec.rules.iter().flatten().enumerate() {
            rules.add(rule).map_err(|reason| format!("rule {}: {reason}", index + 1))?;
        }
        let selects_none = spec.selector.as_ref().is_some_and(|selector| selector.labels().is_empty());
        let verdict = match rules.http.is_empty() {
            _ if selects_none => Verdict::without_effect("the selector has no labels and selects no pod; leave it out to select all pods"),
            true => Verdict::attached(),
            false => Verdict::unsupported(true, http_message(action, &rules.http)),
        };
        let scope = scope(spec.selector.as_ref(), *id.namespace == *mesh.root_namespace);
        let message = Authorization {
            name: id.name.to_string(),
            namespace: id.namespace.to_string(),
            scope: wire_scope(&scope).into(),
            action: action.into(),
            rules: rules.done,
            dry_run: self.is_dry_run(),
            ..Authorization::default()
        };
        Ok((Some(AuthorizationPolicy { id, scope, message, is_stand_in: false }), Some(verdict)))
    }

    /// A policy that refuses everything wherever this one may have wanted to refuse something. What cannot be read of its
    /// scope makes the scope wider, never narrower.
    fn refusal(&self, mesh: &Mesh) -> Option<Object> {
        if self.is_dry_run() {
            return None;
        }
        let id = self.id();
        let scope = scope(readable_selector(&self.spec).as_ref(), *id.namespace == *mesh.root_namespace);
        let message = Authorization {
            name: id.name.to_string(),
            namespace: id.namespace.to_string(),
            scope: wire_scope(&scope).into(),
            action: Action::Deny.into(),
            rules: vec![wire::Rule::default()],
            ..Authorization::default()
        };
        Some(Object::AuthorizationPolicy(Arc::new(AuthorizationPolicy { id, scope, message, is_stand_in: true })))
    }

    fn is_for_waypoints(&self) -> bool {
        let has = |field: &str| match self.spec.get(field) {
            None | Some(Value::Null) => false,
            Some(Value::Array(targets)) => !targets.is_empty(),
            Some(_) => true,
        };
        has("targetRef") || has("targetRefs")
    }

    fn is_judged_by_waypoints(&self) -> bool {
        let conditions = self.status.get("conditions").and_then(Value::as_array);
        conditions.into_iter().flatten().any(|condition| condition["type"] == "WaypointAccepted")
    }

    fn is_dry_run(&self) -> bool {
        let value = self.metadata.annotations.as_ref().and_then(|annotations| annotations.get(DRY_RUN));
        value.is_some_and(|value| matches!(value.as_str(), "1" | "t" | "T" | "true" | "TRUE" | "True"))
    }
}

fn scope(selector: Option<&Selector>, is_root: bool) -> Scope {
    match (selector, is_root) {
        (Some(selector), _) => Scope::Pods { labels: selector.labels(), everywhere: is_root },
        (None, true) => Scope::Global,
        (None, false) => Scope::Namespace,
    }
}

fn wire_scope(scope: &Scope) -> wire::Scope {
    match scope {
        Scope::Global => wire::Scope::Global,
        Scope::Namespace => wire::Scope::Namespace,
        Scope::Pods { .. } => wire::Scope::WorkloadSelector,
    }
}

fn http_message(action: Action, found: &[String]) -> String {
    let consequence = match action {
        Action::Allow => "Within an ALLOW policy, rules matching HTTP attributes are omitted.",
        Action::Deny => "DENY policy with HTTP attributes is enforced without the HTTP rules.",
    };
    format!(
        "ztunnel does not support HTTP attributes (found: {}). In ambient mode you must use a waypoint proxy to enforce HTTP rules. \
         {consequence} This will be more restrictive than requested.",
        found.join(", ")
    )
}
