//! The control plane's own TLS: a certificate of its own authority, replaced before it ends.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use rcgen::string::Ia5String;
use rcgen::{KeyPair, SanType};
use rustls::ServerConfig;
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::sync::watch;

use super::ca::{Authority, Purpose};
use crate::base::{Error, Result, code};

/// Life of one certificate. Half of it is left when the next is made.
const LIFETIME: Duration = Duration::from_secs(30 * 24 * 3600);

/// What proxies call a control plane by default, here or in a cluster.
const NAMES: [&str; 8] = [
    "localhost",
    "127.0.0.1",
    "::1",
    "istiod.istio-system.svc",
    "istiod.istio-system.svc.cluster.local",
    "istiod.istio-system",
    "warren-control.warren-system.svc",
    "warren-control.warren-system.svc.cluster.local",
];

/// Gives the configuration for each new connection.
pub(super) struct ServerTls {
    authority: watch::Receiver<Arc<Authority>>,
    names: Vec<SanType>,
    current: Mutex<Option<Current>>,
}

struct Current {
    /// Who signed it.
    authority: Arc<Authority>,
    config: Arc<ServerConfig>,
    renew_at: SystemTime,
}

impl ServerTls {
    /// TLS under the default names and these, each a DNS name or an address.
    ///
    /// # Errors
    /// BAD_SETTING: a name is neither.
    pub(super) fn new(authority: watch::Receiver<Arc<Authority>>, names: &[String]) -> Result<Self> {
        let mut all: Vec<&str> = NAMES.iter().copied().chain(names.iter().map(String::as_str)).collect();
        all.sort_unstable();
        all.dedup();
        let names = all.into_iter().map(san).collect::<Result<_>>()?;
        Ok(Self { authority, names, current: Mutex::new(None) })
    }

    /// The configuration now.
    ///
    /// # Errors
    /// CA_MATERIAL: the authority cannot sign any more, and what it signed last has ended.
    pub(super) fn config(&self) -> Result<Arc<ServerConfig>> {
        self.config_at(SystemTime::now())
    }

    fn config_at(&self, now: SystemTime) -> Result<Arc<ServerConfig>> {
        let authority = Arc::clone(&self.authority.borrow());
        let mut current = self.current.lock();
        let is_good = |current: &&Current| now < current.renew_at && Arc::ptr_eq(&current.authority, &authority);
        if let Some(current) = current.as_ref().filter(is_good) {
            return Ok(Arc::clone(&current.config));
        }
        let (config, not_after) = self.make(&authority)?;
        let left = not_after.duration_since(now).unwrap_or_default();
        *current = Some(Current { authority, config: Arc::clone(&config), renew_at: now + left / 2 });
        Ok(config)
    }

    fn make(&self, authority: &Authority) -> Result<(Arc<ServerConfig>, SystemTime)> {
        let failed = |error: rustls::Error| Error::caused(&code::CA_MATERIAL, "TLS of the control plane", error);
        let key = KeyPair::generate().map_err(|error| Error::caused(&code::INTERNAL, "key of the control plane", error))?;
        let issued = authority.issue(&key, self.names.clone(), Purpose::Server, LIFETIME)?;
        let chain = std::iter::once(issued.certificate).chain(authority.intermediates().iter().cloned()).collect();
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(failed)?
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .map_err(failed)?;
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok((Arc::new(config), issued.not_after))
    }
}

fn san(name: &str) -> Result<SanType> {
    if let Ok(ip) = name.parse::<IpAddr>() {
        return Ok(SanType::IpAddress(ip));
    }
    let wrong = || Error::new(&code::BAD_SETTING, format!("--san {name:?} is neither a DNS name nor an address"));
    rustls_pki_types::DnsName::try_from(name).map_err(|_| wrong())?;
    Ia5String::try_from(name).map(SanType::DnsName).map_err(|_| wrong())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn authority(dir: &tempfile::TempDir) -> Arc<Authority> {
        Arc::new(Authority::open(&dir.path().join("ca"), "cluster.local").unwrap())
    }

    #[test]
    fn the_certificate_is_replaced_when_half_of_its_life_is_over() {
        let dir = tempfile::tempdir().unwrap();
        let (_sender, authority) = watch::channel(authority(&dir));
        let tls = ServerTls::new(authority, &["10.0.0.1".to_owned(), "control.example".to_owned()]).unwrap();
        let now = SystemTime::now();
        let first = tls.config_at(now).unwrap();
        assert!(Arc::ptr_eq(&first, &tls.config_at(now + LIFETIME / 2 - Duration::from_secs(60)).unwrap()));
        assert!(!Arc::ptr_eq(&first, &tls.config_at(now + LIFETIME / 2 + Duration::from_secs(60)).unwrap()));
    }

    #[test]
    fn another_authority_signs_another_certificate_at_once() {
        let (old, new) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (sender, receiver) = watch::channel(authority(&old));
        let tls = ServerTls::new(receiver, &[]).unwrap();
        let first = tls.config().unwrap();
        sender.send_replace(authority(&new));
        assert!(!Arc::ptr_eq(&first, &tls.config().unwrap()));
    }

    #[test]
    fn a_name_must_be_one() {
        let dir = tempfile::tempdir().unwrap();
        let (_sender, authority) = watch::channel(authority(&dir));
        let error = ServerTls::new(authority, &["no name".to_owned()]).err().expect("refused");
        assert_eq!(error.code(), &code::BAD_SETTING);
    }
}
