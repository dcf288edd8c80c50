//! Tells the API about pods: the annotation that says whether a pod is captured, and Events for what its owner should
//! hear of. Output only: nothing is decided from either.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use k8s_openapi::api::core::v1::ObjectReference;
use kube::api::{Patch, PatchParams};
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use kube::{Api, Client};
use serde_json::json;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::store::{REDIRECTION, Store, Told};
use super::{CALL, Pods, object};
use crate::agent::board::{Board, Condition, Entry, Notice};
use crate::base::drain::Watch;
use crate::base::{Str, code, deadline};
use crate::zds::WorkloadInfo;

/// Patches at the same time.
const WORKERS: usize = 8;

/// Between two attempts for one pod: doubles from the first to the last.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(30));

/// Events are told at most this often, after a burst.
const EVENT_PAUSE: Duration = Duration::from_millis(100);
const EVENT_BURST: u32 = 50;

/// How long the last annotations may take when the agent ends.
const END: Duration = Duration::from_secs(5);

/// An annotation to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Write {
    uid: Str,
    info: WorkloadInfo,
    value: Option<String>,
}

/// Tells until the drain has started and everything is told, or the time for it is over.
pub async fn publish(client: Client, node: String, pods: Pods, board: Arc<Board>, notices: mpsc::Receiver<Notice>, drain: Watch) {
    let mut ending = drain.clone();
    tokio::select! {
        () = annotate(&client, &pods, &board, drain) => {}
        () = async {
            tell(client.clone(), node, &board, notices).await;
            // Nobody is left who could say anything; annotations may still have to be written.
            std::future::pending::<()>().await;
        } => {}
        () = async {
            ending.started().await;
            tokio::time::sleep(END).await;
        } => tracing::warn!("not all annotations could be written in time"),
    }
}

async fn annotate(client: &Client, pods: &Pods, board: &Board, mut drain: Watch) {
    let (mut board_changed, mut pods_changed) = (board.changed(), pods.changed());
    let mut running = FuturesUnordered::new();
    let mut busy: BTreeSet<Str> = BTreeSet::new();
    let mut failed: BTreeMap<Str, (u32, Instant)> = BTreeMap::new();
    let mut ending = false;
    loop {
        board_changed.borrow_and_update();
        pods_changed.borrow_and_update();
        let wanted = wanted(&pods.shared.store.lock(), &board.entries(), board.do_all_leave());
        failed.retain(|uid, _| wanted.iter().any(|write| write.uid == *uid));
        let now = Instant::now();
        for write in &wanted {
            let due = failed.get(&write.uid).is_none_or(|(_, due)| *due <= now);
            if running.len() < WORKERS && due && busy.insert(write.uid.clone()) {
                running.push(patch(client.clone(), write.clone()));
            }
        }
        if ending && wanted.is_empty() && running.is_empty() {
            return;
        }
        let retry = failed.iter().filter(|(uid, _)| !busy.contains(*uid)).map(|(_, (_, due))| *due).min();
        let retry = retry.filter(|due| *due > now).unwrap_or(now + BACKOFF.1);
        tokio::select! {
            _ = board_changed.changed() => {}
            _ = pods_changed.changed() => {}
            _ = drain.started(), if !ending => ending = true,
            Some((write, result)) = running.next() => {
                busy.remove(&write.uid);
                match result {
                    Ok(()) => {
                        failed.remove(&write.uid);
                        pods.shared.store.lock().wrote(&write.uid, write.value);
                    }
                    Err(text) => {
                        board.metrics.api_failures.inc();
                        let (times, _) = failed.get(&write.uid).copied().unwrap_or((0, now));
                        if times == 0 {
                            tracing::warn!(uid = %write.uid, pod = %write.info.name, %text, "the annotation could not be written, will be tried again");
                        }
                        let pause = BACKOFF.0.saturating_mul(1 << times.min(16)).min(BACKOFF.1);
                        failed.insert(write.uid, (times + 1, Instant::now() + pause));
                    }
                }
            }
            () = tokio::time::sleep_until(retry) => {}
        }
    }
}

/// The annotations that are not as they must be.
fn wanted(store: &Store, entries: &BTreeMap<Str, Entry>, all_leave: bool) -> Vec<Write> {
    // Of a pod whose namespace is not known yet nothing is known.
    let writes = store.records().filter(|_| store.is_synced()).filter_map(|Told { uid, info, is, ambient }| {
        let value = match entries.get(uid).map(|entry| entry.condition) {
            // What another agent saw served is closed now, not open: peers must not fall back to plaintext.
            Some(Condition::Closed) if is == Some("enabled") => Some("enabled"),
            Some(Condition::Closed) => Some("pending"),
            Some(Condition::Captured) => Some("enabled"),
            Some(Condition::Open | Condition::Leaving) => None,
            // It was not looked at yet, or is being repaired.
            Some(Condition::Unknown) => is,
            None if ambient && !all_leave => is,
            None => None,
        };
        (value != is).then(|| Write { uid: uid.clone(), info: info.clone(), value: value.map(str::to_owned) })
    });
    writes.collect()
}

