//! The root certificate in every namespace: ConfigMap `istio-ca-root-cert`, key `root-cert.pem`.
//!
//! Every control plane does it, and nothing is written that is there already: which of them comes first makes no
//! difference.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace};
use kube::ResourceExt;
use kube::api::{Api, ObjectMeta, PartialObjectMeta, Patch, PatchParams};
use kube::runtime::watcher::{self, Event};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::api;
use super::ca::Authority;
use super::metrics::Metrics;
use crate::base::{Error, Result, Str, code, deadline, drain};

const NAME: &str = "istio-ca-root-cert";
const KEY: &str = "root-cert.pem";

/// Whose field it is, to server-side apply.
const MANAGER: &str = "warren-control";

/// For one write.
const LIMIT: Duration = Duration::from_secs(10);

/// Writes at once.
const AT_ONCE: usize = 8;

/// Between two writes into one namespace: doubled each time, so that two who disagree do not wear out the API server.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// Who has been right for this long is written at once when that changes.
const CALM: Duration = Duration::from_secs(120);

/// Writes what is missing or different.
pub(super) struct Publisher {
    client: kube::Client,
    authority: watch::Receiver<Arc<Authority>>,
    metrics: Arc<Metrics>,
    state: State,
}

/// What is known and what is due. Knows no API server.
#[derive(Debug, Default)]
struct State {
    wanted: String,
    namespaces: Listed<()>,
    /// What each namespace's ConfigMap holds.
    found: Listed<Option<String>>,
    /// Of each namespace that was written to.
    written: HashMap<Str, Written>,
    busy: BTreeSet<Str>,
}

/// The last write into a namespace.
#[derive(Clone, Copy, Debug)]
struct Written {
    at: Instant,
    pause: Duration,
}

/// A watched kind by namespace. While it is listed anew, what is not named again is kept.
#[derive(Debug)]
struct Listed<T> {
    known: BTreeMap<Str, T>,
    anew: Option<BTreeMap<Str, T>>,
    is_complete: bool,
}

impl<T> Default for Listed<T> {
    fn default() -> Self {
        Self { known: BTreeMap::new(), anew: None, is_complete: false }
    }
}

impl<T: Clone> Listed<T> {
    /// Takes an event; `read` gives the namespace, and `None` beside it if the object does not count.
    fn take<K>(&mut self, event: Event<K>, read: impl Fn(K) -> (Str, Option<T>)) {
        match event {
            Event::Init => self.anew = Some(BTreeMap::new()),
            Event::InitApply(object) => {
                if let ((name, Some(value)), Some(anew)) = (read(object), &mut self.anew) {
                    anew.insert(name, value);
                }
            }
            Event::InitDone => {
                self.known = self.anew.take().unwrap_or_default();
                self.is_complete = true;
            }
            Event::Apply(object) => match read(object) {
                (name, Some(value)) => drop(self.known.insert(name, value)),
                (name, None) => drop(self.known.remove(&name)),
            },
            Event::Delete(object) => drop(self.known.remove(&read(object).0)),
        }
    }
}

impl State {
    /// The namespaces to write to now, and when to look again.
    fn due(&mut self, now: Instant) -> (Vec<Str>, Option<Instant>) {
        let (mut due, mut next) = (Vec::new(), None::<Instant>);
        if !self.namespaces.is_complete || !self.found.is_complete {
            return (due, next);
        }
        self.written.retain(|name, written| self.namespaces.known.contains_key(name) && now < written.at + CALM.max(written.pause));
        for name in self.namespaces.known.keys() {
            let is_right = self.found.known.get(name).is_some_and(|text| text.as_ref() == Some(&self.wanted));
            if is_right || self.busy.contains(name) {
                continue;
            }
            match self.written.get(name).map(|written| written.at + written.pause) {
                Some(later) if now < later => next = Some(next.map_or(later, |next| next.min(later))),
                _ if self.busy.len() + due.len() < AT_ONCE => due.push(name.clone()),
                // There is a turn when a write ends.
                _ => break,
            }
        }
        for name in &due {
            let pause = self.written.get(name).map_or(FIRST_PAUSE, |written| (written.pause * 2).min(LONGEST_PAUSE));
            self.written.insert(name.clone(), Written { at: now, pause });
            self.busy.insert(name.clone());
        }
        (due, next)
    }
}

