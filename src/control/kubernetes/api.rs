//! The objects as the API server writes them. Fields that are not here are passed over while reading, so that they cost
//! no memory; those of policies are kept as they are, because what is wrong with one policy must not hide the others. The
//! API server has put the rest into its own types before it wrote it, so that only the range of a number can surprise: it
//! does not look at the ports of slices.

use std::borrow::Cow;
use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference, Time};
use serde::{Deserialize, Deserializer};
use serde_json::Value;

macro_rules! kinds {
    ($($(#[$doc:meta])* $kind:ident $group:literal $version:literal $plural:literal $scope:ident { $($field:ident: $type:ty,)* })*) => {$(
        $(#[$doc])*
        #[derive(Clone, Debug, Deserialize)]
        #[serde(rename_all = "camelCase")]
        pub struct $kind {
            /// What all objects have.
            #[serde(default, deserialize_with = "metadata")]
            pub metadata: ObjectMeta,
            $(
                #[doc = concat!("The object's `", stringify!($field), "`.")]
                #[serde(default)]
                pub $field: $type,
            )*
        }

        impl kube::Resource for $kind {
            type DynamicType = ();
            type Scope = k8s_openapi::$scope;

            fn kind((): &()) -> Cow<'_, str> {
                stringify!($kind).into()
            }

            fn group((): &()) -> Cow<'_, str> {
                $group.into()
            }

            fn version((): &()) -> Cow<'_, str> {
                $version.into()
            }

            fn plural((): &()) -> Cow<'_, str> {
                $plural.into()
            }

            fn meta(&self) -> &ObjectMeta {
                &self.metadata
            }

            fn meta_mut(&mut self) -> &mut ObjectMeta {
                &mut self.metadata
            }
        }
    )*};
}

kinds! {
    /// A node.
    Node "" "v1" "nodes" ClusterResourceScope {}
    /// A namespace.
    Namespace "" "v1" "namespaces" ClusterResourceScope {}
    /// A pod.
    Pod "" "v1" "pods" NamespaceResourceScope { spec: PodSpec, status: PodStatus, }
    /// A service.
    Service "" "v1" "services" NamespaceResourceScope { spec: ServiceSpec, }
    /// A part of a service's endpoints.
    EndpointSlice "discovery.k8s.io" "v1" "endpointslices" NamespaceResourceScope {
        address_type: String,
        endpoints: Option<Vec<Endpoint>>,
        ports: Option<Vec<EndpointPort>>,
    }
    /// Whether connections without identity are accepted.
    PeerAuthentication "security.istio.io" "v1" "peerauthentications" NamespaceResourceScope { spec: Value, status: Value, }
    /// Who may connect.
    AuthorizationPolicy "security.istio.io" "v1" "authorizationpolicies" NamespaceResourceScope { spec: Value, status: Value, }
}

/// Of a pod.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PodSpec {
    pub(super) node_name: Option<String>,
    pub(super) service_account_name: Option<String>,
    pub(super) host_network: bool,
    pub(super) containers: Option<Vec<Container>>,
    pub(super) init_containers: Option<Vec<Container>>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Container {
    pub(super) restart_policy: Option<String>,
    pub(super) ports: Option<Vec<ContainerPort>>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ContainerPort {
    pub(super) name: Option<String>,
    #[serde(default, deserialize_with = "port_number")]
    pub(super) container_port: Option<u16>,
    pub(super) protocol: Option<String>,
}

/// Of a pod.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PodStatus {
    pub(super) phase: Option<String>,
    #[serde(rename = "podIP")]
    pub(super) pod_ip: Option<String>,
    #[serde(rename = "podIPs")]
    pub(super) pod_ips: Option<Vec<PodIp>>,
    pub(super) conditions: Option<Vec<Condition>>,
}

#[derive(Clone, Debug, Deserialize)]
pub(super) struct PodIp {
    pub(super) ip: String,
}

#[derive(Clone, Debug, Deserialize)]
pub(super) struct Condition {
    pub(super) r#type: String,
    pub(super) status: String,
}

/// Of a service.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ServiceSpec {
    pub(super) r#type: Option<String>,
    #[serde(rename = "clusterIP")]
    pub(super) cluster_ip: Option<String>,
    #[serde(rename = "clusterIPs")]
    pub(super) cluster_ips: Option<Vec<String>>,
    pub(super) ip_families: Option<Vec<String>>,
    pub(super) selector: Option<BTreeMap<String, String>>,
    pub(super) ports: Option<Vec<ServicePort>>,
    pub(super) internal_traffic_policy: Option<String>,
    pub(super) traffic_distribution: Option<String>,
    pub(super) publish_not_ready_addresses: bool,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ServicePort {
    pub(super) name: Option<String>,
    #[serde(default, deserialize_with = "port_number")]
    pub(super) port: Option<u16>,
    pub(super) target_port: Option<TargetPort>,
    pub(super) protocol: Option<String>,
    pub(super) app_protocol: Option<String>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
pub(super) enum TargetPort {
    Number(i64),
    Name(String),
}

/// Of a slice.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Endpoint {
    pub(super) addresses: Option<Vec<String>>,
    pub(super) conditions: EndpointConditions,
    pub(super) target_ref: Option<TargetRef>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct EndpointConditions {
    pub(super) ready: Option<bool>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct TargetRef {
    pub(super) kind: Option<String>,
    pub(super) namespace: Option<String>,
    pub(super) name: Option<String>,
    pub(super) uid: Option<String>,
}

/// Of a slice.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct EndpointPort {
    pub(super) name: Option<String>,
    #[serde(deserialize_with = "port_number")]
    pub(super) port: Option<u16>,
    pub(super) protocol: Option<String>,
}

/// A number that is no port stands for none.
fn port_number<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u16>, D::Error> {
    Ok(Option::<i64>::deserialize(deserializer)?.and_then(|number| u16::try_from(number).ok()))
}

/// Only what is used: managed fields and the like are larger than all the rest.
fn metadata<'de, D: Deserializer<'de>>(deserializer: D) -> Result<ObjectMeta, D::Error> {
    #[derive(Default, Deserialize)]
    #[serde(rename_all = "camelCase", default)]
    struct Used {
        name: Option<String>,
        namespace: Option<String>,
        uid: Option<String>,
        resource_version: Option<String>,
        generation: Option<i64>,
        generate_name: Option<String>,
        creation_timestamp: Option<Time>,
        deletion_timestamp: Option<Time>,
        labels: Option<BTreeMap<String, String>>,
        annotations: Option<BTreeMap<String, String>>,
        owner_references: Option<Vec<OwnerReference>>,
    }

    let used = Used::deserialize(deserializer)?;
    Ok(ObjectMeta {
        name: used.name,
        namespace: used.namespace,
        uid: used.uid,
        resource_version: used.resource_version,
        generation: used.generation,
        generate_name: used.generate_name,
        creation_timestamp: used.creation_timestamp,
        deletion_timestamp: used.deletion_timestamp,
        labels: used.labels,
        annotations: used.annotations,
        owner_references: used.owner_references,
        ..ObjectMeta::default()
    })
}
