//! `CreateCertificate`: who asks, for whom, and whether that pod runs where the caller does.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use prost_types::value::Kind;
use rcgen::SanType;
use rcgen::string::Ia5String;
use tokio::sync::watch;
use tonic::{Code, Request, Response, Status};

use super::authority::{Authority, Purpose};
use super::{csr, disk};
use crate::base::{Error, Result, Str, code};
use crate::control::index::Index;
use crate::control::tokens::Tokens;
use crate::identity::SpiffeId;
use crate::wire::ca::istio_certificate_service_server::IstioCertificateService;
use crate::wire::ca::{IstioCertificateRequest, IstioCertificateResponse};

/// Lifetime for a caller that names none.
const DEFAULT_LIFETIME: Duration = Duration::from_secs(24 * 3600);

/// Longest lifetime; who asks for more is refused, as other authorities do.
const MAX_LIFETIME: Duration = Duration::from_secs(90 * 24 * 3600);

/// Certificates for one node in one second. A proxy needs one for each account on its node, at most twice a day.
const MAX_RATE: u32 = 100;

/// Largest message of a caller, bytes: the request and its metadata.
pub(crate) const MAX_MESSAGE: usize = 2 * csr::MAX_BYTES;

/// Signs certificates for the proxies of nodes.
#[derive(Clone, Debug)]
pub struct Ca {
    authority: Arc<Authority>,
    tokens: Arc<Tokens>,
    index: watch::Receiver<Arc<Index>>,
    rates: Arc<Mutex<HashMap<Str, (Instant, u32)>>>,
}

impl Ca {
    /// A service of that authority to the holders of those tokens, for pods of that index.
    pub fn new(authority: Arc<Authority>, tokens: Arc<Tokens>, index: watch::Receiver<Arc<Index>>) -> Self {
        Self { authority, tokens, index, rates: Arc::default() }
    }

    fn sign(&self, node: &Str, request: &IstioCertificateRequest) -> std::result::Result<IstioCertificateResponse, Status> {
        let id = self.identity(node, request).map_err(status)?;
        let lifetime = lifetime(request.validity_duration).map_err(status)?;
        let key = csr::verified_key(&request.csr).map_err(status)?;
        let uri = Ia5String::try_from(id.to_string()).map_err(|error| Status::internal(error.to_string()))?;
        let issued = self.authority.issue(&key, vec![SanType::URI(uri)], Purpose::Workload, lifetime).map_err(status)?;
        tracing::info!(%node, %id, lifetime = lifetime.as_secs(), "certificate signed");
        let intermediates = self.authority.intermediates().iter();
        let mut chain: Vec<String> =
            std::iter::once(&issued.certificate).chain(intermediates).map(|der| disk::pem("CERTIFICATE", der)).collect();
        chain.push(self.authority.roots().iter().map(|der| disk::pem("CERTIFICATE", der)).collect());
        Ok(IstioCertificateResponse { cert_chain: chain })
    }

    /// The identity that is asked for, if the caller may have it.
    fn identity(&self, node: &str, request: &IstioCertificateRequest) -> Result<SpiffeId> {
        let field = request.metadata.as_ref().and_then(|metadata| metadata.fields.get("ImpersonatedIdentity"));
        let text = match field.and_then(|value| value.kind.as_ref()) {
            Some(Kind::StringValue(text)) if !text.is_empty() => text,
            // A node's proxy has no identity of its own here: its token names a node, not an account.
            _ => return Err(Error::new(&code::BAD_SPIFFE_ID, "the metadata must name the pod's identity in ImpersonatedIdentity")),
        };
        let id: SpiffeId = text.parse()?;
        let index = self.index.borrow();
        let refuse = |reason: String| Err(Error::new(&code::NOT_AUTHORIZED, format!("{id} for node {node}: {reason}")));
        if *id.trust_domain != *index.trust_domain() {
            return refuse(format!("the trust domain here is {}", index.trust_domain()));
        }
        if !index.runs_on(node, &id.namespace, &id.service_account) {
            return refuse("no pod of that account runs on that node".to_owned());
        }
        Ok(id)
    }

    fn within_rate(&self, node: &Str) -> bool {
        let now = Instant::now();
        let mut rates = self.rates.lock();
        rates.retain(|_, (start, _)| now.duration_since(*start) < Duration::from_secs(1));
        let (_, count) = rates.entry(node.clone()).or_insert((now, 0));
        *count += 1;
        *count <= MAX_RATE
    }
}

#[tonic::async_trait]
impl IstioCertificateService for Ca {
    async fn create_certificate(
        &self,
        request: Request<IstioCertificateRequest>,
    ) -> std::result::Result<Response<IstioCertificateResponse>, Status> {
        let node = self.tokens.caller(&request)?;
        if !self.within_rate(&node) {
            return Err(Status::resource_exhausted(format!("more than {MAX_RATE} certificates in a second for node {node}; try again")));
        }
        let signed = self.sign(&node, request.get_ref());
        if let Err(status) = &signed {
            tracing::warn!(%node, code = ?status.code(), reason = status.message(), "certificate refused");
        }
        signed.map(Response::new)
    }
}

fn lifetime(seconds: i64) -> Result<Duration> {
    let wanted = match u64::try_from(seconds) {
        Ok(seconds) if seconds > 0 => Duration::from_secs(seconds),
        _ => DEFAULT_LIFETIME,
    };
    match wanted <= MAX_LIFETIME {
        true => Ok(wanted),
        false => {
            let text = format!("a lifetime of {seconds} s is asked for; at most {} s are signed", MAX_LIFETIME.as_secs());
            Err(Error::new(&code::CSR_INVALID, text))
        }
    }
}

/// Each code has one status, so that a client can tell what to do without reading the text.
fn status(error: Error) -> Status {
    let status = match error.code() {
        refused if *refused == code::NOT_AUTHORIZED => Code::PermissionDenied,
        invalid if *invalid == code::CSR_INVALID || *invalid == code::BAD_SPIFFE_ID => Code::InvalidArgument,
        _ => Code::Internal,
    };
    Status::new(status, error.to_string())
}
