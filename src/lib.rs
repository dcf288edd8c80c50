//! Warren: every TCP connection between Kubernetes pods encrypted and authenticated, the pods untouched.
//!
//! The rooms and the direction of their dependencies:
//! `base`, `wire` ← `config`, `telemetry`, `net`, `tls`, `identity`, `zds`, `cni` ← `hbone`, `mesh` ← `policy`, `xds` ←
//! `proxy`, `agent`, `control` ← `admin` ← `demo`, `cli`. `tests/rooms.rs` keeps the order.

pub mod admin;
pub mod agent;
pub mod base;
pub mod cli;
pub mod cni;
pub mod config;
pub mod control;
pub mod demo;
pub mod hbone;
pub mod identity;
pub mod mesh;
pub mod net;
pub mod policy;
pub mod proxy;
pub mod telemetry;
pub mod tls;
pub mod wire;
pub mod xds;
pub mod zds;
