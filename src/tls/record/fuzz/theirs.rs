//! rustls from the first byte of a handshake, both ends, in memory.

use std::io::{ErrorKind, Read, Write};
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;
use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs::cipher_suite;
use rustls::{ClientConfig, ClientConnection, Connection, KeyLog, RootCertStore, ServerConfig, ServerConnection, SupportedCipherSuite};
use rustls_pki_types::{PrivateKeyDer, ServerName};

use super::super::{End, Suite};
use super::Heard;
use crate::tls::workload;

/// One end.
pub(super) struct Theirs {
    connection: Connection,
    pub(super) heard: Heard,
}

/// The traffic secrets of both ends.
#[derive(Clone, Debug, Default)]
pub(super) struct Secrets {
    pub(super) client: Vec<u8>,
    pub(super) server: Vec<u8>,
}

/// The peer, which has its first records ready, and the end that hears them; their handshake is over.
pub(super) fn handshake(hears: End, suite: Suite) -> (Theirs, Theirs, Secrets) {
    let (mut client, server) = configs(suite);
    let secrets = Arc::new(Log::default());
    client.key_log = secrets.clone();
    let name = ServerName::try_from(NAME).expect("a name");
    let mut client = Theirs::new(ClientConnection::new(Arc::new(client), name).expect("a configuration that is complete").into());
    let mut server = Theirs::new(ServerConnection::new(server).expect("a configuration that is complete").into());
    while client.connection.is_handshaking() || server.connection.is_handshaking() {
        server.hear(&client.said());
        // What it says behind its handshake is left to be heard: tickets.
        if server.connection.is_handshaking() {
            client.hear(&server.said());
        }
        assert!(!client.heard.failed && !server.heard.failed, "a handshake between two of rustls");
    }
    let secrets = secrets.0.lock().clone();
    match hears {
        End::Client => (server, client, secrets),
        End::Server => (client, server, secrets),
    }
}

impl Theirs {
    fn new(connection: Connection) -> Self {
        Self { connection, heard: Heard::default() }
    }

    /// Takes what came from the peer.
    pub(super) fn hear(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() && !self.heard.failed && !self.heard.closed {
            self.connection.read_tls(&mut bytes).expect("its buffer has room: it was read");
            match self.connection.process_new_packets() {
                Ok(state) => self.heard.closed = state.peer_has_closed(),
                Err(_) => self.heard.failed = true,
            }
            match self.connection.reader().read_to_end(&mut self.heard.plaintext) {
                Err(error) if error.kind() != ErrorKind::WouldBlock && !self.heard.failed => panic!("{error}"),
                _ => {}
            }
        }
    }

    pub(super) fn say(&mut self, data: &[u8]) {
        self.connection.writer().write_all(data).expect("its buffer has room: it was emptied");
    }

    pub(super) fn update(&mut self) {
        self.connection.refresh_traffic_keys().expect("TLS 1.3");
    }

    pub(super) fn close(&mut self) {
        self.connection.send_close_notify();
    }

    /// What it has to send.
    pub(super) fn said(&mut self) -> Vec<u8> {
        let mut wire = Vec::new();
        while self.connection.wants_write() {
            self.connection.write_tls(&mut wire).expect("a vector takes all");
        }
        wire
    }
}

#[derive(Debug, Default)]
struct Log(Mutex<Secrets>);

impl KeyLog for Log {
    fn log(&self, label: &str, _client_random: &[u8], secret: &[u8]) {
        match label {
            "CLIENT_TRAFFIC_SECRET_0" => self.0.lock().client = secret.to_vec(),
            "SERVER_TRAFFIC_SECRET_0" => self.0.lock().server = secret.to_vec(),
            _ => {}
        }
    }
}

const NAME: &str = "server";

/// With one suite each, and one certificate for all.
fn configs(suite: Suite) -> (ClientConfig, Arc<ServerConfig>) {
    static CONFIGS: OnceLock<[(ClientConfig, Arc<ServerConfig>); 3]> = OnceLock::new();
    let configs = CONFIGS.get_or_init(|| {
        let rcgen::CertifiedKey { cert, signing_key } = rcgen::generate_simple_self_signed([NAME.to_owned()]).expect("a certificate");
        let mut roots = RootCertStore::empty();
        roots.add(cert.der().clone()).expect("a root");
        [cipher_suite::TLS13_AES_128_GCM_SHA256, cipher_suite::TLS13_AES_256_GCM_SHA384, cipher_suite::TLS13_CHACHA20_POLY1305_SHA256].map(
            |suite: SupportedCipherSuite| {
                let provider =
                    Arc::new(CryptoProvider { cipher_suites: vec![suite], ..(*workload::provider(workload::Versions::Tls13)).clone() });
                let versions = [&rustls::version::TLS13];
                let key = PrivateKeyDer::try_from(signing_key.serialize_der()).expect("a key");
                let client = ClientConfig::builder_with_provider(provider.clone())
                    .with_protocol_versions(&versions)
                    .expect("TLS 1.3")
                    .with_root_certificates(roots.clone())
                    .with_no_client_auth();
                let server = ServerConfig::builder_with_provider(provider)
                    .with_protocol_versions(&versions)
                    .expect("TLS 1.3")
                    .with_no_client_auth()
                    .with_single_cert(vec![cert.der().clone()], key)
                    .expect("a certificate and its key");
                (client, Arc::new(server))
            },
        )
    });
    let place = super::SUITES.iter().position(|known| *known == suite).unwrap_or_default();
    configs[place].clone()
}
