//! The authority's files, in the layout of Istio's `cacerts`: `ca-cert.pem`, `ca-key.pem`, `cert-chain.pem` and
//! `root-cert.pem`. An operator may put them there; without any, a root is made.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, SystemTime};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rcgen::{BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::authority::{Authority, serial};
use crate::base::{Error, Result, code};
use crate::control::tokens::{private_directory, write_file, write_private};

/// Life of a root that is made here.
const ROOT_LIFETIME: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// Longest way from the authority's certificate to a root.
const MAX_CHAIN: usize = 8;

const ROOT: &str = "root-cert.pem";
const CERTIFICATE: &str = "ca-cert.pem";
const CHAIN: &str = "cert-chain.pem";
const KEY: &str = "ca-key.pem";

impl Authority {
    /// The authority in `directory`; if that does not exist or holds no file of an authority, one is made for the trust
    /// domain.
    ///
    /// # Errors
    /// CA_MATERIAL: a file is missing, cannot be understood, does not fit the others, or the key can be read by others.
    pub fn open(directory: &Path, trust_domain: &str) -> Result<Self> {
        if ![ROOT, CERTIFICATE, CHAIN, KEY].iter().any(|name| directory.join(name).exists()) {
            generate(directory, trust_domain)?;
        }
        load(directory)
    }
}

fn load(directory: &Path) -> Result<Authority> {
    let wrong = |name: &str, reason: &str| Error::new(&code::CA_MATERIAL, format!("{}: {reason}", directory.join(name).display()));
    let key_path = directory.join(KEY);
    let mode = fs::metadata(&key_path).map_err(|error| failed(&key_path, error))?.mode();
    if mode & 0o077 != 0 {
        return Err(wrong(KEY, &format!("others may read it (mode {:04o}); the key must be 0600", mode & 0o7777)));
    }
    let key = PrivateKeyDer::from_pem_file(&key_path).map_err(|_| wrong(KEY, "no private key in PEM (PKCS#8, SEC1 or PKCS#1)"))?;
    let key = KeyPair::try_from(&key).map_err(|_| wrong(KEY, "not an accepted key: ECDSA P-256, P-384, P-521, RSA or Ed25519"))?;
    let roots = certificates(directory, ROOT)?;
    let own = certificates(directory, CERTIFICATE)?.swap_remove(0);
    let above = if directory.join(CHAIN).exists() { certificates(directory, CHAIN)? } else { Vec::new() };

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
    let issuer = Issuer::from_ca_cert_der(&own, key).map_err(|error| Error::caused(&code::CA_MATERIAL, "ca-cert.pem", error))?;
    Ok(Authority { issuer, intermediates: chain, roots, not_after })
}

fn generate(directory: &Path, trust_domain: &str) -> Result<()> {
    let failed = |error| failed(directory, error);
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
    let root = pem("CERTIFICATE", params.self_signed(&key).map_err(made)?.der());

    // All files or none: a process that is killed here must not leave half an authority.
    let mut name = directory.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let new = directory.with_file_name(name);
    match fs::remove_dir_all(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
        _ => {}
    }
    private_directory(&new).map_err(failed)?;
    for name in [ROOT, CERTIFICATE, CHAIN] {
        write_file(&new.join(name), root.as_bytes(), 0o644).map_err(failed)?;
    }
    write_private(&new.join(KEY), pem("PRIVATE KEY", key.serialized_der()).as_bytes()).map_err(failed)?;
    fs::rename(&new, directory).map_err(failed)?;
    tracing::info!(directory = %directory.display(), trust_domain, "a new root was made");
    Ok(())
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

fn certificates(directory: &Path, name: &str) -> Result<Vec<CertificateDer<'static>>> {
    let path = directory.join(name);
    let text = fs::read(&path).map_err(|error| failed(&path, error))?;
    let wrong = || Error::new(&code::CA_MATERIAL, format!("{}: no certificates in PEM", path.display()));
    let list: Vec<_> = CertificateDer::pem_slice_iter(&text).collect::<std::result::Result<_, _>>().map_err(|_| wrong())?;
    match list.is_empty() || list.iter().any(|der| parse(der).is_none()) {
        true => Err(wrong()),
        false => Ok(list),
    }
}

fn parse<'a>(der: &'a CertificateDer<'_>) -> Option<X509Certificate<'a>> {
    X509Certificate::from_der(der).ok().filter(|(rest, _)| rest.is_empty()).map(|(_, parsed)| parsed)
}

fn time(seconds: i64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(seconds).unwrap_or(0))
}

fn failed(path: &Path, error: io::Error) -> Error {
    Error::caused(&code::CA_MATERIAL, path.display().to_string(), error)
}

/// RFC 7468.
pub(super) fn pem(label: &str, der: &[u8]) -> String {
    let body = STANDARD.encode(der);
    // Base64 is ASCII: every chunk is text.
    let lines: Vec<&str> = body.as_bytes().chunks(64).filter_map(|line| std::str::from_utf8(line).ok()).collect();
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n"))
}
