//! The discovery service: one task for each stream joins its [`Session`] to the transport.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream, StreamExt};
use tonic::{Request, Response, Status, Streaming};

use super::Session;
use crate::base::{Str, drain};
use crate::control::auth::{self, Authenticator, Credential, Proxy};
use crate::control::index::Index;
use crate::wire::discovery::aggregated_discovery_service_server::AggregatedDiscoveryService;
use crate::wire::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Node};

/// Streams at once. A stream costs a task and what its session holds.
const MAX_STREAMS: usize = 4096;

/// A client that takes nothing for this long is given up; it comes back and says what it holds.
const SEND_LIMIT: Duration = Duration::from_secs(60);

/// What the service has seen.
#[derive(Debug, Default)]
pub struct Counters {
    /// Streams that are open.
    pub streams: AtomicU64,
    /// Responses sent.
    pub responses: AtomicU64,
    /// Responses that a client rejected.
    pub nacks: AtomicU64,
}

/// Serves delta discovery.
#[derive(Clone, Debug)]
pub struct Ads {
    index: watch::Receiver<Arc<Index>>,
    callers: Arc<Authenticator>,
    drain: drain::Watch,
    counters: Arc<Counters>,
    slots: Arc<Semaphore>,
}

type Outcome = std::result::Result<DeltaDiscoveryResponse, Status>;

impl Ads {
    /// A service of that index to those callers that are proxies.
    pub fn new(index: watch::Receiver<Arc<Index>>, callers: Arc<Authenticator>, drain: drain::Watch, counters: Arc<Counters>) -> Self {
        Self { index, callers, drain, counters, slots: Arc::new(Semaphore::new(MAX_STREAMS)) }
    }
}

#[tonic::async_trait]
impl AggregatedDiscoveryService for Ads {
    type DeltaAggregatedResourcesStream = Pin<Box<dyn Stream<Item = Outcome> + Send>>;

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> std::result::Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        let proxy = self.callers.proxy(Credential::of(&request)).await.map_err(|error| auth::status(&error))?;
        let node = proxy.node.clone();
        let slot = Arc::clone(&self.slots)
            .try_acquire_owned()
            .map_err(|_| Status::resource_exhausted(format!("more than {MAX_STREAMS} discovery streams")))?;
        let (sender, receiver) = mpsc::channel(1);
        let stream = ClientStream {
            session: Session::new(node.clone()),
            node,
            index: self.index.clone(),
            callers: Arc::clone(&self.callers),
            proxy,
            counters: Arc::clone(&self.counters),
            sender,
            _slot: slot,
        };
        tokio::spawn(stream.run(request.into_inner(), self.drain.clone()));
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }
}

struct ClientStream {
    node: Str,
    session: Session,
    index: watch::Receiver<Arc<Index>>,
    callers: Arc<Authenticator>,
    proxy: Proxy,
    counters: Arc<Counters>,
    sender: mpsc::Sender<Outcome>,
    _slot: OwnedSemaphorePermit,
}

impl ClientStream {
    async fn run(mut self, requests: Streaming<DeltaDiscoveryRequest>, mut drain: drain::Watch) {
        self.counters.streams.fetch_add(1, Ordering::Relaxed);
        tracing::info!(node = %self.node, "discovery stream opened");
        let end = tokio::select! {
            end = self.converse(requests) => end,
            // The client connects again, to a successor if there is one.
            _ = drain.started() => Ok("draining"),
        };
        match end {
            Ok(why) => tracing::info!(node = %self.node, why, "discovery stream ended"),
            Err(status) => {
                tracing::warn!(node = %self.node, code = ?status.code(), reason = status.message(), "discovery stream ended by us");
                let _ = tokio::time::timeout(SEND_LIMIT, self.sender.send(Err(status))).await;
            }
        }
        self.counters.streams.fetch_sub(1, Ordering::Relaxed);
    }

    async fn converse(&mut self, mut requests: Streaming<DeltaDiscoveryRequest>) -> std::result::Result<&'static str, Status> {
        self.index.mark_unchanged();
        loop {
            tokio::select! {
                request = requests.next() => match request {
                    Some(Ok(request)) => self.answer(&request).await?,
                    Some(Err(status)) => {
                        tracing::debug!(node = %self.node, %status, "reading from the client");
                        return Ok("the client went away");
                    }
                    None => return Ok("the client ended it"),
                },
                changed = self.index.changed() => {
                    if changed.is_err() {
                        return Ok("draining");
                    }
                    // First room, then the state: what a slow client is sent is the latest, never a queued one.
                    self.room().await?;
                    let index = self.index.borrow_and_update().clone();
                    if !self.callers.is_valid(&self.proxy) {
                        return Err(Status::permission_denied(format!("the token of node {} is revoked, or its pod is gone (W7003)", self.node)));
                    }
                    for response in self.session.advance(&index) {
                        self.send(response).await?;
                    }
                }
            }
        }
    }

    async fn answer(&mut self, request: &DeltaDiscoveryRequest) -> std::result::Result<(), Status> {
        if let Some(named) = request.node.as_ref().and_then(node_name)
            && named != &*self.node
        {
            let text = format!("the token is of node {}, but the proxy says that it runs on {named:.253} (W7004)", self.node);
            return Err(Status::permission_denied(text));
        }
        let index = self.index.borrow().clone();
        let before = self.session.nacks();
        let response = self.session.request(request, &index).map_err(|error| Status::resource_exhausted(error.to_string()))?;
        self.counters.nacks.fetch_add(self.session.nacks() - before, Ordering::Relaxed);
        match response {
            Some(response) => self.send(response).await,
            None => Ok(()),
        }
    }

    /// Returns when the transport has taken what was sent before.
    async fn room(&self) -> std::result::Result<(), Status> {
        self.in_time(self.sender.reserve()).await.map(drop)
    }

    async fn send(&mut self, response: DeltaDiscoveryResponse) -> std::result::Result<(), Status> {
        tracing::debug!(
            node = %self.node, type_url = response.type_url, nonce = response.nonce,
            resources = response.resources.len(), removed = response.removed_resources.len(), "sending"
        );
        self.counters.responses.fetch_add(1, Ordering::Relaxed);
        self.in_time(self.sender.send(Ok(response))).await
    }

    async fn in_time<T, E>(&self, taken: impl Future<Output = std::result::Result<T, E>>) -> std::result::Result<T, Status> {
        match tokio::time::timeout(SEND_LIMIT, taken).await {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(_)) => Err(Status::cancelled("the client went away")),
            Err(_) => Err(Status::deadline_exceeded(format!("the client took nothing for {SEND_LIMIT:?}"))),
        }
    }
}

fn node_name(node: &Node) -> Option<&str> {
    match node.metadata.as_ref()?.fields.get("NODE_NAME")?.kind.as_ref()? {
        prost_types::value::Kind::StringValue(name) if !name.is_empty() => Some(name),
        _ => None,
    }
}
