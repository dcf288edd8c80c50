//! The error of the whole program: a stable code, what happened, and the cause.

use std::error::Error as StdError;
use std::fmt;
use std::sync::Arc;

use super::code::{Code, INTERNAL};

/// Result with [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

type Cause = dyn StdError + Send + Sync + 'static;

/// Something that was refused or went wrong, told so that an operator can act on it.
///
/// Cheap to clone: the error of a shared dial goes to every waiter.
#[derive(Clone)]
pub struct Error(Arc<Inner>);

struct Inner {
    code: &'static Code,
    detail: String,
    source: Option<Box<Cause>>,
}

impl Error {
    /// An error without a cause.
    pub fn new(code: &'static Code, detail: impl Into<String>) -> Self {
        Self(Arc::new(Inner { code, detail: detail.into(), source: None }))
    }

    /// An error caused by another.
    pub fn caused(code: &'static Code, detail: impl Into<String>, source: impl Into<Box<Cause>>) -> Self {
        Self(Arc::new(Inner { code, detail: detail.into(), source: Some(source.into()) }))
    }

    /// For a broken invariant of our own, never for input.
    pub fn internal(detail: impl Into<String>) -> Self {
        Self::new(&INTERNAL, detail)
    }

    /// Its entry in the error reference.
    pub fn code(&self) -> &'static Code {
        self.0.code
    }

    /// What happened, without code and cause.
    pub fn detail(&self) -> &str {
        &self.0.detail
    }
}

/// `detail: cause: cause (W1234)`
impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.detail)?;
        let mut next = self.0.source.as_deref().map(|source| source as &(dyn StdError + 'static));
        while let Some(source) = next {
            if let Some(inner) = source.downcast_ref::<Error>() {
                // An inner error prints its own chain and code; twice the same code says nothing more.
                write!(f, ": {inner}")?;
                if inner.code() == self.0.code {
                    return Ok(());
                }
                break;
            }
            write!(f, ": {source}")?;
            next = source.source();
        }
        write!(f, " ({})", self.0.code.id)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.0.source.as_deref().map(|source| source as &(dyn StdError + 'static))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn display_walks_the_causes_and_ends_with_the_code() {
        let io = std::io::Error::other("no route to host");
        let error = Error::caused(&super::super::code::DESTINATION_UNREACHABLE, "connect to 10.0.0.7:80", io);
        assert_eq!(error.to_string(), "connect to 10.0.0.7:80: no route to host (W1003)");
        let outer = Error::caused(&super::super::code::DESTINATION_UNREACHABLE, "waypoint", error.clone());
        assert_eq!(outer.to_string(), "waypoint: connect to 10.0.0.7:80: no route to host (W1003)");
        let other = Error::caused(&super::super::code::UNKNOWN_WAYPOINT, "waypoint", error);
        assert_eq!(other.to_string(), "waypoint: connect to 10.0.0.7:80: no route to host (W1003) (W1012)");
    }
}