impl Publisher {
    pub(super) fn new(client: kube::Client, authority: watch::Receiver<Arc<Authority>>, metrics: Arc<Metrics>) -> Self {
        Self { client, authority, metrics, state: State::default() }
    }

    /// Publishes until the drain.
    pub(super) async fn run(mut self, mut drain: drain::Watch) {
        let all = Api::<PartialObjectMeta<Namespace>>::all(self.client.clone());
        let mut namespaces = api::watch(all, "");
        let all = Api::<ConfigMap>::all(self.client.clone());
        let mut found = api::watch(all, &format!("metadata.name={NAME}"));
        let mut writes = JoinSet::new();
        self.state.wanted = self.authority.borrow_and_update().roots_pem();
        loop {
            let (due, next) = self.state.due(Instant::now());
            for namespace in due {
                writes.spawn(write(self.client.clone(), namespace, self.state.wanted.clone()));
            }
            let later = async {
                match next {
                    Some(next) => tokio::time::sleep_until(next).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                Some(event) = namespaces.next() => match event {
                    Ok(event) => self.state.namespaces.take(event, namespace),
                    Err(error) => told("watch namespaces", error),
                },
                Some(event) = found.next() => match event {
                    Ok(event) => self.state.found.take(event, |map: ConfigMap| (name_of(map.namespace()), Some(content(map)))),
                    Err(error) => told("watch configmaps", error),
                },
                Some(written) = writes.join_next() => self.written(written),
                Ok(()) = self.authority.changed() => self.state.wanted = self.authority.borrow_and_update().roots_pem(),
                () = later => {}
                _ = drain.started() => return,
            }
        }
    }

    fn written(&mut self, outcome: std::result::Result<(Str, Result<Option<String>>), tokio::task::JoinError>) {
        let Ok((namespace, outcome)) = outcome else { return };
        self.state.busy.remove(&namespace);
        match outcome {
            // The watch says the same, later.
            Ok(Some(text)) => {
                self.metrics.published.inc();
                tracing::debug!(%namespace, "the root certificate was published");
                self.state.found.known.insert(namespace, Some(text));
            }
            Ok(None) => tracing::debug!(%namespace, "the namespace is going: no root certificate is published in it"),
            Err(error) => tracing::warn!(%namespace, %error, "the root certificate cannot be published"),
        }
    }
}

/// Writes one; `None`: the namespace is gone or going. What others have put beside our key stays.
async fn write(client: kube::Client, namespace: Str, text: String) -> (Str, Result<Option<String>>) {
    let map = ConfigMap {
        metadata: ObjectMeta {
            name: Some(NAME.to_owned()),
            labels: Some([("istio.io/config".to_owned(), "true".to_owned())].into()),
            ..ObjectMeta::default()
        },
        data: Some([(KEY.to_owned(), text.clone())].into()),
        ..ConfigMap::default()
    };
    let what = format!("patch configmaps {namespace}/{NAME}");
    let maps = Api::<ConfigMap>::namespaced(client, &namespace);
    let (params, patch) = (PatchParams::apply(MANAGER).force(), Patch::Apply(&map));
    let outcome = deadline(LIMIT, &code::API_UNAVAILABLE, &what, maps.patch(NAME, &params, &patch)).await;
    let outcome = match outcome {
        Ok(Ok(_)) => Ok(Some(text)),
        Ok(Err(kube::Error::Api(status))) if status.code == 404 || is_terminating(&status) => Ok(None),
        Ok(Err(error)) => Err(api::failed(&what, error)),
        Err(error) => Err(error),
    };
    (namespace, outcome)
}

fn is_terminating(status: &kube::core::Status) -> bool {
    let causes = status.details.iter().flat_map(|details| &details.causes);
    status.code == 403 && causes.into_iter().any(|cause| cause.reason == "NamespaceTerminating")
}

/// A namespace that is going takes nothing more.
fn namespace(namespace: PartialObjectMeta<Namespace>) -> (Str, Option<()>) {
    let stays = namespace.metadata.deletion_timestamp.is_none().then_some(());
    (name_of(namespace.metadata.name), stays)
}

fn content(map: ConfigMap) -> Option<String> {
    map.data.and_then(|mut data| data.remove(KEY))
}

fn name_of(name: Option<String>) -> Str {
    name.unwrap_or_default().as_str().into()
}

fn told(what: &str, error: watcher::Error) {
    let error: Error = api::watch_failed(what, error);
    tracing::warn!(%error, "namespaces are not followed; it is tried again");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event<T: Clone>(listed: &mut Listed<T>, event: Event<(&str, Option<T>)>) {
        listed.take(event, |(name, value)| (name.into(), value));
    }

    fn listed<T: Clone>(listed: &mut Listed<T>, objects: impl IntoIterator<Item = (&'static str, Option<T>)>) {
        event(listed, Event::Init);
        objects.into_iter().for_each(|object| event(listed, Event::InitApply(object)));
        event(listed, Event::InitDone);
    }

    fn names(due: (Vec<Str>, Option<Instant>)) -> Vec<String> {
        due.0.iter().map(ToString::to_string).collect()
    }

    fn right() -> Option<Option<String>> {
        Some(Some("root".to_owned()))
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_missing_or_different_is_due_and_nothing_else() {
        let mut state = State { wanted: "root".to_owned(), ..State::default() };
        let now = Instant::now();
        listed(&mut state.namespaces, [("a", Some(())), ("b", Some(())), ("c", Some(())), ("going", None)]);
        assert!(names(state.due(now)).is_empty(), "it is not known yet what is there");
        listed(&mut state.found, [("a", right()), ("b", Some(Some("other".to_owned())))]);
        assert_eq!(names(state.due(now)), ["b", "c"]);
        assert!(names(state.due(now)).is_empty(), "they are being written");

        event(&mut state.namespaces, Event::Apply(("new", Some(()))));
        assert_eq!(names(state.due(now)), ["new"]);
        event(&mut state.found, Event::Delete(("a", None)));
        assert_eq!(names(state.due(now)), ["a"]);
        event(&mut state.namespaces, Event::Apply(("a", None)));
        state.busy.clear();
        state.written.clear();
        assert!(!names(state.due(now)).contains(&"a".to_owned()), "it is going");
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_contradicted_repairs_at_once_and_then_less_and_less_often() {
        let mut state = State { wanted: "root".to_owned(), ..State::default() };
        listed(&mut state.namespaces, [("a", Some(()))]);
        listed(&mut state.found, []);
        let mut now = Instant::now();
        let mut waits = Vec::new();
        for _ in 0..10 {
            let begun = now;
            loop {
                match state.due(now) {
                    (due, _) if !due.is_empty() => break,
                    (_, next) => now = next.expect("it is looked at again"),
                }
            }
            waits.push((now - begun).as_millis());
            state.busy.clear();
            event(&mut state.found, Event::Apply(("a", Some(Some("theirs".to_owned())))));
        }
        assert_eq!(waits, [0, 500, 1000, 2000, 4000, 8000, 16000, 32000, 60000, 60000]);

        event(&mut state.found, Event::Apply(("a", right())));
        now += CALM + Duration::from_secs(1);
        assert!(names(state.due(now)).is_empty());
        event(&mut state.found, Event::Delete(("a", None)));
        assert_eq!(names(state.due(now)), ["a"], "after a time of calm it is at once again");
    }

    #[tokio::test(start_paused = true)]
    async fn a_thousand_namespaces_are_written_a_few_at_a_time() {
        let mut state = State { wanted: "root".to_owned(), ..State::default() };
        event(&mut state.namespaces, Event::Init);
        (0..1000).for_each(|number| event(&mut state.namespaces, Event::InitApply((&format!("n{number}"), Some(())))));
        event(&mut state.namespaces, Event::InitDone);
        listed(&mut state.found, []);
        let mut rounds = 0;
        loop {
            let due = names(state.due(Instant::now()));
            if due.is_empty() {
                break;
            }
            assert!(due.len() <= AT_ONCE);
            state.busy.clear();
            due.iter().for_each(|name| event(&mut state.found, Event::Apply((name, right()))));
            rounds += 1;
        }
        assert_eq!(rounds, 1000 / AT_ONCE);
    }
}
