//! Delta discovery: one stream for addresses and policies, kept up for ever, applied to the mesh response by response.

mod apply;
mod progress;
mod session;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use prost_types::value::Kind;
use prost_types::{Struct, Value};
use tokio::sync::watch;
use tonic::body::Body;
use tonic::client::GrpcService;
use tonic::codegen::{Body as HttpBody, StdError};

use crate::base::drain::Watch;
use crate::mesh::MeshStore;
use crate::wire::discovery::Node;

pub use apply::Kind as ResourceKind;
pub use progress::Progress;

use apply::Held;
use session::End;

/// First pause after a failure; doubled for each further one.
const BACKOFF_START: Duration = Duration::from_millis(10);

/// Longest pause between two attempts: a proxy that hears nothing sends to pods that it does not know as to strangers.
const BACKOFF_MAX: Duration = Duration::from_secs(4);

/// Who is asking, as the control plane wants to know it.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// `ztunnel~<ip>~<pod>.<namespace>~<namespace>.svc.cluster.local`
    pub node_id: String,
    /// Text metadata: NAME, NAMESPACE, INSTANCE_IPS, NODE_NAME, CLUSTER_ID and the like.
    pub metadata: BTreeMap<String, String>,
}

impl Settings {
    fn node(&self) -> Node {
        let value = |text: &String| Value { kind: Some(Kind::StringValue(text.clone())) };
        let fields = self.metadata.iter().map(|(key, text)| (key.clone(), value(text))).collect();
        Node { id: self.node_id.clone(), cluster: String::new(), metadata: Some(Struct { fields }) }
    }
}

/// What telemetry wants to hear of. All methods do nothing unless implemented.
pub trait Observer: Send + Sync {
    /// A stream or an attempt at one ended.
    fn ended(&self, _why: Termination) {}
    /// A response came, with that many bytes of resources.
    fn response(&self, _type_url: &str, _bytes: usize) {}
    /// That many of its resources were rejected.
    fn rejected(&self, _type_url: &str, _count: usize) {}
}

/// Nobody listens.
impl Observer for () {}

/// Why a stream ended; the names are the values of a metric's label.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Termination {
    /// There was no stream: no connection, or no answer to the request.
    ConnectionError,
    /// The control plane reported an error.
    Error,
    /// The control plane asks to connect again: it restarts, or the stream is old.
    Reconnect,
    /// The control plane closed the stream in order.
    Complete,
}

/// Keeps `store` in step with the control plane behind `channel` until the drain starts.
///
/// `channel` connects by itself, within a deadline of its own, and again when its connection is lost. What has been received
/// stays in force while there is no connection; after it the control plane is told what is held and sends the difference.
pub async fn run<S>(
    settings: Settings,
    store: Arc<MeshStore>,
    channel: S,
    report: watch::Sender<Progress>,
    observer: Arc<dyn Observer>,
    mut drain: Watch,
) where
    S: GrpcService<Body> + Clone,
    S::Error: Into<StdError>,
    S::ResponseBody: HttpBody<Data = Bytes> + Send + 'static,
    <S::ResponseBody as HttpBody>::Error: Into<StdError> + Send,
{
    tokio::select! {
        _ = drain.started() => {}
        () = keep_up(&settings, &store, channel, &report, &*observer) => {}
    }
}

async fn keep_up<S>(settings: &Settings, store: &Arc<MeshStore>, channel: S, report: &watch::Sender<Progress>, observer: &dyn Observer)
where
    S: GrpcService<Body> + Clone,
    S::Error: Into<StdError>,
    S::ResponseBody: HttpBody<Data = Bytes> + Send + 'static,
    <S::ResponseBody as HttpBody>::Error: Into<StdError> + Send,
{
    let node = settings.node();
    let mut held = Held::default();
    let mut backoff = BACKOFF_START;
    let mut attempt: u64 = 0;
    loop {
        attempt += 1;
        report.send_modify(Progress::connecting);
        let end = session::run(&node, store, channel.clone(), &mut held, report, observer).await;
        observer.ended(end.why);
        report.send_modify(|progress| progress.disconnected(end.error.clone()));
        backoff = next_backoff(backoff, &end);
        log(attempt, &end, backoff);
        tokio::time::sleep(backoff.mul_f64(rand::random_range(0.5..=1.0))).await;
    }
}

/// A stream that served, or that ends because the control plane restarts, starts anew; failures in a row wait longer and
/// longer, with chance so that the proxies of a cluster do not come back at one moment.
fn next_backoff(last: Duration, end: &End) -> Duration {
    match end.why {
        Termination::Complete | Termination::Reconnect => BACKOFF_START,
        Termination::Error | Termination::ConnectionError if end.served => BACKOFF_START,
        Termination::Error | Termination::ConnectionError => (last * 2).min(BACKOFF_MAX),
    }
}

fn log(attempt: u64, end: &End, pause: Duration) {
    let error = end.error.as_ref().map(tracing::field::display);
    match end.why {
        Termination::Complete | Termination::Reconnect => {
            tracing::debug!(attempt, error, "control plane ended the stream, connecting again")
        }
        Termination::Error => tracing::warn!(attempt, error, ?pause, "control plane reported an error"),
        Termination::ConnectionError => tracing::warn!(attempt, error, ?pause, "no stream to the control plane"),
    }
}
