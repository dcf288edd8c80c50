//! What depends on time: keepalive, and how often a peer may do what costs this side more than the peer.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::frame::{Reason, flag, kind, put};
use super::{Connection, Farewell, Local, Violation};

/// In each of these a peer has a new [`BUDGET`].
const WINDOW: Duration = Duration::from_secs(10);

/// Frames in a window that neither move bytes nor end a stream: PING, SETTINGS, PRIORITY, empty DATA, unknown ones.
/// Well-behaved peers send some tens.
const BUDGET: u32 = 10_000;

/// Streams in a window that a peer opens and resets before they are answered (CVE-2023-44487), or makes this side reset
/// (CVE-2025-8671). Applications that give up at once, such as probes of ports, stay below.
const ABANDONED: u32 = 5_000;

/// A server waits for so long before it asks how long a round trip takes.
const FIRST_PING: Duration = Duration::from_secs(1);

/// Payloads of our PINGs: keepalive, and the one that follows the first GOAWAY.
const KEEPALIVE: [u8; 8] = *b"warren-k";
const FAREWELL: [u8; 8] = *b"warren-f";

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Clock {
    now: Duration,
    window: Duration,
    budget: u32,
    abandoned: u32,
    ping: Ping,
    interval: Duration,
    limit: Duration,
}

#[derive(Debug, Serialize, Deserialize)]
enum Ping {
    /// The next one is sent at this time.
    Due(Duration),
    /// Sent at this time and not answered.
    Sent(Duration),
}

impl Clock {
    pub(super) fn now(&self) -> Duration {
        self.now
    }

    pub(super) fn new(local: &Local, at_once: bool) -> Self {
        let due = if at_once { Duration::ZERO } else { local.ping_interval.min(FIRST_PING) };
        Self {
            now: Duration::ZERO,
            window: Duration::ZERO,
            budget: BUDGET,
            abandoned: ABANDONED,
            ping: Ping::Due(due),
            interval: local.ping_interval,
            limit: local.ping_limit,
        }
    }
}

impl Connection {
    /// Tells the time since the start of the connection, which never goes back.
    ///
    /// # Errors
    /// The peer has not answered a PING in time.
    pub(in crate::hbone) fn advance(&mut self, now: Duration) -> Result<(), Silent> {
        let clock = &mut self.clock;
        clock.now = now;
        if now >= clock.window + WINDOW {
            (clock.window, clock.budget, clock.abandoned) = (now, BUDGET, ABANDONED);
        }
        match clock.ping {
            Ping::Due(at) if now >= at => {
                clock.ping = Ping::Sent(now);
                put(&mut self.control, kind::PING, 0, 0, &KEEPALIVE);
            }
            Ping::Sent(at) if now >= at + clock.limit => return Err(Silent(clock.limit)),
            Ping::Due(_) | Ping::Sent(_) => {}
        }
        Ok(())
    }

    /// When `advance` has something to do next.
    pub(in crate::hbone) fn deadline(&self) -> Duration {
        match self.clock.ping {
            Ping::Due(at) => at,
            Ping::Sent(at) => at + self.clock.limit,
        }
    }

    /// The peer sent something that costs more here than there.
    pub(super) fn spend(&mut self) -> Result<(), Violation> {
        let left = self.clock.budget.checked_sub(1);
        self.clock.budget = left.ok_or_else(|| Violation::new(Reason::ENHANCE_YOUR_CALM, "a flood of frames that move no bytes"))?;
        Ok(())
    }

    /// The peer reset a request that was not answered, or provoked its reset.
    pub(super) fn abandoned(&mut self) -> Result<(), Violation> {
        let left = self.clock.abandoned.checked_sub(1);
        self.clock.abandoned =
            left.ok_or_else(|| Violation::new(Reason::ENHANCE_YOUR_CALM, "the peer opens and resets requests too fast"))?;
        Ok(())
    }

    /// The PING that tells when all that was under way before a GOAWAY has come.
    pub(super) fn ping_for_farewell(&mut self) {
        put(&mut self.control, kind::PING, 0, 0, &FAREWELL);
    }

    /// RFC 9113 §6.7.
    pub(super) fn pinged(&mut self, payload: &[u8], acknowledged: bool) -> Result<(), Violation> {
        if !acknowledged {
            self.spend()?;
            put(&mut self.control, kind::PING, flag::ACK, 0, payload);
            return Ok(());
        }
        if payload == KEEPALIVE
            && let Ping::Sent(at) = self.clock.ping
        {
            self.window.round_trip(self.clock.now.saturating_sub(at));
            self.clock.ping = Ping::Due(self.clock.now + self.clock.interval);
        } else if payload == FAREWELL && self.farewell == Farewell::Announced {
            self.say_farewell();
        } else {
            self.spend()?;
        }
        Ok(())
    }
}

/// The peer does not answer: for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::hbone) struct Silent(pub(in crate::hbone) Duration);
