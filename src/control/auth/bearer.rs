//! The token that a call carries.

use std::time::Instant;

use tonic::metadata::MetadataMap;

use crate::base::{Error, Result, code};
use crate::control::LINES_PER_SECOND;
use crate::telemetry::rate::Rate;

/// Longest token that is looked at, bytes.
pub(crate) const LONGEST: usize = 16 * 1024;

/// The bearer token of a call.
///
/// # Errors
/// NOT_AUTHENTICATED: there is none.
pub(super) fn token(metadata: &MetadataMap) -> Result<&str> {
    let refuse = |reason| Err(Error::new(&code::NOT_AUTHENTICATED, reason));
    let Some(header) = metadata.get("authorization") else { return refuse("no authorization header") };
    match header.to_str().unwrap_or_default().split_once(' ') {
        Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") && token.len() <= LONGEST => Ok(token.trim()),
        _ => refuse("the authorization header holds no bearer token"),
    }
}

/// Says why calls are refused, but not more often than a log can take: anyone who reaches the port can be refused.
#[derive(Debug)]
pub(super) struct Refusals([Rate; 4]);

impl Default for Refusals {
    fn default() -> Self {
        Self(std::array::from_fn(|_| Rate::new(LINES_PER_SECOND)))
    }
}

impl Refusals {
    /// One line for this one, if there is room. Each kind has its own: strangers do not hide that the API is away.
    pub(super) fn tell(&self, error: &Error) {
        let kind = [&code::NOT_AUTHENTICATED, &code::NOT_A_PROXY, &code::API_UNAVAILABLE].iter().position(|code| *code == error.code());
        if let Some(left_out) = self.0[kind.unwrap_or(3)].admit(Instant::now()) {
            tracing::warn!(%error, left_out, "call refused");
        }
    }
}
