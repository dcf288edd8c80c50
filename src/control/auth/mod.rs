//! Who calls: from a bearer token to a node's proxy or a pod.

mod accounts;
mod bearer;
mod inventory;
mod review;
#[cfg(test)]
pub(in crate::control) mod tests;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tonic::{Code, Request, Status};

use self::bearer::Refusals;
use self::review::{Holder, Reviews};
use super::gate::Gate;
use super::index::{Account, Index, PodRef};
use super::tokens::Tokens;
use crate::base::{Error, Result, Str, code};

pub use accounts::Accounts;
pub(crate) use bearer::LONGEST;
pub use inventory::Inventory;
pub(crate) use inventory::settled;

/// How long a pod may be unknown here that its own node knows already.
const PATIENCE: Duration = Duration::from_secs(2);

/// The id of this cluster.
const CLUSTER: &str = "Kubernetes";

/// What a call shows: the rest of it is not needed to tell who calls.
pub struct Credential {
    token: Result<String>,
    /// The cluster that the caller says it is of.
    cluster: Option<String>,
    gate: Option<Gate>,
}

impl Credential {
    /// That of a call.
    pub fn of<T>(request: &Request<T>) -> Self {
        let metadata = request.metadata();
        let cluster = metadata.get("clusterid").map(|id| String::from_utf8_lossy(id.as_bytes()).chars().take(64).collect());
        Self { token: bearer::token(metadata).map(str::to_owned), cluster, gate: request.extensions().get::<Gate>().cloned() }
    }
}

/// Who calls.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Caller {
    /// The proxy of a node: it may know the mesh, and have the certificates of what runs there.
    Proxy(Proxy),
    /// Any other pod: it may have its own certificate.
    Pod(Account),
}

/// The proxy of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proxy {
    /// Where it runs.
    pub node: Str,
    /// In a cluster: its account.
    pub account: Option<Account>,
    /// In a cluster: name and UID of its pod.
    pod: Option<(Str, Str)>,
}

/// Tells callers apart.
#[derive(Debug)]
pub struct Authenticator<I = Index> {
    how: How,
    inventory: watch::Receiver<Arc<I>>,
    refusals: Refusals,
}

#[derive(Debug)]
enum How {
    /// A token for each node, in a file.
    Files(Arc<Tokens>),
    /// Tokens of service accounts.
    Cluster { reviews: Box<Reviews>, proxies: Accounts },
}

impl<I: Inventory> Authenticator<I> {
    /// Callers are the holders of those tokens.
    pub fn files(tokens: Arc<Tokens>, inventory: watch::Receiver<Arc<I>>) -> Self {
        Self { how: How::Files(tokens), inventory, refusals: Refusals::default() }
    }

    /// Callers are pods of a cluster; those of the accounts `proxies` are the proxies of their nodes.
    pub fn cluster(client: kube::Client, proxies: Accounts, inventory: watch::Receiver<Arc<I>>) -> Self {
        Self { how: How::Cluster { reviews: Box::new(Reviews::new(client)), proxies }, inventory, refusals: Refusals::default() }
    }

    /// How long something may be unknown that a caller knows already. A mesh file is read by all at once.
    pub(crate) fn patience(&self) -> Duration {
        if self.is_cluster() { PATIENCE } else { Duration::ZERO }
    }

    fn is_cluster(&self) -> bool {
        matches!(self.how, How::Cluster { .. })
    }

    /// Who calls. The connection of a proxy is no stranger's from now on.
    ///
    /// # Errors
    /// NOT_AUTHENTICATED: no token, or none that is accepted. NOT_A_PROXY: the token is not that of a pod which exists.
    /// API_UNAVAILABLE, API_REFUSED: the API server cannot be asked.
    pub async fn caller(&self, credential: Credential) -> Result<Caller> {
        let Credential { token, cluster, gate } = credential;
        let caller = match (token, cluster) {
            (Err(error), _) => Err(error),
            (Ok(_), Some(other)) if self.is_cluster() && other != CLUSTER => {
                Err(Error::new(&code::NOT_AUTHENTICATED, format!("the caller is of cluster {other:?}, this is {CLUSTER:?}")))
            }
            (Ok(token), _) => self.holder(&token).await,
        };
        match (&caller, gate) {
            (Ok(Caller::Proxy(_)), Some(gate)) => gate.open(),
            (Err(error), _) => self.refusals.tell(error),
            _ => {}
        }
        caller
    }

