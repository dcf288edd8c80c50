//! The bearer token for the control plane.

use std::fmt;
use std::path::{Path, PathBuf};

use http::HeaderValue;

use crate::base::{Error, Result, code};

/// A token is a few kilobytes; a larger file is something else.
const MAX_TOKEN: u64 = 64 * 1024;

/// Where the projected service account token is.
const DEFAULT_PATH: &str = "./var/run/secrets/tokens/istio-token";

/// Where the token comes from. Never shown.
#[derive(Clone, PartialEq, Eq)]
pub enum TokenSource {
    /// No token is sent.
    None,
    /// Read again for each request: the kubelet renews it in place.
    File(PathBuf),
    /// The token itself.
    Literal(String),
}

impl TokenSource {
    /// From AUTH_TOKEN: an existing file, else the token itself; when not set the projected token, if there is one.
    pub fn parse(setting: Option<&str>) -> Self {
        match setting.filter(|text| !text.is_empty()) {
            Some(text) if Path::new(text).is_file() => Self::File(text.into()),
            // A path that does not exist yet is still a path: sending it as a token would leak where it is.
            Some(text) if text.starts_with('/') || text.starts_with("./") => Self::File(text.into()),
            Some(text) => Self::Literal(text.to_owned()),
            None if Path::new(DEFAULT_PATH).is_file() => Self::File(DEFAULT_PATH.into()),
            None => Self::None,
        }
    }

    /// `Bearer <token>`, marked sensitive.
    pub(super) async fn header(&self) -> Result<Option<HeaderValue>> {
        let (token, place) = match self {
            Self::None => return Ok(None),
            Self::Literal(token) => (token.clone(), "AUTH_TOKEN".to_owned()),
            Self::File(path) => {
                let place = path.display().to_string();
                let failed = |error: std::io::Error| Error::caused(&code::TOKEN_UNREADABLE, place.clone(), error);
                if tokio::fs::metadata(path).await.map_err(failed)?.len() > MAX_TOKEN {
                    return Err(Error::new(&code::TOKEN_UNREADABLE, format!("{place} is too large for a token")));
                }
                (tokio::fs::read_to_string(path).await.map_err(failed)?, place)
            }
        };
        let token = token.trim();
        if token.is_empty() {
            return Err(Error::new(&code::TOKEN_UNREADABLE, format!("{place} is empty")));
        }
        // The conversion's error is left out: it may quote the token.
        let mut value = HeaderValue::try_from(format!("Bearer {token}"))
            .map_err(|_| Error::new(&code::TOKEN_UNREADABLE, format!("{place} holds characters that no token has")))?;
        value.set_sensitive(true);
        Ok(Some(value))
    }
}

impl fmt::Debug for TokenSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("None"),
            Self::File(path) => write!(f, "File({})", path.display()),
            Self::Literal(_) => f.write_str("Literal(…)"),
        }
    }
}
