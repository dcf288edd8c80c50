//! Plain HTTP for probes and people: `/healthz`, `/readyz`.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use axum::Router;
use axum::extract::State;
use axum::routing::get;
use parking_lot::RwLock;
use tokio::net::TcpListener;
use tokio::sync::watch;

use super::ads::Counters;
use super::follow::SourceHealth;
use super::index::{Index, Type};
use crate::base::drain;
use crate::telemetry::http;

/// What the endpoint looks at.
#[derive(Clone)]
pub(super) struct Health {
    pub(super) index: watch::Receiver<Arc<Index>>,
    pub(super) source: Arc<RwLock<SourceHealth>>,
    pub(super) counters: Arc<Counters>,
}

/// Serves until the drain.
pub(super) async fn serve(listener: TcpListener, health: Health, drain: drain::Watch) {
    let router = Router::new().route("/healthz", get(async || "ok\n")).route("/readyz", get(ready)).with_state(health);
    http::serve(listener, router, drain).await;
}

/// Ready as soon as it answers: it is not opened before there is a state. A broken source is told, but is no reason to
/// take the control plane out: it serves the last good state.
async fn ready(State(health): State<Health>) -> axum::Json<serde_json::Value> {
    let index = health.index.borrow().clone();
    let source = health.source.read();
    axum::Json(serde_json::json!({
        "ready": true,
        "generation": index.generation(),
        "addresses": index.resources(Type::Address).len(),
        "policies": index.resources(Type::Authorization).len(),
        "source_error": source.error,
        "rejected": source.rejected,
        "streams": health.counters.streams.load(Ordering::Relaxed),
        "responses": health.counters.responses.load(Ordering::Relaxed),
        "nacks": health.counters.nacks.load(Ordering::Relaxed),
    }))
}
