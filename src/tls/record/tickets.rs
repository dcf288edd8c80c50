//! The server's session tickets: kept for the next connection to it.

use rustls::client::ClientConnectionData;
use rustls::kernel::KernelConnection;

/// Much longer than the certificates of a client, which a stateless ticket holds. A longer one would only fill our memory.
const MAX_TICKET: usize = 8192;

/// Takes one ticket: servers tend to send several at once, of which one is used.
pub(in crate::tls) struct Tickets(Box<KernelConnection<ClientConnectionData>>);

impl Tickets {
    pub(in crate::tls) fn new(connection: KernelConnection<ClientConnectionData>) -> Self {
        Self(Box::new(connection))
    }

    /// `body` of a NewSessionTicket (RFC 8446 §4.6.1).
    pub(super) fn keep(mut self, body: &[u8]) -> Result<(), rustls::Error> {
        match body.len() {
            ..=MAX_TICKET => self.0.handle_new_session_ticket(body),
            _ => Ok(()),
        }
    }
}
