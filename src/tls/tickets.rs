//! Where a client keeps what servers gave it to resume a session with.

use std::collections::HashMap;
use std::fmt;

use parking_lot::Mutex;
use rustls::NamedGroup;
use rustls::client::{ClientSessionStore, Tls12ClientSessionValue, Tls13ClientSessionValue};
use rustls_pki_types::ServerName;

/// Servers whose ticket is kept. Past this the set is started anew: a ticket saves a fifth of a handshake, once.
const MAX_SERVERS: usize = 128;

/// The latest ticket of each server. It is used once (RFC 8446 §C.4). The store of rustls keeps eight and takes its
/// memory, tens of KB for each certificate, before it has any.
#[derive(Default)]
pub(super) struct TicketStore(Mutex<HashMap<ServerName<'static>, Tls13ClientSessionValue>>);

impl ClientSessionStore for TicketStore {
    fn insert_tls13_ticket(&self, server: ServerName<'static>, ticket: Tls13ClientSessionValue) {
        let mut tickets = self.0.lock();
        if tickets.len() >= MAX_SERVERS && !tickets.contains_key(&server) {
            tickets.clear();
        }
        tickets.insert(server, ticket);
    }

    fn take_tls13_ticket(&self, server: &ServerName<'static>) -> Option<Tls13ClientSessionValue> {
        self.0.lock().remove(server)
    }

    // All servers take the group that is offered first.
    fn set_kx_hint(&self, _: ServerName<'static>, _: NamedGroup) {}

    fn kx_hint(&self, _: &ServerName<'_>) -> Option<NamedGroup> {
        None
    }

    // Handshakes that end in records never offer TLS 1.2.
    fn set_tls12_session(&self, _: ServerName<'static>, _: Tls12ClientSessionValue) {}

    fn tls12_session(&self, _: &ServerName<'_>) -> Option<Tls12ClientSessionValue> {
        None
    }

    fn remove_tls12_session(&self, _: &ServerName<'static>) {}
}

/// Never shows a ticket's secret.
impl fmt::Debug for TicketStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TicketStore").field("servers", &self.0.lock().len()).finish()
    }
}
