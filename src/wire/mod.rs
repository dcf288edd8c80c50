//! The messages of `proto/`, as generated: nothing here is written by hand.

#![allow(missing_docs, clippy::all, clippy::pedantic)]

/// ZDS, between node agent and node proxy.
pub mod zds {
    tonic::include_proto!("istio.workload.zds");
}

/// The certificate authority's service.
pub mod ca {
    tonic::include_proto!("istio.v1.auth");
}

/// Delta discovery.
pub mod discovery {
    tonic::include_proto!("envoy.service.discovery.v3");
}

/// Workloads and services.
pub mod workload {
    tonic::include_proto!("istio.workload");
}

/// Authorization policies.
pub mod authorization {
    tonic::include_proto!("istio.security");
}

/// The error model of gRPC.
pub mod rpc {
    tonic::include_proto!("google.rpc");
}

/// Type URL of [`workload::Address`].
pub const ADDRESS_TYPE: &str = "type.googleapis.com/istio.workload.Address";

/// Type URL of [`authorization::Authorization`].
pub const AUTHORIZATION_TYPE: &str = "type.googleapis.com/istio.security.Authorization";
