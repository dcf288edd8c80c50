//! Blocks that no honest peer sends: each is refused for its own reason, none costs more than its bytes.

use rand::seq::IndexedRandom;

use super::*;
use crate::hbone::fuzz;

#[test]
fn malformed_blocks_are_refused() {
    let table = [
        ("80", Malformed::Index(0)),
        ("be", Malformed::Index(62)),
        ("ffffffff7f", Malformed::Index((1 << 28) + 126)),
        ("7e 01 61", Malformed::Index(62)),
        ("0f 2f 01 61", Malformed::Index(62)),
        ("1f 2f 01 61", Malformed::Index(62)),
        // Integers: of too many bytes, also when these are zeros.
        ("ff 80 80 80 80 00", Malformed::Integer),
        ("ff ff ff ff ff ff ff ff ff ff 01", Malformed::Integer),
        ("00 7f ff ff ff ff 0f", Malformed::Integer),
        ("3f ff ff ff ff 0f", Malformed::Integer),
        // Strings beyond the end.
        ("00", Malformed::Truncated),
        ("00 01", Malformed::Truncated),
        ("00 01 61", Malformed::Truncated),
        ("00 01 61 02 61", Malformed::Truncated),
        ("00 7f ff ff ff 7f 61", Malformed::Truncated),
        ("00 ff ff ff ff 7f 61", Malformed::Truncated),
        ("ff", Malformed::Truncated),
        // Huffman: EOS, EOS behind a letter, 8 and more bits of padding, padding with zeros, a padding with a zero in it.
        ("00 01 61 84 ff ff ff ff", Malformed::Huffman),
        ("00 01 61 85 1f ff ff ff ff", Malformed::Huffman),
        ("00 01 61 81 ff", Malformed::Huffman),
        ("00 01 61 82 1f ff", Malformed::Huffman),
        ("00 01 61 81 18", Malformed::Huffman),
        ("00 01 61 81 1e", Malformed::Huffman),
        // A size update too large, behind a field, behind an update.
        ("3f e2 1f", Malformed::TableSize { size: 4097, limit: 4096 }),
        ("82 20", Malformed::MisplacedUpdate),
        ("20 82 20", Malformed::MisplacedUpdate),
        ("20 3f e2 1f", Malformed::TableSize { size: 4097, limit: 4096 }),
    ];
    for (block, error) in table {
        assert_eq!(decode(&mut decoder(), &hex(block)), Err(error), "{block}");
    }
}

#[test]
fn unusual_blocks_are_understood() {
    let table: [(&str, &[(&str, &str)]); 6] = [
        ("", &[]),
        ("20 3f e1 1f 82", &[(":method", "GET")]),
        // Empty strings, coded and not.
        ("00 00 00", &[("", "")]),
        ("00 80 80", &[("", "")]),
        // An integer with a zero more than it needs.
        ("0f 80 00 00", &[("accept-charset", "")]),
        ("82 00 01 61 81 1f", &[(":method", "GET"), ("a", "a")]),
    ];
    for (block, list) in table {
        assert_eq!(decode(&mut decoder(), &hex(block)).unwrap(), fields(list), "{block}");
    }
}

#[test]
fn a_smaller_table_must_be_confirmed_once_acknowledged() {
    let mut decoder = Decoder::new(100, 1000);
    // The peer may not know yet.
    decode(&mut decoder, &hex("3f e1 1f 82")).unwrap();
    decoder.acknowledged();
    let refused = Err(Malformed::TableSize { size: 4096, limit: 100 });
    assert_eq!(decode(&mut decoder.clone(), &[0x82]), refused);
    assert_eq!(decode(&mut decoder.clone(), &[]), refused);
    assert_eq!(decode(&mut decoder.clone(), &hex("3f 46 82")), Err(Malformed::TableSize { size: 101, limit: 100 }));
    decode(&mut decoder, &hex("3f 45 82")).unwrap();
    decode(&mut decoder, &[0x82]).unwrap();
}

#[test]
fn an_entry_larger_than_the_table_empties_it() {
    let mut decoder = decoder();
    decode(&mut decoder, &hex("3f 09 40 01 61 01 62")).unwrap();
    assert_eq!(table(&decoder), fields(&[("a", "b")]));
    // 40 bytes: 32, a name of 1 and a value of 8, whose name is that of the entry which it drives out.
    decode(&mut decoder, &hex("7e 07 6363 6363 6363 63")).unwrap();
    assert_eq!(table(&decoder), fields(&[("a", "ccccccc")]));
    decode(&mut decoder, &hex("7e 08 6363 6363 6363 6363")).unwrap();
    assert_eq!(table(&decoder), []);
}

