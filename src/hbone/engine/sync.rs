//! What threads meet at around a tunnel's task. Tests put a model in its place, which tries every order.

pub(super) use std::sync::atomic::{AtomicBool, Ordering};

pub(super) use futures::task::AtomicWaker;
pub(super) use parking_lot::Mutex;
