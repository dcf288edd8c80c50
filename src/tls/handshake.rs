//! Drives a handshake of rustls over a socket up to its last byte, and not one byte further.

use std::fmt;
use std::io::{self, ErrorKind};
use std::sync::Arc;

use parking_lot::Mutex;
use rustls::client::{Resumption, UnbufferedClientConnection};
use rustls::server::{ProducesTickets, UnbufferedServerConnection};
use rustls::unbuffered::{ConnectionState, EncodeError, UnbufferedStatus};
use rustls::{AlertDescription, ClientConfig, CommonState, ExtractedSecrets, HandshakeKind, KeyLog, ServerConfig, SupportedCipherSuite};
use rustls_pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::record::{End, MAX_RECORD, Secret, Session, Tickets};
use crate::base::{Error, Result};

/// What a peer may send for one handshake: a message may have 64 KiB, and tiny records make it several times that.
const MAX_HANDSHAKE: usize = 256 * 1024;

/// One read: enough for a handshake flight, and what a client sends right behind its own.
const READ: usize = 16 * 1024;

/// What is left when a handshake is over.
pub(super) struct Remains<C> {
    connection: C,
    secrets: Arc<Secrets>,
    /// Read behind the handshake.
    leftover: Vec<u8>,
    /// Our last flight.
    unsent: Vec<u8>,
}

