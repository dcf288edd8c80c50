//! Plain HTTP for probes and people: `/healthz`, `/readyz`, `/metrics`.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use axum::routing::get;
use tokio::net::TcpListener;

use super::board::Board;
use crate::base::drain::Watch;
use crate::base::{Error, Result, code};
use crate::net::socket::SocketFactory;
use crate::telemetry::{Readiness, http};

/// What the pages are made of.
#[derive(Clone)]
struct Pages {
    ready: Arc<Readiness>,
    board: Arc<Board>,
}

/// Listens on `address`.
///
/// # Errors
/// The address is taken, or not of this host.
pub fn listen(address: SocketAddr) -> Result<TcpListener> {
    let factory = SocketFactory::default();
    let listener = factory.listen(address, false);
    let failed = |error| Error::caused(&code::BIND_FAILED, format!("listen on {address}"), error);
    listener.map(|(listener, _)| listener).map_err(failed)
}

/// Serves until the drain.
pub async fn serve(listener: TcpListener, ready: Arc<Readiness>, board: Arc<Board>, drain: Watch) {
    let router = Router::new()
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", http::patient(get(readyz)))
        .route("/metrics", get(metrics))
        .with_state(Pages { ready, board });
    http::serve(listener, router, drain).await;
}

async fn readyz(State(pages): State<Pages>) -> impl IntoResponse {
    let pending = pages.ready.pending();
    if pending.is_empty() {
        return (StatusCode::OK, "ready\n".to_owned());
    }
    let lines = pending.iter().map(|(part, reason)| format!("{part}: {reason}\n")).collect();
    (StatusCode::SERVICE_UNAVAILABLE, lines)
}

async fn metrics(State(pages): State<Pages>) -> impl IntoResponse {
    match pages.board.page() {
        Ok(page) => (StatusCode::OK, [(CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")], page),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, [(CONTENT_TYPE, "text/plain")], error.to_string()),
    }
}
