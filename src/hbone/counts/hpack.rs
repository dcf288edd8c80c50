//! The header block of a CONNECT with Istio's headers.

use std::hint::black_box;

use super::{AUTHORITY, BAGGAGE, FORWARDED, MOST, TRACEPARENT};
use crate::hbone::hpack::{Decoder, Encoder, encode};

const FIELDS: [(&str, &str); 5] =
    [(":method", "CONNECT"), (":authority", AUTHORITY), ("baggage", BAGGAGE), ("forwarded", FORWARDED), ("traceparent", TRACEPARENT)];

/// [`FIELDS`] as the `h2` crate sends them first on a connection.
const FIRST: &str = "4287bdab4e9c17b7ff418c0817134d2e25c2edc780f03f40858c734c398bff05eaf2172516a125b17a874960cd6c65b2a2a4a8fa\
    eaf217a87495158c855ea1d2581139ebfaeaf21790b5d07f5496a4af50e92c049ca4ea7b53f482d9dcc42af50e92c049ca4ea7b53f482d9dcc42afdcb620\
    c7aa0ee2fa2507b645ec2cc63d5016d5885a9360e8583f44a0f6c8b8fb8cd40e335064fa8bd9ea2c05b56216a4d83a1608ff408794f6781d92164faa94f6\
    41fc840b89a6970aefdc682e885fcfdce74260ac7ea92d495d139eb5d1dc8b928b5092d8bd0720e840884d83216b1d85a93fa700166a395f14acb6ebb1b2\
    d483706c90af89f9005015a7597160025038e8c608c6f8051bab001f";

/// What it sends next: another port in `forwarded`, another trace.
const REPEATED: &str = "c2c1c07f00ab94f641fc840b89a6970aefdc682eb20fe7ee73a130563f5496a4ae89cf5ae8ee45c945a8496c5e8390747f7f00a7\
    0016181e7c52b2dbaec6cb520dc1b242be27e4014057a565b59b64857c4fc80280ad3acb8b001f";

pub(super) fn encoded(times: u32) {
    let mut encoder = Encoder::new();
    let mut block = Vec::with_capacity(1024);
    for _ in 0..times {
        block.clear();
        fill(&mut encoder, black_box(&mut block));
    }
}

pub(super) fn decode_ours(times: u32) {
    let mut block = Vec::new();
    fill(&mut Encoder::new(), &mut block);
    let mut decoder = decoder();
    for _ in 0..times {
        decode(&mut decoder, &block);
    }
}

pub(super) fn decode_first(times: u32) {
    let block = bytes(FIRST);
    for _ in 0..times {
        decode(&mut decoder(), &block);
    }
}

pub(super) fn decode_repeated(times: u32) {
    let mut decoder = decoder();
    decode(&mut decoder, &bytes(FIRST));
    let block = bytes(REPEATED);
    // Each is told once: the block changes the table that it refers to.
    for decoder in vec![decoder; MOST as usize].iter_mut().take(times as usize) {
        decode(decoder, &block);
    }
}

fn fill(encoder: &mut Encoder, block: &mut Vec<u8>) {
    encoder.start(block);
    for (name, value) in FIELDS {
        encode(block, name.as_bytes(), value.as_bytes());
    }
}

fn decoder() -> Decoder {
    Decoder::new(4096, 64 << 10)
}

/// All of a request, whose fields differ from [`FIELDS`] in a port and a trace at most.
fn decode(decoder: &mut Decoder, block: &[u8]) {
    let mut place = 0;
    let decoded = decoder.decode(black_box(block), |name, value| {
        let (expected, text) = FIELDS.get(place).expect("no more fields than were sent");
        assert!(name == expected.as_bytes() && value.len() == text.len(), "a field of the request");
        place += 1;
    });
    assert!(decoded.is_ok_and(|decoded| !decoded.oversized) && place == FIELDS.len(), "the whole request");
}

fn bytes(hex: &str) -> Vec<u8> {
    let digits: Vec<u8> = hex.chars().filter_map(|digit| digit.to_digit(16)).filter_map(|digit| digit.try_into().ok()).collect();
    digits.chunks_exact(2).map(|pair| pair[0] << 4 | pair[1]).collect()
}
