//! Pods.

use std::net::IpAddr;
use std::sync::Arc;

use super::api::{Container, ContainerPort};
use super::place::labels;
use super::{Refusal, Watched, api};
use crate::base::Str;
use crate::control::objects::{Kind, Labels, Mesh, Object, Phase, Pod, Tunnel};

/// Written by the node's agent when it has captured the pod.
const REDIRECTION: &str = "ambient.istio.io/redirection";

/// On pods that end tunnels themselves.
const TUNNEL: &str = "networking.istio.io/tunnel";

impl Watched for api::Pod {
    const KIND: Kind = Kind::Pod;

    fn read(&self, _mesh: &Mesh) -> Result<Option<Object>, Refusal> {
        let (meta, spec, status) = (&self.metadata, &self.spec, &self.status);
        let labels = labels(meta);
        let is_ready = status.conditions.iter().flatten().any(|condition| condition.r#type == "Ready" && condition.status == "True");
        let pod = Pod {
            id: self.id(),
            uid: meta.uid.as_deref().unwrap_or_default().into(),
            node: spec.node_name.as_deref().unwrap_or_default().into(),
            service_account: spec.service_account_name.as_deref().filter(|name| !name.is_empty()).unwrap_or("default").into(),
            ips: self.ips()?,
            workload_name: self.workload_name(&labels),
            ports: self.named_ports(),
            phase: match status.phase.as_deref() {
                Some("Succeeded") => Phase::Succeeded,
                Some("Failed") => Phase::Failed,
                _ => Phase::Live,
            },
            ready: is_ready && meta.deletion_timestamp.is_none(),
            host_network: spec.host_network,
            tunnel: self.tunnel(&labels),
            labels,
        };
        Ok(Some(Object::Pod(Arc::new(pod))))
    }
}

impl api::Pod {
    fn ips(&self) -> Result<Vec<IpAddr>, Refusal> {
        let all = self.status.pod_ips.iter().flatten().map(|entry| entry.ip.as_str());
        let mut texts: Vec<&str> = all.filter(|ip| !ip.is_empty()).collect();
        if texts.is_empty() {
            texts.extend(self.status.pod_ip.as_deref().filter(|ip| !ip.is_empty()));
        }
        texts.into_iter().map(|text| text.parse().map_err(|_| format!("the address {text:?} is none").into())).collect()
    }

    fn tunnel(&self, labels: &Labels) -> Tunnel {
        let is_captured = self.metadata.annotations.as_ref().and_then(|all| all.get(REDIRECTION)).is_some_and(|value| value == "enabled");
        match labels.get(TUNNEL) {
            Some(value) if value.contains("http") => Tunnel::Native,
            _ if is_captured => Tunnel::Hbone,
            _ => Tunnel::None,
        }
    }

    /// What the pod is a part of. Only pods with a generated name are made by something else.
    fn workload_name(&self, labels: &Labels) -> Str {
        let own = || Str::from(self.metadata.name.as_deref().unwrap_or_default());
        if let Some(name) = labels.get("service.istio.io/workload-name") {
            return name.clone();
        }
        if self.metadata.generate_name.as_deref().unwrap_or_default().is_empty() {
            return own();
        }
        let owner = self.metadata.owner_references.iter().flatten().find(|owner| owner.controller == Some(true));
        let Some(owner) = owner.filter(|owner| !owner.name.is_empty()) else { return own() };
        let without_hash = |key: &str| {
            let hash = labels.get(key).filter(|hash| !hash.is_empty())?;
            owner.name.strip_suffix(&**hash)?.strip_suffix('-')
        };
        let name = match owner.kind.as_str() {
            "ReplicaSet" => without_hash("pod-template-hash").or_else(|| without_hash("rollouts-pod-template-hash")),
            "ReplicationController" => labels.get("deploymentconfig").map(AsRef::as_ref).filter(|name| !name.is_empty()),
            "Job" => cron_job(&owner.name),
            _ => None,
        };
        name.unwrap_or(&owner.name).into()
    }

    /// Ports of containers that run as long as the pod does.
    fn named_ports(&self) -> Vec<(Str, u16)> {
        let is_sidecar = |container: &&Container| container.restart_policy.as_deref() == Some("Always");
        let containers = self.spec.containers.iter().flatten();
        let containers = containers.chain(self.spec.init_containers.iter().flatten().filter(is_sidecar));
        let is_tcp = |port: &&ContainerPort| port.protocol.as_deref().is_none_or(|protocol| protocol == "TCP");
        let ports = containers.flat_map(|container| container.ports.iter().flatten()).filter(is_tcp);
        ports.filter_map(|port| Some((port.name.as_deref().filter(|name| !name.is_empty())?.into(), port.container_port?))).collect()
    }
}

/// A CronJob names its Jobs after itself and the time: 8 to 10 digits.
fn cron_job(job: &str) -> Option<&str> {
    let (name, time) = job.rsplit_once('-')?;
    let is_time = (8..=10).contains(&time.len()) && time.bytes().all(|byte| byte.is_ascii_digit());
    (is_time && !name.is_empty()).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cron_job_is_known_by_its_jobs() {
        let cases = [
            ("report-29922407", Some("report")),
            ("import-20261122", Some("import")),
            ("a-1234567", None),
            ("a-12345678901", None),
            ("-12345678", None),
        ];
        for (job, expected) in cases {
            assert_eq!(cron_job(job), expected, "{job}");
        }
    }
}
