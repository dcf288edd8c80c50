//! The model in the place of what the engine uses, with the same methods.

use std::task::Waker;

pub(super) use loom::sync::atomic::{AtomicBool, Ordering};

#[derive(Default)]
pub(super) struct Mutex<T>(loom::sync::Mutex<T>);

impl<T> Mutex<T> {
    pub(super) fn new(value: T) -> Self {
        Self(loom::sync::Mutex::new(value))
    }

    pub(super) fn lock(&self) -> loom::sync::MutexGuard<'_, T> {
        self.0.lock().unwrap()
    }
}

#[derive(Default)]
pub(super) struct AtomicWaker(loom::future::AtomicWaker);

impl AtomicWaker {
    pub(super) fn register(&self, waker: &Waker) {
        self.0.register_by_ref(waker);
    }

    pub(super) fn wake(&self) {
        self.0.wake();
    }
}
