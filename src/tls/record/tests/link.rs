//! One loop that moves bytes for either implementation.

use std::io::{ErrorKind, Read, Write};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, RngCore, SeedableRng};
use tokio::io::Interest;
use tokio::net::TcpStream;

use super::*;
use crate::base::{code, deadline};

/// One end of a TLS connection without its socket.
pub(super) trait Engine {
    /// Takes what came from the socket; appends plaintext.
    fn feed(&mut self, bytes: &[u8], plaintext: &mut Vec<u8>) -> Result<()>;
    /// Appends the records of `data`.
    fn send(&mut self, data: &[u8], out: &mut Vec<u8>);
    /// Appends what it has to say by itself.
    fn flush(&mut self, out: &mut Vec<u8>);
    fn refresh(&mut self, requested: bool);
    fn close(&mut self);
    fn peer_closed(&self) -> bool;
    fn handshaking(&self) -> bool;
}

/// A session and what is not opened yet.
pub(super) struct Ours {
    pub(super) session: Session,
    pub(super) input: Vec<u8>,
}

impl Engine for Ours {
    fn feed(&mut self, bytes: &[u8], plaintext: &mut Vec<u8>) -> Result<()> {
        self.input.extend_from_slice(bytes);
        let mut start = 0;
        loop {
            let consumed = match self.session.open(&mut self.input[start..])? {
                Opened::Incomplete { needed } => {
                    assert!(needed > self.input.len() - start && needed <= MAX_RECORD);
                    break;
                }
                Opened::Data { plaintext: range, consumed } => {
                    plaintext.extend_from_slice(&self.input[start..][range]);
                    consumed
                }
                Opened::Nothing { consumed } => consumed,
                Opened::Closed { consumed } => {
                    start += consumed;
                    break;
                }
            };
            start += consumed;
        }
        self.input.drain(..start);
        Ok(())
    }

    fn send(&mut self, data: &[u8], out: &mut Vec<u8>) {
        for chunk in data.chunks(MAX_PLAINTEXT) {
            let mut record = vec![0; HEADER];
            record.extend_from_slice(chunk);
            record.extend_from_slice(&[0; TRAILER]);
            self.session.seal(&mut record).unwrap();
            out.extend_from_slice(&record);
        }
    }

    fn flush(&mut self, out: &mut Vec<u8>) {
        let (due, before) = (self.session.has_pending(), out.len());
        self.session.pending(out).unwrap();
        assert_eq!(due, out.len() > before);
        assert!(!self.session.has_pending());
    }

    fn refresh(&mut self, requested: bool) {
        self.session.refresh(requested);
    }

    fn close(&mut self) {
        self.session.close();
    }

    fn peer_closed(&self) -> bool {
        self.session.end().is_ok()
    }

    fn handshaking(&self) -> bool {
        false
    }
}

/// rustls, from the first byte of the handshake.
pub(super) struct Rustls {
    pub(super) connection: rustls::Connection,
    peer_closed: bool,
}

impl Rustls {
    pub(super) fn client(config: ClientConfig) -> Self {
        let connection = rustls::ClientConnection::new(Arc::new(config), workload::any_name()).unwrap();
        Self { connection: connection.into(), peer_closed: false }
    }

    pub(super) fn server(config: ServerConfig) -> Self {
        Self { connection: rustls::ServerConnection::new(Arc::new(config)).unwrap().into(), peer_closed: false }
    }
}

impl Engine for Rustls {
    fn feed(&mut self, mut bytes: &[u8], plaintext: &mut Vec<u8>) -> Result<()> {
        while !bytes.is_empty() {
            self.connection.read_tls(&mut bytes).unwrap();
            let state = self.connection.process_new_packets().map_err(|error| Error::caused(&code::TLS_FAILED, "rustls", error))?;
            self.peer_closed |= state.peer_has_closed();
            match self.connection.reader().read_to_end(plaintext) {
                Err(error) if error.kind() != ErrorKind::WouldBlock => panic!("{error}"),
                _ => {}
            }
            if self.peer_closed {
                break;
            }
        }
        Ok(())
    }

    fn send(&mut self, data: &[u8], out: &mut Vec<u8>) {
        for chunk in data.chunks(MAX_PLAINTEXT) {
            self.connection.writer().write_all(chunk).unwrap();
            self.flush(out);
        }
    }

    fn flush(&mut self, out: &mut Vec<u8>) {
        while self.connection.wants_write() {
            self.connection.write_tls(out).unwrap();
        }
    }

    fn refresh(&mut self, _requested: bool) {
        self.connection.refresh_traffic_keys().unwrap();
    }

    fn close(&mut self) {
        self.connection.send_close_notify();
    }

    fn peer_closed(&self) -> bool {
        self.peer_closed
    }

    fn handshaking(&self) -> bool {
        self.connection.is_handshaking()
    }
}

/// What one end does.
#[derive(Clone, Copy)]
pub(super) struct Plan {
    pub(super) seed: u64,
    pub(super) bytes: usize,
    /// One record in that many is preceded by a KeyUpdate; 0 for none.
    pub(super) refresh: u32,
}

impl Plan {
    pub(super) fn data(self) -> Vec<u8> {
        let mut data = vec![0; self.bytes];
        StdRng::seed_from_u64(self.seed).fill_bytes(&mut data);
        data
    }
}

/// Sends the data of `plan` in pieces of random sizes, reads in others until the peer has closed; gives what was read.
pub(super) async fn run(engine: &mut impl Engine, socket: &TcpStream, plan: Plan) -> Result<Vec<u8>> {
    deadline(Duration::from_secs(120), &code::INTERNAL, "the transfer", moving(engine, socket, plan)).await?
}

async fn moving(engine: &mut impl Engine, socket: &TcpStream, plan: Plan) -> Result<Vec<u8>> {
    let mut random = StdRng::seed_from_u64(!plan.seed);
    let data = plan.data();
    let (mut unsent, mut closed) = (&data[..], false);
    let (mut out, mut read, mut buffer) = (Vec::new(), Vec::new(), vec![0; 100_000]);
    engine.feed(&[], &mut read)?;
    while !(closed && out.is_empty() && engine.peer_closed()) {
        while !engine.handshaking() && !unsent.is_empty() && out.len() < 60_000 {
            if plan.refresh > 0 && random.random_ratio(1, plan.refresh) {
                engine.refresh(random.random());
            }
            let size = [1, 100, MAX_PLAINTEXT - 1, MAX_PLAINTEXT, 50_000][random.random_range(0..5)];
            let (now, later) = unsent.split_at(random.random_range(1..=size).min(unsent.len()));
            engine.flush(&mut out);
            engine.send(now, &mut out);
            unsent = later;
        }
        if unsent.is_empty() && !closed && !engine.handshaking() {
            closed = true;
            engine.close();
        }
        engine.flush(&mut out);
        let interest = if out.is_empty() { Interest::READABLE } else { Interest::READABLE | Interest::WRITABLE };
        let ready = socket.ready(interest).await.unwrap();
        if ready.is_writable() && !out.is_empty() {
            match socket.try_write(&out[..random.random_range(1..=out.len())]) {
                Ok(written) => drop(out.drain(..written)),
                Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock, "{error}"),
            }
        }
        if ready.is_readable() {
            let size = random.random_range(1..buffer.len());
            match socket.try_read(&mut buffer[..size]) {
                Ok(0) => return if engine.peer_closed() { Ok(read) } else { Err(Error::new(&code::TUNNEL_BROKEN, "end of file")) },
                Ok(length) => engine.feed(&buffer[..length], &mut read)?,
                Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock, "{error}"),
            }
        }
    }
    Ok(read)
}
