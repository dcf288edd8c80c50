//! What two proxies tell each other in the headers of a CONNECT: workload metadata, the client, a trace.

use std::net::SocketAddr;

use http::{HeaderMap, HeaderName, HeaderValue};

use crate::base::Str;
use crate::mesh::Workload;

/// Workload metadata (W3C baggage): a comma list of `key=value`.
pub(super) const BAGGAGE: HeaderName = HeaderName::from_static("baggage");
/// The client and the service it asked for (RFC 7239).
pub(super) const FORWARDED: HeaderName = HeaderName::from_static("forwarded");
/// W3C trace context.
pub(super) const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// Longest host name that is kept (RFC 1035 §2.3.4): a peer's text lives as long as its connection.
const MAX_HOST: usize = 253;

/// The headers of a CONNECT request.
pub(super) fn request(source: &Workload, client: SocketAddr, service_host: Option<&str>, baggage_on: bool) -> HeaderMap {
    let mut headers = HeaderMap::with_capacity(3);
    if baggage_on {
        insert(&mut headers, BAGGAGE, &baggage(source));
    }
    let host = service_host.map(|host| format!(";host={host}")).unwrap_or_default();
    insert(&mut headers, FORWARDED, &format!("for=\"{client}\"{host}"));
    insert(&mut headers, TRACEPARENT, &format!("00-{:032x}-{:016x}-00", rand::random::<u128>().max(1), rand::random::<u64>().max(1)));
    headers
}

/// The headers of an answer.
pub(super) fn response(destination: &Workload, baggage_on: bool) -> HeaderMap {
    let mut headers = HeaderMap::new();
    if baggage_on {
        insert(&mut headers, BAGGAGE, &baggage(destination));
    }
    headers
}

/// The service that the client asked for: `host=` in the first element of `forwarded`.
pub(super) fn forwarded_host(headers: &HeaderMap) -> Option<Str> {
    let text = headers.get(FORWARDED)?.to_str().ok()?;
    let first = text.split(',').next()?;
    let host = first.split(';').find_map(|part| part.trim().strip_prefix("host="))?.trim_matches('"');
    (1..=MAX_HOST).contains(&host.len()).then(|| host.into())
}

fn baggage(workload: &Workload) -> String {
    // A workload of unknown kind is a pod for those who read this.
    let kind = if workload.workload_type.is_empty() { "pod" } else { &workload.workload_type };
    let controller = format!("k8s.{kind}.name");
    let fields: [(&str, &str); 7] = [
        ("k8s.cluster.name", &workload.cluster_id),
        ("k8s.namespace.name", &workload.namespace),
        (&controller, &workload.workload_name),
        ("service.name", &workload.canonical_name),
        ("service.version", &workload.canonical_revision),
        ("cloud.region", &workload.locality.region),
        ("cloud.availability_zone", &workload.locality.zone),
    ];
    let mut text = String::new();
    for (key, value) in fields.into_iter().filter(|(_, value)| !value.is_empty()) {
        if !text.is_empty() {
            text.push(',');
        }
        text.push_str(key);
        text.push('=');
        text.push_str(value);
    }
    text
}

/// A name that cannot be a header value is left out: metadata is no reason to fail a connection.
fn insert(headers: &mut HeaderMap, name: HeaderName, value: &str) {
    if value.is_empty() {
        return;
    }
    if let Ok(value) = HeaderValue::from_str(value) {
        headers.insert(name, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_says_who_and_for_what() {
        let mut source = Workload::new("c//Pod/shop/cart-0", "cart-0", "shop");
        source.workload_name = "cart".into();
        source.workload_type = "deployment".into();
        source.canonical_name = "cart".into();
        let headers = request(&source, "10.0.0.7:4000".parse().expect("address"), Some("db.shop.svc.cluster.local"), true);
        assert_eq!(headers[BAGGAGE], "k8s.cluster.name=Kubernetes,k8s.namespace.name=shop,k8s.deployment.name=cart,service.name=cart");
        assert_eq!(headers[FORWARDED], "for=\"10.0.0.7:4000\";host=db.shop.svc.cluster.local");
        assert_eq!(headers[TRACEPARENT].len(), 55);
        assert_eq!(forwarded_host(&headers).as_deref(), Some("db.shop.svc.cluster.local"));
    }

    #[test]
    fn strange_forwarded_headers_are_no_host() {
        let long = format!("for=a;host={}", "a".repeat(MAX_HOST + 1));
        for text in ["", "for=1.2.3.4", "for=a;host=", "host=\"\"", &long] {
            let headers = HeaderMap::from_iter([(FORWARDED, HeaderValue::from_str(text).expect("header"))]);
            assert_eq!(forwarded_host(&headers), None, "{text:?}");
        }
    }
}