/// References cost a byte each and mean up to 4 KiB: the list ends the expansion, the table stays right.
#[test]
fn an_oversized_list_is_cut_and_leaves_the_table_right() {
    let mut decoder = Decoder::new(4096, 10_000);
    let mut block = vec![0x40, 0x01, b'a'];
    integer::encode(&mut block, 0, 7, 4000);
    block.extend_from_slice(&[b'v'; 4000]);
    block.extend_from_slice(&[0xbe; 10_000]);
    block.extend_from_slice(&hex("40 01 62 01 63"));
    let mut given = 0;
    let decoded = decoder.decode(&block, |name, value| given += name.len() + value.len() + 32).unwrap();
    assert!(decoded.oversized);
    assert_eq!(given, 2 * 4033);
    assert_eq!(table(&decoder)[0], (b"b".to_vec(), b"c".to_vec()));
    // At the limit to the byte, and one beyond.
    for (length, oversized) in [(10_000 - 32 - 1, false), (10_000 - 32, true)] {
        let mut block = Vec::new();
        encode(&mut block, b"a", &vec![0; length]);
        assert_eq!(decoder.decode(&block, |_, _| ()), Ok(super::super::decoder::Decoded { oversized }));
    }
}

/// Cut anywhere, a block is refused or, between two fields, gives the fields before the cut.
#[test]
fn every_truncation_is_refused_or_ends_at_a_field() {
    let blocks = [
        "8286 8441 0f77 7777 2e65 7861 6d70 6c65 2e63 6f6d",
        "3fe11f 8287 85 4088 25a8 49e9 5ba9 7d7f 8925 a849 e95b b8e8 b4bf",
        "1008 7061 7373 776f 7264 0673 6563 7265 74 0f 2b 83 640eff",
        "4882 6402 5885 aec3 771a 4b61 96d0 7abe 9410 54d4 44a8 2005 9504 0b81 66e0 82a6 2d1b ff6e 919d 29ad 1718 63c7
         8f0b 97c8 e9ae 82ae 43d3",
    ];
    for block in blocks.map(hex) {
        let whole = decode(&mut decoder(), &block).unwrap();
        let mut ends = Vec::new();
        for cut in 0..block.len() {
            match decode(&mut decoder(), &block[..cut]) {
                Ok(list) => {
                    assert!(whole.starts_with(&list));
                    ends.push(list.len());
                }
                Err(error) => assert_eq!(error, Malformed::Truncated, "{cut}"),
            }
        }
        ends.dedup();
        assert_eq!(ends, (0..whole.len()).collect::<Vec<_>>());
    }
}

#[test]
fn random_blocks_neither_panic_nor_grow() {
    let mut random = StdRng::seed_from_u64(3);
    let mut decoder = Decoder::new(4096, 2000);
    for case in 0..100_000 {
        let mut given = 0;
        let decoded = decoder.decode(&noise(&mut random), |name, value| given += name.len() + value.len() + 32);
        assert!(given <= 2000);
        if case % 100 == 0 {
            assert!(size(&table(&decoder)) <= 4096);
        }
        if decoded.is_err() && case % 1000 == 0 {
            decoder = Decoder::new(4096, 2000);
        }
    }
}

#[test]
fn random_blocks_mean_the_same_to_h2() {
    let mut random = StdRng::seed_from_u64(6);
    let mut taken = 0;
    for _ in 0..10_000 {
        let update = hex(PIECES[..3].choose(&mut random).unwrap());
        let first = [hex(PIECES[3]), hex(PIECES[4]), noise(&mut random)].concat();
        let second = noise(&mut random);
        let cuts = [update.len() as u8, (update.len() + first.len()) as u8];
        taken += fuzz::hpack(&[&cuts, &update[..], &first, &second].concat());
    }
    assert!(taken > 5000, "{taken} requests are few to compare");
}

/// Size updates, then fields of each form.
const PIECES: [&str; 13] = [
    "",
    "20 3f 45",
    "3f e1 1f",
    "40 88 25a849e95ba97d7f 89 25a849e95bb8e8b4bf",
    "50 01 61",
    "7e 81 1f",
    "7f 00 03 627463",
    "be",
    "bf",
    "90",
    "0f 2b 83 640eff",
    "10 01 61 00",
    "00 81 1f 81 1f",
];

/// Noise, or pieces that make a valid block and mostly stay so.
fn noise(random: &mut StdRng) -> Vec<u8> {
    if random.random_ratio(1, 4) {
        return bytes(random, 80);
    }
    let mut block: Vec<u8> = (0..random.random_range(1..6)).flat_map(|_| hex(PIECES[3..].choose(random).unwrap())).collect();
    if random.random_ratio(1, 4) {
        let place = random.random_range(0..block.len());
        block[place] = random.random();
    }
    block
}
