//! Header compression of a tunnel (RFC 7541).
//!
//! A [`Decoder`] understands everything a peer may send: both tables, size updates, Huffman codes. An [`Encoder`] keeps
//! no dynamic table: the few fields of a CONNECT differ from stream to stream, and what is never kept is never searched.

mod decoder;
mod dynamic_table;
mod encoder;
mod huffman;
mod integer;
mod static_table;
#[cfg(test)]
mod tests;

pub(in crate::hbone) use decoder::Decoder;
pub(in crate::hbone) use encoder::{Encoder, encode};

/// Size of a dynamic table before any SETTINGS_HEADER_TABLE_SIZE is acknowledged (RFC 9113 §6.5.2).
const INITIAL_TABLE_SIZE: usize = 4096;

/// What each field costs beyond its bytes, in a table (RFC 7541 §4.1) and in a list (RFC 9113 §6.5.2).
const FIELD_OVERHEAD: usize = 32;

/// Why a header block cannot be decoded: a connection error of type COMPRESSION_ERROR (RFC 9113 §4.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(in crate::hbone) enum Malformed {
    #[error("the header block ends within a field")]
    Truncated,
    #[error("an integer of the header block is longer than any that is needed")]
    Integer,
    #[error("index {0} is in neither header table")]
    Index(usize),
    #[error("a Huffman coded string holds EOS or ends in other bits than its padding")]
    Huffman,
    #[error("a header table size update is not at the start of the header block")]
    MisplacedUpdate,
    #[error("the header table is set to {size} bytes, {limit} were announced")]
    TableSize { size: usize, limit: usize },
}
