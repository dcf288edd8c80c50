//! What an authority is made of, as text: where it is kept, in files or in a Secret, makes no difference.

use std::time::{Duration, SystemTime};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rcgen::{BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::authority::{Authority, serial};
use crate::base::{Error, Result, code};

/// Life of a root that is made here.
const ROOT_LIFETIME: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// Longest way from the authority's certificate to a root.
const MAX_CHAIN: usize = 8;

pub(super) const ROOT: &str = "root-cert.pem";
pub(super) const CERTIFICATE: &str = "ca-cert.pem";
pub(super) const CHAIN: &str = "cert-chain.pem";
pub(super) const KEY: &str = "ca-key.pem";

/// Certificates and key of an authority, in PEM.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Material {
    /// What peers trust; one or more.
    pub(super) root: Vec<u8>,
    /// The authority's own certificate.
    pub(super) certificate: Vec<u8>,
    /// What lies between the two; may be empty.
    pub(super) chain: Vec<u8>,
    /// Of the authority's own certificate.
    pub(super) key: Vec<u8>,
}

impl Material {
    /// A new root that signs by itself.
    ///
    /// # Errors
    /// CA_MATERIAL: there is no chance to be had.
    pub(super) fn generate(trust_domain: &str) -> Result<Self> {
        let made = |error| Error::caused(&code::CA_MATERIAL, "making a root", error);
        let key = KeyPair::generate().map_err(made)?;
        let now = SystemTime::now();
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationName, trust_domain);
        params.serial_number = Some(serial()?);
        params.not_before = (now - Duration::from_secs(120)).into();
        params.not_after = (now + ROOT_LIFETIME).into();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
        let root = pem("CERTIFICATE", params.self_signed(&key).map_err(made)?.der()).into_bytes();
        let key = pem("PRIVATE KEY", key.serialized_der()).into_bytes();
        Ok(Self { root: root.clone(), certificate: root.clone(), chain: root, key })
    }

    /// The authority; `place` says where a part was found.
    ///
    /// # Errors
    /// CA_MATERIAL: a part cannot be understood, or does not fit the others.
    pub(super) fn authority(&self, place: impl Fn(&str) -> String) -> Result<Authority> {
        let wrong = |name: &str, reason: &str| Error::new(&code::CA_MATERIAL, format!("{}: {reason}", place(name)));
        let certificates = |name: &str, text: &[u8]| certificates(text).ok_or_else(|| wrong(name, "no certificates in PEM"));
        let key = PrivateKeyDer::from_pem_slice(&self.key).map_err(|_| wrong(KEY, "no private key in PEM (PKCS#8, SEC1 or PKCS#1)"))?;
        let key = KeyPair::try_from(&key).map_err(|_| wrong(KEY, "not an accepted key: ECDSA P-256, P-384, P-521, RSA or Ed25519"))?;
        let roots = certificates(ROOT, &self.root)?;
        let own = certificates(CERTIFICATE, &self.certificate)?.swap_remove(0);
        let above = if self.chain.trim_ascii().is_empty() { Vec::new() } else { certificates(CHAIN, &self.chain)? };

        let parsed = parse(&own).ok_or_else(|| wrong(CERTIFICATE, "no X.509 certificate"))?;
        if !parsed.is_ca() {
            return Err(wrong(CERTIFICATE, "not the certificate of an authority (basicConstraints CA)"));
        }
        if !parsed.validity().is_valid() {
            return Err(wrong(CERTIFICATE, "expired or not yet valid"));
        }
        if parsed.public_key().subject_public_key.as_ref() != key.public_key_raw() {
            return Err(wrong(CERTIFICATE, "belongs to another key than ca-key.pem"));
        }
        let not_after = time(parsed.validity().not_after.timestamp());
        let chain = chain_to_root(own.clone(), &above, &roots)
            .ok_or_else(|| wrong(CERTIFICATE, "does not lead to root-cert.pem over cert-chain.pem"))?;
        let issuer = Issuer::from_ca_cert_der(&own, key).map_err(|error| Error::caused(&code::CA_MATERIAL, place(CERTIFICATE), error))?;
        Ok(Authority { issuer, intermediates: chain, roots, not_after })
    }
}

/// The certificates from `own` up, roots left out; `None` if it leads to no root.
fn chain_to_root(
    own: CertificateDer<'static>,
    above: &[CertificateDer<'static>],
    roots: &[CertificateDer<'static>],
) -> Option<Vec<CertificateDer<'static>>> {
    let mut chain = Vec::new();
    let mut next = own;
    while chain.len() < MAX_CHAIN {
        if roots.contains(&next) {
            return Some(chain);
        }
        if roots.iter().any(|root| has_signed(root, &next)) {
            chain.push(next);
            return Some(chain);
        }
        let issuer = above.iter().find(|candidate| **candidate != next && has_signed(candidate, &next))?.clone();
        chain.push(std::mem::replace(&mut next, issuer));
    }
    None
}

fn has_signed(issuer: &CertificateDer<'_>, subject: &CertificateDer<'_>) -> bool {
    let (Some(issuer), Some(subject)) = (parse(issuer), parse(subject)) else { return false };
    issuer.subject() == subject.issuer() && subject.verify_signature(Some(issuer.public_key())).is_ok()
}

fn certificates(text: &[u8]) -> Option<Vec<CertificateDer<'static>>> {
    let list: Vec<_> = CertificateDer::pem_slice_iter(text).collect::<std::result::Result<_, _>>().ok()?;
    (!list.is_empty() && list.iter().all(|der| parse(der).is_some())).then_some(list)
}

fn parse<'a>(der: &'a CertificateDer<'_>) -> Option<X509Certificate<'a>> {
    X509Certificate::from_der(der).ok().filter(|(rest, _)| rest.is_empty()).map(|(_, parsed)| parsed)
}

fn time(seconds: i64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(seconds).unwrap_or(0))
}

/// RFC 7468.
pub(super) fn pem(label: &str, der: &[u8]) -> String {
    let body = STANDARD.encode(der);
    // Base64 is ASCII: every chunk is text.
    let lines: Vec<&str> = body.as_bytes().chunks(64).filter_map(|line| std::str::from_utf8(line).ok()).collect();
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n"))
}
