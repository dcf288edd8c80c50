use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384,
    PKCS_ECDSA_P521_SHA512, PKCS_ED25519, PKCS_RSA_SHA256, SanType,
};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use super::authority::Purpose;
use super::{Authority, csr, material};
use crate::base::code;

fn request(key: &KeyPair) -> String {
    let params = CertificateParams::new(vec!["anything.example".to_owned()]).unwrap();
    params.serialize_request(key).unwrap().pem().unwrap()
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().mode() & 0o777
}

#[test]
fn a_root_is_made_once_and_used_again() {
    let dir = tempfile::tempdir().unwrap();
    let ca = dir.path().join("state/ca");
    let first = Authority::open(&ca, "cluster.local").unwrap();
    assert_eq!((mode(&ca), mode(&ca.join("ca-key.pem"))), (0o700, 0o600));
    assert!(ca.join("root-cert.pem").exists() && ca.join("ca-cert.pem").exists() && ca.join("cert-chain.pem").exists());
    let second = Authority::open(&ca, "cluster.local").unwrap();
    assert_eq!(first.roots(), second.roots());
    assert!(second.intermediates().is_empty());
    assert!(!format!("{second:?}").contains("PRIVATE"));
}

#[test]
fn a_leaf_has_what_a_workload_needs() {
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::open(dir.path(), "cluster.local").unwrap();
    let key = csr::verified_key(&request(&KeyPair::generate().unwrap())).unwrap();
    let uri = "spiffe://cluster.local/ns/a/sa/b";
    let issued = authority.issue(&key, vec![SanType::URI(uri.try_into().unwrap())], Purpose::Workload, Duration::from_secs(3600)).unwrap();
    let (_, leaf) = X509Certificate::from_der(&issued.certificate).unwrap();
    let (_, root) = X509Certificate::from_der(&authority.roots()[0]).unwrap();
    leaf.verify_signature(Some(root.public_key())).unwrap();
    let names = leaf.subject_alternative_name().unwrap().unwrap();
    assert!(names.critical);
    assert_eq!(names.value.general_names, [GeneralName::URI(uri)]);
    let usage = leaf.key_usage().unwrap().unwrap().value;
    assert!(usage.digital_signature() && usage.key_encipherment() && !usage.key_cert_sign());
    let extended = leaf.extended_key_usage().unwrap().unwrap().value;
    assert!(extended.server_auth && extended.client_auth);
    assert!(!leaf.is_ca());
    let (from, to) = (leaf.validity().not_before.timestamp(), leaf.validity().not_after.timestamp());
    assert_eq!(to - from, 3600 + 120);
    // No leaf outlives its authority.
    let long = authority.issue(&key, Vec::new(), Purpose::Workload, Duration::from_secs(100 * 365 * 86400)).unwrap();
    let (_, long) = X509Certificate::from_der(&long.certificate).unwrap();
    assert_eq!(long.validity().not_after, root.validity().not_after);
    assert_ne!(long.serial, leaf.serial);
}

#[test]
fn requests_are_accepted_by_key_and_proof() {
    for algorithm in [&PKCS_ECDSA_P256_SHA256, &PKCS_ECDSA_P384_SHA384, &PKCS_ED25519, &PKCS_RSA_SHA256] {
        let key = KeyPair::generate_for(algorithm).unwrap();
        csr::verified_key(&request(&key)).unwrap_or_else(|error| panic!("{algorithm:?}: {error}"));
    }
    let good = request(&KeyPair::generate().unwrap());
    let der = {
        use rustls_pki_types::pem::PemObject;
        rustls_pki_types::CertificateSigningRequestDer::from_pem_slice(good.as_bytes()).unwrap().to_vec()
    };
    let mut forged = der.clone();
    let name = forged.windows(8).position(|bytes| bytes == b"anything").unwrap();
    forged[name] = b'A';
    let mut longer = der.clone();
    longer.push(0);
    let cases = [
        ("nonsense".to_owned(), "not in PEM"),
        (material::pem("CERTIFICATE REQUEST", b"junk"), "not PKCS#10"),
        (material::pem("CERTIFICATE REQUEST", &der[..der.len() - 9]), "not PKCS#10"),
        (material::pem("CERTIFICATE REQUEST", &longer), "not PKCS#10"),
        (material::pem("CERTIFICATE REQUEST", &forged), "its signature does not fit its key"),
        (request(&KeyPair::generate_for(&PKCS_ECDSA_P521_SHA512).unwrap()), "the curve must be"),
        (" ".repeat(70_000), "larger than"),
    ];
    for (text, reason) in cases {
        let error = csr::verified_key(&text).map(|_| ()).expect_err(reason);
        assert_eq!(error.code(), &code::CSR_INVALID);
        assert!(error.detail().contains(reason), "{reason}: {error}");
    }
}

