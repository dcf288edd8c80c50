//! The node proxy's work: a set of listeners in each pod, and what happens to a connection from accept to end.
//!
//! [`Pods`] is told by the node agent which pods there are. In each: `outbound` (15001) takes what the pod's applications
//! open, `inbound` (15008) what other proxies bring, `passthrough` (15006) what arrives in plaintext.

mod accept;
mod dial;
mod headers;
mod inbound;
mod outbound;
mod parties;
mod passthrough;
mod pod;
mod relay;
mod track;
mod workers;

pub use pod::{Limits, PodState, Pods, ServePods, Shared};
pub use track::Entry;
pub use workers::{Ending, Workers};

use std::time::Duration;

/// Captured connections of the pod's applications.
pub const OUTBOUND_PORT: u16 = 15001;
/// Captured plaintext connections to the pod.
pub const PASSTHROUGH_PORT: u16 = 15006;
/// Tunnels to the pod.
pub const HBONE_PORT: u16 = 15008;

/// How long a TCP connect may take.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);
/// How long a connection waits for its own pod's workload to arrive.
const LOCAL_LIMIT: Duration = Duration::from_secs(5);
/// How long a TLS handshake may take.
const TLS_LIMIT: Duration = Duration::from_secs(10);

/// Whether a port is one of the proxy's own, which nobody may ask it for.
fn is_own_port(port: u16) -> bool {
    matches!(port, OUTBOUND_PORT | PASSTHROUGH_PORT | HBONE_PORT)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proxy::track::OutboundGuard;
    use crate::telemetry::metrics::SocketGuard;

    type Keeps = (SocketGuard, OutboundGuard);

    fn inbound<A, B, C, Kept>(_: impl Fn(A, B, C) -> Kept) -> usize {
        std::mem::size_of::<Kept>()
    }

    fn outbound<A, B, C, D, E, Kept>(_: impl Fn(A, B, C, D, E, Keeps) -> Kept) -> usize {
        std::mem::size_of::<Kept>()
    }

    #[test]
    fn what_a_connection_keeps_while_it_lasts_is_small() {
        // With 152 bytes of its own a task takes 256.
        let (outbound, inbound) = (outbound(outbound::carry), inbound(inbound::stream_task));
        assert!(outbound <= 152 && inbound <= 152, "bytes of a task: outbound {outbound}, inbound {inbound}");
    }
}
