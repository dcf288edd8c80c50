//! Whose bytes go next.

use std::collections::VecDeque;

/// Of the streams in a batch, those that come before the ones with much to send.
const FIRST: usize = 8;

/// The streams that may have bytes. One that was silent and now has a little comes first, so that it does not wait behind
/// those that always have much; but not so many of them that the others starve.
#[derive(Default)]
pub(super) struct Turns {
    sparse: VecDeque<u32>,
    busy: VecDeque<u32>,
    /// Sparse ones that still come first in this batch.
    first: usize,
}

impl Turns {
    /// A stream may have bytes again.
    pub(super) fn come(&mut self, slot: u32, sparse: bool) {
        if sparse { self.sparse.push_back(slot) } else { self.busy.push_back(slot) }
    }

    /// A stream that had its turn may have more.
    pub(super) fn go_on(&mut self, slot: u32) {
        self.busy.push_back(slot);
    }

    /// A batch begins.
    pub(super) fn begin(&mut self) {
        self.first = FIRST;
    }

    pub(super) fn next(&mut self) -> Option<u32> {
        if (self.first > 0 || self.busy.is_empty())
            && let Some(slot) = self.sparse.pop_front()
        {
            self.first = self.first.saturating_sub(1);
            return Some(slot);
        }
        self.busy.pop_front()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.sparse.is_empty() && self.busy.is_empty()
    }
}
