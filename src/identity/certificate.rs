//! A workload certificate with its key and the roots that verify its peers.

use std::any::Any;
use std::fmt;
use std::sync::{Arc, OnceLock};
use std::time::SystemTime;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use super::SpiffeId;
use crate::base::{Error, Result, code};

/// One generation of a workload's certificate. A renewal makes another one; this one never changes.
pub struct Certificate {
    /// Whose it is.
    pub id: SpiffeId,
    /// Leaf first, then intermediates; no root.
    pub chain: Vec<CertificateDer<'static>>,
    /// The leaf's key.
    pub key: PrivateKeyDer<'static>,
    /// What verifies peers.
    pub roots: Vec<CertificateDer<'static>>,
    /// Start of the leaf's validity.
    pub not_before: SystemTime,
    /// End of the leaf's validity.
    pub not_after: SystemTime,
    derived: OnceLock<Arc<dyn Any + Send + Sync>>,
}

impl Certificate {
    /// Puts the parts together; the identity and the times are the leaf's.
    ///
    /// # Errors
    /// No leaf, no root, or a leaf that cannot be parsed or names no workload.
    pub fn new(chain: Vec<CertificateDer<'static>>, key: PrivateKeyDer<'static>, roots: Vec<CertificateDer<'static>>) -> Result<Self> {
        let bad = |what: &str| Error::new(&code::BAD_CERTIFICATE, what);
        let leaf = chain.first().ok_or_else(|| bad("no certificate"))?;
        if roots.is_empty() {
            return Err(bad("no usable root certificate"));
        }
        let (not_before, not_after) = validity(leaf)?;
        let id = peer_ids(leaf)?.into_iter().next().ok_or_else(|| bad("the leaf names no workload identity"))?;
        Ok(Self { id, chain, key, roots, not_before, not_after, derived: OnceLock::new() })
    }

    /// What another room makes of this certificate, made once and kept as long as the certificate. One type of value
    /// is kept; a second type is made anew on each call.
    ///
    /// # Errors
    /// Those of `make`.
    pub fn derived<T: Send + Sync + 'static>(&self, make: impl FnOnce() -> Result<T>) -> Result<Arc<T>> {
        if let Some(found) = self.derived.get()
            && let Ok(value) = found.clone().downcast::<T>()
        {
            return Ok(value);
        }
        let made = Arc::new(make()?);
        let kept = self.derived.get_or_init(|| made.clone());
        Ok(kept.clone().downcast::<T>().unwrap_or(made))
    }
}

/// Never shows the key.
impl fmt::Debug for Certificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Certificate")
            .field("id", &self.id)
            .field("chain", &self.chain.len())
            .field("roots", &self.roots.len())
            .field("not_before", &self.not_before)
            .field("not_after", &self.not_after)
            .finish_non_exhaustive()
    }
}

/// How `/config_dump` shows one certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// Base64 of the PEM text.
    pub pem: String,
    /// Decimal.
    pub serial_number: String,
    /// Start of validity.
    pub valid_from: SystemTime,
    /// End of validity.
    pub expiration_time: SystemTime,
}

/// The facts of one certificate.
///
/// # Errors
/// It cannot be parsed.
pub fn facts(der: &CertificateDer<'_>) -> Result<Facts> {
    let parsed = parse(der)?;
    let (valid_from, expiration_time) = times(&parsed)?;
    let mut pem = String::from("-----BEGIN CERTIFICATE-----\n");
    let body = BASE64_STANDARD.encode(der);
    let mut rest = body.as_str();
    while !rest.is_empty() {
        let (line, tail) = rest.split_at(rest.len().min(64));
        pem.push_str(line);
        pem.push('\n');
        rest = tail;
    }
    pem.push_str("-----END CERTIFICATE-----\n");
    Ok(Facts { pem: BASE64_STANDARD.encode(pem), serial_number: parsed.tbs_certificate.serial.to_string(), valid_from, expiration_time })
}

/// All workload identities among the URI names of a certificate; other names are passed over.
///
/// # Errors
/// It cannot be parsed.
pub fn peer_ids(der: &CertificateDer<'_>) -> Result<Vec<SpiffeId>> {
    let parsed = parse(der)?;
    let names =
        parsed.subject_alternative_name().map_err(|error| Error::caused(&code::BAD_CERTIFICATE, "subject alternative name", error))?;
    let Some(names) = names else { return Ok(Vec::new()) };
    let uris = names.value.general_names.iter().filter_map(|name| match name {
        GeneralName::URI(uri) => uri.parse().ok(),
        _ => None,
    });
    Ok(uris.collect())
}

fn validity(der: &CertificateDer<'_>) -> Result<(SystemTime, SystemTime)> {
    times(&parse(der)?)
}

fn times(parsed: &X509Certificate<'_>) -> Result<(SystemTime, SystemTime)> {
    let validity = &parsed.tbs_certificate.validity;
    let (from, to) = (validity.not_before.to_datetime(), validity.not_after.to_datetime());
    if to <= from {
        return Err(Error::new(&code::BAD_CERTIFICATE, format!("valid from {from} until {to}")));
    }
    Ok((from.into(), to.into()))
}

fn parse<'a>(der: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>> {
    match X509Certificate::from_der(der) {
        Ok((_, parsed)) => Ok(parsed),
        Err(error) => Err(Error::caused(&code::BAD_CERTIFICATE, "not an X.509 certificate", error)),
    }
}
