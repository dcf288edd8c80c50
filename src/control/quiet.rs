//! Lines that a stranger can cause: a few a second reach the log, with a count of those that did not.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// Lines in one second.
const MAX_LINES: u32 = 3;

/// Lets lines of one kind through.
#[derive(Debug, Default)]
pub(super) struct Quiet(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    second: Option<Instant>,
    lines: u32,
    left_out: u64,
}

impl Quiet {
    /// Whether a line may be written now; if so, how many before it were left out.
    pub(super) fn admit(&self) -> Option<u64> {
        self.admit_at(Instant::now())
    }

    fn admit_at(&self, now: Instant) -> Option<u64> {
        let mut state = self.0.lock();
        if state.second.is_none_or(|start| now.saturating_duration_since(start) >= Duration::from_secs(1)) {
            (state.second, state.lines) = (Some(now), 0);
        }
        if state.lines == MAX_LINES {
            state.left_out += 1;
            return None;
        }
        state.lines += 1;
        Some(std::mem::take(&mut state.left_out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_a_few_lines_a_second_and_a_count() {
        let (quiet, start) = (Quiet::default(), Instant::now());
        let flood = |at| (0..1000).filter_map(|_| quiet.admit_at(at)).collect::<Vec<_>>();
        assert_eq!(flood(start), [0, 0, 0]);
        assert!(flood(start + Duration::from_millis(999)).is_empty());
        assert_eq!(flood(start + Duration::from_secs(1)), [1997, 0, 0]);
    }
}
