//! TLS 1.3 records (RFC 8446 §5) sealed and opened in place, once the handshake is over.

mod export;
mod fault;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
mod keys;
mod message;
mod open;
mod tickets;

use rustls::{AlertDescription, SupportedCipherSuite};

pub use export::{Exported, ExportedKeys};
pub use keys::{Secret, Suite};
pub use open::Opened;
pub(super) use tickets::Tickets;

use crate::base::{Error, Result};
use fault::Fault;
use keys::Keys;
use message::{Messages, key_update};

/// Type, version and length in front of each record.
pub const HEADER: usize = 5;

/// Content type and tag behind each plaintext.
pub const TRAILER: usize = 17;

/// The most that one record carries (RFC 8446 §5.1).
pub const MAX_PLAINTEXT: usize = 16384;

/// The longest record that a peer may send, with its header (RFC 8446 §5.2).
pub const MAX_RECORD: usize = HEADER + MAX_PLAINTEXT + 256;

const ALERT: u8 = 21;
const HANDSHAKE: u8 = 22;
const APPLICATION_DATA: u8 = 23;

/// Records that a key keeps in reserve for what the session itself has to say when its owner sealed to the limit.
const RESERVE: u64 = 1024;

/// Which end of the handshake this was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum End {
    /// It connected.
    Client,
    /// It accepted.
    Server,
}

/// Both directions of one TLS 1.3 connection after its handshake. It knows no socket: bytes come in, bytes go out.
///
/// - Receiving: [`Session::open`] for each record, [`Session::end`] when the socket has no more bytes.
/// - Sending: [`Session::pending`] first, then [`Session::seal`] for each record; all goes to the socket in the order in
///   which it was made. The first `pending` may hold the last bytes of the handshake: the peer waits for them.
/// - Ending: [`Session::close`], then `pending`.
/// - Moving: [`Session::export`] and [`Session::import`].
pub struct Session {
    end: End,
    write: Keys,
    read: Keys,
    messages: Messages,
    /// Bytes ready to be sent.
    queued: Vec<u8>,
    /// The peer asked for a KeyUpdate.
    answer_due: bool,
    /// We want a KeyUpdate; whether the peer shall answer.
    refresh_due: Option<bool>,
    /// The alert that ends our direction.
    alert_due: Option<AlertDescription>,
    /// Our direction has ended.
    closed: bool,
    /// The peer's direction has ended.
    peer_closed: bool,
    /// Records without data since the last with some.
    silent: u8,
    failed: Option<Error>,
    tickets: Option<Tickets>,
}

impl Session {
    /// Each direction is a traffic secret and the number of its next record; `queued` is what the handshake still has
    /// to send.
    pub(super) fn new(end: End, suite: SupportedCipherSuite, write: (Secret, u64), read: (Secret, u64), queued: Vec<u8>) -> Result<Self> {
        let suite = Suite::of(suite)?;
        Ok(Self::with(end, Keys::new(suite, write.0, write.1)?, Keys::new(suite, read.0, read.1)?, queued))
    }

    fn with(end: End, write: Keys, read: Keys, queued: Vec<u8>) -> Self {
        Self {
            end,
            write,
            read,
            messages: Messages::new(end == End::Client, Vec::new()),
            queued,
            answer_due: false,
            refresh_due: None,
            alert_due: None,
            closed: false,
            peer_closed: false,
            silent: 0,
            failed: None,
            tickets: None,
        }
    }

    /// Where the server's ticket goes.
    pub(super) fn with_tickets(self, tickets: Option<Tickets>) -> Self {
        Self { tickets, ..self }
    }

    /// Ends the session with a fatal alert, which [`Session::pending`] gives.
    pub(super) fn refuse(&mut self, alert: AlertDescription) {
        self.fail(Fault::peer(alert, "it was refused"));
    }

    /// What was agreed on.
    pub fn suite(&self) -> Suite {
        self.write.suite()
    }

