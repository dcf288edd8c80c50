//! A certificate request: what is taken from it is a public key, and the proof that the caller has the private one.

use rcgen::SubjectPublicKeyInfo;
use rustls_pki_types::CertificateSigningRequestDer;
use rustls_pki_types::pem::PemObject;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::oid_registry::{OID_EC_P256, OID_KEY_TYPE_EC_PUBLIC_KEY, OID_NIST_EC_P384, OID_PKCS1_RSAENCRYPTION, OID_SIG_ED25519};
use x509_parser::prelude::FromDer;
use x509_parser::public_key::PublicKey;

use crate::base::{Error, Result, code};

/// Largest request, bytes of PEM.
pub(super) const MAX_BYTES: usize = 64 * 1024;

/// RSA keys, bits. Larger ones cost more than they give.
const RSA_BITS: std::ops::RangeInclusive<usize> = 2048..=8192;

/// The key of a request whose signature is valid. Names in the request mean nothing.
///
/// # Errors
/// CSR_INVALID, with the reason.
pub(super) fn verified_key(pem: &str) -> Result<SubjectPublicKeyInfo> {
    let invalid = |reason: &str| Error::new(&code::CSR_INVALID, format!("certificate request: {reason}"));
    if pem.len() > MAX_BYTES {
        return Err(invalid(&format!("larger than {MAX_BYTES} bytes")));
    }
    let der = CertificateSigningRequestDer::from_pem_slice(pem.as_bytes()).map_err(|_| invalid("not in PEM (CERTIFICATE REQUEST)"))?;
    let request = match X509CertificationRequest::from_der(&der) {
        Ok((rest, request)) if rest.is_empty() => request,
        _ => return Err(invalid("not PKCS#10")),
    };
    let key = &request.certification_request_info.subject_pki;
    let kind = &key.algorithm.algorithm;
    if *kind == OID_PKCS1_RSAENCRYPTION {
        match key.parsed() {
            // The DER of the modulus may lead with a zero octet, which is no part of its size.
            Ok(PublicKey::RSA(rsa)) if RSA_BITS.contains(&bits(rsa.modulus)) => {}
            _ => return Err(invalid("the RSA key must have 2048 to 8192 bits")),
        }
    } else if *kind == OID_KEY_TYPE_EC_PUBLIC_KEY {
        let curve = key.algorithm.parameters.as_ref().and_then(|parameters| parameters.as_oid().ok());
        if !curve.is_some_and(|curve| curve == OID_EC_P256 || curve == OID_NIST_EC_P384) {
            return Err(invalid("the curve must be P-256 or P-384"));
        }
    } else if *kind != OID_SIG_ED25519 {
        return Err(invalid("the key must be ECDSA P-256 or P-384, RSA or Ed25519"));
    }
    request.verify_signature().map_err(|_| invalid("its signature does not fit its key"))?;
    SubjectPublicKeyInfo::from_der(key.raw).map_err(|_| invalid("its key cannot be read"))
}

fn bits(modulus: &[u8]) -> usize {
    let mut significant = modulus.iter().skip_while(|byte| **byte == 0);
    match significant.next() {
        Some(first) => (8 - first.leading_zeros() as usize) + 8 * significant.count(),
        None => 0,
    }
}
