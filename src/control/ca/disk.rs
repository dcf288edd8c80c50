//! The authority's files, in the layout of Istio's `cacerts`: `ca-cert.pem`, `ca-key.pem`, `cert-chain.pem` and
//! `root-cert.pem`. An operator may put them there; without any, a root is made.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::authority::Authority;
use super::material::{CERTIFICATE, CHAIN, KEY, Material, ROOT};
use crate::base::{Error, Result, code};
use crate::control::tokens::{private_directory, write_file, write_private};

impl Authority {
    /// The authority in `directory`; if that does not exist or holds no file of an authority, one is made for the trust
    /// domain.
    ///
    /// # Errors
    /// CA_MATERIAL: a file is missing, cannot be understood, does not fit the others, or the key can be read by others.
    pub fn open(directory: &Path, trust_domain: &str) -> Result<Self> {
        if ![ROOT, CERTIFICATE, CHAIN, KEY].iter().any(|name| directory.join(name).exists()) {
            let material = Material::generate(trust_domain)?;
            write(directory, &material).map_err(|error| failed(directory, error))?;
            tracing::info!(directory = %directory.display(), trust_domain, "a new root was made");
        }
        read(directory)?.authority(|name| directory.join(name).display().to_string())
    }
}

fn read(directory: &Path) -> Result<Material> {
    let key = directory.join(KEY);
    let mode = fs::metadata(&key).map_err(|error| failed(&key, error))?.mode();
    if mode & 0o077 != 0 {
        let text = format!("{}: others may read it (mode {:04o}); the key must be 0600", key.display(), mode & 0o7777);
        return Err(Error::new(&code::CA_MATERIAL, text));
    }
    let read = |name: &str| fs::read(directory.join(name)).map_err(|error| failed(&directory.join(name), error));
    let chain = if directory.join(CHAIN).exists() { read(CHAIN)? } else { Vec::new() };
    Ok(Material { root: read(ROOT)?, certificate: read(CERTIFICATE)?, chain, key: read(KEY)? })
}

/// All files or none: a process that is killed here must not leave half an authority.
fn write(directory: &Path, material: &Material) -> io::Result<()> {
    let mut name = directory.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let new = directory.with_file_name(name);
    match fs::remove_dir_all(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    private_directory(&new)?;
    for (name, text) in [(ROOT, &material.root), (CERTIFICATE, &material.certificate), (CHAIN, &material.chain)] {
        write_file(&new.join(name), text, 0o644)?;
    }
    write_private(&new.join(KEY), &material.key)?;
    fs::rename(&new, directory)
}

fn failed(path: &Path, error: io::Error) -> Error {
    Error::caused(&code::CA_MATERIAL, path.display().to_string(), error)
}
