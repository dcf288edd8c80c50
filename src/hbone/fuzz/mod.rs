//! What must hold for any input: run on random bytes by the tests and on chosen ones by the targets of `fuzz/`.

#![allow(clippy::missing_panics_doc, reason = "a panic is how a broken property is told")]

mod hpack;

pub use hpack::hpack;
