//! `FAKE_CA`: certificates for tests and trials, signed by a root that lives in a private file of this machine.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use futures::future::BoxFuture;
use nix::libc::O_NOFOLLOW;
use rcgen::string::Ia5String;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    PKCS_ECDSA_P256_SHA256, SanType,
};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

use super::{Authority, Certificate, SpiffeId};
use crate::base::{Error, Result, code};

/// Lifetime of what it signs.
const LIFETIME: Duration = Duration::from_secs(24 * 3600);

/// Clocks of two machines differ.
const CLOCK_SKEW: Duration = Duration::from_secs(120);

const ROOT_LIFETIME: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// A root file is two PEM blocks; anything much larger is something else.
const MAX_ROOT_FILE: u64 = 64 * 1024;

/// Where the root is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FakeRoot {
    /// The file of the user's runtime directory, made on first use: processes of one user on one machine trust each other.
    Shared,
    /// `fake-ca.pem` in that directory.
    Directory(PathBuf),
    /// A certificate and its key.
    Files {
        /// PEM of the root.
        certificate: PathBuf,
        /// PEM of its PKCS#8 key.
        key: PathBuf,
    },
}

impl FakeRoot {
    /// From the value of `FAKE_CA_ROOT`: `cert.pem:key.pem`; none is [`FakeRoot::Shared`].
    ///
    /// # Errors
    /// Not two paths.
    pub fn parse(setting: Option<&str>) -> Result<Self> {
        match setting.filter(|text| !text.is_empty()) {
            None => Ok(Self::Shared),
            Some(text) => match text.split_once(':') {
                Some((certificate, key)) if !certificate.is_empty() && !key.is_empty() => {
                    Ok(Self::Files { certificate: certificate.into(), key: key.into() })
                }
                _ => Err(Error::new(&code::BAD_SETTING, format!("FAKE_CA_ROOT={text}: expected cert.pem:key.pem"))),
            },
        }
    }
}

/// Signs whatever is asked for. Not for production: whoever can read the root file can be any workload.
pub struct FakeAuthority {
    issuer: Issuer<'static, KeyPair>,
    root: CertificateDer<'static>,
}

impl FakeAuthority {
    /// Reads or makes the root, and says loudly that it is in use.
    ///
    /// # Errors
    /// The file or its directory is not private, or holds something else than a root and its key.
    pub fn load(root: &FakeRoot) -> Result<Self> {
        let (text, key, place) = match root {
            FakeRoot::Shared => read_or_make(&runtime_directory())?,
            FakeRoot::Directory(directory) => read_or_make(directory)?,
            FakeRoot::Files { certificate, key } => {
                (read_file(certificate, false)?, read_file(key, true)?, certificate.display().to_string())
            }
        };
        let bad = |what: &str| Error::new(&code::CA_MATERIAL, format!("{place}: {what}"));
        let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).map_err(|_| bad("no private key"))?;
        let key_pair = KeyPair::try_from(&key).map_err(|error| Error::caused(&code::CA_MATERIAL, format!("{place}: key"), error))?;
        let der = CertificateDer::from_pem_slice(text.as_bytes()).map_err(|_| bad("no certificate"))?;
        let issuer = Issuer::from_ca_cert_der(&der, key_pair)
            .map_err(|error| Error::caused(&code::CA_MATERIAL, format!("{place}: certificate"), error))?;
        tracing::warn!(
            root = %place,
            "FAKE_CA is on: certificates are signed by a test root on this machine. Whoever reads that file can be any workload. Never use it in production"
        );
        Ok(Self { issuer, root: der })
    }

    /// The root that verifies what it signs.
    pub fn root(&self) -> &CertificateDer<'static> {
        &self.root
    }

    /// One certificate, at once.
    ///
    /// # Errors
    /// The crypto library fails.
    pub fn mint(&self, id: &SpiffeId) -> Result<Certificate> {
        let failed = |error: rcgen::Error| Error::caused(&code::BAD_CERTIFICATE, format!("signing for {id}"), error);
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(failed)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = vec![SanType::URI(Ia5String::try_from(id.to_string()).map_err(failed)?)];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let now = SystemTime::now();
        params.not_before = (now - CLOCK_SKEW).into();
        params.not_after = (now + LIFETIME).into();
        let leaf = params.signed_by(&key, &self.issuer).map_err(failed)?;
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        Certificate::new(vec![leaf.der().clone()], key, vec![self.root.clone()])
    }
}

