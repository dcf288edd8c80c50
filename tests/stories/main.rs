//! What happens to the mesh when a part of it fails, is restarted, or lies: told by what an operator would see.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests fail by panicking")]

#[path = "../common/mod.rs"]
mod common;

mod admin;
mod agent;
mod certificates;
mod control_plane;
mod malformed;
mod shutdown;
mod tools;
