//! A session as plain data, so that another task or process can go on with it.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::keys::{Keys, Secret};
use super::message::Messages;
use super::{End, Session, Suite};
use crate::base::{Error, Result};

/// All of a [`Session`] but the place for the server's ticket: one that comes later is dropped, and the next connection to
/// that server needs a full handshake. Whoever reads it can read and forge the connection: it goes through private channels only.
#[derive(Serialize, Deserialize)]
pub struct Exported {
    /// Which end of the handshake this was.
    pub end: End,
    /// What was agreed on.
    pub suite: Suite,
    /// Our direction.
    pub write: ExportedKeys,
    /// The peer's direction.
    pub read: ExportedKeys,
    /// The part of a handshake message whose rest is in records to come.
    pub partial: Vec<u8>,
    /// Bytes that go to the peer before anything else.
    pub queued: Vec<u8>,
    /// Our direction has ended.
    pub closed: bool,
    /// The peer's direction has ended.
    pub peer_closed: bool,
    /// Records without data since the last with some.
    pub silent: u8,
}

/// One direction.
#[derive(Serialize, Deserialize)]
pub struct ExportedKeys {
    /// The traffic secret that all keys of this direction, also those to come, are derived from (RFC 8446 §7.2).
    pub secret: Secret,
    /// Of the next record.
    pub sequence: u64,
}

impl Session {
    /// Takes the session out. What [`Session::pending`] had to say is in `queued`.
    ///
    /// # Errors
    /// The session has failed: its error.
    pub fn export(mut self) -> Result<Exported> {
        self.take()
    }

    /// The same of one that cannot be moved. It is of no use afterwards: no record may be sealed twice under one number.
    ///
    /// # Errors
    /// The session has failed: its error.
    pub fn take(&mut self) -> Result<Exported> {
        let mut queued = Vec::new();
        self.pending(&mut queued)?;
        let taken = Error::internal("the TLS session was taken out");
        if let Some(error) = self.failed.replace(taken) {
            self.failed = Some(error.clone());
            return Err(error);
        }
        Ok(Exported {
            end: self.end,
            suite: self.suite(),
            write: ExportedKeys::of(&self.write),
            read: ExportedKeys::of(&self.read),
            partial: self.messages.partial().to_vec(),
            queued,
            closed: self.closed,
            peer_closed: self.peer_closed,
            silent: self.silent,
        })
    }

    /// Puts a session back: it goes on where the other stopped. Of the two only this one may be used.
    ///
    /// # Errors
    /// A secret does not fit the suite.
    pub fn import(exported: Exported) -> Result<Self> {
        let Exported { end, suite, write, read, partial, queued, closed, peer_closed, silent } = exported;
        let keys = |keys: ExportedKeys| Keys::new(suite, keys.secret, keys.sequence);
        let mut session = Self::with(end, keys(write)?, keys(read)?, queued);
        session.messages = Messages::new(end == End::Client, partial);
        session.closed = closed;
        session.peer_closed = peer_closed;
        session.silent = silent;
        Ok(session)
    }
}

impl ExportedKeys {
    fn of(keys: &Keys) -> Self {
        Self { secret: Secret::from(keys.secret().bytes().to_vec()), sequence: keys.sequence() }
    }
}

/// Never shows a secret.
impl fmt::Debug for Exported {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Exported").field("end", &self.end).field("suite", &self.suite).finish_non_exhaustive()
    }
}

/// Never shows a secret.
impl fmt::Debug for ExportedKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ExportedKeys").field("sequence", &self.sequence).finish_non_exhaustive()
    }
}
