//! Two nodes and their pods on this machine: the sandbox they live in, real traffic between them, the capture on the wire
//! and the story that `warren demo` tells. Tests and benchmarks build on the same parts.

pub mod capture;
pub mod lab;
pub mod pod;
pub mod sandbox;
pub mod story;
pub mod wait;
