//! The authority spoken to is the generated server, called without a network.

use std::sync::Arc;

use parking_lot::Mutex;
use rcgen::{CertificateSigningRequestParams, Issuer};
use tonic::{Request, Response, Status};

use super::*;
use crate::wire::ca::istio_certificate_service_server::{IstioCertificateService, IstioCertificateServiceServer};

type Answer = Box<dyn Fn(&IstioCertificateRequest) -> std::result::Result<Vec<String>, Status> + Send + Sync>;

struct Scripted {
    answer: Answer,
    silent: bool,
    seen: Mutex<Vec<IstioCertificateRequest>>,
}

#[tonic::async_trait]
impl IstioCertificateService for Scripted {
    async fn create_certificate(
        &self,
        request: Request<IstioCertificateRequest>,
    ) -> std::result::Result<Response<IstioCertificateResponse>, Status> {
        let request = request.into_inner();
        self.seen.lock().push(request.clone());
        if self.silent {
            std::future::pending::<()>().await;
        }
        (self.answer)(&request).map(|cert_chain| Response::new(IstioCertificateResponse { cert_chain }))
    }
}

struct Root {
    pem: String,
    key: String,
}

impl Root {
    fn new() -> Self {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        Self { pem: params.self_signed(&key).unwrap().pem(), key: key.serialize_pem() }
    }

    /// Signs the request as it is.
    fn sign(&self, request: &IstioCertificateRequest) -> String {
        let issuer = Issuer::from_ca_cert_pem(&self.pem, KeyPair::from_pem(&self.key).unwrap()).unwrap();
        CertificateSigningRequestParams::from_pem(&request.csr).unwrap().signed_by(&issuer).unwrap().pem()
    }
}

fn id() -> SpiffeId {
    "spiffe://cluster.local/ns/shop/sa/cart".parse().unwrap()
}

async fn ask(
    answer: impl Fn(&IstioCertificateRequest) -> std::result::Result<Vec<String>, Status> + Send + Sync + 'static,
) -> (Result<Certificate>, Vec<IstioCertificateRequest>) {
    let scripted = Arc::new(Scripted { answer: Box::new(answer), silent: false, seen: Mutex::default() });
    let authority = GrpcAuthority::new(IstioCertificateServiceServer::from_arc(scripted.clone()), GrpcAuthoritySettings::default());
    let result = authority.sign(&id()).await;
    let seen = scripted.seen.lock().clone();
    (result, seen)
}

#[tokio::test]
async fn the_request_names_the_identity_and_the_answer_is_put_together() {
    let root = Root::new();
    let other = Root::new();
    let bundle = format!("{}{}-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", root.pem, other.pem);
    let (certificate, seen) = ask(move |request| Ok(vec![root.sign(request), bundle.clone()])).await;
    let certificate = certificate.unwrap();
    assert_eq!(certificate.id, id());
    assert_eq!((certificate.chain.len(), certificate.roots.len()), (1, 2), "the unusable root is left out");

    assert_eq!(seen[0].validity_duration, 86_400);
    let fields = &seen[0].metadata.as_ref().unwrap().fields;
    assert_eq!(fields["ImpersonatedIdentity"].kind, Some(Kind::StringValue(id().to_string())));
    let (_, csr) = x509_parser::pem::parse_x509_pem(seen[0].csr.as_bytes()).unwrap();
    let (_, csr) =
        <x509_parser::certification_request::X509CertificationRequest<'_> as x509_parser::prelude::FromDer<_>>::from_der(&csr.contents)
            .unwrap();
    assert!(csr.certification_request_info.subject.iter().next().is_none(), "the subject is empty");
    let text = format!("{:?}", csr.requested_extensions().unwrap().collect::<Vec<_>>());
    assert!(text.contains(&id().to_string()), "{text}");
}

#[tokio::test]
async fn unusable_answers_are_named() {
    let root = Arc::new(Root::new());
    let (empty, _) = ask(|_| Ok(vec![])).await;
    assert!(empty.unwrap_err().to_string().contains("empty"));
    let signer = root.clone();
    let (rootless, _) = ask(move |request| Ok(vec![signer.sign(request)])).await;
    assert!(rootless.unwrap_err().to_string().contains("no root"));
    let signer = root.clone();
    let (garbage, _) = ask(move |request| Ok(vec![signer.sign(request), "nothing".to_owned()])).await;
    assert_eq!(garbage.unwrap_err().code().id, code::BAD_CERTIFICATE.id);
    let (stranger, _) = ask(move |_| {
        let (request, _) = GrpcAuthoritySettings::default().request(&"spiffe://cluster.local/ns/shop/sa/other".parse().unwrap()).unwrap();
        Ok(vec![root.sign(&request), root.pem.clone()])
    })
    .await;
    let stranger = stranger.unwrap_err();
    assert!(stranger.to_string().contains("sa/other"), "{stranger}");
}

#[tokio::test]
async fn a_refusal_differs_from_an_outage() {
    let (refused, _) = ask(|_| Err(Status::unauthenticated("token unknown"))).await;
    let refused = refused.unwrap_err();
    assert_eq!(refused.code().id, code::CA_REFUSED.id);
    assert!(refused.to_string().contains("token unknown"));
    let (away, _) = ask(|_| Err(Status::unavailable("later"))).await;
    assert_eq!(away.unwrap_err().code().id, code::CA_UNAVAILABLE.id);
}

#[tokio::test(start_paused = true)]
async fn silence_costs_ten_seconds() {
    let scripted = Arc::new(Scripted { answer: Box::new(|_| Ok(vec![])), silent: true, seen: Mutex::default() });
    let authority = GrpcAuthority::new(IstioCertificateServiceServer::from_arc(scripted), GrpcAuthoritySettings::default());
    let start = tokio::time::Instant::now();
    let error = authority.sign(&id()).await.unwrap_err();
    assert_eq!(error.code().id, code::CA_UNAVAILABLE.id);
    assert_eq!(start.elapsed().as_secs(), 10);
}

#[test]
fn an_error_of_the_channel_keeps_its_code() {
    let own = Error::new(&code::TOKEN_UNREADABLE, "token file is empty");
    let error = from_status(&id(), Status::from_error(Box::new(own)));
    assert_eq!(error.code().id, code::TOKEN_UNREADABLE.id);
}
