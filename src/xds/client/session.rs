//! One stream, from its first request to its end.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::body::Body;
use tonic::client::GrpcService;
use tonic::codegen::{Body as HttpBody, StdError};
use tonic::{Code, Status};

use super::apply::{self, Held, Kind, Rejection};
use super::{Observer, Progress, Termination};
use crate::base::{Error, code, deadline};
use crate::mesh::MeshStore;
use crate::wire::discovery::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use crate::wire::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Node};
use crate::wire::rpc;

/// A mesh of a hundred thousand workloads comes in one response of tens of megabytes.
const MAX_MESSAGE: usize = 200 * 1024 * 1024;

/// From the request to the head of the answer, which a control plane sends with its first response: connecting has its own
/// deadline within this one.
const OPEN_LIMIT: Duration = Duration::from_secs(30);

/// The control plane takes requests slower than it sends responses, and for this long: it is stuck.
const SEND_LIMIT: Duration = Duration::from_secs(30);

/// Requests on their way: two at the start, then one for each response.
const QUEUE: usize = 16;

/// A NACK names at most this many resources; the rest is a number.
const MAX_NAMED: usize = 20;

/// How a stream ended.
#[derive(Debug)]
pub(super) struct End {
    pub(super) why: Termination,
    pub(super) error: Option<Error>,
    /// Whether it brought anything.
    pub(super) served: bool,
}

pub(super) async fn run<S>(
    node: &Node,
    store: &Arc<MeshStore>,
    channel: S,
    held: &mut Held,
    report: &watch::Sender<Progress>,
    observer: &dyn Observer,
) -> End
where
    S: GrpcService<Body>,
    S::Error: Into<StdError>,
    S::ResponseBody: HttpBody<Data = Bytes> + Send + 'static,
    <S::ResponseBody as HttpBody>::Error: Into<StdError> + Send,
{
    let (requests, outgoing) = mpsc::channel(QUEUE);
    for kind in Kind::ALL {
        let first = DeltaDiscoveryRequest {
            node: Some(node.clone()),
            type_url: kind.type_url().to_owned(),
            initial_resource_versions: held.of(kind).clone(),
            ..DeltaDiscoveryRequest::default()
        };
        // The queue has just been made and is longer than this.
        let _ = requests.try_send(first);
    }
    let mut client = AggregatedDiscoveryServiceClient::new(channel).max_decoding_message_size(MAX_MESSAGE);
    let opening = client.delta_aggregated_resources(ReceiverStream::new(outgoing));
    let no_stream = |error| End { why: Termination::ConnectionError, error: Some(error), served: false };
    let mut responses = match deadline(OPEN_LIMIT, &code::XDS_UNREACHABLE, "the control plane", opening).await {
        Ok(Ok(answer)) => answer.into_inner(),
        Ok(Err(status)) => return ended(status, false),
        Err(error) => return no_stream(error),
    };
    let mut served = false;
    loop {
        let response = match responses.message().await {
            Ok(Some(response)) => response,
            Ok(None) => return End { why: Termination::Complete, error: None, served },
            Err(status) => return ended(status, served),
        };
        let answer = take(store, response, held, report, observer).await;
        served = true;
        match deadline(SEND_LIMIT, &code::XDS_STREAM, "the control plane takes no request", requests.send(answer)).await {
            Ok(Ok(())) => {}
            // The stream is over; why comes out of the next read.
            Ok(Err(_)) => {}
            Err(error) => return End { why: Termination::Error, error: Some(error), served },
        }
    }
}

/// Applies a response and makes the answer to it: an ACK, or a NACK that names what was rejected.
async fn take(
    store: &Arc<MeshStore>,
    response: DeltaDiscoveryResponse,
    held: &mut Held,
    report: &watch::Sender<Progress>,
    observer: &dyn Observer,
) -> DeltaDiscoveryRequest {
    let type_url = response.type_url.clone();
    let mut answer =
        DeltaDiscoveryRequest { type_url: type_url.clone(), response_nonce: response.nonce.clone(), ..DeltaDiscoveryRequest::default() };
    let Some(kind) = Kind::of(&type_url) else {
        tracing::debug!(type_url, "resources of a type that was not asked for");
        return answer;
    };
    let bytes = response.resources.iter().filter_map(|resource| resource.resource.as_ref()).map(|any| any.value.len()).sum();
    let (resources, removed) = (response.resources.len(), response.removed_resources.len());
    observer.response(&type_url, bytes);
    let rejections = applied(store, kind, response, held).await;
    tracing::debug!(type_url, resources, removed, rejected = rejections.len(), "control plane response");
    if !rejections.is_empty() {
        observer.rejected(&type_url, rejections.len());
        let message = nack(&rejections);
        tracing::warn!(code = code::XDS_REJECTED.id, type_url, "resources rejected: {message}");
        answer.error_detail = Some(rpc::Status { message, ..rpc::Status::default() });
    }
    report.send_modify(|progress| progress.received(kind));
    answer
}

/// Applies a response off the runtime's threads: a whole mesh takes long enough to hold up connections.
async fn applied(store: &Arc<MeshStore>, kind: Kind, response: DeltaDiscoveryResponse, held: &mut Held) -> Vec<Rejection> {
    let store = store.clone();
    match tokio::task::spawn_blocking(move || apply::apply(&store, kind, response)).await {
        Ok(applied) => held.note(kind, applied),
        // A defect of ours. Nothing of the response counts as held, so the next stream brings it again.
        Err(error) => vec![Rejection { name: "the whole response".to_owned(), reason: format!("internal error: {error}") }],
    }
}

/// `name: reason; name: reason; and 3 more`
fn nack(rejections: &[Rejection]) -> String {
    let mut parts: Vec<String> =
        rejections.iter().take(MAX_NAMED).map(|rejection| format!("{}: {}", rejection.name, rejection.reason)).collect();
    if rejections.len() > MAX_NAMED {
        parts.push(format!("and {} more", rejections.len() - MAX_NAMED));
    }
    parts.join("; ")
}

fn ended(status: Status, served: bool) -> End {
    // How a gRPC server ends a stream when it restarts or the stream has reached its age.
    let restart = match status.code() {
        Code::Unknown | Code::Cancelled | Code::DeadlineExceeded => true,
        Code::Unavailable => ["transport is closing", "received prior goaway"].iter().any(|text| status.message().contains(text)),
        _ => false,
    };
    let why = match (served, restart, status.code()) {
        (true, true, _) => Termination::Reconnect,
        (false, _, Code::Unavailable | Code::Unknown | Code::Cancelled | Code::DeadlineExceeded) => Termination::ConnectionError,
        _ => Termination::Error,
    };
    End { why, error: Some(error_of(status)), served }
}

fn error_of(status: Status) -> Error {
    let mut source = std::error::Error::source(&status);
    while let Some(cause) = source {
        // The channel's own errors (connect, TLS, token) already say whose side it is and what to do.
        if let Some(error) = cause.downcast_ref::<Error>() {
            return Error::caused(error.code(), "control plane", error.clone());
        }
        source = cause.source();
    }
    let code = if status.code() == Code::Unavailable { &code::XDS_UNREACHABLE } else { &code::XDS_STREAM };
    Error::caused(code, "control plane", status)
}
