//! The certificate authority behind gRPC: `istio.v1.auth.IstioCertificateService/CreateCertificate`.

use std::error::Error as StdError;
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use prost_types::value::Kind;
use prost_types::{Struct, Value};
use rcgen::string::Ia5String;
use rcgen::{CertificateParams, DistinguishedName, KeyPair, PKCS_ECDSA_P256_SHA256, SanType};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use tonic::client::GrpcService;
use tonic::codegen::{Body, StdError as BoxError};

use super::{Authority, Certificate, SpiffeId};
use crate::base::{Error, Result, code, deadline};
use crate::wire::ca::istio_certificate_service_client::IstioCertificateServiceClient;
use crate::wire::ca::{IstioCertificateRequest, IstioCertificateResponse};

/// A chain and a bundle of roots; anything larger is not an answer to this call.
const MAX_ANSWER: usize = 1 << 20;

/// How certificates are asked for.
#[derive(Clone, Debug)]
pub struct GrpcAuthoritySettings {
    /// Wanted lifetime (SECRET_TTL).
    pub lifetime: Duration,
    /// Whether the request names the identity (a node proxy asks for many) or the token alone does (one workload).
    pub impersonate: bool,
    /// Bound of one call.
    pub limit: Duration,
}

impl Default for GrpcAuthoritySettings {
    fn default() -> Self {
        Self { lifetime: Duration::from_secs(86_400), impersonate: true, limit: Duration::from_secs(10) }
    }
}

/// Asks the control plane over a channel that adds the caller's credentials (`tls::channel`).
#[derive(Clone)]
pub struct GrpcAuthority<S> {
    channel: S,
    settings: GrpcAuthoritySettings,
}

impl<S> GrpcAuthority<S> {
    /// Nothing is sent yet.
    pub fn new(channel: S, settings: GrpcAuthoritySettings) -> Self {
        Self { channel, settings }
    }
}

impl<S> Authority for GrpcAuthority<S>
where
    S: GrpcService<tonic::body::Body> + Clone + Send + Sync + 'static,
    S::Future: Send,
    S::Error: Into<BoxError>,
    S::ResponseBody: Body<Data = Bytes> + Send + 'static,
    <S::ResponseBody as Body>::Error: Into<BoxError> + Send,
{
    fn sign<'a>(&'a self, id: &'a SpiffeId) -> BoxFuture<'a, Result<Certificate>> {
        Box::pin(async move {
            let (request, key) = self.settings.request(id)?;
            let mut client = IstioCertificateServiceClient::new(self.channel.clone()).max_decoding_message_size(MAX_ANSWER);
            let call = client.create_certificate(request);
            let what = format!("certificate authority, signing for {id}");
            let answer = deadline(self.settings.limit, &code::CA_UNAVAILABLE, what, call).await?;
            let answer = answer.map_err(|status| from_status(id, status))?;
            certificate(id, answer.into_inner(), key)
        })
    }
}

impl GrpcAuthoritySettings {
    /// A request with a fresh key, and that key.
    fn request(&self, id: &SpiffeId) -> Result<(IstioCertificateRequest, PrivateKeyDer<'static>)> {
        let failed = |error: rcgen::Error| Error::caused(&code::INTERNAL, format!("making a certificate request for {id}"), error);
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(failed)?;
        let mut params = CertificateParams::default();
        // RFC 5280 §4.1.2.6: with an empty subject the name extension is critical.
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = vec![SanType::URI(Ia5String::try_from(id.to_string()).map_err(failed)?)];
        let csr = params.serialize_request(&key).and_then(|request| request.pem()).map_err(failed)?;
        let metadata = self.impersonate.then(|| Struct {
            fields: [("ImpersonatedIdentity".to_owned(), Value { kind: Some(Kind::StringValue(id.to_string())) })].into(),
        });
        let validity_duration = i64::try_from(self.lifetime.as_secs()).unwrap_or(i64::MAX);
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        Ok((IstioCertificateRequest { csr, validity_duration, metadata }, key))
    }
}

/// Checks the answer and puts it together with the key.
fn certificate(id: &SpiffeId, answer: IstioCertificateResponse, key: PrivateKeyDer<'static>) -> Result<Certificate> {
    let bad = |what: String| Error::new(&code::BAD_CERTIFICATE, format!("certificate for {id}: {what}"));
    let Some((bundle, chain)) = answer.cert_chain.split_last() else {
        return Err(bad("the answer is empty".to_owned()));
    };
    if chain.is_empty() {
        return Err(bad("the answer has no root certificate".to_owned()));
    }
    let mut certificates = Vec::with_capacity(chain.len());
    for pem in chain {
        // One element may hold several: the chain goes on in order.
        for der in CertificateDer::pem_slice_iter(pem.as_bytes()) {
            certificates.push(der.map_err(|error| bad(format!("the chain is not PEM: {error}")))?);
        }
    }
    let (roots, unusable) = roots(bundle);
    if unusable > 0 {
        tracing::warn!(identity = %id, unusable, usable = roots.len(), "the authority's bundle holds roots that cannot be used");
    }
    let certificate = Certificate::new(certificates, key, roots)
        .map_err(|error| Error::caused(&code::BAD_CERTIFICATE, format!("certificate for {id}"), error))?;
    if certificate.id != *id {
        return Err(bad(format!("the authority signed for {} instead", certificate.id)));
    }
    Ok(certificate)
}

/// The usable roots of a bundle and the number of others.
fn roots(bundle: &str) -> (Vec<CertificateDer<'static>>, usize) {
    let mut usable = Vec::new();
    let mut unusable = 0;
    for der in CertificateDer::pem_slice_iter(bundle.as_bytes()) {
        match der {
            Ok(der) if super::facts(&der).is_ok() => usable.push(der),
            _ => unusable += 1,
        }
    }
    (usable, unusable)
}

/// A refusal is an answer of the authority about this request; all else may go better the next time.
fn from_status(id: &SpiffeId, status: tonic::Status) -> Error {
    // The channel's own errors (token, root, TLS) already say what to do.
    let mut next: Option<&(dyn StdError + 'static)> = status.source();
    while let Some(source) = next {
        if let Some(own) = source.downcast_ref::<Error>() {
            return own.clone();
        }
        next = source.source();
    }
    use tonic::Code;
    let code = match status.code() {
        Code::Unauthenticated
        | Code::PermissionDenied
        | Code::InvalidArgument
        | Code::NotFound
        | Code::AlreadyExists
        | Code::FailedPrecondition
        | Code::OutOfRange
        | Code::Unimplemented => &code::CA_REFUSED,
        _ => &code::CA_UNAVAILABLE,
    };
    let message: String = status.message().chars().take(512).collect();
    Error::new(code, format!("signing for {id}: {}: {message}", status.code()))
}

#[cfg(test)]
#[path = "ca_tests.rs"]
mod tests;
