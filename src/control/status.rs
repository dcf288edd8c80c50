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
            let written = match kind {
                Kind::AuthorizationPolicy => self.write::<AuthorizationPolicy>(&id, &wish).await,
                Kind::PeerAuthentication => self.write::<PeerAuthentication>(&id, &wish).await,
                _ => Ok(()),
            };
            match written {
                Ok(()) => self.wishes.done(kind, &id, &wish),
                Err(error) => {
                    tracing::warn!(%kind, %id, %error, "its status cannot be written");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }

    /// A policy that is gone or has changed meanwhile is left alone: there is a new wish, or none.
    async fn write<W: Watched<Scope = k8s_openapi::NamespaceResourceScope>>(&self, id: &Id, wish: &Wish) -> Result<()> {
        let policies = Api::<W>::namespaced(self.client.clone(), &id.namespace);
        let what = format!("patch {}/status {id}", W::plural(&()));
        let (params, patch) = (PatchParams::default(), Patch::Merge(wish.patch(SystemTime::now())));
        match deadline(LIMIT, &code::API_UNAVAILABLE, &what, policies.patch_status(&id.name, &params, &patch)).await? {
            Ok(_) => Ok(()),
            Err(kube::Error::Api(status)) if status.code == 404 || status.code == 409 => Ok(()),
            Err(error) => Err(api::failed(&what, error)),
        }
    }
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