/// Judges the certificates of a peer that presented none this time, because it resumed an earlier session: since then
/// they may have expired or been revoked.
pub(super) type Recheck<'a> = &'a (dyn Fn(&[CertificateDer<'static>]) -> std::result::Result<(), rustls::Error> + Sync);

/// As a client, which takes a ticket from `tickets` and puts new ones there.
pub(super) async fn connect(
    socket: &mut TcpStream,
    config: &ClientConfig,
    name: ServerName<'static>,
    tickets: &Resumption,
    recheck: Recheck<'_>,
) -> io::Result<Remains<UnbufferedClientConnection>> {
    let (mut config, secrets) = (config.clone(), Arc::new(Secrets::default()));
    config.key_log = secrets.clone();
    config.enable_secret_extraction = true;
    config.resumption = tickets.clone();
    let connection = UnbufferedClientConnection::new(Arc::new(config), name).map_err(invalid)?;
    drive(socket, connection, secrets, recheck).await
}

/// As a server, which gives the client a ticket by `ticketer`.
pub(super) async fn accept(
    socket: &mut TcpStream,
    config: &ServerConfig,
    ticketer: &Arc<dyn ProducesTickets>,
    recheck: Recheck<'_>,
) -> io::Result<Remains<UnbufferedServerConnection>> {
    let (mut config, secrets) = (config.clone(), Arc::new(Secrets::default()));
    config.key_log = secrets.clone();
    config.enable_secret_extraction = true;
    config.ticketer = ticketer.clone();
    config.send_tls13_tickets = 1;
    let connection = UnbufferedServerConnection::new(Arc::new(config)).map_err(invalid)?;
    drive(socket, connection, secrets, recheck).await
}

impl<C: Connection> Remains<C> {
    /// Who the peer is.
    pub(super) fn state(&self) -> &CommonState {
        self.connection.state()
    }

    /// Whether an earlier session was resumed.
    pub(super) fn resumed(&self) -> bool {
        self.state().handshake_kind() == Some(HandshakeKind::Resumed)
    }

    /// The connection's records from here on, and what was read behind the handshake.
    pub(super) fn into_session(self) -> Result<(Session, Vec<u8>)> {
        let failed = |error| Error::internal(format!("taking over a TLS connection: {error}"));
        let (client, server) = self.secrets.take()?;
        let (extracted, suite, tickets) = self.connection.into_parts().map_err(failed)?;
        let (ours, theirs) = match C::END {
            End::Client => (client, server),
            End::Server => (server, client),
        };
        let session = Session::new(C::END, suite, (ours, extracted.tx.0), (theirs, extracted.rx.0), self.unsent)?;
        Ok((session.with_tickets(tickets), self.leftover))
    }

    async fn refuse(self, socket: &mut TcpStream, error: &rustls::Error) -> Result<()> {
        let alert = match error {
            rustls::Error::InvalidCertificate(error) => error.clone().into(),
            _ => AlertDescription::AccessDenied,
        };
        let (mut session, mut out) = (self.into_session()?.0, Vec::new());
        session.refuse(alert);
        session.pending(&mut out)?;
        refuse(socket, &out).await;
        Ok(())
    }
}

/// The two traffic secrets of one connection. rustls gives away only keys, from which no later key can be derived; the
/// secrets themselves it shows to its key log alone.
#[derive(Default)]
struct Secrets(Mutex<(Option<Secret>, Option<Secret>)>);

impl Secrets {
    /// The client's and the server's.
    fn take(&self) -> Result<(Secret, Secret)> {
        match std::mem::take(&mut *self.0.lock()) {
            (Some(client), Some(server)) => Ok((client, server)),
            _ => Err(Error::internal("a handshake without traffic secrets")),
        }
    }
}

const CLIENT_SECRET: &str = "CLIENT_TRAFFIC_SECRET_0";
const SERVER_SECRET: &str = "SERVER_TRAFFIC_SECRET_0";

impl KeyLog for Secrets {
    fn log(&self, label: &str, _client_random: &[u8], secret: &[u8]) {
        let secret = Secret::from(secret.to_vec());
        match label {
            CLIENT_SECRET => self.0.lock().0 = Some(secret),
            SERVER_SECRET => self.0.lock().1 = Some(secret),
            _ => {}
        }
    }

    fn will_log(&self, label: &str) -> bool {
        [CLIENT_SECRET, SERVER_SECRET].contains(&label)
    }
}

impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secrets")
    }
}

/// What rustls wants next.
pub(super) enum Step {
    /// To be asked again.
    Again,
    /// The next record.
    Read,
    Done,
    /// The peer said close_notify.
    Closed,
}

pub(super) type Stepped = std::result::Result<Step, rustls::Error>;

pub(super) type Parts = (ExtractedSecrets, SupportedCipherSuite, Option<Tickets>);

/// Either end.
pub(super) trait Connection: Sized {
    const END: End;
    fn state(&self) -> &CommonState;
    /// Shows it `incoming`; what it wants to send is appended to `outgoing`. Gives how much of `incoming` is done with.
    fn step(&mut self, incoming: &mut [u8], outgoing: &mut Vec<u8>) -> (usize, Stepped);
    fn into_parts(self) -> std::result::Result<Parts, rustls::Error>;
}

impl Connection for UnbufferedClientConnection {
    const END: End = End::Client;

    fn state(&self) -> &CommonState {
        self
    }

    fn step(&mut self, incoming: &mut [u8], outgoing: &mut Vec<u8>) -> (usize, Stepped) {
        step(self.process_tls_records(incoming), outgoing)
    }

    fn into_parts(self) -> std::result::Result<Parts, rustls::Error> {
        let (extracted, connection) = self.dangerous_into_kernel_connection()?;
        Ok((extracted, connection.negotiated_cipher_suite(), Some(Tickets::new(connection))))
    }
}

impl Connection for UnbufferedServerConnection {
    const END: End = End::Server;

    fn state(&self) -> &CommonState {
        self
    }

    fn step(&mut self, incoming: &mut [u8], outgoing: &mut Vec<u8>) -> (usize, Stepped) {
        step(self.process_tls_records(incoming), outgoing)
    }

    fn into_parts(self) -> std::result::Result<Parts, rustls::Error> {
        let (extracted, connection) = self.dangerous_into_kernel_connection()?;
        Ok((extracted, connection.negotiated_cipher_suite(), None))
    }
}

fn step<Data>(status: UnbufferedStatus<'_, '_, Data>, outgoing: &mut Vec<u8>) -> (usize, Stepped) {
    let step = status.state.and_then(|state| match state {
        ConnectionState::EncodeTlsData(mut flight) => {
            let start = outgoing.len();
            if let Err(EncodeError::InsufficientSize(short)) = flight.encode(&mut []) {
                outgoing.resize(start + short.required_size, 0);
            }
            flight.encode(&mut outgoing[start..]).map_err(|error| rustls::Error::General(error.to_string()))?;
            Ok(Step::Again)
        }
        ConnectionState::TransmitTlsData(flight) => {
            flight.done();
            Ok(Step::Again)
        }
        ConnectionState::BlockedHandshake => Ok(Step::Read),
        ConnectionState::WriteTraffic(_) => Ok(Step::Done),
        ConnectionState::PeerClosed | ConnectionState::Closed => Ok(Step::Closed),
        other => Err(rustls::Error::General(format!("{other:?} during a handshake"))),
    });
    (status.discard, step)
}

/// rustls is shown one record at a time: those behind the handshake are not for it.
async fn drive<C: Connection>(
    socket: &mut TcpStream,
    mut connection: C,
    secrets: Arc<Secrets>,
    recheck: Recheck<'_>,
) -> io::Result<Remains<C>> {
    let (mut incoming, mut outgoing) = (Vec::with_capacity(READ), Vec::new());
    // How much of `incoming` rustls has seen: a message in several records stays until it is whole.
    let mut shown = 0;
    loop {
        let (discard, step) = connection.step(&mut incoming[..shown], &mut outgoing);
        incoming.drain(..discard);
        shown -= discard;
        match step {
            Ok(Step::Again) => {}
            Ok(Step::Done) => break,
            Ok(Step::Closed) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(Step::Read) => shown += next_record(socket, &mut incoming, shown, &mut outgoing).await?,
            Err(error) => {
                // The alert that tells the peer why. Asked once more than it has something to send, rustls would look at
                // the record again, and a second alert is a panic.
                while connection.state().wants_write()
                    && matches!(connection.step(&mut incoming[..shown], &mut outgoing), (_, Ok(Step::Again)))
                {}
                refuse(socket, &outgoing).await;
                return Err(invalid(error));
            }
        }
    }
    let remains = Remains { connection, secrets, leftover: incoming, unsent: outgoing };
    // rustls takes the peer of a resumed session from the ticket and asks no verifier.
    if remains.resumed()
        && let Err(error) = recheck(remains.state().peer_certificates().unwrap_or_default())
    {
        remains.refuse(socket, &error).await.map_err(io::Error::other)?;
        return Err(invalid(error));
    }
    Ok(remains)
}

/// The length of the record at `start`, which is read if it is not there yet.
async fn next_record(socket: &mut TcpStream, incoming: &mut Vec<u8>, start: usize, outgoing: &mut Vec<u8>) -> io::Result<usize> {
    loop {
        let rest = &incoming[start..];
        if let Some(length) = record_length(rest) {
            return Ok(length);
        }
        // Only now: the last flight of all goes out with the first data.
        if !outgoing.is_empty() {
            socket.write_all(outgoing).await?;
            outgoing.clear();
        }
        if incoming.len() > MAX_HANDSHAKE {
            return Err(io::Error::new(ErrorKind::InvalidData, "a handshake that is too long"));
        }
        incoming.reserve(READ);
        // No more than that, however much room there is: what is left over goes into one buffer of the tunnel.
        if (&mut *socket).take(READ as u64).read_buf(incoming).await? == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
    }
}

/// Of the record at the start of `bytes`; none if it is not whole. What cannot be a record is shown to rustls at once:
/// it says what is wrong with it.
fn record_length(bytes: &[u8]) -> Option<usize> {
    let &[kind, major, _, high, low, ..] = bytes else { return None };
    let length = 5 + usize::from(u16::from_be_bytes([high, low]));
    let plausible = (20..=23).contains(&kind) && major == 3 && length <= MAX_RECORD;
    match plausible {
        true => (bytes.len() >= length).then_some(length),
        false => Some(bytes.len()),
    }
}

/// Sends the closing alert. Whatever else the peer has sent is read: left behind, it would reset the connection, and the
/// alert would be lost.
async fn refuse(socket: &mut TcpStream, alert: &[u8]) {
    let _ = socket.write_all(alert).await;
    let mut scratch = [0; 4096];
    for _ in 0..16 {
        if !matches!(socket.try_read(&mut scratch), Ok(1..)) {
            return;
        }
    }
}

fn invalid(error: rustls::Error) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, error)
}
