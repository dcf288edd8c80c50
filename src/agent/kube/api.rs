//! What failures of the API server mean.

use crate::base::{Error, code};

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
