//! Where the mesh comes from: the control plane by delta discovery, and the local file; both converted resource by resource.

pub mod client;
pub mod convert;
pub mod local;

pub use client::{Observer, Progress, Settings, Termination, run};