impl Authority for FakeAuthority {
    fn sign<'a>(&'a self, id: &'a SpiffeId) -> BoxFuture<'a, Result<Certificate>> {
        Box::pin(async move { self.mint(id) })
    }
}

fn runtime_directory() -> PathBuf {
    let user = nix::unistd::geteuid();
    match std::env::var_os("XDG_RUNTIME_DIR").filter(|value| Path::new(value).is_absolute()) {
        Some(base) => Path::new(&base).join("warren"),
        None if user.is_root() => PathBuf::from("/run/warren"),
        None => PathBuf::from(format!("/tmp/warren-{user}")),
    }
}

/// Certificate and key, both PEM, of `directory/fake-ca.pem`, and that path.
fn read_or_make(directory: &Path) -> Result<(String, String, String)> {
    let failed = |error: io::Error| Error::caused(&code::CA_MATERIAL, format!("{}", directory.display()), error);
    match DirBuilder::new().mode(0o700).create(directory) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(failed(error)),
        _ => {}
    }
    check_directory(directory)?;
    let path = directory.join("fake-ca.pem");
    if !path.try_exists().map_err(failed)? {
        make(directory, &path)?;
    }
    let text = read_file(&path, true)?;
    Ok((text.clone(), text, path.display().to_string()))
}

/// A link to a temporary file, unlike a rename, does not replace what another process made in the meantime.
fn make(directory: &Path, path: &Path) -> Result<()> {
    let failed = |error: io::Error| Error::caused(&code::CA_MATERIAL, format!("{}", path.display()), error);
    let temporary = directory.join(format!(".fake-ca.{}.{:016x}", std::process::id(), rand::random::<u64>()));
    let write = || {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
        file.write_all(new_root().map_err(io::Error::other)?.as_bytes())?;
        file.sync_all()?;
        match std::fs::hard_link(&temporary, path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
            _ => Ok(()),
        }
    };
    let result = write();
    // It is gone already only if the directory was removed meanwhile; the link is what counts.
    let _ = std::fs::remove_file(&temporary);
    result.map_err(failed)
}

fn new_root() -> std::result::Result<String, rcgen::Error> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, "Warren test root, not for production");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let now = SystemTime::now();
    params.not_before = (now - CLOCK_SKEW).into();
    params.not_after = (now + ROOT_LIFETIME).into();
    let root = params.self_signed(&key)?;
    Ok(format!("{}{}", root.pem(), key.serialize_pem()))
}

fn check_directory(directory: &Path) -> Result<()> {
    let refuse = |what: &str| Err(Error::new(&code::CA_MATERIAL, format!("{}: {what}", directory.display())));
    // The link itself is looked at: one that somebody else can repoint is as bad as a directory they can write.
    let meta = std::fs::symlink_metadata(directory)
        .map_err(|error| Error::caused(&code::CA_MATERIAL, format!("{}", directory.display()), error))?;
    if !meta.is_dir() {
        return refuse("not a directory");
    }
    if meta.uid() != nix::unistd::geteuid().as_raw() {
        return refuse("belongs to another user");
    }
    if meta.mode() & 0o077 != 0 {
        return refuse("others can enter it; its mode must be 0700");
    }
    Ok(())
}

fn read_file(path: &Path, private: bool) -> Result<String> {
    let failed = |error: io::Error| Error::caused(&code::CA_MATERIAL, format!("{}", path.display()), error);
    let refuse = |what: &str| Err(Error::new(&code::CA_MATERIAL, format!("{}: {what}", path.display())));
    let flags = if private { O_NOFOLLOW } else { 0 };
    let file: File = OpenOptions::new().read(true).custom_flags(flags).open(path).map_err(failed)?;
    let meta = file.metadata().map_err(failed)?;
    if !meta.is_file() || meta.len() > MAX_ROOT_FILE {
        return refuse("not a PEM file");
    }
    if private && meta.uid() != nix::unistd::geteuid().as_raw() {
        return refuse("belongs to another user");
    }
    if private && meta.mode() & 0o077 != 0 {
        return refuse("others can read it; its mode must be 0600");
    }
    let mut text = String::new();
    file.take(MAX_ROOT_FILE).read_to_string(&mut text).map_err(failed)?;
    Ok(text)
}

