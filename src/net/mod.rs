//! The kernel's side of things: network namespaces, sockets and their options, original destinations. The only room
//! that may hold `unsafe`, each with its reason.

pub mod congestion;
pub mod memory;
pub mod netns;
pub mod seqpacket;
pub mod socket;
pub mod splice;

pub use netns::NetNs;
