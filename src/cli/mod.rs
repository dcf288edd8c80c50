//! The command line: one file per role or verb.

pub mod agent;
pub mod demo;
