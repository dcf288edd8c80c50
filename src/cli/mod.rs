//! The command line: one file per role or verb.

pub mod demo;
