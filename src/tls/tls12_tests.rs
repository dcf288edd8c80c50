//! Peers that speak TLS 1.2 and nothing later.

use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_RSA_SHA256};
use rustls::crypto::aws_lc_rs::sign::any_supported_type;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{HandshakeKind, ProtocolVersion, SupportedCipherSuite};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

use super::Versions::{Tls12And13, Tls13};
use super::tests::{Root, client_id, id, server_id};
use super::*;
use crate::identity::fake::scratch;
use crate::tls::secured;
use crate::tls::secured::tests::tcp;

const LIMIT: Duration = HANDSHAKE_LIMIT;

/// What a peer shows, which need not be its own.
struct Shown<'a> {
    certificate: &'a Certificate,
    key: &'a Certificate,
}

impl<'a> From<&'a Certificate> for Shown<'a> {
    fn from(own: &'a Certificate) -> Self {
        Self { certificate: own, key: own }
    }
}

impl Shown<'_> {
    fn resolver(&self) -> Arc<SingleCertAndKey> {
        let key = any_supported_type(&self.key.key).unwrap();
        Arc::new(CertifiedKey::new(self.certificate.chain.clone(), key).into())
    }

    fn roots(&self) -> Arc<RootCertStore> {
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(self.certificate.roots.iter().cloned());
        Arc::new(roots)
    }
}

fn any_suite() -> Arc<CryptoProvider> {
    Arc::new(default_provider())
}

fn one_suite(suite: SupportedCipherSuite) -> Arc<CryptoProvider> {
    Arc::new(CryptoProvider { cipher_suites: vec![suite], ..default_provider() })
}

fn old_client(shown: Option<Shown<'_>>, server: &Certificate, provider: Arc<CryptoProvider>) -> TlsConnector {
    let verifier = ServerOfMesh::new(Shown::from(server).roots(), provider.clone(), vec![server_id()]);
    let builder = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS12])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier));
    let mut config = match shown {
        Some(shown) => builder.with_client_cert_resolver(shown.resolver()),
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![ALPN.to_vec()];
    TlsConnector::from(Arc::new(config))
}

fn old_server(shown: Shown<'_>, provider: Arc<CryptoProvider>) -> TlsAcceptor {
    let verifier = ClientOfMesh::new(shown.roots(), provider.clone(), "cluster.local".into()).unwrap();
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS12])
        .unwrap()
        .with_client_cert_verifier(Arc::new(verifier))
        .with_cert_resolver(shown.resolver());
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.ticketer = Ticketer::new().unwrap();
    TlsAcceptor::from(Arc::new(config))
}

/// An old client comes to us.
async fn accepted(client: &TlsConnector, server: &Certificate) -> Result<(ServerTlsStream<DuplexStream>, SpiffeId)> {
    let (near, far) = duplex(1 << 16);
    tokio::join!(client.connect(any_name(), near), accept(far, server, Tls12And13, LIMIT)).1
}

/// We go to an old server.
async fn connected(client: &Certificate, server: &TlsAcceptor, expected: &[SpiffeId]) -> Result<(ClientTlsStream<DuplexStream>, SpiffeId)> {
    let (near, far) = duplex(1 << 16);
    tokio::join!(connect(near, client, expected, Tls12And13, LIMIT), server.accept(far)).0
}

fn minted() -> (Certificate, Certificate) {
    let ca = scratch();
    (ca.mint(&client_id()).unwrap(), ca.mint(&server_id()).unwrap())
}

#[tokio::test]
async fn every_suite_works_both_ways() {
    use cipher_suite::*;
    let root = Root::new();
    for (algorithm, suites) in [
        (&PKCS_ECDSA_P256_SHA256, [TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384]),
        (&PKCS_RSA_SHA256, [TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256, TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384]),
    ] {
        let [client, server] = [client_id(), server_id()].map(|id| {
            let key = KeyPair::generate_for(algorithm).unwrap();
            root.certificate_of(key, &[&id.to_string()])
        });
        for suite in suites {
            let (stream, peer) = accepted(&old_client(Some((&client).into()), &server, one_suite(suite)), &server).await.unwrap();
            let as_server: &CommonState = stream.get_ref().1;
            let (stream, other) = connected(&client, &old_server((&server).into(), one_suite(suite)), &[server_id()]).await.unwrap();
            let as_client: &CommonState = stream.get_ref().1;
            assert_eq!((peer, other), (client_id(), server_id()));
            for state in [as_server, as_client] {
                assert_eq!(state.protocol_version(), Some(ProtocolVersion::TLSv1_2));
                assert_eq!(state.negotiated_cipher_suite(), Some(suite));
            }
        }
    }
    // The others of TLS 1.2 that the library has.
    let (client, server) = minted();
    let other = old_client(Some((&client).into()), &server, one_suite(TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256));
    assert_eq!(accepted(&other, &server).await.unwrap_err().code().id, code::TLS_FAILED.id);
}

#[tokio::test]
async fn between_two_of_us_it_is_still_1_3() {
    let (client, server) = minted();
    let (near, far) = duplex(1 << 16);
    let expected = [server_id()];
    let (near, far) = tokio::join!(connect(near, &client, &expected, Tls12And13, LIMIT), accept(far, &server, Tls12And13, LIMIT));
    assert_eq!(near.unwrap().0.get_ref().1.protocol_version(), Some(ProtocolVersion::TLSv1_3));
    assert_eq!(far.unwrap().1, client_id());
}