async fn patch(client: Client, write: Write) -> (Write, Result<(), String>) {
    let api: Api<object::Pod> = Api::namespaced(client, &write.info.namespace);
    // The UID makes it a conflict when another pod has the name by now.
    let patch = json!({"metadata": {"uid": &*write.uid, "annotations": {REDIRECTION: write.value}}});
    let (parameters, patch) = (PatchParams::default(), Patch::Merge(&patch));
    let sent = api.patch_status(&write.info.name, &parameters, &patch);
    let result = match deadline(CALL, &code::API_UNAVAILABLE, "the API server", sent).await {
        Ok(Ok(_)) => Ok(()),
        // It is gone: the watch will say so.
        Ok(Err(kube::Error::Api(status))) if status.code == 404 || status.code == 409 => Ok(()),
        Ok(Err(error)) => Err(error.to_string()),
        Err(error) => Err(error.to_string()),
    };
    (write, result)
}

async fn tell(client: Client, node: String, board: &Board, mut notices: mpsc::Receiver<Notice>) {
    let recorder = Recorder::new(client, Reporter { controller: "warren-agent".to_owned(), instance: Some(node) });
    let (mut left, mut last) = (EVENT_BURST, Instant::now());
    while let Some(notice) = notices.recv().await {
        let earned = u32::try_from(last.elapsed().as_millis() / EVENT_PAUSE.as_millis()).unwrap_or(EVENT_BURST);
        if earned > 0 {
            (left, last) = (left.saturating_add(earned).min(EVENT_BURST), Instant::now());
        }
        if left == 0 {
            tokio::time::sleep(EVENT_PAUSE).await;
        }
        left = left.saturating_sub(1);
        let pod = ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Pod".to_owned()),
            name: Some(notice.info.name.clone()),
            namespace: Some(notice.info.namespace.clone()),
            uid: Some(notice.uid.to_string()),
            ..ObjectReference::default()
        };
        let event = Event {
            type_: if notice.warning { EventType::Warning } else { EventType::Normal },
            reason: notice.reason.to_owned(),
            note: Some(notice.text.clone()),
            action: "Capture".to_owned(),
            secondary: None,
        };
        let sent = recorder.publish(&event, &pod);
        let told = deadline(CALL, &code::API_UNAVAILABLE, "the API server", sent).await;
        if let Err(text) = told.map_err(|error| error.to_string()).and_then(|told| told.map_err(|error| error.to_string())) {
            board.metrics.api_failures.inc();
            tracing::warn!(pod = %notice.info.name, reason = notice.reason, %text, "an Event could not be told");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use serde_json::{Value, from_value};

    use super::*;
    use crate::agent::enrolment::MODE;
    use crate::agent::kube::store::Rules;

    /// What is written about a pod with that label and annotation, which is in that condition.
    fn written(mode: &str, is: Value, condition: Option<Condition>, all_leave: bool) -> Option<Option<String>> {
        let mut store = Store::new(Rules::default());
        let metadata = json!({"uid": "u", "name": "a", "namespace": "n", "labels": {MODE: mode}, "annotations": {REDIRECTION: is}});
        let metadata = if is.is_null() { json!({"uid": "u", "name": "a", "namespace": "n", "labels": {MODE: mode}}) } else { metadata };
        use kube::runtime::watcher::Event::{Init, InitApply, InitDone};
        for event in [Init, InitApply(from_value(json!({"metadata": metadata})).expect("a pod")), InitDone] {
            store.pod_event(event);
        }
        let (none, _notices) = Board::new();
        assert!(wanted(&store, &none.entries(), all_leave).is_empty(), "nothing before its namespace is known");
        for event in [Init, InitApply(from_value(json!({"metadata": {"name": "n"}})).expect("a namespace")), InitDone] {
            store.namespace_event(event);
        }
        let (board, _notices) = Board::new();
        let info = WorkloadInfo { name: "a".into(), namespace: "n".into(), service_account: "s".into() };
        if let Some(condition) = condition {
            board.set(&"u".into(), &info, &[], condition, None::<Instant>);
        }
        wanted(&store, &board.entries(), all_leave).pop().map(|write| write.value)
    }

    #[test]
    fn the_annotation_says_what_is_and_nothing_before_that_is_known() {
        use Condition::{Captured, Closed, Leaving, Open, Unknown};
        let (none, enabled, pending) = (Value::Null, json!("enabled"), json!("pending"));
        let value = |text: &str| Some(Some(text.to_owned()));
        let cases = [
            ("captured", "ambient", &none, Some(Captured), false, value("enabled")),
            ("nothing new", "ambient", &enabled, Some(Captured), false, None),
            ("no proxy has served it", "ambient", &none, Some(Closed), false, value("pending")),
            ("served by then", "ambient", &pending, Some(Captured), false, value("enabled")),
            ("closed for a while: peers must not turn to plaintext", "ambient", &enabled, Some(Closed), false, None),
            ("not captured any more", "ambient", &enabled, Some(Open), false, Some(None)),
            ("known to the reconciler, not looked at yet", "ambient", &enabled, Some(Unknown), false, None),
            ("leaves", "none", &enabled, Some(Leaving), false, Some(None)),
            ("not looked at yet", "ambient", &enabled, None, false, None),
            ("of an earlier life", "none", &enabled, None, false, Some(None)),
            ("has left at the end", "ambient", &enabled, None, true, Some(None)),
            ("never was", "none", &none, None, false, None),
        ];
        for (name, mode, is, condition, all_leave, expected) in cases {
            assert_eq!(written(mode, is.clone(), condition, all_leave), expected, "{name}");
        }
    }
}
