//! The kinds that are watched, cut down to what is used: nothing else is kept in memory, or even read.

use std::borrow::Cow;
use std::net::IpAddr;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kube::core::NamespaceResourceScope;
use serde::{Deserialize, Deserializer};

use crate::agent::enrolment::Map;

/// A pod.
#[derive(Clone, Debug, Default, Deserialize)]
pub(super) struct Pod {
    #[serde(deserialize_with = "short")]
    pub(super) metadata: ObjectMeta,
    #[serde(default)]
    pub(super) spec: Spec,
    #[serde(default)]
    pub(super) status: Status,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Spec {
    pub(super) host_network: bool,
    pub(super) service_account_name: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Status {
    pub(super) phase: String,
    #[serde(rename = "podIP")]
    pub(super) pod_ip: Option<IpAddr>,
    #[serde(rename = "podIPs")]
    pub(super) pod_ips: Vec<PodIp>,
    pub(super) container_statuses: Vec<Container>,
    pub(super) init_container_statuses: Vec<Container>,
}

#[derive(Clone, Debug, Deserialize)]
pub(super) struct PodIp {
    pub(super) ip: IpAddr,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Container {
    pub(super) state: ContainerState,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct ContainerState {
    pub(super) running: Option<Running>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Running {
    pub(super) started_at: Option<Time>,
}

/// A namespace, or any other object of which only the metadata counts.
#[derive(Clone, Debug, Default, Deserialize)]
pub(super) struct Meta {
    #[serde(deserialize_with = "short")]
    pub(super) metadata: ObjectMeta,
}

/// Reads of the metadata what is used. The list of who manages which field is often longer than all the rest.
fn short<'de, D: Deserializer<'de>>(deserializer: D) -> Result<ObjectMeta, D::Error> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Short {
        name: Option<String>,
        namespace: Option<String>,
        uid: Option<String>,
        resource_version: Option<String>,
        deletion_timestamp: Option<Time>,
        labels: Option<Map>,
        annotations: Option<Map>,
    }
    let Short { name, namespace, uid, resource_version, deletion_timestamp, labels, annotations } = Short::deserialize(deserializer)?;
    Ok(ObjectMeta { name, namespace, uid, resource_version, deletion_timestamp, labels, annotations, ..ObjectMeta::default() })
}

impl kube::Resource for Pod {
    type DynamicType = ();
    type Scope = NamespaceResourceScope;

    fn kind((): &()) -> Cow<'_, str> {
        "Pod".into()
    }

    fn group((): &()) -> Cow<'_, str> {
        "".into()
    }

    fn version((): &()) -> Cow<'_, str> {
        "v1".into()
    }

    fn plural((): &()) -> Cow<'_, str> {
        "pods".into()
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

impl kube::Resource for Meta {
    type DynamicType = kube::core::ApiResource;
    type Scope = kube::core::DynamicResourceScope;

    fn kind(kind: &Self::DynamicType) -> Cow<'_, str> {
        kind.kind.as_str().into()
    }

    fn group(kind: &Self::DynamicType) -> Cow<'_, str> {
        kind.group.as_str().into()
    }

    fn version(kind: &Self::DynamicType) -> Cow<'_, str> {
        kind.version.as_str().into()
    }

    fn plural(kind: &Self::DynamicType) -> Cow<'_, str> {
        kind.plural.as_str().into()
    }

    fn metadata_api() -> bool {
        true
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

impl Pod {
    /// Its addresses.
    pub(super) fn ips(&self) -> Vec<IpAddr> {
        match self.status.pod_ips.as_slice() {
            [] => self.status.pod_ip.into_iter().collect(),
            ips => ips.iter().map(|ip| ip.ip).collect(),
        }
    }

    /// None of its containers runs any more, or will.
    pub(super) fn is_over(&self) -> bool {
        matches!(self.status.phase.as_str(), "Succeeded" | "Failed")
    }

    /// When the first of the containers that run now was started.
    pub(super) fn running_since(&self) -> Option<std::time::SystemTime> {
        let containers = self.status.init_container_statuses.iter().chain(&self.status.container_statuses);
        let running = containers.filter_map(|container| container.state.running.as_ref()?.started_at.as_ref());
        running.map(|time| std::time::SystemTime::from(time.0)).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_pod_only_what_is_used_is_read() {
        let text = r#"{"apiVersion":"v1","kind":"Pod","metadata":{"name":"a","namespace":"n","uid":"u","resourceVersion":"7",
            "labels":{"l":"1"},"managedFields":[{"manager":"kubectl","fieldsV1":{"f:metadata":{}}}]},
            "spec":{"hostNetwork":true,"serviceAccountName":"s","containers":[{"name":"c","image":"i"}]},
            "status":{"phase":"Running","podIP":"10.0.0.1","podIPs":[{"ip":"10.0.0.1"},{"ip":"fd00::1"}],
            "containerStatuses":[{"state":{"running":{"startedAt":"2026-01-02T03:04:06Z"}}},{"state":{"waiting":{}}},
            {"state":{"running":{"startedAt":"2026-01-02T03:04:05Z"}}}]}}"#;
        let pod: Pod = serde_json::from_str(text).expect("a pod");
        assert_eq!(pod.metadata.managed_fields, None);
        assert_eq!(pod.metadata.resource_version.as_deref(), Some("7"));
        assert_eq!(pod.ips().len(), 2);
        assert!(pod.spec.host_network && !pod.is_over());
        let since = pod.running_since().expect("it runs").duration_since(std::time::UNIX_EPOCH).expect("after 1970");
        assert_eq!(since.as_secs(), 1_767_323_045);
        let bare: Pod = serde_json::from_str(r#"{"metadata":{"name":"b"}}"#).expect("a pod that was just made");
        assert!(bare.ips().is_empty() && bare.running_since().is_none());
    }
}
