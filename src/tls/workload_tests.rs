use rcgen::string::Ia5String;
use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, SanType};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

use super::*;
use crate::identity::fake::scratch;

const LIMIT: Duration = HANDSHAKE_LIMIT;

const BOTH: &[ExtendedKeyUsagePurpose] = &[ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];

pub(in crate::tls) fn id(text: &str) -> SpiffeId {
    format!("spiffe://{text}").parse().unwrap()
}

pub(in crate::tls) fn client_id() -> SpiffeId {
    id("cluster.local/ns/a/sa/client")
}

pub(in crate::tls) fn server_id() -> SpiffeId {
    id("cluster.local/ns/b/sa/server")
}

type Both = (Result<(ClientTlsStream<DuplexStream>, SpiffeId)>, Result<(ServerTlsStream<DuplexStream>, SpiffeId)>);

async fn handshake(client: &Certificate, server: &Certificate, expected: &[SpiffeId]) -> Both {
    let (near, far) = duplex(1 << 16);
    let connecting = async {
        let mut connected = connect(near, client, expected, Versions::Tls13, LIMIT).await;
        // In TLS 1.3 the client is done before the server has judged it: read what the server says.
        if let Ok((stream, _)) = &mut connected {
            let mut byte = [0];
            let _ = stream.read(&mut byte).await;
        }
        connected
    };
    let accepting = async {
        let mut accepted = accept(far, server, Versions::Tls13, LIMIT).await;
        if let Ok((stream, _)) = &mut accepted {
            stream.write_all(b"!").await.unwrap();
            stream.flush().await.unwrap();
        }
        accepted
    };
    tokio::join!(connecting, accepting)
}

/// A root outside the mesh's conventions: signs any names.
pub(in crate::tls) struct Root {
    issuer: Issuer<'static, KeyPair>,
    der: CertificateDer<'static>,
}

impl Root {
    pub(in crate::tls) fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let der = params.self_signed(&key).unwrap().der().clone();
        Self { issuer: Issuer::new(params, key), der }
    }

    fn leaf(&self, names: &[&str], usage: &[ExtendedKeyUsagePurpose]) -> (CertificateDer<'static>, PrivateKeyDer<'static>) {
        self.leaf_until(names, usage, CertificateParams::default().not_after)
    }

    fn leaf_until(
        &self,
        names: &[&str],
        usage: &[ExtendedKeyUsagePurpose],
        not_after: time::OffsetDateTime,
    ) -> (CertificateDer<'static>, PrivateKeyDer<'static>) {
        self.leaf_of(KeyPair::generate().unwrap(), names, usage, not_after)
    }

    fn leaf_of(
        &self,
        key: KeyPair,
        names: &[&str],
        usage: &[ExtendedKeyUsagePurpose],
        not_after: time::OffsetDateTime,
    ) -> (CertificateDer<'static>, PrivateKeyDer<'static>) {
        let mut params = CertificateParams::default();
        params.not_after = not_after;
        params.subject_alt_names = names
            .iter()
            .map(|name| match name.starts_with("spiffe://") {
                true => SanType::URI(Ia5String::try_from(*name).unwrap()),
                false => SanType::DnsName(Ia5String::try_from(*name).unwrap()),
            })
            .collect();
        params.extended_key_usages = usage.to_vec();
        let der = params.signed_by(&key, &self.issuer).unwrap().der().clone();
        (der, PrivateKeyDer::try_from(key.serialize_der()).unwrap())
    }

    pub(in crate::tls) fn certificate(&self, names: &[&str]) -> Certificate {
        self.signed_for(names, self)
    }

    pub(in crate::tls) fn certificate_of(&self, key: KeyPair, names: &[&str]) -> Certificate {
        let (leaf, key) = self.leaf_of(key, names, BOTH, CertificateParams::default().not_after);
        Certificate::new(vec![leaf], key, vec![self.der.clone()]).unwrap()
    }

    /// Its holder trusts the root of another.
    pub(in crate::tls) fn signed_for(&self, names: &[&str], trusted: &Root) -> Certificate {
        let (leaf, key) = self.leaf(names, BOTH);
        Certificate::new(vec![leaf], key, vec![trusted.der.clone()]).unwrap()
    }

    /// One whose time is over.
    pub(in crate::tls) fn expired(&self, names: &[&str]) -> Certificate {
        let (leaf, key) = self.leaf_until(names, BOTH, rcgen::date_time_ymd(2020, 1, 1));
        Certificate::new(vec![leaf], key, vec![self.der.clone()]).unwrap()
    }
}

