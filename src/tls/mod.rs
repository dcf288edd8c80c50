//! TLS: mutual TLS 1.3, on demand 1.2 too, between workloads with exact SPIFFE checks, and the channel to the control plane.

pub mod channel;
mod connector;
mod failure;
mod handshake;
pub mod record;
mod roots;
pub mod secured;
mod tickets;
mod token;
mod verify;
mod workload;

pub use roots::RootSource;
pub use token::TokenSource;
pub use workload::{ClientTlsStream, HANDSHAKE_LIMIT, ServerTlsStream, Versions, accept, connect};
