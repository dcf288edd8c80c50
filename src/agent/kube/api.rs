//! How the API server is reached, and what its failures mean.

use kube::{Client, Config};

use std::time::Duration;

use super::{CALL, WATCH_SECONDS};
use crate::base::{Error, Result, code};

/// The longest silence on a connection. Calls have a shorter limit of their own; lists and the start of a watch have none.
const SILENCE: Duration = Duration::from_secs(WATCH_SECONDS as u64 + 5);

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
    limit(&mut config);
    let server = config.cluster_url.to_string();
    Client::try_from(config).map_err(|error| Error::caused(&code::BAD_SETTING, format!("Kubernetes API at {server}"), error))
}

fn limit(config: &mut Config) {
    (config.connect_timeout, config.write_timeout, config.read_timeout) = (Some(CALL), Some(CALL), Some(SILENCE));
    // The time for which a connection was not used counts for nothing.
    config.reset_reader_on_write = true;
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

#[cfg(test)]
mod tests {
    use kube::Api;
    use kube::api::ListParams;
    use tokio::net::TcpListener;

    use super::super::object;
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_list_that_is_not_answered_fails() {
        let silent = TcpListener::bind("127.0.0.1:0").await.expect("listen");
        let url = format!("http://{}", silent.local_addr().expect("address"));
        let mut config = Config::new(url.parse().expect("a URL"));
        limit(&mut config);
        let pods: Api<object::Pod> = Api::all(Client::try_from(config).expect("a client"));
        let list = tokio::time::timeout(SILENCE * 5, pods.list(&ListParams::default())).await;
        list.expect("in time").expect_err("nobody answers");
    }
}
