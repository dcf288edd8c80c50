//! The Kubernetes API: how it is found, and what its failures mean.

use std::fmt::Debug;
use std::future;
use std::time::Duration;

use futures::stream::BoxStream;
use futures::{Stream, StreamExt};
use kube::api::Api;
use kube::runtime::watcher::{self, Event};
use kube::runtime::{WatchStreamExt, watcher as events};
use kube::{Client, Config};
use serde::de::DeserializeOwned;

use crate::base::{Error, Result, code};

/// To connect.
const CONNECT_LIMIT: Duration = Duration::from_secs(3);

/// Longest silence in an answer: longer than any watch is asked for. A connection that has died in silence is noticed then,
/// also where a list or the start of a watch is waited for.
const SILENCE_LIMIT: Duration = Duration::from_secs(WATCH_PERIOD as u64 + 10);

/// To send a request.
const WRITE_LIMIT: Duration = Duration::from_secs(10);

/// A watch is asked for again after this long, seconds: one that is silent for longer is broken.
pub(super) const WATCH_PERIOD: u32 = 60;

/// A client of the cluster that `KUBECONFIG` or `~/.kube/config` names, else of the one whose pod this is. Nothing is
/// sent yet.
///
/// # Errors
/// BAD_SETTING: there is neither, or what there is cannot be used.
pub(super) async fn connect() -> Result<Client> {
    let mut config = Config::infer().await.map_err(|error| {
        let text = "no Kubernetes: neither a kubeconfig (KUBECONFIG, ~/.kube/config) nor a pod's service account";
        Error::caused(&code::BAD_SETTING, text, error)
    })?;
    config.connect_timeout = Some(CONNECT_LIMIT);
    config.read_timeout = Some(SILENCE_LIMIT);
    // The time for which a connection was not used counts for nothing.
    config.reset_reader_on_write = true;
    config.write_timeout = Some(WRITE_LIMIT);
    let server = config.cluster_url.to_string();
    Client::try_from(config).map_err(|error| Error::caused(&code::BAD_SETTING, format!("Kubernetes API at {server}"), error))
}

/// What a failed call means. `what` says what was tried, such as `create tokenreviews`.
pub(super) fn failed(what: &str, error: kube::Error) -> Error {
    match error {
        // The API server's text for 403 names verb, resource and account.
        kube::Error::Api(status) if (400..500).contains(&status.code) && status.code != 408 && status.code != 429 => {
            Error::new(&code::API_REFUSED, format!("{what}: {} ({})", status.message, status.code))
        }
        kube::Error::Api(status) => Error::new(&code::API_UNAVAILABLE, format!("{what}: {} ({})", status.message, status.code)),
        error => Error::caused(&code::API_UNAVAILABLE, what, error),
    }
}

/// The same for a watch.
pub(super) fn watch_failed(what: &str, error: watcher::Error) -> Error {
    match error {
        watcher::Error::InitialListFailed(error) | watcher::Error::WatchStartFailed(error) | watcher::Error::WatchFailed(error) => {
            failed(what, error)
        }
        watcher::Error::WatchError(status) => failed(what, kube::Error::Api(status)),
        error => Error::caused(&code::API_UNAVAILABLE, what, error),
    }
}

/// The objects as they are now, and each change; `fields` picks some of them. Goes on after a failure, and waits between
/// two.
pub(super) fn watch<K>(all: Api<K>, fields: &str) -> BoxStream<'static, watcher::Result<Event<K>>>
where
    K: kube::Resource + Clone + Debug + DeserializeOwned + Send + 'static,
{
    events(all, watcher::Config::default().timeout(WATCH_PERIOD).fields(fields)).default_backoff().boxed()
}

/// One object as it is now, and after each change; `None`: it is not there.
pub(super) fn watch_one<K>(all: Api<K>, name: &str) -> impl Stream<Item = watcher::Result<Option<K>>> + Send + Unpin + use<K>
where
    K: kube::Resource + Clone + Debug + DeserializeOwned + Send + 'static,
{
    one(watch(all, &format!("metadata.name={name}")))
}

fn one<K: Send + 'static>(
    events: impl Stream<Item = watcher::Result<Event<K>>> + Send + Unpin,
) -> impl Stream<Item = watcher::Result<Option<K>>> + Send + Unpin {
    let states = events.scan(None, |listed, event| {
        let state = match event {
            Ok(Event::Init) => {
                *listed = None;
                None
            }
            Ok(Event::InitApply(object)) => {
                *listed = Some(object);
                None
            }
            Ok(Event::InitDone) => Some(Ok(listed.take())),
            Ok(Event::Apply(object)) => Some(Ok(Some(object))),
            Ok(Event::Delete(_)) => Some(Ok(None)),
            Err(error) => Some(Err(error)),
        };
        future::ready(Some(state))
    });
    states.filter_map(future::ready)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_object_is_there_or_not() {
        let broken = || Err(watcher::Error::NoResourceVersion);
        let events = [
            Ok(Event::Init),
            Ok(Event::InitDone),
            Ok(Event::Apply(1)),
            Ok(Event::Delete(1)),
            broken(),
            Ok(Event::Init),
            Ok(Event::InitApply(2)),
            Ok(Event::InitDone),
            Ok(Event::Init),
            Ok(Event::InitDone),
        ];
        let states: Vec<_> = one(futures::stream::iter(events)).map(|state| state.ok()).collect().await;
        assert_eq!(states, [Some(None), Some(Some(1)), Some(None), None, Some(Some(2)), Some(None)]);
    }

    #[test]
    fn failures_tell_whose_fault_it_is() {
        let of = |status: u16| {
            let status = kube::core::Status { code: status, message: "why".to_owned(), ..kube::core::Status::default() };
            failed("list pods", kube::Error::Api(status.boxed()))
        };
        for (status, code) in [
            (401, &code::API_REFUSED),
            (403, &code::API_REFUSED),
            (422, &code::API_REFUSED),
            (408, &code::API_UNAVAILABLE),
            (429, &code::API_UNAVAILABLE),
            (500, &code::API_UNAVAILABLE),
            (503, &code::API_UNAVAILABLE),
        ] {
            let error = of(status);
            assert_eq!(error.code(), code, "{status}");
            assert_eq!(error.detail(), format!("list pods: why ({status})"));
        }
    }
}
