//! The channel to the control plane (XDS and CA): gRPC over TLS with the caller's credentials on each request.

use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::future::BoxFuture;
use http::header::AUTHORIZATION;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, Uri};
use tonic::body::Body;
use tonic::codegen::StdError;
use tonic::transport::Endpoint;
use tower::Service;

use super::connector::{Target, server_name};
use super::{RootSource, TokenSource};
use crate::base::{Code, Error, Result, code};

const PING_INTERVAL: Duration = Duration::from_secs(30);
const PING_LIMIT: Duration = Duration::from_secs(10);

/// Where the control plane is and how to speak to it.
#[derive(Clone, Debug)]
pub struct ChannelSettings {
    /// `https://host:port`; without a scheme `https://` is meant.
    pub address: String,
    /// What verifies the server.
    pub root: RootSource,
    /// A second name that the server's certificate may have (ALT_XDS_HOSTNAME, ALT_CA_HOSTNAME).
    pub alternative_name: Option<String>,
    /// The caller's token.
    pub token: TokenSource,
    /// The `clusterid` header; empty sends none.
    pub cluster_id: String,
    /// More headers (`CA_HEADER_*`, `XDS_HEADER_*`); names in any case.
    pub headers: Vec<(String, String)>,
    /// What it means when nobody answers at the address: it depends on what is asked for there.
    pub unreachable: &'static Code,
}

/// A lazy, self-reconnecting channel for generated clients. Clones share the connection.
///
/// Errors of the connection and of the token are [`Error`]s at the end of a status's source chain.
#[derive(Clone)]
pub struct Channel {
    inner: tonic::transport::Channel,
    credentials: Arc<Credentials>,
}

struct Credentials {
    token: TokenSource,
    headers: HeaderMap,
}

impl Channel {
    /// Nothing is connected until the first request.
    ///
    /// # Errors
    /// The address, the alternative name or a header cannot be used.
    pub fn new(settings: ChannelSettings) -> Result<Self> {
        let (uri, host, port) = address(&settings.address)?;
        let alternative = settings.alternative_name.as_deref().filter(|name| !name.is_empty()).map(server_name).transpose()?;
        // Only its form is checked here: names are resolved at each connect.
        server_name(&host)?;
        let target = Arc::new(Target { host, port, root: settings.root, alternative, unreachable: settings.unreachable });
        let connector = tower::service_fn(move |_: Uri| {
            let target = target.clone();
            async move { target.connect().await }
        });
        let inner = Endpoint::from(uri)
            .http2_keep_alive_interval(PING_INTERVAL)
            .keep_alive_timeout(PING_LIMIT)
            .keep_alive_while_idle(true)
            .connect_with_connector_lazy(connector);
        let mut headers = HeaderMap::new();
        if !settings.cluster_id.is_empty() {
            headers.insert(HeaderName::from_static("clusterid"), header_value("CLUSTER_ID", &settings.cluster_id)?);
        }
        for (name, value) in &settings.headers {
            let parsed = HeaderName::try_from(name.to_ascii_lowercase())
                .map_err(|error| Error::caused(&code::BAD_SETTING, format!("header {name:?}"), error))?;
            headers.insert(parsed, header_value(name, value)?);
        }
        Ok(Self { inner, credentials: Arc::new(Credentials { token: settings.token, headers }) })
    }
}

impl Service<Request<Body>> for Channel {
    type Response = Response<Body>;
    type Error = StdError;
    type Future = BoxFuture<'static, std::result::Result<Response<Body>, StdError>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<std::result::Result<(), StdError>> {
        self.inner.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        // The clone stays behind for the next poll_ready; the one that was polled ready is used.
        let clone = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, clone);
        let credentials = self.credentials.clone();
        Box::pin(async move {
            for (name, value) in &credentials.headers {
                request.headers_mut().insert(name.clone(), value.clone());
            }
            if let Some(token) = credentials.token.header().await? {
                request.headers_mut().insert(AUTHORIZATION, token);
            }
            Ok(inner.call(request).await?)
        })
    }
}

fn address(text: &str) -> Result<(Uri, String, u16)> {
    let bad = |what: &str| Error::new(&code::BAD_SETTING, format!("control-plane address {text:?}: {what}"));
    let full = if text.contains("://") { text.to_owned() } else { format!("https://{text}") };
    let uri: Uri = full.parse().map_err(|_| bad("not a URL"))?;
    if uri.scheme_str() != Some("https") {
        return Err(bad("only https:// is accepted, the token would be sent in clear text"));
    }
    let host = uri.host().filter(|host| !host.is_empty()).ok_or_else(|| bad("no host"))?.to_owned();
    let port = uri.port_u16().unwrap_or(443);
    Ok((uri, host, port))
}

fn header_value(name: &str, value: &str) -> Result<HeaderValue> {
    let mut parsed = HeaderValue::try_from(value).map_err(|error| Error::caused(&code::BAD_SETTING, format!("header {name}"), error))?;
    parsed.set_sensitive(true);
    Ok(parsed)
}

#[cfg(test)]
#[path = "channel_tests.rs"]
mod tests;
