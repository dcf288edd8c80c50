//! The cluster whose API server a role talks to.

use std::time::Duration;

use hyper_timeout::TimeoutConnector;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use kube::client::ConfigExt;
use kube::{Client, Config};
use tower::{BoxError, ServiceBuilder};

use crate::base::{Error, Result, code};

/// Watches are asked for again after this long, seconds.
pub const WATCH_PERIOD: u32 = 60;

/// To connect.
const CONNECT_LIMIT: Duration = Duration::from_secs(3);

/// To send a request.
const WRITE_LIMIT: Duration = Duration::from_secs(5);

/// Longest silence in an answer: who waits longer than a watch lasts waits for a connection that is broken.
const SILENCE_LIMIT: Duration = Duration::from_secs(WATCH_PERIOD as u64 + 10);

/// A client of the cluster that `KUBECONFIG` or `~/.kube/config` names, else of the one whose pod this is. Nothing is
/// sent yet.
///
/// # Errors
/// BAD_SETTING: there is neither, or what there is cannot be used.
pub async fn client() -> Result<Client> {
    let config = Config::infer().await.map_err(|error| {
        let text = "no Kubernetes: neither a kubeconfig (KUBECONFIG, ~/.kube/config) nor a pod's service account";
        Error::caused(&code::BAD_SETTING, text, error)
    })?;
    let server = config.cluster_url.to_string();
    prompt(config).map_err(|error| Error::caused(&code::BAD_SETTING, format!("Kubernetes API at {server}"), error))
}

/// What `Client::try_from` makes, but with TCP_NODELAY. Without it head and body of a request are two packets, of which
/// the second waits for the first one's acknowledgement, which the other side delays by 40 ms.
fn prompt(mut config: Config) -> kube::Result<Client> {
    config.connect_timeout = Some(CONNECT_LIMIT);
    config.read_timeout = Some(SILENCE_LIMIT);
    config.write_timeout = Some(WRITE_LIMIT);
    // The time for which a connection was not used counts for nothing.
    config.reset_reader_on_write = true;
    if config.proxy_url.is_some() {
        return Client::try_from(config);
    }
    // Kept when somebody else has installed one.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let mut connector = HttpConnector::new();
    connector.enforce_http(false);
    connector.set_nodelay(true);
    let mut connector = TimeoutConnector::new(config.rustls_https_connector_with_connector(connector)?);
    connector.set_connect_timeout(config.connect_timeout);
    connector.set_read_timeout(config.read_timeout);
    connector.set_write_timeout(config.write_timeout);
    connector.set_reset_reader_on_write(config.reset_reader_on_write);
    let sender = hyper_util::client::legacy::Builder::new(TokioExecutor::new()).build::<_, kube::client::Body>(connector);
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .option_layer(config.auth_layer()?)
        .layer(config.extra_headers_layer()?)
        .map_err(BoxError::from)
        .service(sender);
    Ok(Client::new(service, config.default_namespace))
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Pod;
    use kube::Api;
    use kube::api::ListParams;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_list_that_is_not_answered_fails() {
        let silent = std::net::TcpListener::bind("127.0.0.1:0").expect("listen");
        let url = format!("http://{}", silent.local_addr().expect("address"));
        let pods: Api<Pod> = Api::all(prompt(Config::new(url.parse().expect("a URL"))).expect("a client"));
        let list = tokio::time::timeout(SILENCE_LIMIT * 5, pods.list(&ListParams::default())).await;
        list.expect("in time").expect_err("nobody answers");
    }
}
