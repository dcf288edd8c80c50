//! The routes of the three servers.

use std::sync::Arc;

use axum::Router;
use axum::extract::{Query, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::{any, get, post};
use tokio::sync::mpsc;

use super::dump;
use crate::identity::CertificateStore;
use crate::mesh::MeshStore;
use crate::proxy::Pods;
use crate::telemetry::http::patient;
use crate::telemetry::{Metrics, Readiness, log};

/// What the admin API looks at.
#[derive(Clone)]
pub struct Admin {
    /// The mesh.
    pub mesh: Arc<MeshStore>,
    /// Certificates.
    pub certificates: Arc<CertificateStore>,
    /// Pods and their connections.
    pub pods: Arc<Pods>,
    /// Settings as JSON.
    pub settings: serde_json::Value,
    /// Ends the process.
    pub quit: mpsc::Sender<()>,
}

/// Port 15000.
pub fn admin_router(admin: Admin) -> Router {
    Router::new()
        .route("/", any(|| async { Html(INDEX) }))
        .route("/config_dump", any(config_dump))
        .route("/logging", post(logging))
        .route("/quitquitquit", post(quit))
        .with_state(admin)
}

/// Port 15020.
pub fn stats_router(metrics: Arc<Metrics>) -> Router {
    Router::new().route("/metrics", any(stats)).route("/stats/prometheus", any(stats)).with_state(metrics)
}

/// Port 15021. With `?wait=SECONDS` it puts off the answer that it is not ready.
pub fn readiness_router(readiness: Arc<Readiness>) -> Router {
    Router::new().route("/healthz/ready", patient(get(ready))).with_state(readiness)
}

const INDEX: &str = "<!doctype html><title>Warren</title><h1>Warren node proxy</h1><ul>\
<li><a href=\"/config_dump\">/config_dump</a>: workloads, services, policies, certificates, pods and connections as JSON\
<li>POST /logging?level=LEVEL or TARGET=LEVEL, ?reset: the log filter\
<li>POST /quitquitquit: drain and end\
</ul>";

async fn config_dump(State(admin): State<Admin>) -> Response {
    match serde_json::to_string_pretty(&dump::dump(&admin)) {
        Ok(text) => ([(header::CONTENT_TYPE, "application/json")], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

#[derive(serde::Deserialize)]
struct Logging {
    level: Option<String>,
    reset: Option<String>,
}

async fn logging(Query(request): Query<Logging>) -> Response {
    if request.reset.is_some() {
        log::reset();
    }
    let changed = match request.level.as_deref() {
        None | Some("") => Ok(()),
        Some(level) => log::add(level),
    };
    match changed {
        Ok(()) => format!("current log level is {}\n", log::current()).into_response(),
        Err(error) => (StatusCode::BAD_REQUEST, format!("Invalid level provided: {error}\n")).into_response(),
    }
}

async fn quit(State(admin): State<Admin>) -> Response {
    // A full channel means that it was asked already.
    let _ = admin.quit.try_send(());
    "shutdown now\n".into_response()
}

async fn stats(State(metrics): State<Arc<Metrics>>, headers: HeaderMap) -> Response {
    let openmetrics = headers
        .get(header::ACCEPT)
        .and_then(|accept| accept.to_str().ok())
        .is_some_and(|accept| accept.contains("application/openmetrics-text"));
    let content_type = if openmetrics { "application/openmetrics-text;charset=utf-8;version=1.0.0" } else { "text/plain; charset=utf-8" };
    match metrics.encode() {
        Ok(page) => ([(header::CONTENT_TYPE, content_type)], page).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

async fn ready(State(readiness): State<Arc<Readiness>>) -> Response {
    let pending = readiness.pending();
    if pending.is_empty() {
        return "ready\n".into_response();
    }
    let names: Vec<&str> = pending.keys().copied().collect();
    let mut text = format!("not ready, pending: {}\n", names.join(", "));
    for (part, reason) in &pending {
        text.push_str(&format!("{part}: {reason}\n"));
    }
    (StatusCode::INTERNAL_SERVER_ERROR, text).into_response()
}
