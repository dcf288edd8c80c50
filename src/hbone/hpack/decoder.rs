//! Header blocks to fields.

use serde::{Deserialize, Serialize};

use super::dynamic_table::{DynamicTable, Entry};
use super::static_table::FIELDS;
use super::{FIELD_OVERHEAD, INITIAL_TABLE_SIZE, Malformed, huffman, integer};

/// Decodes the header blocks of one connection, in the order in which they came.
///
/// Every block that arrives must be given to it, also those of refused streams: the dynamic table is made of all of them
/// (RFC 9113 §4.3). After an error it is of no more use, as is the connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::hbone) struct Decoder {
    table: DynamicTable,
    /// What the peer may set the dynamic table to.
    limit: usize,
    /// What `limit` is once our SETTINGS are acknowledged.
    announced: usize,
    list_size: usize,
}

/// What became of a header block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::hbone) struct Decoded {
    /// The list is larger than announced: its last fields were not given out.
    pub(in crate::hbone) oversized: bool,
}

impl Decoder {
    /// `table_size` is the SETTINGS_HEADER_TABLE_SIZE that this side announces in its first SETTINGS, `list_size` its
    /// SETTINGS_MAX_HEADER_LIST_SIZE; both in bytes.
    pub(in crate::hbone) fn new(table_size: usize, list_size: usize) -> Self {
        Self { table: DynamicTable::new(), limit: table_size.max(INITIAL_TABLE_SIZE), announced: table_size, list_size }
    }

    /// The peer acknowledged our first SETTINGS: a table size below 4096 holds from here on (RFC 9113 §4.3.1). Whoever
    /// announces no less need not call.
    pub(in crate::hbone) fn acknowledged(&mut self) {
        self.limit = self.announced;
    }

    /// Decodes one complete header block: HEADERS and its CONTINUATIONs joined by the caller, who bounds its length.
    ///
    /// Calls `each` with name and value of every field until the list is larger than `list_size` (RFC 9113 §6.5.2); the
    /// rest then only keeps the dynamic table right. Fields given before an error are to be forgotten.
    pub(in crate::hbone) fn decode(&mut self, block: &[u8], mut each: impl FnMut(&[u8], &[u8])) -> Result<Decoded, Malformed> {
        let mut rest = block;
        self.update(&mut rest)?;
        let mut list = 0;
        let mut give = |name: &[u8], value: &[u8]| {
            list += name.len() + value.len() + FIELD_OVERHEAD;
            if list <= self.list_size {
                each(name, value);
            }
        };
        let (mut name_text, mut value_text) = (Vec::new(), Vec::new());
        while let Some(&first) = rest.first() {
            let (prefix, keep) = match first {
                // RFC 7541 §6.1, a field of a table
                0x80.. => {
                    let (name, value) = field(&self.table, integer::decode(&mut rest, 7)?)?;
                    give(name, value);
                    continue;
                }
                // §6.2.1, a literal that enters the dynamic table
                0x40.. => (6, true),
                // §6.3
                0x20.. => return Err(Malformed::MisplacedUpdate),
                // §6.2.2 and §6.2.3, literals that do not
                _ => (4, false),
            };
            let name = match integer::decode(&mut rest, prefix)? {
                0 => string(&mut rest, &mut name_text)?,
                index => field(&self.table, index)?.0,
            };
            let value = string(&mut rest, &mut value_text)?;
            give(name, value);
            if keep {
                self.table.insert(Entry::new(name, value));
            }
        }
        Ok(Decoded { oversized: list > self.list_size })
    }

    /// Takes the size updates that a block may start with (RFC 7541 §4.2), and must once the limit has fallen below what
    /// the table is set to (RFC 9113 §4.3.1).
    fn update(&mut self, rest: &mut &[u8]) -> Result<(), Malformed> {
        while rest.first().is_some_and(|first| first & 0xe0 == 0x20) {
            let size = integer::decode(rest, 5)?;
            if size > self.limit {
                return Err(Malformed::TableSize { size, limit: self.limit });
            }
            self.table.resize(size);
        }
        match self.table.maximum() {
            size if size > self.limit => Err(Malformed::TableSize { size, limit: self.limit }),
            _ => Ok(()),
        }
    }
}

/// One address space for both tables (RFC 7541 §2.3.3); index 0 is no field (§6.1).
fn field(table: &DynamicTable, index: usize) -> Result<(&[u8], &[u8]), Malformed> {
    let place = index.checked_sub(1).ok_or(Malformed::Index(index))?;
    match FIELDS.get(place) {
        Some(field) => Ok(*field),
        None => table.get(place - FIELDS.len()).ok_or(Malformed::Index(index)),
    }
}

/// A string as it stands in the block or, if it is Huffman coded, decoded into `text` (RFC 7541 §5.2).
fn string<'a, 'block: 'a>(rest: &mut &'block [u8], text: &'a mut Vec<u8>) -> Result<&'a [u8], Malformed> {
    let coded = rest.first().is_some_and(|first| first & 0x80 != 0);
    let length = integer::decode(rest, 7)?;
    let (string, behind) = rest.split_at_checked(length).ok_or(Malformed::Truncated)?;
    *rest = behind;
    if !coded {
        return Ok(string);
    }
    text.clear();
    huffman::decode(string, text)?;
    Ok(text)
}
