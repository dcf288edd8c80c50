//! Records that are made up, read by a session and by rustls.

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, RngCore, SeedableRng};

use super::super::fuzz;

/// How many records were opened in so many cases; `beside_rustls` says what else hears them.
fn opened(cases: u32, seed: u64, beside_rustls: bool) -> usize {
    let mut random = StdRng::seed_from_u64(seed);
    let mut opened = 0;
    for _ in 0..cases {
        let how = random.random::<u8>() & !2 | u8::from(beside_rustls) << 1;
        let mut data = vec![how, random.random()];
        for _ in 0..random.random_range(0..15) {
            step(&mut random, &mut data);
        }
        opened += fuzz::records(&data);
    }
    opened
}

/// A step of the script: mostly one that an honest peer could have taken.
fn step(random: &mut StdRng, data: &mut Vec<u8>) {
    let (honest, others) = ([0, 0, 0, 4, 4, 6], [5, 7, 8, 8, 8, 8, 9, 9, 10, 11, 12, 13, 14, 15]);
    let step: u8 = *if random.random_ratio(7, 8) { honest.choose(random) } else { others.choose(random) }.unwrap();
    data.push(random.random::<u8>() & 0xf0 | step);
    let more = match step {
        0..=3 | 6 | 7 | 10.. => 1,
        4 | 5 => 0,
        8 => 20,
        _ => 8,
    };
    let start = data.len();
    data.resize(start + more, 0);
    random.fill_bytes(&mut data[start..]);
    // The description of an alert: user_canceled.
    if step == 7 && random.random() {
        data[start] = 90;
    }
}

#[test]
fn it_does_not_matter_how_the_records_of_a_peer_come() {
    let opened = opened(3_000, 21, false);
    assert!(opened > 8_000, "only {opened} records were opened");
}

#[test]
fn rustls_takes_the_same_records() {
    let opened = opened(3_000, 22, true);
    assert!(opened > 10_000, "only {opened} records were opened");
}
