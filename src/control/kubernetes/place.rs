//! Nodes and namespaces.

use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::{Refusal, Watched, api};
use crate::base::Str;
use crate::control::objects::{Distribution, Kind, Labels, Locality, Mesh, Namespace, Node, Object};

/// On a namespace it is for all services in it, on a service for that one.
const DISTRIBUTION: &str = "networking.istio.io/traffic-distribution";

impl Watched for api::Node {
    const KIND: Kind = Kind::Node;

    fn read(&self, _mesh: &Mesh) -> Result<Option<Object>, Refusal> {
        let label =
            |key: &str| -> Str { self.metadata.labels.as_ref().and_then(|labels| labels.get(key)).map_or("", String::as_str).into() };
        let locality = Locality {
            region: label("topology.kubernetes.io/region"),
            zone: label("topology.kubernetes.io/zone"),
            subzone: label("topology.istio.io/subzone"),
        };
        Ok(Some(Object::Node(Arc::new(Node { id: self.id(), locality }))))
    }
}

impl Watched for api::Namespace {
    const KIND: Kind = Kind::Namespace;

    fn read(&self, _mesh: &Mesh) -> Result<Option<Object>, Refusal> {
        let distribution = annotated_distribution(&self.metadata);
        Ok(Some(Object::Namespace(Arc::new(Namespace { id: self.id(), distribution }))))
    }
}

/// What the object's annotation says; a value that is not known says nothing.
pub(super) fn annotated_distribution(meta: &ObjectMeta) -> Option<Distribution> {
    match meta.annotations.as_ref()?.get(DISTRIBUTION)?.as_str() {
        "Any" => Some(Distribution::Any),
        value => distribution(value),
    }
}

/// What a service's `trafficDistribution` says.
pub(super) fn distribution(value: &str) -> Option<Distribution> {
    match value {
        "PreferClose" | "PreferSameZone" => Some(Distribution::SameZone),
        "PreferSameNode" => Some(Distribution::SameNode),
        _ => None,
    }
}

/// The object's labels.
pub(super) fn labels(meta: &ObjectMeta) -> Labels {
    meta.labels.iter().flatten().collect()
}
