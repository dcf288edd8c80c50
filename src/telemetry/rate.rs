//! Bounds how often something is said: strangers decide how often they knock, not how long the log gets.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// At most so many lines in each second; what is left out is counted and said with the next line.
#[derive(Debug)]
pub struct Rate {
    per_second: u32,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    second: Option<Instant>,
    said: u32,
    left_out: u64,
}

impl Rate {
    /// Nothing said yet.
    pub const fn new(per_second: u32) -> Self {
        Self { per_second, state: Mutex::new(State { second: None, said: 0, left_out: 0 }) }
    }

    /// Whether to say it now, and if so, how many were left out since the last time.
    pub fn admit(&self, now: Instant) -> Option<u64> {
        let mut state = self.state.lock();
        if state.second.is_none_or(|second| now.duration_since(second) >= Duration::from_secs(1)) {
            (state.second, state.said) = (Some(now), 0);
        }
        if state.said >= self.per_second {
            state.left_out += 1;
            return None;
        }
        state.said += 1;
        Some(std::mem::take(&mut state.left_out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_out_is_told_with_the_next_line() {
        let rate = Rate::new(2);
        let start = Instant::now();
        let seen: Vec<_> = (0..5).map(|_| rate.admit(start)).collect();
        assert_eq!(seen, [Some(0), Some(0), None, None, None]);
        assert_eq!(rate.admit(start + Duration::from_secs(1)), Some(3));
        assert_eq!(rate.admit(start + Duration::from_secs(1)), Some(0));
    }
}
