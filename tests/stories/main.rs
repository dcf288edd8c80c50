//! What an operator and an application see of the whole mesh, told as stories: each in namespaces of its own, with real
//! control plane, agents and proxies.
#![allow(clippy::expect_used, clippy::panic, reason = "helpers of tests are test code")]

#[path = "../common/mod.rs"]
mod common;

mod apps;
mod destinations;
mod hostile;
mod many;
mod peers;
mod traffic;
