//! Buffers for the bytes that are under way. A tunnel that has nothing to do owns none.

use std::cell::RefCell;

use crate::tls::record::{HEADER as RECORD_HEADER, MAX_PLAINTEXT, TRAILER};

use super::super::core::HEADER as FRAME_HEADER;

/// Bytes of an application in one full record, which holds one frame.
pub(super) const PAYLOAD: usize = MAX_PLAINTEXT - FRAME_HEADER;

/// In front of the payload.
pub(super) const FRONT: usize = RECORD_HEADER + FRAME_HEADER;

/// A full record.
pub(super) const RECORD: usize = FRONT + PAYLOAD + TRAILER;

/// Full records that are sealed for one write.
pub(super) const RECORDS: usize = 16;

/// Of one buffer: a batch of full records, and what the connection itself has to say.
pub(super) const SIZE: usize = RECORDS * RECORD + 4096;

/// Buffers that a thread keeps for the next tunnel.
const KEPT: usize = 2;

thread_local! {
    static FREE: RefCell<Vec<Box<[u8]>>> = const { RefCell::new(Vec::new()) };
}

/// A stretch of bytes in a buffer that is only there while it is not empty.
#[derive(Default)]
pub(super) struct Stretch {
    bytes: Option<Box<[u8]>>,
    start: usize,
    end: usize,
}

impl Stretch {
    pub(super) fn is_empty(&self) -> bool {
        self.start == self.end
    }

    pub(super) fn filled(&self) -> &[u8] {
        self.bytes.as_deref().and_then(|bytes| bytes.get(self.start..self.end)).unwrap_or_default()
    }

    pub(super) fn filled_mut(&mut self) -> &mut [u8] {
        self.bytes.as_deref_mut().and_then(|bytes| bytes.get_mut(self.start..self.end)).unwrap_or_default()
    }

    /// What may still be filled.
    pub(super) fn room(&mut self) -> &mut [u8] {
        let bytes = self.bytes.get_or_insert_with(take);
        bytes.get_mut(self.end..).unwrap_or_default()
    }

    /// How much may still be filled.
    pub(super) fn left(&self) -> usize {
        SIZE - self.end
    }

    /// So many bytes of the room were filled.
    pub(super) fn fill(&mut self, length: usize) {
        self.end = (self.end + length).min(SIZE);
    }

    /// So many bytes at the front are done with.
    pub(super) fn consume(&mut self, length: usize) {
        self.start = (self.start + length).min(self.end);
        if self.is_empty() {
            self.clear();
        }
    }

    /// Gives the buffer back if there is nothing in it.
    pub(super) fn clear(&mut self) {
        if self.is_empty() {
            (self.start, self.end) = (0, 0);
            if let Some(bytes) = self.bytes.take() {
                give(bytes);
            }
        }
    }

    /// Moves what there is to the front, so that more fits behind it.
    pub(super) fn compact(&mut self) {
        if self.start > 0
            && let Some(bytes) = &mut self.bytes
        {
            bytes.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
    }
}

impl Drop for Stretch {
    fn drop(&mut self) {
        if let Some(bytes) = self.bytes.take() {
            give(bytes);
        }
    }
}

fn take() -> Box<[u8]> {
    FREE.with_borrow_mut(Vec::pop).unwrap_or_else(|| vec![0; SIZE].into_boxed_slice())
}

fn give(bytes: Box<[u8]>) {
    // A thread that ends has no list any more; the buffer is then simply freed.
    let _ = FREE.try_with(|free| {
        let mut free = free.borrow_mut();
        if free.len() < KEPT {
            free.push(bytes);
        }
    });
}
