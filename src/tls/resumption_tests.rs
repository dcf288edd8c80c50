//! Sessions that are resumed, and those that must not be.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use rustls::client::Resumption;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{AlertDescription, CertificateError, DigitallySignedStruct, DistinguishedName, ServerConfig, SignatureScheme};
use rustls_pki_types::UnixTime;

use super::tests::{LIMIT, read, tcp, write};
use super::*;
use crate::base::Error;
use crate::identity::fake::scratch;
use crate::tls::record::Session;
use crate::tls::tickets::TicketStore;
use crate::tls::workload;
use crate::tls::workload::tests::{Root, client_id, id, server_id};

/// Two ends that have said hello, so that the client has its ticket.
async fn hello(client: &Certificate, server: &Certificate) -> (Result<Secured>, Result<Secured>) {
    let (near, far) = tcp();
    let near = async {
        let (mut near, peer) = connect(near, client, &[server_id()], LIMIT).await?;
        assert_eq!(peer, server_id());
        write(&mut near, b"?").await;
        assert_eq!(read(&mut near).await?, b"!");
        Ok(near)
    };
    let far = async {
        let (mut far, peer) = accept(far, server, LIMIT).await?;
        assert_eq!(peer, client_id());
        write(&mut far, b"!").await;
        assert_eq!(read(&mut far).await?, b"?");
        Ok(far)
    };
    tokio::join!(near, far)
}

/// Whether both agree that they resumed.
async fn resumed(client: &Certificate, server: &Certificate) -> bool {
    let (near, far) = hello(client, server).await;
    let (near, far) = (near.unwrap(), far.unwrap());
    assert_eq!(near.resumed, far.resumed);
    near.resumed
}

#[tokio::test]
async fn the_second_connection_resumes() {
    let ca = scratch();
    let (client, server) = (ca.mint(&client_id()).unwrap(), ca.mint(&server_id()).unwrap());
    assert!(!resumed(&client, &server).await);
    for _ in 0..5 {
        assert!(resumed(&client, &server).await);
    }
}

#[tokio::test]
async fn a_renewal_of_either_certificate_ends_it() {
    let ca = scratch();
    let (client, server) = (ca.mint(&client_id()).unwrap(), ca.mint(&server_id()).unwrap());
    assert!(!resumed(&client, &server).await);
    let server = ca.mint(&server_id()).unwrap();
    assert!(!resumed(&client, &server).await);
    assert!(resumed(&client, &server).await);
    let client = ca.mint(&client_id()).unwrap();
    assert!(!resumed(&client, &server).await);
    assert!(resumed(&client, &server).await);
}

#[tokio::test]
async fn a_moved_session_takes_no_ticket() {
    let ca = scratch();
    let (client, server) = (ca.mint(&client_id()).unwrap(), ca.mint(&server_id()).unwrap());
    let (near, far) = tcp();
    let near = async {
        let (mut near, _) = connect(near, &client, &[server_id()], LIMIT).await.unwrap();
        near.session = Session::import(near.session.export().unwrap()).unwrap();
        write(&mut near, b"?").await;
        assert_eq!(read(&mut near).await.unwrap(), b"!");
    };
    let far = async {
        let (mut far, _) = accept(far, &server, LIMIT).await.unwrap();
        write(&mut far, b"!").await;
        assert_eq!(read(&mut far).await.unwrap(), b"?");
    };
    tokio::join!(near, far);
    assert!(!resumed(&client, &server).await);
}

/// Takes any client: whoever it lets in gets a ticket that says so.
#[derive(Debug)]
struct Anybody(Arc<dyn ClientCertVerifier>);

impl ClientCertVerifier for Anybody {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> std::result::Result<ClientCertVerified, rustls::Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> std::result::Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> std::result::Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}

#[tokio::test]
async fn a_client_that_is_not_welcome_any_more_is_refused() {
    let (root, stranger) = (Root::new(), Root::new());
    let server = root.certificate(&[&server_id().to_string()]);
    let ours = configs(&server, Versions::Tls13).unwrap();
    let mut lax = ServerConfig::builder_with_provider(workload::provider(Versions::Tls13))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_client_cert_verifier(Arc::new(Anybody(ours.verifier.clone())))
        .with_single_cert(server.chain.clone(), server.key.clone_key())
        .unwrap();
    lax.alpn_protocols = vec![b"h2".to_vec()];
    let name = client_id().to_string();
    for (what, client, code, alert) in [
        ("expired", root.expired(&[&name]), &code::TLS_FAILED, "CertificateExpired"),
        ("of another domain", root.certificate(&["spiffe://other/ns/a/sa/c"]), &code::WRONG_TRUST_DOMAIN, "Certificate"),
        ("of a root that is gone", stranger.signed_for(&[&name], &root), &code::TLS_FAILED, ""),
    ] {
        // The ticket.
        let (near, mut far) = tcp();
        let near = async {
            let (mut near, _) = connect(near, &client, &[server_id()], LIMIT).await.unwrap();
            write(&mut near, b"?").await;
            assert_eq!(read(&mut near).await.unwrap(), b"!");
        };
        let far = async {
            let remains = handshake::accept(&mut far, &lax, &ours.ticketer, &|_| Ok(())).await.unwrap();
            let resumed = remains.resumed();
            let (session, leftover) = remains.into_session().unwrap();
            let mut far = Secured { socket: far, session, leftover, resumed };
            write(&mut far, b"!").await;
            assert_eq!(read(&mut far).await.unwrap(), b"?");
        };
        tokio::join!(near, far);
        // With it, then without: the same answer.
        let fresh = Certificate::new(client.chain.clone(), client.key.clone_key(), client.roots.clone()).unwrap();
        let mut told = Vec::new();
        for (client, again) in [(&client, true), (&fresh, false)] {
            let (near, far) = tcp();
            let near = async {
                let (mut near, _) = connect(near, client, &[server_id()], LIMIT).await?;
                assert_eq!(near.resumed, again, "{what}");
                write(&mut near, b"?").await;
                read(&mut near).await
            };
            let (near, far) = tokio::join!(near, accept(far, &server, LIMIT));
            let (near, far) = (near.unwrap_err(), far.unwrap_err());
            assert_eq!(far.code().id, code.id, "{what}: {far}");
            assert!(near.to_string().contains("received fatal alert") && near.to_string().contains(alert), "{what}: {near}");
            told.push((near.to_string(), far.to_string()));
        }
        assert_eq!(told[0], told[1], "{what}");
    }
}

