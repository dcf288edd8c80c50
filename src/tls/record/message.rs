//! Handshake messages after the handshake: pieced together from records, bounded.

use rustls::AlertDescription;

use super::fault::{Checked, Fault};

const NEW_SESSION_TICKET: u8 = 4;
const KEY_UPDATE: u8 = 24;

/// RFC 8446 §4: type and 24 bits of length.
const HEADER: usize = 4;

/// Of the body. A ticket of nearly 64 KiB is allowed (RFC 8446 §4.6.1), but nobody sends one.
const MAX_MESSAGE: usize = 0xffff;

/// What a peer may send after the handshake.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Message {
    /// The body of a NewSessionTicket.
    Ticket(Vec<u8>),
    /// The peer's next record is sealed with its next key.
    KeyUpdate {
        /// Ours shall follow.
        requested: bool,
    },
}

/// The part of a message whose rest is in records to come.
#[derive(Default)]
pub(super) struct Messages {
    partial: Vec<u8>,
    /// Only servers send tickets.
    tickets: bool,
}

impl Messages {
    pub(super) fn new(tickets: bool, partial: Vec<u8>) -> Self {
        Self { partial, tickets }
    }

    pub(super) fn partial(&self) -> &[u8] {
        &self.partial
    }

    /// The content of one handshake record. [`Messages::next`] is called until it gives none.
    pub(super) fn add(&mut self, content: &[u8]) {
        self.partial.extend_from_slice(content);
    }

    /// The next whole message.
    pub(super) fn next(&mut self) -> Checked<Option<Message>> {
        let Some((&[kind, high, middle, low], body)) = self.partial.split_first_chunk::<HEADER>() else { return Ok(None) };
        let length = usize::try_from(u32::from_be_bytes([0, high, middle, low])).unwrap_or(usize::MAX);
        match kind {
            KEY_UPDATE if length != 1 => return Err(Fault::peer(AlertDescription::DecodeError, "a KeyUpdate of the wrong length")),
            KEY_UPDATE => {}
            NEW_SESSION_TICKET if !self.tickets => {
                return Err(Fault::peer(AlertDescription::UnexpectedMessage, "a session ticket from a client"));
            }
            NEW_SESSION_TICKET if length > MAX_MESSAGE => {
                return Err(Fault::peer(AlertDescription::DecodeError, "a session ticket that is too long"));
            }
            NEW_SESSION_TICKET => {}
            _ => return Err(Fault::peer(AlertDescription::UnexpectedMessage, "a handshake message that is not allowed any more")),
        }
        let Some(body) = body.get(..length) else { return Ok(None) };
        let message = match (kind, body) {
            (NEW_SESSION_TICKET, ticket) => Message::Ticket(ticket.to_vec()),
            (_, [0]) => Message::KeyUpdate { requested: false },
            (_, [1]) => Message::KeyUpdate { requested: true },
            // RFC 8446 §4.6.3
            _ => return Err(Fault::peer(AlertDescription::IllegalParameter, "a KeyUpdate of an unknown kind")),
        };
        self.partial.drain(..HEADER + length);
        if self.partial.is_empty() {
            self.partial = Vec::new();
        }
        // RFC 8446 §5.1: messages do not span key changes.
        if matches!(message, Message::KeyUpdate { .. }) && !self.partial.is_empty() {
            return Err(Fault::peer(AlertDescription::UnexpectedMessage, "a message behind a KeyUpdate in one record"));
        }
        Ok(Some(message))
    }
}

/// A KeyUpdate (RFC 8446 §4.6.3).
pub(super) fn key_update(requested: bool) -> [u8; HEADER + 1] {
    [KEY_UPDATE, 0, 0, 1, u8::from(requested)]
}
