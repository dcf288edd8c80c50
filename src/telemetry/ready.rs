//! Readiness: which parts of the process are not ready, and what each waits for.

use std::collections::BTreeMap;

use parking_lot::Mutex;

/// The parts that have to be ready, by name.
#[derive(Debug, Default)]
pub struct Readiness(Mutex<BTreeMap<&'static str, String>>);

impl Readiness {
    /// Everything ready.
    pub fn new() -> Self {
        Self::default()
    }

    /// `part` is not ready because of `reason`.
    pub fn waits(&self, part: &'static str, reason: impl Into<String>) {
        let reason = reason.into();
        let before = self.0.lock().insert(part, reason.clone());
        if before.as_ref() != Some(&reason) {
            tracing::info!(part, reason, "not ready");
        }
    }

    /// `part` is ready.
    pub fn ready(&self, part: &'static str) {
        if self.0.lock().remove(part).is_some() {
            tracing::info!(part, "ready");
        }
    }

    /// What is not ready, and why; empty when all is.
    pub fn pending(&self) -> BTreeMap<&'static str, String> {
        self.0.lock().clone()
    }
}