#[tokio::test]
async fn a_server_that_is_not_welcome_any_more_is_refused() {
    let ca = scratch();
    let (client, server) = (ca.mint(&client_id()).unwrap(), ca.mint(&server_id()).unwrap());
    assert!(!resumed(&client, &server).await);
    let (mut near, far) = tcp();
    let ours = configs(&client, Versions::Tls13).unwrap();
    let config = ours.client(&client, &[server_id()]).unwrap();
    let name = ServerName::IpAddress(near.peer_addr().unwrap().ip().into());
    let revoked = |chain: &[CertificateDer<'static>]| {
        assert_eq!(chain, server.chain);
        Err(rustls::Error::InvalidCertificate(CertificateError::Revoked))
    };
    let connecting = handshake::connect(&mut near, &config, name, &ours.tickets, &revoked);
    let accepting = async {
        let (mut far, _) = accept(far, &server, LIMIT).await?;
        assert!(far.resumed);
        read(&mut far).await
    };
    let (near, far) = tokio::join!(connecting, accepting);
    assert!(near.err().unwrap().to_string().contains("evoked"));
    let far: Error = far.unwrap_err();
    assert!(far.to_string().contains(&format!("{:?}", AlertDescription::CertificateRevoked)), "{far}");
}

#[test]
fn certificates_are_judged_as_in_a_full_handshake() {
    let root = Root::new();
    let (client, server) = (root.certificate(&[&client_id().to_string()]), root.certificate(&[&server_id().to_string()]));
    let (of_client, of_server) = (configs(&client, Versions::Tls13).unwrap(), configs(&server, Versions::Tls13).unwrap());
    of_client.check_server(&[server_id()], &server.chain).unwrap();
    of_server.check_client(&client.chain).unwrap();
    assert!(of_client.check_server(&[id("cluster.local/ns/x/sa/x")], &server.chain).is_err());
    assert!(of_client.check_server(&[server_id()], &[]).is_err());
    assert!(of_server.check_client(&[]).is_err());
    let expired = root.expired(&[&server_id().to_string()]);
    assert!(of_client.check_server(&[server_id()], &expired.chain).is_err());
    let other = Root::new().certificate(&[&server_id().to_string()]);
    assert!(of_client.check_server(&[server_id()], &other.chain).is_err());
    assert!(of_server.check_client(&other.chain).is_err());
}

#[test]
fn tickets_of_one_certificate_are_not_shared() {
    let root = Root::new();
    let [one, two] = [(); 2].map(|()| configs(&root.certificate(&[&server_id().to_string()]), Versions::Tls13).unwrap());
    let ticket = one.ticketer.encrypt(b"state").unwrap();
    assert_eq!(one.ticketer.decrypt(&ticket).as_deref(), Some(&b"state"[..]));
    assert_eq!(two.ticketer.decrypt(&ticket), None);
}

#[tokio::test]
async fn the_tickets_that_are_kept_are_bounded() {
    let ca = scratch();
    let (client, server) = (ca.mint(&client_id()).unwrap(), ca.mint(&server_id()).unwrap());
    let ours = configs(&client, Versions::Tls13).unwrap();
    let config = ours.client(&client, &[server_id()]).unwrap();
    let store = Arc::new(TicketStore::default());
    let tickets = Resumption::store(store.clone());
    for number in 0..=128 {
        let (near, far) = tcp();
        let name = ServerName::IpAddress(IpAddr::V4(Ipv4Addr::from(number)).into());
        let near = async {
            let mut near = near;
            let remains = handshake::connect(&mut near, &config, name, &tickets, &|_| Ok(())).await.unwrap();
            let (session, leftover) = remains.into_session().unwrap();
            let mut near = Secured { socket: near, session, leftover, resumed: false };
            write(&mut near, b"?").await;
            assert_eq!(read(&mut near).await.unwrap(), b"!");
        };
        let far = async {
            let (mut far, _) = accept(far, &server, LIMIT).await.unwrap();
            write(&mut far, b"!").await;
            assert_eq!(read(&mut far).await.unwrap(), b"?");
        };
        tokio::join!(near, far);
        let kept = if number < 128 { number + 1 } else { 1 };
        assert_eq!(format!("{store:?}"), format!("TicketStore {{ servers: {kept} }}"));
    }
}
