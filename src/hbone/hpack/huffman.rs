//! The Huffman code of strings (RFC 7541 Appendix B).
//!
//! The code is canonical: codes of one length follow each other in the order of their symbols, and the first of a length
//! follows the last of the shorter ones. So the lengths say it all.

use super::Malformed;

/// Bits of the code of each byte, and of EOS.
#[rustfmt::skip]
pub(super) const LENGTHS: [u8; 257] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28,
    28, 28, 28, 28, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 28,
    6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6,
    5, 5, 5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15, 6, 12, 10,
    13, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7,
    7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6,
    15, 5, 6, 5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6, 6, 5,
    6, 7, 6, 5, 5, 6, 7, 7, 7, 7, 7, 15, 11, 14, 13, 28,
    20, 22, 20, 20, 22, 22, 22, 23, 22, 23, 23, 23, 23, 23, 24, 23,
    24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24,
    22, 21, 20, 22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23, 23,
    21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22, 22, 23, 22, 22, 23,
    26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25,
    19, 21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26, 28, 27, 27, 27,
    20, 24, 20, 21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23,
    26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27, 27, 27, 26,
    30,
];

const EOS: u16 = 256;
const LONGEST: usize = 30;

/// The codes of one length.
#[derive(Clone, Copy)]
struct Codes {
    first: u32,
    /// One more than the last.
    end: u32,
    /// Of the first one's symbol in [`SYMBOLS`].
    place: u16,
}

/// By length in bits.
static CODES: [Codes; LONGEST + 1] = codes();

/// Symbols in the order of their codes.
static SYMBOLS: [u16; 257] = symbols();

/// By the next eight bits: the byte that they start with and the bits of its code; 0 bits where the code is longer.
static SHORT: [(u8, u8); 256] = short();

/// Appends the decoded string.
pub(super) fn decode(code: &[u8], out: &mut Vec<u8>) -> Result<(), Malformed> {
    // The shortest code has 5 bits.
    out.reserve(code.len() * 8 / 5);
    let mut code = code.iter();
    // From the highest bit on; `held` of them are of the string, zeros follow.
    let (mut bits, mut held) = (0u64, 0u32);
    loop {
        while held <= 56 {
            let Some(&byte) = code.next() else { break };
            bits |= u64::from(byte) << (56 - held);
            held += 8;
        }
        let (symbol, length) = symbol(bits);
        if length > held {
            // RFC 7541 §5.2: padded with less than a byte of the first bits of EOS, which are ones.
            return if held < 8 && bits.leading_ones() == held { Ok(()) } else { Err(Malformed::Huffman) };
        }
        out.push(u8::try_from(symbol).map_err(|_| Malformed::Huffman)?);
        bits <<= length;
        held -= length;
    }
}

/// The symbol whose code `bits` start with, and the length of that code.
fn symbol(bits: u64) -> (u16, u32) {
    let (byte, length) = SHORT[(bits >> 56) as usize];
    if length != 0 {
        return (u16::from(byte), u32::from(length));
    }
    for (length, codes) in CODES.iter().enumerate().skip(9) {
        let code = (bits >> (64 - length)) as u32;
        if code < codes.end {
            return (SYMBOLS[usize::from(codes.place) + (code - codes.first) as usize], length as u32);
        }
    }
    // The code is complete: every 30 bits start with one of its words.
    (EOS, LONGEST as u32)
}

const fn codes() -> [Codes; LONGEST + 1] {
    let mut codes = [Codes { first: 0, end: 0, place: 0 }; LONGEST + 1];
    let (mut next, mut place, mut length) = (0, 0, 1);
    while length <= LONGEST {
        next <<= 1;
        codes[length] = Codes { first: next, end: next, place };
        let mut symbol = 0;
        while symbol < LENGTHS.len() {
            if LENGTHS[symbol] as usize == length {
                next += 1;
                place += 1;
            }
            symbol += 1;
        }
        codes[length].end = next;
        length += 1;
    }
    codes
}

const fn symbols() -> [u16; 257] {
    let mut symbols = [0; 257];
    let (mut place, mut length) = (0, 1);
    while length <= LONGEST {
        let mut symbol = 0;
        while symbol < LENGTHS.len() {
            if LENGTHS[symbol] as usize == length {
                symbols[place] = symbol as u16;
                place += 1;
            }
            symbol += 1;
        }
        length += 1;
    }
    symbols
}

/// In the order of their codes, which is that of the bits, each symbol fills the entries that start with its code.
const fn short() -> [(u8, u8); 256] {
    let symbols = symbols();
    let mut short = [(0, 0); 256];
    let (mut bits, mut place) = (0, 0);
    while LENGTHS[symbols[place] as usize] <= 8 {
        let length = LENGTHS[symbols[place] as usize];
        let end = bits + (1 << (8 - length));
        while bits < end {
            short[bits] = (symbols[place] as u8, length);
            bits += 1;
        }
        place += 1;
    }
    short
}