    /// Seals one record of application data in place: [`HEADER`] bytes of room, 1 to [`MAX_PLAINTEXT`] bytes of
    /// plaintext, [`TRAILER`] bytes of room. [`Session::pending`] comes before the first of a batch.
    ///
    /// # Errors
    /// The session has ended, the sizes are wrong, or `pending` was not called for millions of records.
    #[inline]
    pub fn seal(&mut self, record: &mut [u8]) -> Result<()> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        if self.closed {
            return Err(Error::internal("data after the end of a TLS session"));
        }
        if !(HEADER + 1 + TRAILER..=HEADER + MAX_PLAINTEXT + TRAILER).contains(&record.len()) {
            return Err(Error::internal(format!("a TLS record of {} bytes", record.len())));
        }
        // RFC 8446 §5.5. `pending` changes the key at half of the limit.
        if self.write.sequence() >= self.suite().confidentiality_limit() - RESERVE {
            return Err(Error::internal("a TLS key was used too often"));
        }
        self.write.seal(APPLICATION_DATA, record)
    }

    /// Whether [`Session::pending`] has something to send.
    pub fn has_pending(&self) -> bool {
        !self.queued.is_empty()
            || (!self.closed && (self.answer_due || self.refresh_due.is_some() || self.alert_due.is_some() || self.worn()))
    }

    /// Appends the records that the session itself wants sent, before any that is sealed later: the end of the handshake,
    /// KeyUpdates, the closing alert.
    ///
    /// # Errors
    /// The cryptography failed, which is a defect of ours.
    pub fn pending(&mut self, out: &mut Vec<u8>) -> Result<()> {
        out.append(&mut self.queued);
        if self.closed {
            return Ok(());
        }
        if self.worn() && self.refresh_due.is_none() {
            self.refresh_due = Some(false);
        }
        // After an error the alert is all that the peer still has to know.
        let answer = std::mem::take(&mut self.answer_due).then_some(false);
        let refresh = self.refresh_due.take();
        if self.failed.is_none() {
            for requested in [answer, refresh].into_iter().flatten() {
                // RFC 8446 §4.6.3: the update itself goes under the old key.
                self.append(HANDSHAKE, &key_update(requested), out)?;
                self.write.advance()?;
            }
        }
        if let Some(alert) = self.alert_due.take() {
            const WARNING: u8 = 1;
            const FATAL: u8 = 2;
            let level = if alert == AlertDescription::CloseNotify { WARNING } else { FATAL };
            self.append(ALERT, &[level, alert.into()], out)?;
            self.closed = true;
        }
        Ok(())
    }

    /// Changes our key at the next [`Session::pending`]; with `requested` the peer shall change its own too.
    pub fn refresh(&mut self, requested: bool) {
        self.refresh_due = Some(requested | self.refresh_due.unwrap_or(false));
    }

    /// Ends our direction: [`Session::pending`] gives a close_notify, after which nothing can be sealed.
    pub fn close(&mut self) {
        if !self.closed {
            self.alert_due.get_or_insert(AlertDescription::CloseNotify);
        }
    }

    /// Half of what the key may seal is used up.
    fn worn(&self) -> bool {
        self.write.sequence() >= self.suite().confidentiality_limit() / 2
    }

    fn fail(&mut self, fault: Fault) -> Error {
        match fault.alert() {
            Some(alert) => self.alert_due = Some(alert),
            // RFC 8446 §6.2: after a fatal alert both sides are done.
            None => self.closed = true,
        }
        let error = fault.into_error();
        self.failed = Some(error.clone());
        error
    }

    fn append(&mut self, content_type: u8, content: &[u8], out: &mut Vec<u8>) -> Result<()> {
        let start = out.len();
        out.extend_from_slice(&[0; HEADER]);
        out.extend_from_slice(content);
        out.extend_from_slice(&[0; TRAILER]);
        self.write.seal(content_type, &mut out[start..])
    }
}

impl std::fmt::Debug for Session {
    /// Never shows a key.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session")
            .field("end", &self.end)
            .field("suite", &self.suite())
            .field("written", &self.write.sequence())
            .field("read", &self.read.sequence())
            .field("closed", &self.closed)
            .field("peer_closed", &self.peer_closed)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
