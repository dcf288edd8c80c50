//! Whose turn it is to write.

use std::time::Duration;

use k8s_openapi::api::coordination::v1::{Lease as Object, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use kube::Client;
use kube::api::{Api, ObjectMeta, PostParams};
use tokio::time::Instant;

use super::LIMIT;
use crate::base::{Result, code, deadline};
use crate::control::api;

const NAME: &str = "warren-control-status";

/// Who does not renew it for this long has lost it.
const DURATION: Duration = Duration::from_secs(15);

/// After this long it is renewed before the next write, so that no write outlasts it.
const RENEW: Duration = Duration::from_secs(4);

/// Whose turn it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Turn {
    Ours,
    Others,
}

/// The Lease as one of those who want it sees it.
pub(super) struct Lease {
    leases: Api<Object>,
    /// Unlike all others'.
    holder: String,
    held_since: Option<Instant>,
}

impl Lease {
    pub(super) fn new(client: Client, namespace: &str) -> Self {
        let host = nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok()).unwrap_or_default();
        let holder = format!("{host}_{:016x}", rand::random::<u64>());
        Self { leases: Api::namespaced(client, namespace), holder, held_since: None }
    }

    /// Takes or renews it, if it is free or ours.
    ///
    /// # Errors
    /// API_UNAVAILABLE, API_REFUSED.
    pub(super) async fn take(&mut self) -> Result<Turn> {
        if self.held_since.is_some_and(|since| since.elapsed() < RENEW) {
            return Ok(Turn::Ours);
        }
        self.held_since = None;
        let asked = Instant::now();
        let known = self.call("get", self.leases.get_opt(NAME)).await?.map_err(|error| api::failed("get leases", error))?;
        let now = Timestamp::now();
        let written = match known {
            None => {
                let lease =
                    Object { metadata: ObjectMeta { name: Some(NAME.to_owned()), ..ObjectMeta::default() }, spec: Some(self.spec(now)) };
                self.call("create", self.leases.create(&PostParams::default(), &lease)).await?
            }
            Some(lease) if is_free(lease.spec.as_ref(), &self.holder, now) => {
                // Its resourceVersion makes sure that nobody has taken it meanwhile.
                let lease = Object { spec: Some(self.spec(now)), ..lease };
                self.call("update", self.leases.replace(NAME, &PostParams::default(), &lease)).await?
            }
            Some(_) => return Ok(Turn::Others),
        };
        match written {
            Ok(_) => {
                self.held_since = Some(asked);
                Ok(Turn::Ours)
            }
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(Turn::Others),
            Err(error) => Err(api::failed("update leases", error)),
        }
    }

    /// Gives it back, so that nobody has to wait for it.
    pub(super) async fn release(mut self) {
        if self.held_since.take().is_none() {
            return;
        }
        if let Ok(Ok(Some(lease))) = self.call("get", self.leases.get_opt(NAME)).await
            && lease.spec.as_ref().and_then(|spec| spec.holder_identity.as_ref()) == Some(&self.holder)
        {
            let lease = Object { spec: Some(LeaseSpec { holder_identity: None, ..self.spec(Timestamp::now()) }), ..lease };
            let _ = self.call("update", self.leases.replace(NAME, &PostParams::default(), &lease)).await;
        }
    }

    fn spec(&self, now: Timestamp) -> LeaseSpec {
        LeaseSpec {
            holder_identity: Some(self.holder.clone()),
            lease_duration_seconds: i32::try_from(DURATION.as_secs()).ok(),
            renew_time: Some(MicroTime(now)),
            ..LeaseSpec::default()
        }
    }

    async fn call<T>(&self, verb: &str, call: impl Future<Output = kube::Result<T>>) -> Result<kube::Result<T>> {
        deadline(LIMIT, &code::API_UNAVAILABLE, &format!("{verb} leases {NAME}"), call).await
    }
}

fn is_free(spec: Option<&LeaseSpec>, own: &str, now: Timestamp) -> bool {
    let Some(spec) = spec else { return true };
    let Some(holder) = spec.holder_identity.as_deref().filter(|holder| !holder.is_empty()) else { return true };
    let duration = spec.lease_duration_seconds.map_or(DURATION, |seconds| Duration::from_secs(seconds.max(0).unsigned_abs().into()));
    let is_over = spec
        .renew_time
        .as_ref()
        .is_none_or(|renewed| SignedDuration::try_from(duration).is_ok_and(|duration| now.duration_since(renewed.0) > duration));
    holder == own || is_over
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_is_free_when_it_is_given_back_or_not_renewed() {
        let now = Timestamp::now();
        let spec = |holder: Option<&str>, age: i64| LeaseSpec {
            holder_identity: holder.map(ToOwned::to_owned),
            lease_duration_seconds: Some(15),
            renew_time: Some(MicroTime(now - SignedDuration::from_secs(age))),
            ..LeaseSpec::default()
        };
        let cases = [
            (None, true),
            (Some(spec(None, 0)), true),
            (Some(spec(Some(""), 0)), true),
            (Some(spec(Some("us"), 0)), true),
            (Some(spec(Some("them"), 10)), false),
            (Some(spec(Some("them"), 20)), true),
            (Some(LeaseSpec { renew_time: None, ..spec(Some("them"), 0) }), true),
        ];
        for (spec, expected) in cases {
            assert_eq!(is_free(spec.as_ref(), "us", now), expected, "{spec:?}");
        }
    }
}