/// Root → intermediate, as an operator brings them.
fn plug_in(directory: &Path, key: &KeyPair, key_pem: &str) {
    let ca = |name: &str| {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::OrganizationName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params
    };
    let root = CertifiedIssuer::self_signed(ca("root"), KeyPair::generate().unwrap()).unwrap();
    let own = ca("intermediate").signed_by(key, &root).unwrap();
    fs::write(directory.join("root-cert.pem"), root.pem()).unwrap();
    fs::write(directory.join("ca-cert.pem"), own.pem()).unwrap();
    fs::write(directory.join("cert-chain.pem"), format!("{}{}", own.pem(), root.pem())).unwrap();
    fs::write(directory.join("ca-key.pem"), key_pem).unwrap();
    fs::set_permissions(directory.join("ca-key.pem"), fs::Permissions::from_mode(0o600)).unwrap();
}

#[test]
fn an_operators_authority_is_used() {
    for algorithm in [&PKCS_ECDSA_P256_SHA256, &PKCS_RSA_SHA256] {
        let dir = tempfile::tempdir().unwrap();
        let key = KeyPair::generate_for(algorithm).unwrap();
        plug_in(dir.path(), &key, &key.serialize_pem());
        let authority = Authority::open(dir.path(), "cluster.local").unwrap();
        assert_eq!((authority.intermediates().len(), authority.roots().len()), (1, 1));
        let issued = authority.issue(&key, Vec::new(), Purpose::Server, Duration::from_secs(60)).unwrap();
        let (_, leaf) = X509Certificate::from_der(&issued.certificate).unwrap();
        let (_, own) = X509Certificate::from_der(&authority.intermediates()[0]).unwrap();
        leaf.verify_signature(Some(own.public_key())).unwrap();
        assert_eq!(leaf.issuer(), own.subject());
    }
}

#[test]
fn keys_in_their_older_forms_are_read() {
    // RFC 5915: the inner part of a PKCS#8 EC key. RFC 8017: that of an RSA key.
    for (algorithm, label) in [(&PKCS_ECDSA_P256_SHA256, "EC PRIVATE KEY"), (&PKCS_RSA_SHA256, "RSA PRIVATE KEY")] {
        let dir = tempfile::tempdir().unwrap();
        let key = KeyPair::generate_for(algorithm).unwrap();
        let (_, outer) = x509_parser::der_parser::parse_der(key.serialized_der()).unwrap();
        let inner = outer.as_sequence().unwrap()[2].as_slice().unwrap().to_vec();
        plug_in(dir.path(), &key, &material::pem(label, &inner));
        let authority = Authority::open(dir.path(), "cluster.local").unwrap_or_else(|error| panic!("{label}: {error}"));
        authority.issue(&key, Vec::new(), Purpose::Server, Duration::from_secs(60)).unwrap();
    }
}

#[test]
fn unusable_material_is_refused_with_the_file() {
    let break_it = |change: &dyn Fn(&Path)| {
        let dir = tempfile::tempdir().unwrap();
        let key = KeyPair::generate().unwrap();
        plug_in(dir.path(), &key, &key.serialize_pem());
        change(dir.path());
        let error = Authority::open(dir.path(), "cluster.local").expect_err("refused");
        assert_eq!(error.code(), &code::CA_MATERIAL);
        error.to_string()
    };
    let other = KeyPair::generate().unwrap();
    type Change<'a> = &'a dyn Fn(&Path);
    let cases: [(&str, Change<'_>); 6] = [
        ("mode 0644", &|dir| fs::set_permissions(dir.join("ca-key.pem"), fs::Permissions::from_mode(0o644)).unwrap()),
        ("ca-key.pem: No such file", &|dir| fs::remove_file(dir.join("ca-key.pem")).unwrap()),
        ("root-cert.pem: No such file", &|dir| fs::remove_file(dir.join("root-cert.pem")).unwrap()),
        ("no certificates in PEM", &|dir| fs::write(dir.join("root-cert.pem"), "x").unwrap()),
        ("belongs to another key", &|dir| fs::write(dir.join("ca-key.pem"), other.serialize_pem()).unwrap()),
        ("does not lead to root-cert.pem", &|dir| {
            let elsewhere = tempfile::tempdir().unwrap();
            plug_in(elsewhere.path(), &other, "");
            fs::copy(elsewhere.path().join("root-cert.pem"), dir.join("root-cert.pem")).unwrap();
        }),
    ];
    for (reason, change) in cases {
        let text = break_it(change);
        assert!(text.contains(reason), "{reason}: {text}");
    }
}
