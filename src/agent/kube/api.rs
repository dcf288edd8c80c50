//! How the API server is reached, and what its failures mean.

use kube::{Client, Config};

use super::CALL;
use crate::base::{Error, Result, code};

/// A client of the cluster whose pod this is, else of the one that `KUBECONFIG` or `~/.kube/config` names. Nothing is sent
/// yet.
///
/// # Errors
/// BAD_SETTING: there is neither, or what there is cannot be used.
pub async fn client() -> Result<Client> {
    let mut config = Config::infer().await.map_err(|error| {
        let text = "no Kubernetes: neither a kubeconfig (KUBECONFIG, ~/.kube/config) nor a pod's service account";
        Error::caused(&code::BAD_SETTING, text, error)
    })?;
    (config.connect_timeout, config.write_timeout) = (Some(CALL), Some(CALL));
    let server = config.cluster_url.to_string();
    Client::try_from(config).map_err(|error| Error::caused(&code::BAD_SETTING, format!("Kubernetes API at {server}"), error))
}

/// What a failed call means. `what` says what was tried.
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
