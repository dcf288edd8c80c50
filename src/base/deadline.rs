//! The one way to wait: with a bound and a name for what was waited for.

use std::future::Future;
use std::time::Duration;

use super::{Code, Error, Result};

/// Waits for `future`, at most `limit`.
///
/// # Errors
/// `code` with the text "no answer from `what` within `limit`" when time is up.
pub async fn deadline<F: Future>(limit: Duration, code: &'static Code, what: impl std::fmt::Display, future: F) -> Result<F::Output> {
    match tokio::time::timeout(limit, future).await {
        Ok(output) => Ok(output),
        Err(_) => Err(Error::new(code, format!("{what}: no answer within {limit:?}"))),
    }
}
