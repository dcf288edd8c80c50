//! Frames that are made up: mostly of the right form, in any order, with some bytes changed.

use super::super::frame::{HEADER, kind, put};
use super::*;
use crate::hbone::fuzz;

#[test]
fn it_does_not_matter_how_the_bytes_of_a_peer_come() {
    let mut random = StdRng::seed_from_u64(11);
    let mut events = 0;
    for _ in 0..20_000 {
        let (client, unknown) = (random.random_range(0..2), random.random_range(0..20) == 0);
        let mut data = vec![client | u8::from(unknown) << 1, random.random()];
        // The client of the target has opened three.
        let mut opened = u32::from(client) * 3;
        for _ in 0..random.random_range(0..30) {
            made_up(&mut random, client == 0, &mut opened, &mut data);
        }
        if random.random_range(0..3) == 0 {
            let at = random.random_range(2..data.len() + 1);
            data.insert(at, random.random());
        }
        events += fuzz::frames(&data);
    }
    assert!(events > 60_000, "only {events} events: nothing deep was reached");
}

/// A frame; one in some tens breaks a rule. `opened` is the number of streams so far.
fn made_up(random: &mut StdRng, opens: bool, opened: &mut u32, data: &mut Vec<u8>) {
    let mut one = |of: &[u32]| of[random.random_range(0..of.len())];
    let odd = one(&[0, 0, 0, 0, 0, 1]) + one(&[0, 0, 0, 0, 0, 1]) == 2;
    let kind = one(&[0, 0, 0, 1, 1, 1, 1, 2, 3, 4, 6, 7, 8, 10]) as u8;
    let kind = if odd {
        one(&[5, 9]) as u8
    } else if *opened == 0 {
        kind::HEADERS
    } else {
        kind
    };
    let payload = match kind {
        kind::DATA => vec![7; one(&[0, 1, 10, 30, 100, 301]) as usize],
        kind::HEADERS | kind::CONTINUATION => match one(&[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4]) {
            0 => block(u32::from(!opens)),
            other => block(other),
        },
        kind::SETTINGS => [[0, one(&[1, 2, 3, 4, 4, 5, 6]) as u8], [0, 0], [one(&[0, 0x40]) as u8, 0]].concat(),
        kind::PING | kind::GOAWAY => vec![0; 8],
        kind::PRIORITY => vec![0; 5],
        _ => one(&[0, 1, 8, 8, 8, 8, 100, 1000, 1 << 30]).to_be_bytes().to_vec(),
    };
    let new = opens && kind == kind::HEADERS && (*opened == 0 || one(&[0, 1, 1]) == 1);
    *opened += u32::from(new);
    let known = 2 * one(&[0, 0, 1, 1, 2, 3]).min(opened.saturating_sub(1)) + 1;
    let (stream, flags) = match kind {
        kind::SETTINGS | kind::PING | kind::GOAWAY => (0, 0),
        kind::HEADERS => {
            (if new { 2 * *opened - 1 } else { known }, one(&[4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 5, 5, 5, 5, 5, 5, 0, 12, 36, 44]))
        }
        kind::DATA => (known, one(&[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 8, 9])),
        kind::WINDOW_UPDATE => (known * one(&[0, 1, 1]), 0),
        _ => (known, one(&[0, 4])),
    };
    let stream = if odd { one(&[0, 2, 99]) } else { stream };
    put(data, kind, flags as u8, stream, &payload);
    if odd {
        let header = data.len() - payload.len() - HEADER;
        data[header + 2] = random.random();
    }
}

/// A request, an answer, the end of either, one that is too long, nothing.
fn block(which: u32) -> Vec<u8> {
    match which {
        0 => b"\x02\x07CONNECT\x01\x03a:1".to_vec(),
        1 => b"\x88\x40\x01x\x01y".to_vec(),
        2 => b"\xbe".to_vec(),
        3 => [b"\x02\x07CONNECT\x01\x03a:1\x00\x01x\x7f\xff\x03", &[b'y'; 510][..]].concat(),
        _ => Vec::new(),
    }
}
