//! What was made of a policy, written where its author looks: condition `ZtunnelAccepted` of its status.
//!
//! Of several control planes one writes at a time: who holds the Lease. It is asked for only while there is something to
//! write.

mod lease;
mod wishes;

use std::time::{Duration, SystemTime};

use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use serde_json::{Value, json};

use super::api;
use super::kubernetes::{AuthorizationPolicy, PeerAuthentication, Watched};
use super::objects::{Id, Kind};
use crate::base::{Result, code, deadline, drain};

use lease::{Lease, Turn};
use wishes::Wish;
pub(super) use wishes::Wishes;

/// For one call.
const LIMIT: Duration = Duration::from_secs(10);

/// After a failure, and while another one writes.
const PAUSE: Duration = Duration::from_secs(2);

/// Writes what is wished.
pub(super) struct Writer {
    client: Client,
    lease: Lease,
    wishes: Wishes,
}

impl Writer {
    /// One whose Lease is in that namespace.
    pub(super) fn new(client: Client, namespace: &str) -> Self {
        Self { lease: Lease::new(client.clone(), namespace), client, wishes: Wishes::default() }
    }

    /// Where wishes are brought.
    pub(super) fn wishes(&self) -> Wishes {
        self.wishes.clone()
    }

    /// Writes until the drain.
    pub(super) async fn run(mut self, mut drain: drain::Watch) {
        tokio::select! {
            () = self.write_all() => {}
            _ = drain.started() => {}
        }
        self.lease.release().await;
    }

    async fn write_all(&mut self) {
        loop {
            self.wishes.some().await;
            match self.lease.take().await {
                Ok(Turn::Ours) => {}
                Ok(Turn::Others) => {
                    tokio::time::sleep(PAUSE).await;
                    continue;
                }
                Err(error) => {
                    tracing::warn!(%error, "the status of policies cannot be written");
                    tokio::time::sleep(PAUSE).await;
                    continue;
                }
            }
            let Some((kind, id, wish)) = self.wishes.next() else {
                // What is left was written a moment ago, and somebody else has written something else.
                tokio::time::sleep(PAUSE).await;
                continue;
            };
            let outcome = match kind {
                Kind::AuthorizationPolicy => self.write::<AuthorizationPolicy>(&id, &wish).await,
                Kind::PeerAuthentication => self.write::<PeerAuthentication>(&id, &wish).await,
                _ => Ok(Outcome::Stale),
            };
            match outcome {
                Ok(Outcome::Written) => self.wishes.done(kind, &id, &wish),
                Ok(Outcome::Stale) => self.wishes.withdraw(kind, &id, &wish),
                Err(error) => {
                    tracing::warn!(%kind, %id, %error, "its status cannot be written");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }

    /// A policy that is gone or has changed meanwhile is left alone: there is a new wish, or none.
    async fn write<W: Watched<Scope = k8s_openapi::NamespaceResourceScope>>(&self, id: &Id, wish: &Wish) -> Result<Outcome> {
        let policies = Api::<W>::namespaced(self.client.clone(), &id.namespace);
        let what = format!("patch {}/status {id}", W::plural(&()));
        let (params, patch) = (PatchParams::default(), Patch::Merge(wish.patch(SystemTime::now())));
        match deadline(LIMIT, &code::API_UNAVAILABLE, &what, policies.patch_status(&id.name, &params, &patch)).await? {
            Ok(_) => Ok(Outcome::Written),
            Err(kube::Error::Api(status)) if status.code == 404 || status.code == 409 => Ok(Outcome::Stale),
            Err(error) => Err(api::failed(&what, error)),
        }
    }
}

/// What became of a write.
enum Outcome {
    Written,
    /// It was meant for a version that is no longer.
    Stale,
}

impl Wish {
    /// The status with our condition beside those of others. Nothing is written over a version that was not seen.
    fn patch(&self, now: SystemTime) -> Value {
        let is_ours = |condition: &&Value| condition["type"] == wishes::CONDITION;
        let status = if self.verdict.accepted { "True" } else { "False" };
        let since = self.conditions.iter().find(is_ours).filter(|ours| ours["status"] == status);
        let since = since.and_then(|ours| ours["lastTransitionTime"].as_str()).map(ToOwned::to_owned);
        let mut conditions: Vec<Value> = self.conditions.iter().filter(|condition| !is_ours(condition)).cloned().collect();
        conditions.push(json!({
            "type": wishes::CONDITION,
            "status": status,
            "reason": self.verdict.reason,
            "message": self.verdict.message,
            "observedGeneration": self.generation.to_string(),
            "lastTransitionTime": since.unwrap_or_else(|| humantime::format_rfc3339_seconds(now).to_string()),
        }));
        json!({"metadata": {"resourceVersion": self.resource_version}, "status": {"conditions": conditions}})
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use axum::extract::{Request, State};
    use axum::http::{Method, StatusCode};
    use axum::response::{IntoResponse, Response};
    use axum::{Json, Router, body};
    use parking_lot::Mutex;

    use super::*;
    use crate::control::accept;
    use crate::control::objects::Mesh;
    use crate::telemetry::http;

    /// Refuses what is meant for another version than "8"; remembers all patches.
    async fn answer(State(patches): State<Arc<Mutex<Vec<Value>>>>, request: Request) -> Response {
        let status = |code: StatusCode, reason| {
            let body = json!({"status": "Failure", "reason": reason, "code": code.as_u16()});
            (code, Json(body)).into_response()
        };
        let method = request.method().clone();
        let body = body::to_bytes(request.into_body(), 1 << 20).await.unwrap();
        match (method, serde_json::from_slice::<Value>(&body)) {
            (Method::POST, Ok(lease)) => (StatusCode::CREATED, Json(lease)).into_response(),
            (Method::PATCH, Ok(patch)) => {
                patches.lock().push(patch.clone());
                match patch["metadata"]["resourceVersion"] == "8" {
                    true => Json(patch).into_response(),
                    false => status(StatusCode::CONFLICT, "Conflict"),
                }
            }
            _ => status(StatusCode::NOT_FOUND, "NotFound"),
        }
    }

    #[tokio::test]
    async fn a_status_that_came_too_late_is_written_again_at_once() {
        let patches = Arc::<Mutex<Vec<Value>>>::default();
        let listener = accept::listen("127.0.0.1:0".parse().unwrap()).unwrap();
        let mut config = kube::Config::new(format!("http://{}", listener.local_addr().unwrap()).parse().unwrap());
        config.default_retry = false;
        let (_server, watch) = drain::new();
        tokio::spawn(http::serve(listener, Router::new().fallback(answer).with_state(Arc::clone(&patches)), watch));
        let writer = Writer::new(Client::try_from(config).unwrap(), "root");
        let wishes = writer.wishes();
        let (_trigger, watch) = drain::new();
        tokio::spawn(writer.run(watch));

        let mesh = Mesh { trust_domain: "cluster.local".into(), root_namespace: "root".into() };
        for (version, writes) in [("7", 1), ("8", 2)] {
            let metadata = json!({"namespace": "a", "name": "p", "generation": 1, "resourceVersion": version});
            wishes.look_at(&serde_json::from_value::<AuthorizationPolicy>(json!({"metadata": metadata})).unwrap(), &mesh);
            tokio::time::timeout(wishes::CALM / 2, async {
                while patches.lock().len() < writes || wishes.next().is_some() {
                    tokio::task::yield_now().await;
                }
            })
            .await
            .expect("it is written");
        }
    }
}
