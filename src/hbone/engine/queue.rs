//! Bytes that an application has not taken yet.

use std::collections::VecDeque;
use std::io::IoSlice;
use std::sync::atomic::{AtomicUsize, Ordering};

/// What all streams of the process may have waiting together. Above, tunnels that hold more than [`FEW`] get no more
/// until it is less: each stream is bounded by its own window, but there can be many.
const ALL: usize = 256 << 20;

/// What a tunnel may have waiting at any time.
const FEW: usize = 1 << 20;

static WAITING: AtomicUsize = AtomicUsize::new(0);

/// Of one stream; at most its window.
#[derive(Default)]
pub(super) struct Queue(VecDeque<u8>);

impl Queue {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn push(&mut self, bytes: &[u8]) {
        WAITING.fetch_add(bytes.len(), Ordering::Relaxed);
        self.0.extend(bytes);
    }

    pub(super) fn slices(&self) -> [IoSlice<'_>; 2] {
        let (front, back) = self.0.as_slices();
        [IoSlice::new(front), IoSlice::new(back)]
    }

    /// So many were taken.
    pub(super) fn taken(&mut self, length: usize) {
        WAITING.fetch_sub(length.min(self.0.len()), Ordering::Relaxed);
        self.0.drain(..length.min(self.0.len()));
        if self.0.is_empty() {
            // What a burst has needed is not kept.
            self.0 = VecDeque::new();
        }
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        WAITING.fetch_sub(self.0.len(), Ordering::Relaxed);
    }
}

/// Whether a tunnel with so many bytes waiting is to get no more for now.
pub(super) fn is_too_much(of_tunnel: usize) -> bool {
    is_above(of_tunnel, WAITING.load(Ordering::Relaxed))
}

fn is_above(of_tunnel: usize, of_all: usize) -> bool {
    of_all > ALL && of_tunnel > FEW
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_waits_is_counted_until_it_is_gone() {
        let mut queue = Queue::default();
        queue.push(&[7; 1000]);
        queue.taken(400);
        assert_eq!((queue.len(), queue.slices().iter().map(|slice| slice.len()).sum::<usize>()), (600, 600));
        queue.taken(600);
        assert!(queue.is_empty());
    }

    #[test]
    fn only_those_who_hold_much_of_too_much_wait() {
        assert!(!is_above(200 << 20, 200 << 20), "one tunnel alone");
        assert!(is_above(2 << 20, 257 << 20) && !is_above(FEW, 1 << 40));
    }
}
