//! The recorded attempts to get a certificate, made here; see `tests/data/istiod`.

use std::sync::Arc;

use prost_types::value::Kind;
use prost_types::{Struct, Value};
use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P384_SHA384, PKCS_ED25519, PKCS_RSA_SHA256};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use serde::Deserialize;
use serde_json::json;
use tokio::sync::watch;
use tonic::{Code, Request, Response, Status};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::{Authority, Ca};
use crate::control::auth::Authenticator;
use crate::control::auth::tests::Pods;
use crate::control::fake::{Fake, jwt};
use crate::control::metrics::Metrics;
use crate::wire::ca::istio_certificate_service_server::IstioCertificateService;
use crate::wire::ca::{IstioCertificateRequest, IstioCertificateResponse};

#[derive(Debug, Deserialize)]
struct Case {
    case: String,
    clusterid: Option<String>,
    identity: Option<String>,
    validity: i64,
    san: Option<String>,
    seconds: Option<i64>,
    refused: Option<String>,
}

/// Signed here, refused there: the header proves nothing, and a caller that leaves it out is of this cluster.
const WIDER: &[&str] = &["no-clusterid"];

/// Refused here, signed there: an identity of another trust domain is not ours to give.
const STRICTER: &[&str] = &["other-trust-domain"];

const PROXY: &str = "system:serviceaccount:istio-system:ztunnel";

/// The cluster of the recording.
struct Scene {
    fake: Fake,
    ca: Ca<Pods>,
    _senders: (watch::Sender<Arc<Authority>>, watch::Sender<Arc<Pods>>, tempfile::TempDir),
}

impl Scene {
    async fn set() -> Self {
        let fake = Fake::start().await;
        let dir = tempfile::tempdir().unwrap();
        let pods = Pods::default()
            .with("istio-system", "ztunnel-1", "z1", "node1", "ztunnel")
            .with("istio-system", "ztunnel-2", "z2", "node2", "ztunnel")
            .with("capod", "p1", "u1", "node1", "one")
            .with("capod", "p2", "u2", "node2", "two")
            .with("capod", "fin", "u3", "node1", "finished")
            .with("caplain", "p", "u4", "node1", "plain");
        let (pods, inventory) = watch::channel(Arc::new(pods));
        let authority = Authority::open(&dir.path().join("ca"), "cluster.local").unwrap();
        let (sender, authority) = watch::channel(Arc::new(authority));
        let proxies = "istio-system/ztunnel".parse().unwrap();
        let callers = Arc::new(Authenticator::cluster(fake.client.clone(), proxies, inventory.clone()));
        let ca = Ca::new(authority, callers, inventory, Arc::new(Metrics::default()));
        Self { fake, ca, _senders: (sender, pods, dir) }
    }

    fn token(&self, case: &str) -> Option<String> {
        let token = |user, pod| Some(self.fake.token(user, pod));
        match case {
            "no-token" => None,
            "garbage-token" => Some("garbage".to_owned()),
            "wrong-audience" => Some(jwt(&json!({"aud": ["other"]}))),
            "unbound-token" => token(PROXY, None),
            "node2-token" => token(PROXY, Some(("ztunnel-2", "z2", Some("node2")))),
            "not-a-ztunnel" | "not-a-ztunnel-plain" => token("system:serviceaccount:capod:one", Some(("p1", "u1", Some("node1")))),
            _ => token(PROXY, Some(("ztunnel-1", "z1", Some("node1")))),
        }
    }

    async fn attempt(&self, case: &Case) -> Result<IstioCertificateResponse, Status> {
        let string = |text: &str| Value { kind: Some(Kind::StringValue(text.to_owned())) };
        let mut request = Request::new(IstioCertificateRequest {
            csr: csr(&case.case),
            validity_duration: case.validity,
            metadata: case.identity.as_ref().map(|id| Struct { fields: [("ImpersonatedIdentity".to_owned(), string(id))].into() }),
        });
        if let Some(token) = self.token(&case.case) {
            request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
        }
        if let Some(id) = &case.clusterid {
            request.metadata_mut().insert("clusterid", id.parse().unwrap());
        }
        self.ca.create_certificate(request).await.map(Response::into_inner)
    }
}

fn csr(case: &str) -> String {
    let key = match case {
        "bad-csr" => return "nonsense".to_owned(),
        "rsa2048" => KeyPair::generate_for(&PKCS_RSA_SHA256),
        "p384" => KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384),
        "ed25519" => KeyPair::generate_for(&PKCS_ED25519),
        _ => KeyPair::generate(),
    };
    let params = CertificateParams::new(vec!["other.example".to_owned()]).unwrap();
    params.serialize_request(&key.unwrap()).unwrap().pem().unwrap()
}

fn leaf(response: &IstioCertificateResponse) -> (String, i64) {
    assert_eq!(response.cert_chain.len(), 2, "leaf, root");
    let leaf = CertificateDer::from_pem_slice(response.cert_chain[0].as_bytes()).unwrap();
    let (_, leaf) = X509Certificate::from_der(&leaf).unwrap();
    let names = leaf.subject_alternative_name().unwrap().unwrap();
    let seconds = leaf.validity().not_after.timestamp() - leaf.validity().not_before.timestamp();
    (names.value.general_names[0].to_string(), seconds)
}

#[tokio::test]
async fn every_recorded_attempt_ends_as_it_did() {
    let cases: Vec<Case> = serde_json::from_str(include_str!("../../../tests/data/istiod/ca/cases.json")).unwrap();
    assert_eq!(cases.len(), 31);
    let scene = Scene::set().await;
    let scene = &scene;
    let attempts = cases.iter().map(|case| async move { (case, scene.attempt(case).await) });
    for (case, outcome) in futures::future::join_all(attempts).await {
        let name = case.case.as_str();
        match outcome {
            Ok(response) if WIDER.contains(&name) => assert!(case.refused.is_some() && !response.cert_chain.is_empty()),
            Ok(response) => {
                let (names, seconds) = leaf(&response);
                let expected = case.san.as_deref().unwrap_or_else(|| panic!("{name} was refused there"));
                assert!(names.contains(expected), "{name}: {names}");
                assert_eq!(Some(seconds), case.seconds, "{name}");
            }
            Err(status) if STRICTER.contains(&name) => assert_eq!(status.code(), Code::PermissionDenied, "{name}: {status}"),
            // There, all that concerns the identity is UNAUTHENTICATED; here the code says whose fault it is.
            Err(status) => match case.refused.as_deref() {
                Some("INVALID_ARGUMENT") => assert_eq!(status.code(), Code::InvalidArgument, "{name}: {status}"),
                Some(_) => {
                    let codes = [Code::Unauthenticated, Code::PermissionDenied, Code::InvalidArgument];
                    assert!(codes.contains(&status.code()), "{name}: {status}");
                }
                None => panic!("{name} was signed there: {status}"),
            },
        }
    }
}
