//! What a failed handshake means.

use std::io;

use rustls::{AlertDescription, CertificateError, PeerIncompatible};

use crate::base::{Error, code};

/// The error of a handshake, with the code that says whose fault it is. `doing` is "connecting" or "accepting".
pub(super) fn from_handshake(doing: &str, error: io::Error) -> Error {
    let Some(tls) = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) else {
        let what = match error.kind() {
            io::ErrorKind::UnexpectedEof => format!("TLS handshake ({doing}): the peer closed the connection in the middle"),
            _ => format!("TLS handshake ({doing})"),
        };
        return Error::caused(&code::TLS_FAILED, what, error);
    };
    match tls {
        rustls::Error::InvalidCertificate(CertificateError::Other(other)) => match other.0.downcast_ref::<Error>() {
            Some(own) => own.clone(),
            None => Error::caused(&code::TLS_FAILED, format!("TLS handshake ({doing})"), error),
        },
        rustls::Error::NoCertificatesPresented => Error::new(&code::NO_PEER_CERTIFICATE, "the client's proxy sent none"),
        rustls::Error::AlertReceived(AlertDescription::CertificateRequired) => {
            Error::new(&code::NO_PEER_CERTIFICATE, "the peer asks for a certificate and got none")
        }
        rustls::Error::AlertReceived(AlertDescription::ProtocolVersion)
        | rustls::Error::PeerIncompatible(
            PeerIncompatible::Tls12NotOffered
            | PeerIncompatible::Tls12NotOfferedOrEnabled
            | PeerIncompatible::SupportedVersionsExtensionRequired
            | PeerIncompatible::ServerDoesNotSupportTls12Or13
            | PeerIncompatible::ServerTlsVersionIsDisabledByOurConfig,
        ) => Error::new(
            &code::TLS_FAILED,
            format!("TLS handshake ({doing}): no version in common: tunnels are TLS 1.3, with TLS12_ENABLED at this end 1.2 too"),
        ),
        rustls::Error::AlertReceived(alert) => {
            Error::new(&code::TLS_FAILED, format!("TLS handshake ({doing}): the peer refused with alert {alert:?}"))
        }
        rustls::Error::InvalidMessage(_) | rustls::Error::DecryptError => {
            Error::caused(&code::TLS_FAILED, format!("TLS handshake ({doing}): the peer sent something that is not TLS"), error)
        }
        rustls::Error::InappropriateMessage { .. } | rustls::Error::InappropriateHandshakeMessage { .. } => {
            Error::caused(&code::TLS_FAILED, format!("TLS handshake ({doing}): the peer broke the protocol"), error)
        }
        _ => Error::caused(&code::TLS_FAILED, format!("TLS handshake ({doing})"), error),
    }
}
