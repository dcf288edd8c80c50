//! The one form of identity: `spiffe://<trust domain>/ns/<namespace>/sa/<service account>`.

use std::fmt;
use std::str::FromStr;

use crate::base::{Error, Result, Str, code};

/// A workload identity. Compared byte by byte.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SpiffeId {
    /// The mesh it belongs to, such as `cluster.local`.
    pub trust_domain: Str,
    /// Kubernetes namespace.
    pub namespace: Str,
    /// Kubernetes service account.
    pub service_account: Str,
}

const SCHEME: &str = "spiffe://";

/// SPIFFE-ID §2.3: implementations must support, and must not generate beyond, 2048 bytes.
const MAX_LENGTH: usize = 2048;

/// SPIFFE-ID §2.3.
const MAX_TRUST_DOMAIN_LENGTH: usize = 255;

impl SpiffeId {
    /// The identity made of these parts.
    ///
    /// # Errors
    /// A part is empty or has a character that the form does not allow.
    pub fn new(trust_domain: &str, namespace: &str, service_account: &str) -> Result<Self> {
        let problem = if !is_trust_domain(trust_domain) {
            "trust domain"
        } else if !is_segment(namespace) {
            "namespace"
        } else if !is_segment(service_account) {
            "service account"
        } else if SCHEME.len() + trust_domain.len() + namespace.len() + service_account.len() + 8 > MAX_LENGTH {
            "length"
        } else {
            return Ok(Self { trust_domain: trust_domain.into(), namespace: namespace.into(), service_account: service_account.into() });
        };
        let text: String = format!("{trust_domain:?} / {namespace:?} / {service_account:?}").chars().take(256).collect();
        Err(Error::new(&code::BAD_SPIFFE_ID, format!("{text}: unusable {problem}")))
    }

    /// Without `spiffe://`: the form in which policies name it.
    pub fn principal(&self) -> String {
        format!("{}/ns/{}/sa/{}", self.trust_domain, self.namespace, self.service_account)
    }
}

impl FromStr for SpiffeId {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let bad = || {
            let shown: String = text.chars().take(256).collect();
            Error::new(&code::BAD_SPIFFE_ID, format!("{shown:?}"))
        };
        let rest = text.strip_prefix(SCHEME).ok_or_else(bad)?;
        let mut parts = rest.split('/');
        let mut next = || parts.next().ok_or_else(bad);
        let (trust_domain, ns, namespace, sa, service_account) = (next()?, next()?, next()?, next()?, next()?);
        if ns != "ns" || sa != "sa" || parts.next().is_some() {
            return Err(bad());
        }
        Self::new(trust_domain, namespace, service_account)
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{SCHEME}{}/ns/{}/sa/{}", self.trust_domain, self.namespace, self.service_account)
    }
}

impl fmt::Debug for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// SPIFFE-ID §2.1: lower case letters, digits, `.`, `-`, `_`.
fn is_trust_domain(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= MAX_TRUST_DOMAIN_LENGTH
        && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b".-_".contains(&byte))
}

/// SPIFFE-ID §2.2: letters, digits, `.`, `-`, `_`, and no relative segment.
fn is_segment(text: &str) -> bool {
    !text.is_empty() && text != "." && text != ".." && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-_".contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_exactly_one_form() {
        let id: SpiffeId = "spiffe://cluster.local/ns/shop/sa/cart".parse().unwrap();
        assert_eq!((&*id.trust_domain, &*id.namespace, &*id.service_account), ("cluster.local", "shop", "cart"));
        assert_eq!(id.to_string(), "spiffe://cluster.local/ns/shop/sa/cart");
        assert_eq!(id.principal(), "cluster.local/ns/shop/sa/cart");
        for bad in [
            "",
            "cluster.local/ns/shop/sa/cart",
            "SPIFFE://cluster.local/ns/shop/sa/cart",
            "spiffe://cluster.local/ns/shop/sa/cart/",
            "spiffe://cluster.local/ns/shop/sa",
            "spiffe://cluster.local/ns//sa/cart",
            "spiffe:///ns/shop/sa/cart",
            "spiffe://cluster.local/sa/cart/ns/shop",
            "spiffe://cluster.local/ns/../sa/cart",
            "spiffe://Cluster.local/ns/shop/sa/cart",
            "spiffe://cluster.local:80/ns/shop/sa/cart",
            "spiffe://u@cluster.local/ns/shop/sa/cart",
            "spiffe://cluster.local/ns/shop/sa/cart?x",
            "spiffe://cluster.local/ns/shop/sa/c%61rt",
            "spiffe://cluster.local/ns/shop\0/sa/cart",
        ] {
            assert_eq!(bad.parse::<SpiffeId>().unwrap_err().code().id, code::BAD_SPIFFE_ID.id, "{bad}");
        }
    }
}
