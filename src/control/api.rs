//! The Kubernetes API: how it is found, and what its failures mean.

use std::time::Duration;

use kube::runtime::watcher;
use kube::{Client, Config};

use crate::base::{Error, Result, code};

/// To connect.
const CONNECT_LIMIT: Duration = Duration::from_secs(3);

/// Longest silence in an answer: longer than any watch is asked for.
const SILENCE_LIMIT: Duration = Duration::from_secs(300);

/// To send a request.
const WRITE_LIMIT: Duration = Duration::from_secs(10);

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
