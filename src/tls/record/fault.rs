//! Why a session ends before its time.

use rustls::AlertDescription;

use crate::base::{Error, code};

/// Result with [`Fault`].
pub(super) type Checked<T> = std::result::Result<T, Fault>;

/// What went wrong while a record was read.
#[derive(Debug)]
pub(super) enum Fault {
    /// The peer broke the rules; it is told with that alert.
    Peer(AlertDescription, &'static str),
    /// The peer's fatal alert.
    Refused(AlertDescription),
    /// Our own defect.
    Internal(Error),
}

impl Fault {
    pub(super) fn peer(alert: AlertDescription, what: &'static str) -> Self {
        Self::Peer(alert, what)
    }

    /// What to send. RFC 8446 §6.2: nothing in answer to a fatal alert.
    pub(super) fn alert(&self) -> Option<AlertDescription> {
        match self {
            Self::Peer(alert, _) => Some(*alert),
            Self::Refused(_) => None,
            Self::Internal(_) => Some(AlertDescription::InternalError),
        }
    }

    /// For the owner of the session.
    pub(super) fn into_error(self) -> Error {
        match self {
            Self::Peer(alert, what) => {
                Error::new(&code::TUNNEL_BROKEN, format!("the connection was lost: the peer's TLS broke the rules: {what} ({alert:?})"))
            }
            // A TLS 1.3 client learns only after the handshake that its certificate was refused.
            Self::Refused(alert) => {
                let code = match alert {
                    AlertDescription::CertificateRequired => &code::NO_PEER_CERTIFICATE,
                    _ => &code::TLS_FAILED,
                };
                Error::new(code, format!("the peer's TLS refused us: received fatal alert: {alert:?}"))
            }
            Self::Internal(error) => error,
        }
    }
}
