//! How much a peer may have on its way in all: what the network holds, and not much more, because what is urgent waits
//! behind all of it.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// As long as nothing shows that more is needed: a third of a millisecond at 10 Gb/s, and one batch on its way while
/// another is looked at.
const LEAST: u32 = 384 << 10;

/// A measurement takes this long, or some round trips.
const MEASURE: Duration = Duration::from_millis(10);
const ROUND_TRIPS: u32 = 4;

/// A measurement that took longer is of a connection that was quiet in between.
const STALE: Duration = Duration::from_secs(1);

/// The window that this side keeps open for all streams together.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Window {
    size: u32,
    least: u32,
    most: u32,
    /// What has come and is not told to the peer as taken; below zero while the window becomes smaller.
    owed: i64,
    /// The shortest that was seen.
    round_trip: Option<Duration>,
    since: Duration,
    bytes: u64,
}

impl Window {
    /// Never above `most`; `whole`: never below it either.
    pub(super) fn new(most: u32, whole: bool) -> Self {
        let least = if whole { most } else { most.min(LEAST) };
        Self { size: least, least, most, owed: 0, round_trip: None, since: Duration::ZERO, bytes: 0 }
    }

    pub(super) fn size(&self) -> u32 {
        self.size
    }

    #[cfg(test)]
    pub(super) fn owed(&self) -> i64 {
        self.owed
    }

    /// A PING has come back.
    pub(super) fn round_trip(&mut self, time: Duration) {
        self.round_trip = Some(self.round_trip.map_or(time, |least| least.min(time)));
    }

    /// So many bytes have come: what the peer is to be told, if anything.
    pub(super) fn came(&mut self, length: u32, now: Duration) -> Option<u32> {
        self.owed += i64::from(length);
        self.bytes += u64::from(length);
        self.measure(now);
        // In good time, before the peer runs dry; but not for each byte.
        let due = self.owed >= i64::from(self.size / 4).max(1);
        due.then(|| u32::try_from(std::mem::take(&mut self.owed)).unwrap_or(u32::MAX >> 1))
    }

    /// Twice what is on its way in a round trip is enough. A sender that fills the window in each gets a larger one.
    fn measure(&mut self, now: Duration) {
        let Some(round_trip) = self.round_trip else { return };
        let took = now.saturating_sub(self.since);
        if took < MEASURE.max(round_trip * ROUND_TRIPS) {
            return;
        }
        let bytes = std::mem::take(&mut self.bytes);
        self.since = now;
        if took > STALE.max(round_trip * ROUND_TRIPS * 2) {
            return;
        }
        let on_its_way = (bytes as f64 * round_trip.as_secs_f64() / took.as_secs_f64()) as u64;
        let wanted = on_its_way.saturating_mul(2);
        let size = match u64::from(self.size) {
            size if wanted > size => self.size.saturating_mul(2).min(self.most),
            size if wanted < size / 2 => (self.size / 2).max(self.least),
            _ => self.size,
        };
        self.owed += i64::from(size) - i64::from(self.size);
        self.size = size;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A sender that always has more, over a network of this round trip, to a receiver that takes `rate` bytes a second.
    fn settled(round_trip: Duration, rate: u64) -> u32 {
        let mut window = Window::new(16 << 20, false);
        window.round_trip(round_trip);
        let (mut now, mut may) = (Duration::ZERO, i64::from(window.size()));
        for _ in 0..2_000 {
            // What the window lets through in a round trip, or what the receiver takes in it.
            let sent = may.min((rate as f64 * round_trip.as_secs_f64()) as i64).max(1);
            now += round_trip;
            may -= sent;
            may += i64::from(window.came(u32::try_from(sent).unwrap(), now).unwrap_or(0));
        }
        window.size()
    }

    #[test]
    fn the_window_is_as_large_as_the_network_needs() {
        let ms = Duration::from_millis;
        assert_eq!(settled(Duration::from_micros(100), 1 << 30), LEAST, "a receiver that is slower than the network");
        assert_eq!(settled(ms(1), 1 << 27), LEAST);
        assert!((4 << 20..=8 << 20).contains(&settled(ms(10), 300 << 20)), "3 MB on their way");
        assert_eq!(settled(ms(100), 1 << 30), 16 << 20, "never above what was allowed");
    }

    #[test]
    fn a_window_that_is_not_needed_any_more_becomes_smaller_without_taking_back() {
        let mut window = Window::new(16 << 20, false);
        window.round_trip(Duration::from_millis(10));
        (window.size, window.since) = (16 << 20, Duration::ZERO);
        let mut told = 0;
        for step in 1..100 {
            told += window.came(10_000, Duration::from_millis(step * 50)).unwrap_or(0);
        }
        assert_eq!(window.size(), LEAST);
        assert_eq!(told, 0, "15 MB less were to be told");
    }

    #[test]
    fn a_small_window_stays_as_it_was_set() {
        let mut window = Window::new(1, false);
        window.round_trip(Duration::from_millis(1));
        assert_eq!(window.came(1, Duration::from_secs(1)), Some(1));
        assert_eq!(window.size(), 1);
    }

    #[test]
    fn a_whole_window_stays_whole() {
        let mut window = Window::new(16 << 20, true);
        window.round_trip(Duration::from_micros(100));
        for step in 1..100 {
            window.came(10_000, Duration::from_millis(step * 50));
            assert_eq!(window.size(), 16 << 20);
        }
    }
}
