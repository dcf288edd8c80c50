//! What verifies the control plane.

use std::path::{Path, PathBuf};

use rustls::RootCertStore;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;

use crate::base::{Error, Result, code};

/// A bundle of all public roots is a quarter of this.
const MAX_BUNDLE: u64 = 4 << 20;

/// Where distributions keep their bundle.
const SYSTEM_BUNDLES: &[&str] = &[
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// Where the control plane's root comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RootSource {
    /// A PEM file, read again for each connection.
    File(PathBuf),
    /// PEM text.
    Pem(String),
    /// The roots of the operating system; `SSL_CERT_FILE` names another bundle.
    System,
}

impl RootSource {
    /// From XDS_ROOT_CA or CA_ROOT_CA: `SYSTEM`, PEM text, else a path, which need not exist yet.
    pub fn parse(setting: &str) -> Self {
        match setting {
            "SYSTEM" => Self::System,
            text if text.contains("-----BEGIN") => Self::Pem(text.to_owned()),
            path => Self::File(path.into()),
        }
    }

    /// Reads them now.
    pub(super) async fn load(&self) -> Result<RootCertStore> {
        let (pem, place) = match self {
            Self::Pem(text) => (text.clone().into_bytes(), "inline root certificate".to_owned()),
            Self::File(path) => (read(path).await?, path.display().to_string()),
            Self::System => {
                let path = system_bundle()?;
                (read(&path).await?, path.display().to_string())
            }
        };
        let mut roots = RootCertStore::empty();
        let (mut usable, mut unusable) = (0, 0);
        for der in CertificateDer::pem_slice_iter(&pem) {
            match der.ok().map(|der| roots.add(der)) {
                Some(Ok(())) => usable += 1,
                _ => unusable += 1,
            }
        }
        if usable == 0 {
            return Err(Error::new(&code::BAD_TRUST_ROOT, format!("{place}: no usable certificate ({unusable} unusable)")));
        }
        if unusable > 0 {
            tracing::warn!(%place, usable, unusable, "some root certificates cannot be used");
        }
        Ok(roots)
    }
}

async fn read(path: &Path) -> Result<Vec<u8>> {
    let failed = |error: std::io::Error| Error::caused(&code::BAD_TRUST_ROOT, path.display().to_string(), error);
    if tokio::fs::metadata(path).await.map_err(failed)?.len() > MAX_BUNDLE {
        return Err(Error::new(&code::BAD_TRUST_ROOT, format!("{}: too large for a bundle", path.display())));
    }
    tokio::fs::read(path).await.map_err(failed)
}

fn system_bundle() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("SSL_CERT_FILE") {
        return Ok(path.into());
    }
    let found = SYSTEM_BUNDLES.iter().find(|path| Path::new(path).is_file());
    found.map(PathBuf::from).ok_or_else(|| Error::new(&code::BAD_TRUST_ROOT, "this system has no bundle of root certificates"))
}
