//! Fields to header blocks.

use serde::{Deserialize, Serialize};

use super::static_table::{Place, find};
use super::{INITIAL_TABLE_SIZE, integer};

/// Values that must not enter a table at any hop: short enough to be guessed from how well they compress (RFC 7541 §7.1.3).
const SENSITIVE: [&[u8]; 4] = [b"authorization", b"cookie", b"proxy-authorization", b"set-cookie"];

/// What an encoder that keeps no dynamic table still owes its peer.
///
/// The table has 4096 bytes until something else is said. A peer that announces less must hear, at the start of the next
/// block after its SETTINGS are acknowledged, what the encoder makes of it (RFC 7541 §4.2, RFC 9113 §4.3.1): 0 bytes,
/// which is below anything announced later. It is said again after each further reduction, for peers that count on it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::hbone) struct Encoder {
    announced: usize,
    owes_update: bool,
}

impl Encoder {
    pub(in crate::hbone) fn new() -> Self {
        Self { announced: INITIAL_TABLE_SIZE, owes_update: false }
    }

    /// The peer's SETTINGS_HEADER_TABLE_SIZE, in bytes: call for each one, before its SETTINGS are acknowledged.
    pub(in crate::hbone) fn announced(&mut self, table_size: usize) {
        self.owes_update |= table_size < self.announced;
        self.announced = table_size;
    }

    /// Starts a header block: call before its first field, once per block that is sent.
    pub(in crate::hbone) fn start(&mut self, out: &mut Vec<u8>) {
        if std::mem::take(&mut self.owes_update) {
            integer::encode(out, 0x20, 5, 0);
        }
    }
}

/// Appends one field; the name is in lower case (RFC 9113 §8.2.1).
///
/// Strings are not Huffman coded: a CONNECT and its answer are too short for the bytes saved to matter.
pub(in crate::hbone) fn encode(out: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    let place = find(name, value);
    if let Place::Field(index) = place {
        // RFC 7541 §6.1
        return integer::encode(out, 0x80, 7, index);
    }
    // §6.2.3 never indexed, §6.2.2 without indexing
    let pattern = if SENSITIVE.contains(&name) { 0x10 } else { 0 };
    match place {
        Place::Name(index) => integer::encode(out, pattern, 4, index),
        _ => {
            out.push(pattern);
            string(out, name);
        }
    }
    string(out, value);
}

/// RFC 7541 §5.2, not Huffman coded
fn string(out: &mut Vec<u8>, string: &[u8]) {
    integer::encode(out, 0, 7, string.len());
    out.extend_from_slice(string);
}