#[tokio::test]
async fn without_the_setting_it_is_refused_at_both_ends_and_said_why() {
    let (client, server) = minted();
    let expected = [server_id()];
    let old_client = old_client(Some((&client).into()), &server, any_suite());
    let old_server = old_server((&server).into(), any_suite());
    let [(near, far), (near_records, far_records), (to, at), (to_records, at_records)] = [(); 4].map(|()| tcp());
    let (peer, as_stream) = tokio::join!(old_client.connect(any_name(), near), accept(far, &server, Tls13, LIMIT));
    let (other, as_records) = tokio::join!(old_client.connect(any_name(), near_records), secured::accept(far_records, &server, LIMIT));
    let (to_stream, _) = tokio::join!(connect(to, &client, &expected, Tls13, LIMIT), old_server.accept(at));
    let (to_records, _) = tokio::join!(secured::connect(to_records, &client, &expected, LIMIT), old_server.accept(at_records));
    for error in [as_stream.unwrap_err(), as_records.unwrap_err(), to_stream.unwrap_err(), to_records.unwrap_err()] {
        assert_eq!(error.code().id, code::TLS_FAILED.id);
        assert!(error.to_string().contains("TLS12_ENABLED"), "{error}");
    }
    for told in [peer.unwrap_err(), other.unwrap_err()] {
        assert!(told.to_string().contains("ProtocolVersion"), "{told}");
    }
}

#[tokio::test]
async fn who_the_peer_is_counts_as_ever() {
    let root = Root::new();
    let [client, server] = [client_id(), server_id()].map(|id| root.certificate(&[&id.to_string()]));
    let foreign = root.certificate(&["spiffe://other.mesh/ns/a/sa/client"]);
    let strange = scratch().mint(&client_id()).unwrap();
    for (shown, want) in [(Some(&foreign), "W3004"), (Some(&strange), "W3001"), (None, "W3006")] {
        let client = old_client(shown.map(Shown::from), &server, any_suite());
        assert_eq!(accepted(&client, &server).await.unwrap_err().code().id, want);
    }
    let strange = scratch().mint(&server_id()).unwrap();
    for (shown, expected, want) in [(&server, id("cluster.local/ns/x/sa/x"), "W3003"), (&strange, server_id(), "W3001")] {
        let server = old_server(shown.into(), any_suite());
        assert_eq!(connected(&client, &server, &[expected]).await.unwrap_err().code().id, want);
    }
}

#[tokio::test]
async fn a_certificate_without_its_key_is_worth_nothing() {
    let (client, server) = minted();
    let stolen = Shown { certificate: &client, key: &server };
    let error = accepted(&old_client(Some(stolen), &server, any_suite()), &server).await.unwrap_err();
    assert!(error.to_string().contains("BadSignature"), "{error}");
    let stolen = Shown { certificate: &server, key: &client };
    let error = connected(&client, &old_server(stolen, any_suite()), &[server_id()]).await.unwrap_err();
    assert!(error.to_string().contains("BadSignature"), "{error}");
}

/// One record.
async fn record(from: &mut DuplexStream) -> Vec<u8> {
    let mut record = vec![0; 5];
    from.read_exact(&mut record).await.unwrap();
    record.resize(5 + usize::from(u16::from_be_bytes([record[3], record[4]])), 0);
    from.read_exact(&mut record[5..]).await.unwrap();
    record
}

#[tokio::test]
async fn keys_are_bound_to_the_handshake() {
    let (client, server) = minted();
    let ((near, mut near_end), (mut far_end, far)) = (duplex(1 << 16), duplex(1 << 16));
    let connector = old_client(Some((&client).into()), &server, any_suite());
    // The extension gets a number that nobody knows.
    let strip = async {
        let mut hello = record(&mut near_end).await;
        let at = hello.windows(4).position(|bytes| bytes == [0, 0x17, 0, 0]).unwrap();
        hello[at..at + 2].copy_from_slice(&[0xfa, 0xfa]);
        far_end.write_all(&hello).await.unwrap();
        let _ = tokio::io::copy_bidirectional(&mut near_end, &mut far_end).await;
    };
    let error = tokio::select! {
        accepted = accept(far, &server, Tls12And13, LIMIT) => accepted.unwrap_err(),
        _ = async { tokio::join!(connector.connect(any_name(), near), strip) } => panic!("it is refused"),
    };
    assert!(error.to_string().contains("ExtendedMasterSecret"), "{error}");
    assert!(configs(&client, Tls12And13).unwrap().client(&client, &[server_id()]).unwrap().require_ems);
}

#[tokio::test]
async fn no_session_is_resumed() {
    let (client, server) = minted();
    let (from, to) = (old_client(Some((&client).into()), &server, any_suite()), old_server((&server).into(), any_suite()));
    for _ in 0..2 {
        let (stream, _) = accepted(&from, &server).await.unwrap();
        assert_eq!(stream.get_ref().1.handshake_kind(), Some(HandshakeKind::Full));
        let (stream, _) = connected(&client, &to, &[server_id()]).await.unwrap();
        assert_eq!(stream.get_ref().1.handshake_kind(), Some(HandshakeKind::Full));
    }
}
