//! The examples of the RFC, hostile blocks, and `h2` as a peer.

mod appendix_c;
mod hostile;
mod peer;

use std::sync::LazyLock;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::*;

type Field = (Vec<u8>, Vec<u8>);

/// Those of RFC 7541 Appendix C and of most tests.
fn decoder() -> Decoder {
    Decoder::new(INITIAL_TABLE_SIZE, 64 * 1024)
}

fn decode(decoder: &mut Decoder, block: &[u8]) -> Result<Vec<Field>, Malformed> {
    let mut fields = Vec::new();
    let decoded = decoder.decode(block, |name, value| fields.push((name.to_vec(), value.to_vec())))?;
    assert!(!decoded.oversized);
    Ok(fields)
}

fn fields(fields: &[(&str, &str)]) -> Vec<Field> {
    fields.iter().map(|(name, value)| (name.as_bytes().to_vec(), value.as_bytes().to_vec())).collect()
}

fn block(fields: &[Field]) -> Vec<u8> {
    let mut block = Vec::new();
    fields.iter().for_each(|(name, value)| encode(&mut block, name, value));
    block
}

/// What the dynamic table holds, newest first, as its indices tell.
fn table(decoder: &Decoder) -> Vec<Field> {
    let entry = |index: usize| {
        let mut reference = Vec::new();
        integer::encode(&mut reference, 0x80, 7, index);
        decode(&mut decoder.clone(), &reference).ok()
    };
    (62..).map_while(entry).flatten().collect()
}

/// RFC 7541 §4.1
fn size(table: &[Field]) -> usize {
    table.iter().map(|(name, value)| name.len() + value.len() + FIELD_OVERHEAD).sum()
}

/// `828684 4103` → bytes
fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.chars().filter_map(|digit| digit.to_digit(16)).map(|digit| digit as u8).collect();
    digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect()
}

fn bytes(random: &mut StdRng, most: usize) -> Vec<u8> {
    let length = random.random_range(0..=most);
    (0..length).map(|_| random.random()).collect()
}

#[test]
fn what_is_encoded_is_decoded() {
    let mut random = StdRng::seed_from_u64(1);
    let mut decoder = decoder();
    for _ in 0..20_000 {
        let list: Vec<Field> = (0..random.random_range(0..8))
            .map(|_| match random.random_range(0..3) {
                0 => {
                    let (name, value) = static_table::FIELDS[random.random_range(0..61)];
                    (name.to_vec(), value.to_vec())
                }
                1 => (static_table::FIELDS[random.random_range(0..61)].0.to_vec(), bytes(&mut random, 300)),
                _ => (bytes(&mut random, 40), bytes(&mut random, 300)),
            })
            .collect();
        assert_eq!(decode(&mut decoder, &block(&list)).unwrap(), list);
    }
}

/// (integer, prefix, bytes); the first three are those of RFC 7541 C.1.
#[test]
fn integers_are_as_short_as_the_prefix_allows() {
    let table: [(usize, u32, &[u8]); 8] = [
        (10, 5, &[0x0a]),
        (1337, 5, &[0x1f, 0x9a, 0x0a]),
        (42, 8, &[0x2a]),
        (30, 5, &[30]),
        (31, 5, &[31, 0]),
        (158, 5, &[31, 127]),
        (159, 5, &[31, 0x80, 1]),
        ((1 << 28) + 126, 7, &[0x7f, 0xff, 0xff, 0xff, 0x7f]),
    ];
    for (value, prefix, bytes) in table {
        let mut out = Vec::new();
        integer::encode(&mut out, 0, prefix, value);
        assert_eq!(out, bytes, "{value}");
        let mut rest = bytes;
        assert_eq!(integer::decode(&mut rest, prefix), Ok(value));
        assert!(rest.is_empty());
    }
}

