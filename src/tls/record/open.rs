//! The receiving direction: one record at a time, opened where it lies.

use std::ops::Range;

use rustls::AlertDescription;

use super::fault::{Checked, Fault};
use super::message::Message;
use super::{ALERT, APPLICATION_DATA, HANDSHAKE, HEADER, MAX_PLAINTEXT, MAX_RECORD, Session};
use crate::base::{Error, Result, code};

/// Records without application data between two with some: tickets, KeyUpdates, empty ones. Each costs the reader work
/// and the sender next to nothing.
pub(super) const MAX_SILENT: u8 = 32;

/// What stands at the start of the input. `consumed` bytes are done with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Opened {
    /// Less than a record.
    Incomplete {
        /// Bytes from the start of the input on until more can be said; at most [`MAX_RECORD`].
        needed: usize,
    },
    /// Application data, never empty.
    Data {
        /// Where in the input it lies now.
        plaintext: Range<usize>,
        /// The whole record.
        consumed: usize,
    },
    /// A record for the session itself. [`Session::has_pending`] may have become true.
    Nothing {
        /// The whole record.
        consumed: usize,
    },
    /// close_notify: the peer sends nothing more. Said again if asked again.
    Closed {
        /// All of the input: what follows a close_notify is ignored (RFC 8446 §6.1).
        consumed: usize,
    },
}

impl Session {
    /// Looks at the start of `input` and opens one record in place.
    ///
    /// # Errors
    /// The peer's fatal alert, or a record that is not as it must be; then [`Session::pending`] has the alert for the peer.
    /// The same error is given again on each further call.
    pub fn open(&mut self, input: &mut [u8]) -> Result<Opened> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        if self.peer_closed {
            return Ok(Opened::Closed { consumed: input.len() });
        }
        self.open_record(input).map_err(|fault| self.fail(fault))
    }

    /// The socket has no more bytes.
    ///
    /// # Errors
    /// The peer has not said close_notify: anybody on the way could have cut the connection (RFC 8446 §6.1).
    pub fn end(&self) -> Result<()> {
        match &self.failed {
            Some(error) => Err(error.clone()),
            None if self.peer_closed => Ok(()),
            None => Err(Error::new(&code::TUNNEL_BROKEN, "the connection was lost: the peer closed it without sending TLS close_notify")),
        }
    }

    fn open_record(&mut self, input: &mut [u8]) -> Checked<Opened> {
        let Some((&mut header, rest)) = input.split_first_chunk_mut::<HEADER>() else {
            return Ok(Opened::Incomplete { needed: HEADER });
        };
        let [outer_type, _, _, high, low] = header;
        // RFC 8446 §5: after the handshake everything is protected, and change_cipher_spec is not dropped any more.
        // The version is for nobody (§5.1), but authenticated with the header (§5.2).
        if outer_type != APPLICATION_DATA {
            return Err(Fault::peer(AlertDescription::UnexpectedMessage, "a record that is not protected"));
        }
        let consumed = HEADER + usize::from(u16::from_be_bytes([high, low]));
        // RFC 8446 §5.2
        if consumed > MAX_RECORD {
            return Err(Fault::peer(AlertDescription::RecordOverflow, "a record that is too long"));
        }
        let Some(body) = rest.get_mut(..consumed - HEADER) else {
            return Ok(Opened::Incomplete { needed: consumed });
        };
        let forged = || Fault::peer(AlertDescription::BadRecordMac, "a record that is not authentic");
        let inner = self.read.open(header, body).ok_or_else(forged)?;
        let (content_type, length) = unpad(&body[..inner])?;
        let content = &body[..length];
        // RFC 8446 §5.1: no other record stands between the pieces of a handshake message.
        if content_type != HANDSHAKE && !self.messages.partial().is_empty() {
            return Err(Fault::peer(AlertDescription::UnexpectedMessage, "a record in the middle of a handshake message"));
        }
        match content_type {
            APPLICATION_DATA if length > 0 => {
                self.silent = 0;
                return Ok(Opened::Data { plaintext: HEADER..HEADER + length, consumed });
            }
            APPLICATION_DATA => {}
            HANDSHAKE => self.on_handshake(content)?,
            ALERT => {
                let &[_, description] = content else {
                    return Err(Fault::peer(AlertDescription::DecodeError, "an alert of the wrong length"));
                };
                match AlertDescription::from(description) {
                    AlertDescription::CloseNotify => {
                        self.peer_closed = true;
                        return Ok(Opened::Closed { consumed: input.len() });
                    }
                    // RFC 8446 §6.1: a close_notify follows. The level is ignored (§6).
                    AlertDescription::UserCanceled => {}
                    other => return Err(Fault::Refused(other)),
                }
            }
            _ => return Err(Fault::peer(AlertDescription::UnexpectedMessage, "a record of an unknown type")),
        }
        self.count()?;
        Ok(Opened::Nothing { consumed })
    }

    /// One more thing that is no data.
    fn count(&mut self) -> Checked<()> {
        self.silent = self.silent.saturating_add(1);
        if self.silent > MAX_SILENT {
            return Err(Fault::peer(AlertDescription::UnexpectedMessage, "too many records without data"));
        }
        Ok(())
    }

    fn on_handshake(&mut self, content: &[u8]) -> Checked<()> {
        // RFC 8446 §5.1
        if content.is_empty() {
            return Err(Fault::peer(AlertDescription::UnexpectedMessage, "an empty handshake record"));
        }
        self.messages.add(content);
        for number in 0.. {
            let Some(message) = self.messages.next()? else { break };
            // The record itself counts for the first.
            if number > 0 {
                self.count()?;
            }
            match message {
                Message::Ticket(body) => {
                    let kept = self.tickets.take().map_or(Ok(()), |tickets| tickets.keep(&body));
                    kept.map_err(|_| Fault::peer(AlertDescription::DecodeError, "a session ticket that cannot be read"))?;
                }
                Message::KeyUpdate { requested } => {
                    self.read.advance().map_err(Fault::Internal)?;
                    // RFC 8446 §4.6.3: one answer is enough for all requests that arrive before it is sent.
                    self.answer_due |= requested;
                }
            }
        }
        Ok(())
    }
}

/// The type and the length of the content of an inner plaintext (RFC 8446 §5.2, §5.4).
fn unpad(inner: &[u8]) -> Checked<(u8, usize)> {
    if inner.len() > MAX_PLAINTEXT + 1 {
        return Err(Fault::peer(AlertDescription::RecordOverflow, "a record with too long a content"));
    }
    match inner.iter().rposition(|byte| *byte != 0) {
        Some(length) => Ok((inner[length], length)),
        None => Err(Fault::peer(AlertDescription::UnexpectedMessage, "a record of padding alone")),
    }
}
