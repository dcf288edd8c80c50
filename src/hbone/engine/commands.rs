//! What those outside want of a tunnel's task, on its way there.

use std::sync::Arc;

use super::sync::Mutex;
use super::wake::Woken;

/// A short list: one or two in a stream's life.
pub(super) struct Commands<C> {
    task: Arc<Woken>,
    /// `None` when the task takes no more.
    list: Mutex<Option<Vec<C>>>,
}

impl<C> Commands<C> {
    pub(super) fn new(task: Arc<Woken>) -> Self {
        Self { task, list: Mutex::new(Some(Vec::new())) }
    }

    /// Gives the command back when the task takes no more.
    pub(super) fn send(&self, command: C) -> Result<(), C> {
        match &mut *self.list.lock() {
            Some(list) => list.push(command),
            None => return Err(command),
        }
        self.task.wake();
        Ok(())
    }

    /// What was sent since the last time.
    pub(super) fn take(&self) -> Vec<C> {
        self.list.lock().as_mut().map(std::mem::take).unwrap_or_default()
    }

    /// Takes no more; what was sent and not taken.
    pub(super) fn close(&self) -> Vec<C> {
        self.list.lock().take().unwrap_or_default()
    }
}
