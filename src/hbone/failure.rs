//! What an error of the engine means.

use super::core::Reason;
use crate::base::{Error, code};

/// An error of one stream, seen while `doing`.
pub(super) fn of_stream(doing: &str, error: h2::Error) -> Error {
    if !error.is_reset() {
        return of_connection(doing, error);
    }
    let reason = error.reason().unwrap_or(h2::Reason::INTERNAL_ERROR);
    if error.is_remote() {
        return of_reset(doing, reason);
    }
    Error::new(&code::RELAY_FAILED, format!("{doing}: this proxy reset the stream: {reason:?}"))
}

/// The peer's reset of one stream.
pub(super) fn of_reset(doing: &str, reason: h2::Reason) -> Error {
    if Reason(reason.into()).is_of_application() {
        return Error::new(&code::STREAM_RESET, format!("{doing}: the application behind the peer reset the connection"));
    }
    // RFC 9113 §8.1: whoever has answered in full may say so that nothing more is needed.
    if reason == h2::Reason::NO_ERROR {
        return Error::new(&code::PEER_CLOSED, format!("{doing}: the peer needs nothing more"));
    }
    Error::new(&code::RELAY_FAILED, format!("{doing}: the peer reset the stream: {reason:?}"))
}

/// An error of the whole tunnel.
pub(super) fn of_connection(doing: &str, error: h2::Error) -> Error {
    if let Some(io) = error.get_io() {
        // A TLS 1.3 client learns only after the handshake that it was refused.
        let text = io.to_string();
        if text.contains("received fatal alert") {
            let code = if text.contains("CertificateRequired") { &code::NO_PEER_CERTIFICATE } else { &code::TLS_FAILED };
            return Error::new(code, format!("{doing}: the peer's TLS refused us: {text}"));
        }
        return Error::new(&code::TUNNEL_BROKEN, format!("{doing}: the connection was lost: {text}"));
    }
    if error.is_go_away() && error.is_remote() {
        let reason = error.reason().unwrap_or(h2::Reason::NO_ERROR);
        return Error::new(&code::TUNNEL_BROKEN, format!("{doing}: the peer ended the tunnel: {reason:?}"));
    }
    if error.is_go_away() && error.is_library() {
        let reason = error.reason().unwrap_or(h2::Reason::PROTOCOL_ERROR);
        return Error::caused(
            &code::TUNNEL_BROKEN,
            format!("{doing}: ended because the peer broke the rules of HTTP/2: {reason:?}"),
            error,
        );
    }
    Error::caused(&code::TUNNEL_BROKEN, doing, error)
}

/// Whether the peer surely did nothing with the request (RFC 9113 §8.7).
pub(super) fn is_untouched(error: &h2::Error) -> bool {
    error.is_remote() && (error.is_go_away() || (error.is_reset() && error.reason() == Some(h2::Reason::REFUSED_STREAM)))
}
