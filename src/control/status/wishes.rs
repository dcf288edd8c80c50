//! What the status of policies should say and does not.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use serde_json::Value;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::control::kubernetes::{Verdict, Watched};
use crate::control::objects::{Id, Kind, Mesh};

/// The type of the condition.
pub(super) const CONDITION: &str = "ZtunnelAccepted";

/// Two who disagree about a policy write no more often than this.
pub(super) const CALM: Duration = Duration::from_secs(30);

/// All wishes, one for each policy.
#[derive(Clone, Debug, Default)]
pub(in crate::control) struct Wishes(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    come: Notify,
}

#[derive(Debug, Default)]
struct State {
    open: BTreeMap<(Kind, Id), Wish>,
    /// The generations that were written lately.
    written: BTreeMap<(Kind, Id), (i64, Instant)>,
}

/// What one policy's status should say.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Wish {
    pub(super) verdict: Verdict,
    pub(super) generation: i64,
    pub(super) resource_version: String,
    /// Those that are there.
    pub(super) conditions: Vec<Value>,
}

impl Wishes {
    /// Looks at a version of a policy.
    pub(in crate::control) fn look_at<W: Watched>(&self, object: &W, mesh: &Mesh) {
        if !W::IS_CUSTOM {
            return;
        }
        let key = (W::KIND, object.id());
        match wish(object, mesh) {
            Some(wish) => {
                self.0.state.lock().open.insert(key, wish);
                self.0.come.notify_one();
            }
            None => drop(self.0.state.lock().open.remove(&key)),
        }
    }

    /// A policy is gone.
    pub(in crate::control) fn forget(&self, kind: Kind, id: &Id) {
        self.0.state.lock().open.remove(&(kind, id.clone()));
    }

    /// Returns when there is one.
    pub(super) async fn some(&self) {
        while self.0.state.lock().open.is_empty() {
            self.0.come.notified().await;
        }
    }

    /// One whose time has come.
    pub(super) fn next(&self) -> Option<(Kind, Id, Wish)> {
        let mut state = self.0.state.lock();
        let State { open, written } = &mut *state;
        let now = Instant::now();
        written.retain(|_, (_, at)| now < *at + CALM);
        let is_due = |(key, wish): &(&(Kind, Id), &Wish)| written.get(*key).is_none_or(|(generation, _)| *generation != wish.generation);
        open.iter().find(is_due).map(|((kind, id), wish)| (*kind, id.clone(), wish.clone()))
    }

    /// It was written; the watch will say so.
    pub(super) fn done(&self, kind: Kind, id: &Id, wish: &Wish) {
        self.withdraw(kind, id, wish);
        self.0.state.lock().written.insert((kind, id.clone()), (wish.generation, Instant::now()));
    }

    /// It could not be written, and is not wished any more. The one for the version that is there now is not touched.
    pub(super) fn withdraw(&self, kind: Kind, id: &Id, wish: &Wish) {
        let mut state = self.0.state.lock();
        let key = (kind, id.clone());
        if state.open.get(&key) == Some(wish) {
            state.open.remove(&key);
        }
    }
}

/// `None`: it says so already.
fn wish<W: Watched>(object: &W, mesh: &Mesh) -> Option<Wish> {
    let verdict = object.verdict(mesh)?;
    let meta = object.meta();
    let generation = meta.generation.unwrap_or_default();
    let conditions = object.status()?.get("conditions").and_then(Value::as_array).cloned().unwrap_or_default();
    let says = |condition: &Value| {
        let seen = &condition["observedGeneration"];
        condition["type"] == CONDITION
            && condition["status"] == if verdict.accepted { "True" } else { "False" }
            && condition["reason"] == verdict.reason
            && condition["message"] == *verdict.message
            && (seen.as_i64() == Some(generation) || seen.as_str() == Some(&generation.to_string()))
    };
    let resource_version = meta.resource_version.clone().unwrap_or_default();
    (!conditions.iter().any(says)).then_some(Wish { verdict, generation, resource_version, conditions })
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use serde_json::json;

    use super::*;
    use crate::control::kubernetes::AuthorizationPolicy;

    fn policy(generation: i64, conditions: &Value) -> AuthorizationPolicy {
        let object = json!({
            "metadata": {"namespace": "a", "name": "p", "generation": generation, "resourceVersion": "7"},
            "spec": {"action": "AUDIT"},
            "status": {"conditions": conditions},
        });
        serde_json::from_value(object).unwrap()
    }

    fn mesh() -> Mesh {
        Mesh { trust_domain: "cluster.local".into(), root_namespace: "root".into() }
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_not_said_yet_is_written_once_and_others_conditions_stay() {
        let wishes = Wishes::default();
        let others = json!([{"type": "Other", "status": "True"}, {"type": CONDITION, "status": "False", "lastTransitionTime": "then"}]);
        wishes.look_at(&policy(3, &others), &mesh());
        wishes.some().await;
        let (kind, id, wish) = wishes.next().unwrap();
        let patch = wish.patch(SystemTime::UNIX_EPOCH);
        assert_eq!(patch["metadata"]["resourceVersion"], "7");
        let written = &patch["status"]["conditions"];
        assert_eq!((written[0]["type"].as_str(), written.as_array().unwrap().len()), (Some("Other"), 2));
        assert_eq!(written[1]["message"], "ztunnel does not support the AUDIT action");
        assert_eq!((written[1]["observedGeneration"].as_str(), written[1]["lastTransitionTime"].as_str()), (Some("3"), Some("then")));
        wishes.done(kind, &id, &wish);
        assert!(wishes.next().is_none());

        wishes.look_at(&policy(3, written), &mesh());
        assert!(wishes.next().is_none(), "it says so");
        wishes.look_at(&policy(3, &others), &mesh());
        assert!(wishes.next().is_none(), "somebody else has put it back a moment ago");
        tokio::time::advance(CALM).await;
        assert!(wishes.next().is_some());
        wishes.forget(kind, &id);
        assert!(wishes.next().is_none());
        wishes.look_at(&policy(4, written), &mesh());
        assert!(wishes.next().is_some(), "it has changed since");
    }
}
