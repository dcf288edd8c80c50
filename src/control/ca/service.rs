//! `CreateCertificate`: who asks, for whom, and whether that pod runs where the caller does.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use prost_types::value::Kind;
use rcgen::SanType;
use rcgen::string::Ia5String;
use tokio::sync::watch;
use tonic::{Request, Response, Status};

use super::authority::{Authority, Purpose};
use super::{csr, material};
use crate::base::{Error, Result, Str, code};
use crate::control::auth::{self, Authenticator, Caller, Credential, Inventory, Proxy, settled};
use crate::control::index::Index;
use crate::control::metrics::Metrics;
use crate::identity::SpiffeId;
use crate::wire::ca::istio_certificate_service_server::IstioCertificateService;
use crate::wire::ca::{IstioCertificateRequest, IstioCertificateResponse};

/// Lifetime for a caller that names none.
const DEFAULT_LIFETIME: Duration = Duration::from_secs(24 * 3600);

/// Longest lifetime; who asks for more is refused, as other authorities do.
const MAX_LIFETIME: Duration = Duration::from_secs(90 * 24 * 3600);

/// Certificates for one caller in one second. A proxy needs one for each account on its node, at most twice a day.
const MAX_RATE: u32 = 100;

/// Largest message of a caller, bytes: the request and its metadata.
pub(crate) const MAX_MESSAGE: usize = 2 * csr::MAX_BYTES;

/// Signs certificates: for the proxies of nodes those of the pods there, for any other pod its own.
#[derive(Debug)]
pub struct Ca<I = Index> {
    authority: watch::Receiver<Arc<Authority>>,
    callers: Arc<Authenticator<I>>,
    inventory: watch::Receiver<Arc<I>>,
    metrics: Arc<Metrics>,
    rates: Mutex<HashMap<Str, (Instant, u32)>>,
}

impl<I: Inventory> Ca<I> {
    /// A service of that authority to those callers, for the pods of that inventory.
    pub(in crate::control) fn new(
        authority: watch::Receiver<Arc<Authority>>,
        callers: Arc<Authenticator<I>>,
        inventory: watch::Receiver<Arc<I>>,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self { authority, callers, inventory, metrics, rates: Mutex::default() }
    }

    async fn sign(&self, caller: &Caller, request: &IstioCertificateRequest) -> Result<IstioCertificateResponse> {
        let id = self.identity(caller, wanted(request)?).await?;
        let lifetime = lifetime(request.validity_duration)?;
        let key = csr::verified_key(&request.csr)?;
        let uri = Ia5String::try_from(id.to_string()).map_err(|error| Error::caused(&code::INTERNAL, id.to_string(), error))?;
        let authority = Arc::clone(&self.authority.borrow());
        let issued = authority.issue(&key, vec![SanType::URI(uri)], Purpose::Workload, lifetime)?;
        tracing::info!(caller = %name(caller), %id, lifetime = lifetime.as_secs(), "certificate signed");
        let intermediates = authority.intermediates().iter();
        let mut chain: Vec<String> =
            std::iter::once(&issued.certificate).chain(intermediates).map(|der| material::pem("CERTIFICATE", der)).collect();
        chain.push(authority.roots_pem());
        Ok(IstioCertificateResponse { cert_chain: chain })
    }

    /// The identity that the caller gets: the one it wants, if it may have it, else its own.
    async fn identity(&self, caller: &Caller, wanted: Option<SpiffeId>) -> Result<SpiffeId> {
        let (node, id) = match (caller, wanted) {
            (Caller::Proxy(proxy), Some(id)) => (&proxy.node, id),
            (Caller::Proxy(Proxy { account: Some((namespace, account)), .. }) | Caller::Pod((namespace, account)), None) => {
                return SpiffeId::new(self.inventory.borrow().trust_domain(), namespace, account);
            }
            // A token from a file names a node, not an account.
            (Caller::Proxy(_), None) => {
                return Err(Error::new(&code::BAD_SPIFFE_ID, "the metadata must name the pod's identity in ImpersonatedIdentity"));
            }
            (Caller::Pod((namespace, account)), Some(id)) => {
                let text = format!("{id} for {namespace}/{account}: that account is not among CA_TRUSTED_NODE_ACCOUNTS");
                return Err(Error::new(&code::NOT_A_PROXY, text));
            }
        };
        let refuse = |reason: String| Err(Error::new(&code::NOT_AUTHORIZED, format!("{id} for node {node}: {reason}")));
        if *id.trust_domain != *self.inventory.borrow().trust_domain() {
            return refuse(format!("the trust domain here is {}", self.inventory.borrow().trust_domain()));
        }
        let runs_there = |mesh: &I| mesh.runs_on(node, &id.namespace, &id.service_account).then_some(());
        match settled(&self.inventory, self.callers.patience(), runs_there).await {
            Some(()) => Ok(id),
            None => refuse("no pod of that account runs on that node".to_owned()),
        }
    }

    fn within_rate(&self, caller: &str) -> bool {
        let now = Instant::now();
        let mut rates = self.rates.lock();
        rates.retain(|_, (start, _)| now.duration_since(*start) < Duration::from_secs(1));
        let (_, count) = rates.entry(caller.into()).or_insert((now, 0));
        *count += 1;
        *count <= MAX_RATE
    }
}

#[tonic::async_trait]
impl<I: Inventory> IstioCertificateService for Ca<I> {
    async fn create_certificate(
        &self,
        request: Request<IstioCertificateRequest>,
    ) -> std::result::Result<Response<IstioCertificateResponse>, Status> {
        let caller = match self.callers.caller(Credential::of(&request)).await {
            Ok(caller) => caller,
            Err(error) => {
                self.metrics.refused(&error);
                return Err(auth::status(&error));
            }
        };
        let name = name(&caller);
        if !self.within_rate(&name) {
            return Err(Status::resource_exhausted(format!("more than {MAX_RATE} certificates in a second for {name}; try again")));
        }
        match self.sign(&caller, request.get_ref()).await {
            Ok(response) => {
                self.metrics.signed.inc();
                Ok(Response::new(response))
            }
            Err(error) => {
                self.metrics.refused(&error);
                tracing::warn!(caller = %name, %error, "certificate refused");
                Err(auth::status(&error))
            }
        }
    }
}

/// What the log and the rate know a caller by.
fn name(caller: &Caller) -> String {
    match caller {
        Caller::Proxy(proxy) => format!("node {}", proxy.node),
        Caller::Pod((namespace, account)) => format!("{namespace}/{account}"),
    }
}

/// The identity that is asked for; `None`: the caller's own.
fn wanted(request: &IstioCertificateRequest) -> Result<Option<SpiffeId>> {
    let field = request.metadata.as_ref().and_then(|metadata| metadata.fields.get("ImpersonatedIdentity"));
    match field.and_then(|value| value.kind.as_ref()) {
        Some(Kind::StringValue(text)) if !text.is_empty() => text.parse().map(Some),
        _ => Ok(None),
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