/// An authority for tests, with a root of its own.
#[cfg(test)]
pub(crate) fn scratch() -> FakeAuthority {
    let directory = tempfile::tempdir().unwrap();
    FakeAuthority::load(&FakeRoot::Directory(directory.path().join("ca"))).unwrap()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn private_directory() -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        std::fs::set_permissions(directory.path(), PermissionsExt::from_mode(0o700)).unwrap();
        directory
    }

    #[test]
    fn many_makers_agree_on_one_root() {
        let directory = private_directory();
        let root = FakeRoot::Directory(directory.path().join("warren"));
        let made: Vec<_> = (0..8)
            .map(|_| {
                let root = root.clone();
                std::thread::spawn(move || FakeAuthority::load(&root).unwrap().root().clone())
            })
            .collect();
        let roots: Vec<_> = made.into_iter().map(|thread| thread.join().unwrap()).collect();
        assert!(roots.iter().all(|root| *root == roots[0]));
        let entries: Vec<_> = std::fs::read_dir(directory.path().join("warren")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(entries, ["fake-ca.pem"], "no temporary file stays");
        let mode = std::fs::metadata(directory.path().join("warren/fake-ca.pem")).unwrap().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn what_others_can_read_is_refused() {
        let directory = private_directory();
        let root = FakeRoot::Directory(directory.path().to_owned());
        FakeAuthority::load(&root).unwrap();
        let file = directory.path().join("fake-ca.pem");
        std::fs::set_permissions(&file, PermissionsExt::from_mode(0o640)).unwrap();
        let error = FakeAuthority::load(&root).err().unwrap();
        assert!(error.to_string().contains("0600"), "{error}");
        std::fs::set_permissions(&file, PermissionsExt::from_mode(0o600)).unwrap();
        std::fs::set_permissions(directory.path(), PermissionsExt::from_mode(0o755)).unwrap();
        let error = FakeAuthority::load(&root).err().unwrap();
        assert!(error.to_string().contains("0700"), "{error}");
    }

    #[test]
    fn a_symbolic_link_is_not_followed() {
        let directory = private_directory();
        let elsewhere = private_directory();
        FakeAuthority::load(&FakeRoot::Directory(elsewhere.path().to_owned())).unwrap();
        std::os::unix::fs::symlink(elsewhere.path().join("fake-ca.pem"), directory.path().join("fake-ca.pem")).unwrap();
        assert!(FakeAuthority::load(&FakeRoot::Directory(directory.path().to_owned())).is_err());
    }

    #[test]
    fn signs_what_is_asked_for() {
        let directory = private_directory();
        let authority = FakeAuthority::load(&FakeRoot::Directory(directory.path().to_owned())).unwrap();
        let id: SpiffeId = "spiffe://cluster.local/ns/a/sa/b".parse().unwrap();
        let certificate = authority.mint(&id).unwrap();
        assert_eq!(certificate.id, id);
        let lifetime = certificate.not_after.duration_since(certificate.not_before).unwrap();
        assert!(lifetime.abs_diff(LIFETIME + CLOCK_SKEW) < Duration::from_secs(2));
        assert!(!format!("{certificate:?}").contains("key"));
        let facts = super::super::facts(&certificate.chain[0]).unwrap();
        assert!(facts.serial_number.bytes().all(|byte| byte.is_ascii_digit()));
        assert_eq!(facts.valid_from, certificate.not_before);
    }

    #[test]
    fn the_root_setting_is_two_paths() {
        assert_eq!(FakeRoot::parse(None).unwrap(), FakeRoot::Shared);
        assert_eq!(FakeRoot::parse(Some("a:b")).unwrap(), FakeRoot::Files { certificate: "a".into(), key: "b".into() });
        assert_eq!(FakeRoot::parse(Some("a")).unwrap_err().code().id, code::BAD_SETTING.id);
    }
}
