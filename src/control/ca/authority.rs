//! Signs.

use std::time::{Duration, SystemTime};

use rand::TryRngCore;
use rand::rngs::OsRng;
use rcgen::{
    CertificateParams, DistinguishedName, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PublicKeyData, SanType,
    SerialNumber,
};
use rustls_pki_types::CertificateDer;

use super::material::pem;
use crate::base::{Error, Result, code};

/// A certificate begins this long before it is signed: clocks of nodes differ.
const BACKDATE: Duration = Duration::from_secs(120);

/// The authority's key with its certificates.
pub struct Authority {
    pub(super) issuer: Issuer<'static, KeyPair>,
    /// From the authority's own certificate up, without roots.
    pub(super) intermediates: Vec<CertificateDer<'static>>,
    pub(super) roots: Vec<CertificateDer<'static>>,
    /// Nothing it signs is valid for longer.
    pub(super) not_after: SystemTime,
}

/// What was signed.
#[derive(Debug)]
pub struct Issued {
    /// The leaf.
    pub certificate: CertificateDer<'static>,
    /// Its end.
    pub not_after: SystemTime,
}

/// What a leaf is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// Both sides of a tunnel.
    Workload,
    /// The control plane's own listener.
    Server,
}

impl Authority {
    /// Signs a leaf with these names and no subject, valid from now (two minutes earlier) for `lifetime`, but not longer
    /// than the authority itself.
    ///
    /// # Errors
    /// CA_MATERIAL: the authority has expired, or its key cannot sign.
    pub(crate) fn issue(&self, key: &impl PublicKeyData, names: Vec<SanType>, purpose: Purpose, lifetime: Duration) -> Result<Issued> {
        let now = SystemTime::now();
        if now >= self.not_after {
            return Err(Error::new(&code::CA_MATERIAL, "the authority's own certificate has expired"));
        }
        let not_after = now.checked_add(lifetime).unwrap_or(self.not_after).min(self.not_after);
        let mut params = CertificateParams::default();
        // Without a subject the names are critical (RFC 5280 §4.2.1.6, SPIFFE X509-SVID §4.1).
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = names;
        params.serial_number = Some(serial()?);
        params.not_before = (now - BACKDATE).into();
        params.not_after = not_after.into();
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
        params.extended_key_usages = match purpose {
            Purpose::Workload => vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth],
            Purpose::Server => vec![ExtendedKeyUsagePurpose::ServerAuth],
        };
        params.use_authority_key_identifier_extension = true;
        let signed = params.signed_by(key, &self.issuer).map_err(|error| Error::caused(&code::CA_MATERIAL, "signing", error))?;
        Ok(Issued { certificate: signed.der().clone(), not_after })
    }

    /// What a peer needs between a leaf and a root.
    pub fn intermediates(&self) -> &[CertificateDer<'static>] {
        &self.intermediates
    }

    /// When it can sign no more.
    pub fn not_after(&self) -> SystemTime {
        self.not_after
    }

    /// The roots in PEM, one after the other.
    pub fn roots_pem(&self) -> String {
        self.roots.iter().map(|der| pem("CERTIFICATE", der)).collect()
    }

    /// What peers trust.
    pub fn roots(&self) -> &[CertificateDer<'static>] {
        &self.roots
    }
}

/// Never shows the key.
impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authority").field("roots", &self.roots.len()).field("not_after", &self.not_after).finish_non_exhaustive()
    }
}

/// 127 bits of chance, positive (RFC 5280 §4.1.2.2).
pub(super) fn serial() -> Result<SerialNumber> {
    let mut bytes = [0; 16];
    OsRng
        .try_fill_bytes(&mut bytes)
        .map_err(|error| Error::caused(&code::INTERNAL, "random serial number", std::io::Error::other(error)))?;
    bytes[0] = (bytes[0] & 0x7f) | 0x40;
    Ok(SerialNumber::from_slice(&bytes))
}
