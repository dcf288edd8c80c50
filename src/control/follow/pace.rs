//! How often a new state is shown: at once when it is quiet, and not too often when it is not.

use std::time::Duration;

use tokio::time::Instant;

/// States in a row that are shown as they come: a pod that starts is a handful of changes.
const BURST: u32 = 32;

/// After a burst, changes are gathered for this long.
const GATHER: Duration = Duration::from_millis(50);

/// Knows when the next state may be shown.
#[derive(Debug, Default)]
pub(super) struct Pace {
    /// When those that were shown would have been shown one [`GATHER`] after the other.
    behind: Option<Instant>,
}

impl Pace {
    /// When the next one may be shown; `now` or later.
    pub(super) fn due(&self, now: Instant) -> Instant {
        let behind = self.behind.and_then(|behind| behind.checked_sub(GATHER * (BURST - 1)));
        behind.map_or(now, |earliest| earliest.max(now))
    }

    /// One was shown.
    pub(super) fn spend(&mut self, now: Instant) {
        self.behind = Some(self.behind.map_or(now, |behind| behind.max(now)) + GATHER);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn single_states_are_shown_at_once_and_many_are_gathered() {
        let mut pace = Pace::default();
        let start = Instant::now();
        for _ in 0..BURST {
            assert_eq!(pace.due(start), start);
            pace.spend(start);
        }
        let mut now = start;
        for _ in 0..5 {
            let due = pace.due(now);
            assert_eq!(due - now, GATHER, "one after the other when they do not stop");
            now = due;
            pace.spend(now);
        }
        now += GATHER * BURST;
        assert_eq!(pace.due(now), now, "after a pause at once again");
    }
}