/// A client whose certificate, if any, `Certificate` would not take.
pub(in crate::tls) async fn raw_client<IO>(io: IO, root: &Root, names: Option<&[&str]>, usage: ExtendedKeyUsagePurpose)
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    let verifier = ServerOfMesh::new(Arc::new(RootCertStore::from_iter([anchor(&root.der)])), provider(Versions::Tls13), vec![server_id()]);
    let builder = ClientConfig::builder_with_provider(provider(Versions::Tls13))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier));
    let mut config = match names {
        None => builder.with_no_client_auth(),
        Some(names) => {
            let (leaf, key) = root.leaf(names, &[usage]);
            builder.with_client_auth_cert(vec![leaf], key).unwrap()
        }
    };
    config.alpn_protocols = vec![ALPN.to_vec()];
    let name = ServerName::IpAddress(IpAddr::V4(Ipv4Addr::UNSPECIFIED).into());
    if let Ok(mut stream) = TlsConnector::from(Arc::new(config)).connect(name, io).await {
        let _ = stream.read(&mut [0]).await;
    }
}

fn anchor(der: &CertificateDer<'static>) -> rustls_pki_types::TrustAnchor<'static> {
    let mut store = RootCertStore::empty();
    store.add(der.clone()).unwrap();
    store.roots.remove(0)
}

#[tokio::test]
async fn both_sides_know_each_other() {
    let ca = scratch();
    let (client, server) = (ca.mint(&client_id()).unwrap(), ca.mint(&server_id()).unwrap());
    let (near, far) = handshake(&client, &server, &[id("cluster.local/ns/x/sa/x"), server_id()]).await;
    let ((near, peer_of_client), (_, peer_of_server)) = (near.unwrap(), far.unwrap());
    assert_eq!((peer_of_client, peer_of_server), (server_id(), client_id()));
    let state = near.get_ref().1;
    assert_eq!(state.protocol_version(), Some(rustls::ProtocolVersion::TLSv1_3));
    assert_eq!(state.negotiated_cipher_suite().unwrap().suite(), rustls::CipherSuite::TLS13_AES_128_GCM_SHA256);
    assert_eq!(state.negotiated_key_exchange_group().unwrap().name(), rustls::NamedGroup::X25519);
}

#[tokio::test]
async fn configurations_are_made_once_per_certificate() {
    let certificate = scratch().mint(&client_id()).unwrap();
    let first = configs(&certificate, Versions::Tls13).unwrap();
    assert!(Arc::ptr_eq(&first, &configs(&certificate, Versions::Tls13).unwrap()));
    let expected = [server_id()];
    let one = first.client(&certificate, &expected).unwrap();
    assert!(Arc::ptr_eq(&one, &first.client(&certificate, &expected).unwrap()));
    for number in 0..=MAX_CLIENT_CONFIGS {
        first.client(&certificate, &[SpiffeId::new("td", "ns", &format!("sa{number}")).unwrap()]).unwrap();
    }
    assert!(first.clients.lock().len() <= MAX_CLIENT_CONFIGS);
}

#[tokio::test]
async fn another_server_than_expected_is_refused() {
    let ca = scratch();
    let (client, server) = (ca.mint(&client_id()).unwrap(), ca.mint(&server_id()).unwrap());
    let want = id("cluster.local/ns/b/sa/other");
    let (near, far) = handshake(&client, &server, std::slice::from_ref(&want)).await;
    let error = near.unwrap_err();
    assert_eq!(error.code().id, code::IDENTITY_MISMATCH.id);
    assert!(error.detail().contains(&want.to_string()) && error.detail().contains(&server_id().to_string()), "{error}");
    assert_eq!(far.unwrap_err().code().id, code::TLS_FAILED.id);
}

#[tokio::test]
async fn a_client_of_another_trust_domain_is_refused() {
    let root = Root::new();
    let client = root.certificate(&["spiffe://other.mesh/ns/a/sa/client"]);
    let server = root.certificate(&[&server_id().to_string()]);
    let (_, far) = handshake(&client, &server, &[server_id()]).await;
    let error = far.unwrap_err();
    assert_eq!(error.code().id, code::WRONG_TRUST_DOMAIN.id);
    assert!(error.detail().contains("cluster.local") && error.detail().contains("other.mesh"), "{error}");
}

#[tokio::test]
async fn of_two_names_only_that_of_the_own_trust_domain_counts() {
    let root = Root::new();
    let client = root.certificate(&["spiffe://other.mesh/ns/a/sa/admin", &client_id().to_string()]);
    let server = root.certificate(&[&server_id().to_string()]);
    let (_, far) = handshake(&client, &server, &[server_id()]).await;
    assert_eq!(far.unwrap().1, client_id());
}

#[tokio::test]
async fn a_stranger_is_refused_by_both() {
    let (ours, theirs) = (scratch(), scratch());
    let (client, server) = (theirs.mint(&client_id()).unwrap(), ours.mint(&server_id()).unwrap());
    let (near, far) = handshake(&client, &server, &[server_id()]).await;
    assert_eq!(near.unwrap_err().code().id, code::TLS_FAILED.id);
    assert_eq!(far.unwrap_err().code().id, code::TLS_FAILED.id);
}

#[tokio::test]
async fn clients_without_usable_certificate_are_told_apart() {
    let root = Root::new();
    let server = root.certificate(&[&server_id().to_string()]);
    let client = client_id().to_string();
    let usable = ExtendedKeyUsagePurpose::ClientAuth;
    for (names, usage, want) in [
        (None, usable.clone(), &code::NO_PEER_CERTIFICATE),
        (Some(["client.example"].as_slice()), usable, &code::NO_IDENTITY),
        (Some([client.as_str()].as_slice()), ExtendedKeyUsagePurpose::ServerAuth, &code::TLS_FAILED),
    ] {
        let (near, far) = duplex(1 << 16);
        let (_, accepted) = tokio::join!(raw_client(near, &root, names, usage), accept(far, &server, Versions::Tls13, LIMIT));
        assert_eq!(accepted.unwrap_err().code().id, want.id, "{names:?}");
    }
}

#[tokio::test]
async fn garbage_is_named() {
    let certificate = scratch().mint(&client_id()).unwrap();
    let (mut near, far) = duplex(1 << 16);
    near.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    let error = accept(far, &certificate, Versions::Tls13, LIMIT).await.unwrap_err();
    assert_eq!(error.code().id, code::TLS_FAILED.id);
    assert!(error.to_string().contains("not TLS"), "{error}");

    let (near, mut far) = duplex(1 << 16);
    far.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await.unwrap();
    let error = connect(near, &certificate, &[server_id()], Versions::Tls13, LIMIT).await.unwrap_err();
    assert!(error.to_string().contains("not TLS"), "{error}");

    let (near, far) = duplex(1 << 16);
    drop(near);
    let error = accept(far, &certificate, Versions::Tls13, LIMIT).await.unwrap_err();
    assert!(error.to_string().contains("closed"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn silence_ends_at_the_limit() {
    let certificate = scratch().mint(&client_id()).unwrap();
    let (near, far) = duplex(1 << 16);
    let start = tokio::time::Instant::now();
    let error = accept(far, &certificate, Versions::Tls13, LIMIT).await.unwrap_err();
    assert_eq!((error.code().id, start.elapsed().as_secs()), (code::TLS_TIMEOUT.id, 10));
    drop(near);
    let (near, _far) = duplex(1 << 16);
    let error = connect(near, &certificate, &[server_id()], Versions::Tls13, LIMIT).await.unwrap_err();
    assert_eq!((error.code().id, start.elapsed().as_secs()), (code::TLS_TIMEOUT.id, 20));
}
