//! The parts of a tunnel, each done alone and often: `benches/counts/run` counts their instructions.

#![allow(clippy::expect_used, clippy::panic, reason = "what is counted must be what was meant: anything else ends the count")]

mod frame;
mod hpack;
mod record;

use super::pool;

/// Something that a tunnel does again and again.
pub struct Part {
    /// Which part of the tunnel, and what it does.
    pub name: &'static str,
    /// What is done each time.
    pub what: &'static str,
    /// Makes ready, which does not depend on the number, and does it so many times, [`MOST`] at most.
    pub run: fn(u32),
}

/// How often a [`Part`] can be done.
pub const MOST: u32 = 400;

/// All that is counted.
pub const PARTS: &[Part] = &[
    part("frame data write", "room for 16 KiB is looked up, the header of their DATA frame made", frame::write_data),
    part("frame data read", "a DATA frame of 16 KiB read, its bytes credited, the WINDOW_UPDATE for them made", frame::read_data),
    part("frame window_update read", "a WINDOW_UPDATE of a stream read", frame::read_window_update),
    part("frame stream", "a stream from its CONNECT with Istio's headers to its end, both ends, no bytes on it", frame::stream),
    part("record seal 16 KiB", "a record sealed in place, AES-128-GCM", |times| record::seal(16_384, times)),
    part("record seal 64 B", "the same", |times| record::seal(64, times)),
    part("record open 16 KiB", "a record opened in place, AES-128-GCM", |times| record::open(16_384, times)),
    part("record open 64 B", "the same", |times| record::open(64, times)),
    part("hpack encode", "a CONNECT with Istio's headers; nothing is kept for the next, so each costs the same", hpack::encoded),
    part("hpack decode ours", "that block decoded", hpack::decode_ours),
    part(
        "hpack decode first",
        "the same request as the `h2` crate sends it first: Huffman coded, all fields enter the table",
        hpack::decode_first,
    ),
    part("hpack decode repeated", "the next one of that peer: half of the fields come from the table", hpack::decode_repeated),
    part("pool 1", "a place found for a stream on the only tunnel to its peer, and given back", |times| pool::counts::place(1, times)),
    part("pool 8", "the same on the last of 8, the others being full", |times| pool::counts::place(8, times)),
    part("pool 64", "the same on the last of 64", |times| pool::counts::place(64, times)),
];

const fn part(name: &'static str, what: &'static str, run: fn(u32)) -> Part {
    Part { name, what, run }
}

/// What Istio's proxies say in a CONNECT.
const BAGGAGE: &str = "k8s.cluster.name=Kubernetes,k8s.namespace.name=shop,k8s.deployment.name=checkout,service.name=checkout,\
    service.version=v2,cloud.region=eu-central-1,cloud.availability_zone=eu-central-1a";
const FORWARDED: &str = "for=\"10.244.1.9:41722\";host=payment.shop.svc.cluster.local";
const TRACEPARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00";
const AUTHORITY: &str = "10.244.2.17:8080";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_can_be_done_as_often_as_it_says() {
        for part in PARTS {
            (part.run)(MOST);
        }
    }

    #[test]
    fn every_part_has_a_name_of_its_own() {
        let mut names: Vec<_> = PARTS.iter().map(|part| part.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), PARTS.len());
    }
}
