//! Which streams of a tunnel have something to do. One task serves them all; each has a waker that says which it was.

use std::sync::Arc;
use std::task::{Wake, Waker};

use super::sync::{AtomicBool, AtomicWaker, Mutex, Ordering};

/// The streams that were woken, and the task that serves them.
#[derive(Default)]
pub(super) struct Woken {
    /// Each at most once.
    slots: Mutex<Vec<u32>>,
    task: AtomicWaker,
}

struct One {
    slot: u32,
    queued: AtomicBool,
    all: Arc<Woken>,
}

impl Woken {
    /// The task to wake from now on.
    pub(super) fn register(&self, waker: &Waker) {
        self.task.register(waker);
    }

    /// Wakes the task for something that is not of one stream.
    pub(super) fn wake(&self) {
        self.task.wake();
    }

    /// Moves out what was woken. Each of them may be woken anew from now on.
    pub(super) fn take(&self, into: &mut Vec<u32>) {
        into.append(&mut self.slots.lock());
    }

    /// The waker of one stream; `again` is to be called when it has been taken out.
    pub(super) fn one(self: &Arc<Self>, slot: u32) -> SlotWaker {
        let one = Arc::new(One { slot, queued: AtomicBool::new(false), all: self.clone() });
        SlotWaker { waker: Waker::from(one.clone()), one }
    }
}

/// What a stream gives to the sockets it waits for.
pub(super) struct SlotWaker {
    pub(super) waker: Waker,
    one: Arc<One>,
}

impl SlotWaker {
    /// Before the stream is looked at: what happens from now on wakes it again.
    pub(super) fn again(&self) {
        // It has to read too. A waker that came before and found it queued is only then sure to have what it wakes for
        // seen, and a mere store may become visible after what is looked at was read.
        self.one.queued.swap(false, Ordering::AcqRel);
    }
}

impl Wake for One {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if !self.queued.swap(true, Ordering::AcqRel) {
            self.all.slots.lock().push(self.slot);
            self.all.task.wake();
        }
    }
}
