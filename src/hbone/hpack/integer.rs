//! Integers with a prefix of less than a byte (RFC 7541 §5.1).

use super::Malformed;

/// Bytes after the prefix. Four carry 28 bits, more than any header block is long; what is longer must be refused.
const MOST_BYTES: u32 = 4;

/// Takes an integer whose prefix is the low `prefix` bits of the first byte.
pub(super) fn decode(rest: &mut &[u8], prefix: u32) -> Result<usize, Malformed> {
    let full = (1usize << prefix) - 1;
    let mut value = usize::from(byte(rest)?) & full;
    if value < full {
        return Ok(value);
    }
    for place in 0..MOST_BYTES {
        let byte = byte(rest)?;
        value += usize::from(byte & 0x7f) << (7 * place);
        if byte & 0x80 == 0 {
            return Ok(value);
        }
    }
    Err(Malformed::Integer)
}

/// Appends `value`; `pattern` holds the bits of the first byte above the prefix.
pub(super) fn encode(out: &mut Vec<u8>, pattern: u8, prefix: u32, value: usize) {
    let full = (1usize << prefix) - 1;
    if value < full {
        out.push(pattern | value as u8);
        return;
    }
    out.push(pattern | full as u8);
    let mut left = value - full;
    while left >= 0x80 {
        out.push(left as u8 | 0x80);
        left >>= 7;
    }
    out.push(left as u8);
}

fn byte(rest: &mut &[u8]) -> Result<u8, Malformed> {
    let (first, behind) = rest.split_first().ok_or(Malformed::Truncated)?;
    *rest = behind;
    Ok(*first)
}
