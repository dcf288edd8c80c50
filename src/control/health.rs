//! Plain HTTP for probes and people: `/healthz`, `/readyz`, `/metrics`.

use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use parking_lot::RwLock;
use tokio::net::TcpListener;
use tokio::sync::watch;

use super::ads::Counters;
use super::ca::{Authority, secret};
use super::follow::SourceHealth;
use super::index::{Index, Type};
use super::metrics::{self, Metrics, Page};
use crate::base::drain;
use crate::telemetry::http;

/// How far it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// Something is waited for, such as the API server; the text says what.
    Starting(String),
    /// It has a state and an authority, and listens.
    Serving,
    /// It ends.
    Draining,
}

/// What the endpoint looks at.
#[derive(Clone, Debug)]
pub(super) struct Health {
    pub(super) stage: watch::Receiver<Stage>,
    pub(super) index: watch::Receiver<Arc<Index>>,
    pub(super) source: Arc<RwLock<SourceHealth>>,
    pub(super) counters: Arc<Counters>,
    /// Set when it is known.
    pub(super) authority: Arc<OnceLock<watch::Receiver<Arc<Authority>>>>,
    pub(super) trouble: secret::Trouble,
}

/// Serves until the drain.
pub(super) async fn serve(listener: TcpListener, health: Health, metrics: Arc<Metrics>, drain: drain::Watch) {
    let page = Arc::new(metrics.registry(health.clone()));
    let router = Router::new()
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", http::patient(get(ready)).with_state(health))
        .route("/metrics", get(counted).with_state(page));
    http::serve(listener, router, drain).await;
}

/// Ready as soon as there is a state and an authority. A broken source is told, but is no reason to take the control
/// plane out: it serves the last good state.
async fn ready(State(health): State<Health>) -> impl IntoResponse {
    let (is_ready, waiting) = match &*health.stage.borrow() {
        Stage::Starting(waiting) => (false, Some(waiting.clone())),
        Stage::Serving => (true, None),
        Stage::Draining => (false, Some("draining".to_owned())),
    };
    let index = health.index.borrow().clone();
    let source = health.source.read();
    let body = axum::Json(serde_json::json!({
        "ready": is_ready,
        "waiting": waiting,
        "generation": index.generation(),
        "addresses": index.resources(Type::Address).len(),
        "policies": index.resources(Type::Authorization).len(),
        "source_error": source.error,
        "rejected": source.rejected,
        "authority_error": *health.trouble.read(),
        "streams": health.counters.streams.load(Ordering::Relaxed),
        "responses": health.counters.responses.load(Ordering::Relaxed),
        "nacks": health.counters.nacks.load(Ordering::Relaxed),
    }));
    (if is_ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }, body)
}

async fn counted(State(page): State<Page>, headers: HeaderMap) -> impl IntoResponse {
    let accept = headers.get(header::ACCEPT).and_then(|accept| accept.to_str().ok()).unwrap_or_default();
    let kind = match accept.contains("application/openmetrics-text") {
        true => "application/openmetrics-text;charset=utf-8;version=1.0.0",
        false => "text/plain; charset=utf-8",
    };
    match metrics::page(&page) {
        Ok(text) => ([(header::CONTENT_TYPE, kind)], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}
