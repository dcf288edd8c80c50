//! What must hold for any input: run on random bytes by the tests and on chosen ones by the targets of `fuzz/`.

#![allow(clippy::missing_panics_doc, clippy::panic, reason = "a panic is how a broken property is told")]

mod frames;
mod hpack;

pub use frames::frames;
pub use hpack::hpack;
