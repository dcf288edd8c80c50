//! Compiles the wire schemas with a pure-Rust compiler: no `protoc` is needed.

use std::path::PathBuf;

const SCHEMAS: &[&str] = &["zds.proto", "ca.proto", "discovery.proto", "workload.proto", "authorization.proto"];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    let files: Vec<PathBuf> = SCHEMAS.iter().map(|name| PathBuf::from("proto").join(name)).collect();
    let descriptors = protox::compile(files, ["proto"])?;
    let mut config = tonic_prost_build::Config::new();
    // Snapshots and wire bytes are compared; a map in key order makes equal messages equal bytes.
    config.btree_map(["."]);
    config.bytes([".google.protobuf.Any", ".envoy.service.discovery.v3"]);
    config.include_file("wire.rs");
    tonic_prost_build::configure().compile_fds_with_config(descriptors, config)?;
    Ok(())
}