/// (symbol, code, bits): Appendix B from both ends. With the sum being 1, no other length could differ and leave these.
#[test]
fn the_huffman_code_is_that_of_appendix_b() {
    let sum: u64 = huffman::LENGTHS.iter().map(|length| 1 << (30 - length)).sum();
    assert_eq!(sum, 1 << 30, "Kraft's sum: complete, and no word is the start of another");
    let table: [(usize, u32, u8); 12] = [
        (b'0'.into(), 0x0, 5),
        (b't'.into(), 0x9, 5),
        (b'u'.into(), 0x2d, 6),
        (b'z'.into(), 0x7b, 7),
        (b'Z'.into(), 0xfd, 8),
        (b'~'.into(), 0x1ffd, 13),
        (0, 0x1ff8, 13),
        (b'\\'.into(), 0x7fff0, 19),
        (1, 0x7fffd8, 23),
        (127, 0xffffffc, 28),
        (22, 0x3ffffffe, 30),
        (256, 0x3fffffff, 30),
    ];
    for (symbol, code, length) in table {
        assert_eq!(CODES[symbol], (code, length), "{symbol}");
    }
    for byte in 0..=255 {
        let mut text = Vec::new();
        huffman::decode(&huffman_coded(&[byte; 9]), &mut text).unwrap();
        assert_eq!(text, [byte; 9]);
    }
}

#[test]
fn huffman_coded_strings_are_decoded() {
    let mut random = StdRng::seed_from_u64(2);
    for _ in 0..20_000 {
        let (string, mut text) = (bytes(&mut random, 60), Vec::new());
        huffman::decode(&huffman_coded(&string), &mut text).unwrap();
        assert_eq!(text, string);
    }
}

/// Bits of the string, padded with ones.
fn huffman_coded(string: &[u8]) -> Vec<u8> {
    let mut bits = String::new();
    for byte in string {
        let (code, length) = CODES[usize::from(*byte)];
        bits.push_str(&format!("{code:0width$b}", width = usize::from(length)));
    }
    bits.push_str(&"1".repeat((8 - bits.len() % 8) % 8));
    bits.as_bytes().chunks(8).map(|byte| byte.iter().fold(0, |sum, bit| sum << 1 | (bit - b'0'))).collect()
}

static CODES: LazyLock<Vec<(u32, u8)>> = LazyLock::new(|| (0..257).map(huffman_code).collect());

/// Counted from the lengths as canonical codes are: by length, then by symbol.
fn huffman_code(symbol: usize) -> (u32, u8) {
    let length = huffman::LENGTHS[symbol];
    let before = |other: &usize| huffman::LENGTHS[*other] < length || huffman::LENGTHS[*other] == length && *other < symbol;
    let code: u64 = (0..257).filter(before).map(|other| 1u64 << (30 - huffman::LENGTHS[other])).sum();
    ((code >> (30 - length)) as u32, length)
}

#[test]
fn a_decoder_survives_a_hand_over() {
    let mut decoder = decoder();
    decode(&mut decoder, &hex("828684 410f 7777772e6578616d706c652e636f6d")).unwrap();
    let mut restored: Decoder = serde_json::from_str(&serde_json::to_string(&decoder).unwrap()).unwrap();
    assert_eq!(restored, decoder);
    assert_eq!(decode(&mut restored, &[0xbe]).unwrap(), fields(&[(":authority", "www.example.com")]));
}

/// The order of SETTINGS and blocks: what the peer announces, and whether the next block starts with an update.
#[test]
fn a_smaller_table_is_acknowledged_with_an_update() {
    let mut encoder = Encoder::new();
    for (announced, owed) in [(4096, false), (65536, false), (4096, true), (4096, false), (0, true), (100, false), (0, true)] {
        encoder.announced(announced);
        for owed in [owed, false] {
            let mut block = Vec::new();
            encoder.start(&mut block);
            assert_eq!(block, if owed { vec![0x20] } else { vec![] }, "{announced}");
            encode(&mut block, b":status", b"200");
            assert_eq!(decode(&mut decoder(), &block).unwrap(), fields(&[(":status", "200")]));
        }
    }
    // Less and then more again before a block is sent: the smallest must be heard of.
    encoder.announced(4096);
    encoder.announced(10);
    encoder.announced(4096);
    let mut block = Vec::new();
    encoder.start(&mut block);
    assert_eq!(block, [0x20]);
}

#[test]
fn sensitive_values_are_never_indexed() {
    let mut block = Vec::new();
    encode(&mut block, b"authorization", b"a");
    assert_eq!(block, [0x1f, 23 - 15, 1, b'a']);
}
