//! The drain signal: who is asked to finish, and who waits until all have.
//!
//! One [`Trigger`] starts it, any number of [`Watch`]es hear it. A watch that is dropped has finished; [`Trigger::drain`]
//! returns when all have, or when the deadline is over.

use std::time::Duration;

use tokio::sync::{mpsc, watch};

/// How to finish.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Mode {
    /// Not yet: serve.
    #[default]
    Running,
    /// Take nothing new, finish what is open until the deadline.
    Graceful,
    /// End now.
    Immediate,
}

/// The side that starts the drain.
#[derive(Debug)]
pub struct Trigger {
    mode: watch::Sender<Mode>,
    finished: mpsc::Receiver<()>,
}

/// The side that is drained. Clones count as one more holder each.
#[derive(Clone, Debug)]
pub struct Watch {
    mode: watch::Receiver<Mode>,
    _alive: mpsc::Sender<()>,
}

/// Hears when work must end at once. It holds no drain up.
#[derive(Debug)]
pub struct Ending(watch::Receiver<Mode>);

/// A connected pair.
pub fn new() -> (Trigger, Watch) {
    let (mode_tx, mode_rx) = watch::channel(Mode::Running);
    let (alive, finished) = mpsc::channel(1);
    (Trigger { mode: mode_tx, finished }, Watch { mode: mode_rx, _alive: alive })
}

impl Trigger {
    /// Asks all watches to finish and waits for it: gracefully up to `limit`, then at once.
    ///
    /// Returns whether everything ended by itself within `limit`.
    pub async fn drain(mut self, limit: Duration) -> bool {
        self.mode.send_replace(Mode::Graceful);
        if tokio::time::timeout(limit, self.finished.recv()).await.is_ok() {
            return true;
        }
        self.mode.send_replace(Mode::Immediate);
        // Immediate means cancelled tasks: what is left is their unwinding, not their work.
        let _ = tokio::time::timeout(Duration::from_secs(1), self.finished.recv()).await;
        false
    }

    /// Ends all watches without waiting for their work.
    pub async fn stop(mut self) {
        self.mode.send_replace(Mode::Immediate);
        let _ = tokio::time::timeout(Duration::from_secs(1), self.finished.recv()).await;
    }
}

impl Watch {
    /// Returns when a drain of any kind has started, also when the trigger is gone.
    pub async fn started(&mut self) -> Mode {
        match self.mode.wait_for(|mode| *mode != Mode::Running).await {
            Ok(mode) => *mode,
            Err(_) => Mode::Immediate,
        }
    }

    /// Returns when work must end at once.
    pub async fn ended(&mut self) {
        let _ = self.mode.wait_for(|mode| *mode == Mode::Immediate).await;
    }

    /// The end alone.
    pub fn ending(&self) -> Ending {
        Ending(self.mode.clone())
    }

    /// The mode now.
    pub fn mode(&self) -> Mode {
        *self.mode.borrow()
    }
}

impl Ending {
    /// Returns when work must end at once, also when the trigger is gone.
    pub async fn ended(mut self) {
        let _ = self.0.wait_for(|mode| *mode == Mode::Immediate).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn graceful_waits_for_the_last_watch() {
        let (trigger, mut watch) = new();
        let task = tokio::spawn(async move {
            assert_eq!(watch.started().await, Mode::Graceful);
            tokio::time::sleep(Duration::from_secs(3)).await;
        });
        assert!(trigger.drain(Duration::from_secs(5)).await);
        assert!(task.is_finished());
    }

    #[tokio::test(start_paused = true)]
    async fn the_deadline_turns_graceful_into_immediate() {
        let (trigger, mut watch) = new();
        let task = tokio::spawn(async move {
            watch.ended().await;
        });
        assert!(!trigger.drain(Duration::from_secs(5)).await);
        task.await.expect("the task ends by itself");
    }
}
