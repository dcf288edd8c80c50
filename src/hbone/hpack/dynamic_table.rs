//! The table that a peer fills (RFC 7541 §2.3.2).

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use super::{FIELD_OVERHEAD, INITIAL_TABLE_SIZE};

/// Newest entry first, as indices count.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct DynamicTable {
    entries: VecDeque<Entry>,
    /// Sum of the entries' sizes.
    size: usize,
    maximum: usize,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Entry {
    /// The name, then the value.
    bytes: Box<[u8]>,
    name: usize,
}

impl DynamicTable {
    pub(super) fn new() -> Self {
        Self { entries: VecDeque::new(), size: 0, maximum: INITIAL_TABLE_SIZE }
    }

    pub(super) fn maximum(&self) -> usize {
        self.maximum
    }

    /// Name and value; the newest entry is 0.
    pub(super) fn get(&self, index: usize) -> Option<(&[u8], &[u8])> {
        self.entries.get(index).map(|entry| entry.bytes.split_at(entry.name))
    }

    /// RFC 7541 §4.4: an entry larger than the table empties it.
    pub(super) fn insert(&mut self, entry: Entry) {
        let size = entry.size();
        self.shrink(self.maximum.saturating_sub(size));
        if size <= self.maximum {
            self.size += size;
            self.entries.push_front(entry);
        }
    }

    /// RFC 7541 §4.3
    pub(super) fn resize(&mut self, maximum: usize) {
        self.maximum = maximum;
        self.shrink(maximum);
    }

    fn shrink(&mut self, size: usize) {
        while self.size > size {
            let Some(oldest) = self.entries.pop_back() else { return };
            self.size -= oldest.size();
        }
    }
}

impl Entry {
    pub(super) fn new(name: &[u8], value: &[u8]) -> Self {
        Self { bytes: [name, value].concat().into_boxed_slice(), name: name.len() }
    }

    /// RFC 7541 §4.1
    fn size(&self) -> usize {
        self.bytes.len() + FIELD_OVERHEAD
    }
}