    /// The proxy that calls.
    ///
    /// # Errors
    /// As [`Authenticator::caller`]; NOT_A_PROXY also for every other pod.
    pub async fn proxy(&self, credential: Credential) -> Result<Proxy> {
        match self.caller(credential).await? {
            Caller::Proxy(proxy) => Ok(proxy),
            Caller::Pod((namespace, account)) => {
                let error = not_a_proxy(format!("the account {namespace}/{account} is not among CA_TRUSTED_NODE_ACCOUNTS"));
                self.refusals.tell(&error);
                Err(error)
            }
        }
    }

    /// Whether what the proxy has shown still holds: its token's file, or its pod, is there.
    pub fn is_valid(&self, proxy: &Proxy) -> bool {
        match (&self.how, &proxy.account, &proxy.pod) {
            (How::Files(tokens), ..) => tokens.knows(&proxy.node),
            (How::Cluster { .. }, Some((namespace, _)), Some((name, uid))) => {
                self.inventory.borrow().pod(namespace, name).is_some_and(|pod| pod.uid == *uid)
            }
            (How::Cluster { .. }, ..) => false,
        }
    }

    async fn holder(&self, token: &str) -> Result<Caller> {
        match &self.how {
            How::Files(tokens) => {
                let node = tokens.holder(token);
                let node = node.ok_or_else(|| Error::new(&code::NOT_AUTHENTICATED, "the bearer token belongs to no node of the mesh"))?;
                Ok(Caller::Proxy(Proxy { node, account: None, pod: None }))
            }
            How::Cluster { reviews, proxies } => self.pod(reviews.holder(token).await?, proxies).await,
        }
    }

    /// The pod that a token was made for, if it is there.
    async fn pod(&self, holder: Holder, proxies: &Accounts) -> Result<Caller> {
        let Holder { namespace, service_account, pod } = holder;
        let account = format!("{namespace}/{service_account}");
        let Some(bound) = pod else { return Err(not_a_proxy(format!("the token of {account} is not bound to a pod"))) };
        // The pod of a token runs, so that an entry without a node is older than what is asked about.
        let is_it = |known: &PodRef| known.uid == bound.uid && known.service_account == service_account && !known.node.is_empty();
        let known = settled(&self.inventory, PATIENCE, |mesh| mesh.pod(&namespace, &bound.name).filter(is_it)).await;
        let known = known.ok_or_else(|| {
            not_a_proxy(format!("the token of {account} is bound to pod {namespace}/{} ({}), which is not there", bound.name, bound.uid))
        })?;
        if bound.node.as_ref().is_some_and(|node| *node != known.node) {
            return Err(not_a_proxy(format!("the token of {account} is of another node than pod {namespace}/{}", bound.name)));
        }
        let account = (namespace, service_account);
        Ok(match proxies.contains(&account.0, &account.1) {
            true => Caller::Proxy(Proxy { node: known.node, account: Some(account), pod: Some((bound.name, bound.uid)) }),
            false => Caller::Pod(account),
        })
    }
}

fn not_a_proxy(reason: String) -> Error {
    Error::new(&code::NOT_A_PROXY, reason)
}

/// The gRPC status of a refusal: a client can tell what to do without reading the text.
pub(crate) fn status(error: &Error) -> Status {
    let is = |code: &code::Code| error.code() == code;
    let status = if is(&code::NOT_AUTHENTICATED) {
        Code::Unauthenticated
    } else if is(&code::NOT_AUTHORIZED) || is(&code::NOT_A_PROXY) {
        Code::PermissionDenied
    } else if is(&code::CSR_INVALID) || is(&code::BAD_SPIFFE_ID) {
        Code::InvalidArgument
    } else if is(&code::API_UNAVAILABLE) || is(&code::API_REFUSED) {
        Code::Unavailable
    } else {
        Code::Internal
    };
    Status::new(status, error.to_string())
}
