//! Frames in, counters out.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::ops::Sub;

use etherparse::{NetSlice, SlicedPacket, TcpSlice, TransportSlice};
use serde::{Deserialize, Serialize};

use super::Wanted;
use super::tls::Session;

/// Tunnels that are followed at once; frames of more are counted but their TLS is not read.
const MAX_SESSIONS: usize = 4096;

/// What was seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counters {
    /// Frames of any kind.
    pub frames: u64,
    /// Frames in which the marker can be read.
    pub plaintext_payload_hits: u64,
    /// TCP packets to a port of the applications.
    pub app_port_packets: u64,
    /// TCP packets to the tunnel port.
    pub hbone_packets: u64,
    /// TLS handshakes with the tunnel port in which the server chose version 1.3.
    pub tls13_handshakes: u64,
    /// Encrypted records to the tunnel port, in sessions of version 1.3.
    pub tls13_records: u64,
    /// Their bytes, without headers.
    pub tls13_record_bytes: u64,
    /// Frames the capture lost.
    pub dropped: u64,
}

impl Sub for Counters {
    type Output = Self;

    /// What was seen between two moments.
    fn sub(self, earlier: Self) -> Self {
        Self {
            frames: self.frames.saturating_sub(earlier.frames),
            plaintext_payload_hits: self.plaintext_payload_hits.saturating_sub(earlier.plaintext_payload_hits),
            app_port_packets: self.app_port_packets.saturating_sub(earlier.app_port_packets),
            hbone_packets: self.hbone_packets.saturating_sub(earlier.hbone_packets),
            tls13_handshakes: self.tls13_handshakes.saturating_sub(earlier.tls13_handshakes),
            tls13_records: self.tls13_records.saturating_sub(earlier.tls13_records),
            tls13_record_bytes: self.tls13_record_bytes.saturating_sub(earlier.tls13_record_bytes),
            dropped: self.dropped.saturating_sub(earlier.dropped),
        }
    }
}

/// Reads frames one after the other.
#[derive(Debug)]
pub struct Classifier {
    wanted: Wanted,
    counters: Counters,
    /// By (client, server).
    sessions: HashMap<(SocketAddr, SocketAddr), Session>,
}

impl Classifier {
    /// With nothing seen.
    pub fn new(wanted: Wanted) -> Self {
        Self { wanted, counters: Counters::default(), sessions: HashMap::new() }
    }

    /// What was seen so far.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// Takes the kernel's count of lost frames, which only grows.
    pub fn dropped(&mut self, count: Option<u32>) {
        self.counters.dropped = self.counters.dropped.max(count.map_or(0, u64::from));
    }

    /// Takes one Ethernet frame.
    pub fn frame(&mut self, frame: &[u8]) {
        self.counters.frames += 1;
        // The whole frame is searched, so that a plaintext copy inside any kind of encapsulation is found too.
        if !self.wanted.marker.is_empty() && frame.windows(self.wanted.marker.len()).any(|window| window == self.wanted.marker) {
            self.counters.plaintext_payload_hits += 1;
        }
        let Ok(packet) = SlicedPacket::from_ethernet(frame) else { return };
        let Some(TransportSlice::Tcp(tcp)) = &packet.transport else { return };
        if self.wanted.app_ports.contains(&tcp.destination_port()) {
            self.counters.app_port_packets += 1;
        }
        let Some((from, to)) = ends(&packet, tcp) else { return };
        if to.port() == self.wanted.hbone_port {
            self.counters.hbone_packets += 1;
            self.tunnel((from, to), true, tcp);
        } else if from.port() == self.wanted.hbone_port {
            self.tunnel((to, from), false, tcp);
        }
    }

    fn tunnel(&mut self, ends: (SocketAddr, SocketAddr), from_client: bool, tcp: &TcpSlice<'_>) {
        if tcp.rst() {
            self.sessions.remove(&ends);
            return;
        }
        if tcp.syn() && from_client {
            self.sessions.remove(&ends);
        }
        if !self.sessions.contains_key(&ends) && self.sessions.len() >= MAX_SESSIONS {
            return;
        }
        let session = self.sessions.entry(ends).or_default();
        // RFC 9293 §3.4: SYN takes one sequence number.
        let sequence = tcp.sequence_number().wrapping_add(u32::from(tcp.syn()));
        let seen = session.segment(from_client, tcp.syn(), sequence, tcp.payload());
        self.counters.tls13_handshakes += u64::from(seen.negotiated);
        if from_client {
            self.counters.tls13_records += seen.records;
            self.counters.tls13_record_bytes += seen.bytes;
        }
    }
}

fn ends(packet: &SlicedPacket<'_>, tcp: &TcpSlice<'_>) -> Option<(SocketAddr, SocketAddr)> {
    let (from, to) = match packet.net.as_ref()? {
        NetSlice::Ipv4(ip) => (ip.header().source_addr().into(), ip.header().destination_addr().into()),
        NetSlice::Ipv6(ip) => (ip.header().source_addr().into(), ip.header().destination_addr().into()),
        NetSlice::Arp(_) => return None,
    };
    Some((SocketAddr::new(from, tcp.source_port()), SocketAddr::new(to, tcp.destination_port())))
}
