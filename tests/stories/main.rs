//! What an operator and an application see of the whole mesh, also when a part of it fails, is restarted, or lies: told as
//! stories, each in namespaces of its own, with real control plane, agents and proxies.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests fail by panicking")]

#[path = "../common/mod.rs"]
mod common;

mod admin;
mod agent;
mod apps;
mod certificates;
mod control_plane;
mod destinations;
mod hostile;
mod killed;
mod malformed;
mod many;
mod newcomers;
mod older;
mod peers;
mod shutdown;
mod tools;
mod traffic;
