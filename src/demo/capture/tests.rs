use std::sync::Arc;

use etherparse::PacketBuilder;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};

use super::*;

const APP: u16 = 8080;
const HBONE: u16 = 15008;

fn classifier() -> Classifier {
    Classifier::new(Wanted { marker: b"marker-4711".to_vec(), app_ports: vec![APP], hbone_port: HBONE })
}

fn frame(from_client: bool, port: u16, sequence: u32, syn: bool, payload: &[u8]) -> Vec<u8> {
    let (client, server) = ([10, 0, 0, 1], [10, 0, 0, 2]);
    let (source, target, from, to) = if from_client { (client, server, 40000, port) } else { (server, client, port, 40000) };
    let mut builder = PacketBuilder::ethernet2([2; 6], [4; 6]).ipv4(source, target, 64).tcp(from, to, sequence, 65535);
    if syn {
        builder = builder.syn();
    }
    let mut frame = Vec::new();
    builder.write(&mut frame, payload).expect("a vector takes all");
    frame
}

#[test]
fn plaintext_and_the_app_port_are_counted_apart() {
    let mut classifier = classifier();
    classifier.frame(&frame(true, APP, 1, false, b"GET / marker-4711"));
    classifier.frame(&frame(false, APP, 1, false, b"echo marker-4711"));
    classifier.frame(&frame(true, 9999, 1, false, b"marker-4711"));
    classifier.frame(&frame(true, APP, 18, false, b"other"));
    classifier.frame(b"not a frame");
    let seen = classifier.counters();
    assert_eq!((seen.frames, seen.plaintext_payload_hits, seen.app_port_packets, seen.hbone_packets), (5, 3, 2, 0));
}

#[test]
fn a_loss_that_the_kernel_reports_is_kept() {
    let mut classifier = classifier();
    classifier.dropped(Some(3));
    classifier.dropped(None);
    classifier.dropped(Some(2));
    assert_eq!(classifier.counters().dropped, 3);
}

#[test]
fn a_session_of_version_13_is_proven_and_its_records_counted_in_any_segmentation() {
    for segment in [1, 7, 1448, 65000] {
        let seen = replay(&[&rustls::version::TLS13], segment);
        assert_eq!(seen.tls13_handshakes, 1, "segments of {segment}");
        // The client's Finished and its one record of data.
        assert_eq!(seen.tls13_records, 2, "segments of {segment}");
        assert!(seen.tls13_record_bytes > 1000, "{seen:?}");
        assert_eq!(seen.plaintext_payload_hits, 0);
    }
}

#[test]
fn a_session_of_version_12_is_not_taken_for_13() {
    let seen = replay(&[&rustls::version::TLS12], 1448);
    assert_eq!((seen.tls13_handshakes, seen.tls13_records), (0, 0));
    assert!(seen.hbone_packets > 0);
}

#[test]
fn what_is_not_tls_is_not_read_as_tls() {
    let mut classifier = classifier();
    classifier.frame(&frame(true, HBONE, 0, true, b""));
    classifier.frame(&frame(true, HBONE, 1, false, &[0x17; 4000]));
    classifier.frame(&frame(true, HBONE, 4001, false, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"));
    let seen = classifier.counters();
    assert_eq!((seen.tls13_handshakes, seen.tls13_records, seen.hbone_packets), (0, 0, 3));
}

/// A real handshake and 1 KiB of data from the client, as frames of at most `segment` bytes, each frame sent twice.
fn replay(versions: &[&'static rustls::SupportedProtocolVersion], segment: usize) -> Counters {
    let (mut client, mut server) = endpoints(versions);
    let mut classifier = classifier();
    let mut sequence = [1_u32, 1];
    classifier.frame(&frame(true, HBONE, 0, true, b""));
    classifier.frame(&frame(false, HBONE, 0, true, b""));
    let mut deliver = |from_client: bool, bytes: &[u8]| {
        let at = &mut sequence[usize::from(!from_client)];
        for part in bytes.chunks(segment) {
            for _ in 0..2 {
                classifier.frame(&frame(from_client, HBONE, *at, false, part));
            }
            *at += part.len() as u32;
        }
    };
    for _ in 0..4 {
        let mut flight = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut flight).expect("a vector takes all");
        }
        deliver(true, &flight);
        let mut unread = flight.as_slice();
        while !unread.is_empty() {
            server.read_tls(&mut unread).expect("room for a flight");
            server.process_new_packets().expect("an honest client");
        }
        let mut flight = Vec::new();
        while server.wants_write() {
            server.write_tls(&mut flight).expect("a vector takes all");
        }
        deliver(false, &flight);
        let mut unread = flight.as_slice();
        while !unread.is_empty() {
            client.read_tls(&mut unread).expect("room for a flight");
            client.process_new_packets().expect("an honest server");
        }
    }
    assert!(!client.is_handshaking() && !server.is_handshaking());
    std::io::Write::write_all(&mut client.writer(), &[b'x'; 1024]).expect("the writer takes 1 KiB");
    let mut flight = Vec::new();
    client.write_tls(&mut flight).expect("a vector takes all");
    deliver(true, &flight);
    classifier.counters()
}

fn endpoints(versions: &[&'static rustls::SupportedProtocolVersion]) -> (rustls::ClientConnection, rustls::ServerConnection) {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let made = rcgen::generate_simple_self_signed(vec!["peer.test".to_owned()]).expect("a key");
    let certificate: CertificateDer<'static> = made.cert.der().clone();
    let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).expect("PKCS#8");
    let mut roots = rustls::RootCertStore::empty();
    roots.add(certificate.clone()).expect("a certificate");
    let mut server = rustls::ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(versions)
        .expect("known versions")
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .expect("a pair");
    server.send_tls13_tickets = 0;
    let client = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(versions)
        .expect("known versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = ServerName::try_from("peer.test").expect("a name");
    (
        rustls::ClientConnection::new(Arc::new(client), name).expect("a configuration"),
        rustls::ServerConnection::new(Arc::new(server)).expect("a configuration"),
    )
}
