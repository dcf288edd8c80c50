//! The authority in a Secret, for any number of control planes: `cacerts`, if an operator has put it there, else
//! `warren-ca`, which whoever comes first makes and nobody overwrites.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{Api, ObjectMeta, PostParams};
use parking_lot::RwLock;
use tokio::sync::watch;

use super::authority::Authority;
use super::material::{CERTIFICATE, CHAIN, KEY, Material, ROOT};
use crate::base::{Error, Result, code, deadline, drain};
use crate::control::api;

/// An operator's, which wins.
const OPERATORS: &str = "cacerts";

/// Our own.
const OWN: &str = "warren-ca";

/// For one call.
const LIMIT: Duration = Duration::from_secs(10);

/// Somebody else may make the Secret, or take it away, between two calls.
const ATTEMPTS: usize = 5;

/// Between two attempts to put back what was deleted.
const PAUSE: Duration = Duration::from_secs(1);

/// Why the newest material is not in force, for the health endpoint.
pub(in crate::control) type Trouble = Arc<RwLock<Option<String>>>;

/// Follows the Secrets of one namespace.
pub(in crate::control) struct Keeper {
    client: kube::Client,
    namespace: String,
    trust_domain: String,
    /// What is in force, and whose it is.
    current: (&'static str, Material),
}

impl Keeper {
    /// The authority that is there, or a new one.
    ///
    /// # Errors
    /// CA_MATERIAL: a Secret is there but unusable. API_UNAVAILABLE, API_REFUSED.
    pub(in crate::control) async fn open(client: kube::Client, namespace: &str, trust_domain: &str) -> Result<(Self, Authority)> {
        let secrets = Api::<Secret>::namespaced(client.clone(), namespace);
        for _ in 0..ATTEMPTS {
            for name in [OPERATORS, OWN] {
                let what = format!("get secrets {namespace}/{name}");
                let call = deadline(LIMIT, &code::API_UNAVAILABLE, &what, secrets.get_opt(name)).await?;
                if let Some(secret) = call.map_err(|error| api::failed(&what, error))? {
                    let (material, authority) = understood(namespace, name, &secret)?;
                    tracing::info!(namespace, secret = name, "the authority is in force");
                    let current = (name, material);
                    let (namespace, trust_domain) = (namespace.to_owned(), trust_domain.to_owned());
                    return Ok((Self { client, namespace, trust_domain, current }, authority));
                }
            }
            // What is made is read back: another control plane may have come first.
            if create(&secrets, namespace, &Material::generate(trust_domain)?).await? {
                tracing::info!(namespace, secret = OWN, trust_domain, "a new root was made");
            }
        }
        Err(Error::new(&code::API_UNAVAILABLE, format!("the secret {namespace}/{OWN} comes and goes")))
    }

    /// Puts each usable state of the Secrets in force, until the drain. An unusable one changes nothing but `trouble`.
    pub(in crate::control) async fn follow(mut self, authority: watch::Sender<Arc<Authority>>, trouble: Trouble, mut drain: drain::Watch) {
        let secrets = Api::<Secret>::namespaced(self.client.clone(), &self.namespace);
        let (mut operators, mut own) = (api::watch_one(secrets.clone(), OPERATORS), api::watch_one(secrets.clone(), OWN));
        let (mut first, mut second) = (None, None);
        loop {
            let seen = tokio::select! {
                Some(seen) = operators.next() => seen.map(|secret| first = Some(secret)),
                Some(seen) = own.next() => seen.map(|secret| second = Some(secret)),
                _ = drain.started() => return,
            };
            if let Err(error) = seen {
                let error = api::watch_failed(&format!("watch secrets in {}", self.namespace), error);
                tracing::warn!(%error, "changes of the authority are not seen");
                continue;
            }
            let (Some(operators), Some(own)) = (&first, &second) else { continue };
            let outcome = match (operators, own) {
                (Some(secret), _) => self.take(OPERATORS, secret),
                (None, Some(secret)) => self.take(OWN, secret),
                (None, None) => {
                    tokio::select! {
                        outcome = self.put_back(&secrets) => outcome.map(|()| None),
                        _ = drain.started() => return,
                    }
                }
            };
            match outcome {
                Ok(new) => {
                    *trouble.write() = None;
                    if let Some(new) = new {
                        authority.send_replace(Arc::new(new));
                    }
                }
                Err(error) => {
                    tracing::error!(%error, "the authority that was in force stays");
                    *trouble.write() = Some(error.to_string());
                }
            }
        }
    }

    /// The authority in a Secret, if it is another than the one in force.
    fn take(&mut self, name: &'static str, secret: &Secret) -> Result<Option<Authority>> {
        let (material, authority) = understood(&self.namespace, name, secret)?;
        if material == self.current.1 {
            self.current.0 = name;
            return Ok(None);
        }
        tracing::warn!(namespace = self.namespace, secret = name, roots = authority.roots().len(), "another authority is in force");
        self.current = (name, material);
        Ok(Some(authority))
    }

    /// Our own Secret was deleted: what signs must not be lost, or every certificate that is out there is of an unknown
    /// root. An operator's is not ours to make.
    async fn put_back(&self, secrets: &Api<Secret>) -> Result<()> {
        let (name, material) = &self.current;
        if *name == OPERATORS {
            let text = format!("Secret {}/{OPERATORS}: it was in force and is gone", self.namespace);
            return Err(Error::new(&code::CA_MATERIAL, text));
        }
        loop {
            match create(secrets, &self.namespace, material).await {
                Ok(_) => {
                    tracing::warn!(namespace = self.namespace, secret = OWN, trust_domain = self.trust_domain, "deleted and put back");
                    return Ok(());
                }
                Err(error) => tracing::error!(%error, "the authority was deleted and cannot be put back yet"),
            }
            tokio::time::sleep(PAUSE).await;
        }
    }
}

/// Whether it was made; if not, somebody else has.
async fn create(secrets: &Api<Secret>, namespace: &str, material: &Material) -> Result<bool> {
    let what = format!("create secrets {namespace}/{OWN}");
    let parts = [(ROOT, &material.root), (CERTIFICATE, &material.certificate), (CHAIN, &material.chain), (KEY, &material.key)];
    let data: BTreeMap<_, _> = parts.map(|(name, text)| (name.to_owned(), ByteString(text.clone()))).into();
    let metadata = ObjectMeta { name: Some(OWN.to_owned()), ..ObjectMeta::default() };
    let secret = Secret { metadata, data: Some(data), type_: Some("Opaque".to_owned()), ..Secret::default() };
    match deadline(LIMIT, &code::API_UNAVAILABLE, &what, secrets.create(&PostParams::default(), &secret)).await? {
        Ok(_) => Ok(true),
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(false),
        Err(error) => Err(api::failed(&what, error)),
    }
}

fn understood(namespace: &str, name: &str, secret: &Secret) -> Result<(Material, Authority)> {
    let place = |key: &str| format!("Secret {namespace}/{name}, {key}");
    let data = secret.data.as_ref();
    let part = |key: &str| data.and_then(|data| data.get(key)).map(|text| text.0.clone());
    let needed = |key: &str| part(key).ok_or_else(|| Error::new(&code::CA_MATERIAL, format!("{}: it is missing", place(key))));
    let material =
        Material { root: needed(ROOT)?, certificate: needed(CERTIFICATE)?, chain: part(CHAIN).unwrap_or_default(), key: needed(KEY)? };
    let authority = material.authority(place)?;
    Ok((material, authority))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret(material: &Material) -> Secret {
        let parts = [(ROOT, &material.root), (CERTIFICATE, &material.certificate), (CHAIN, &material.chain), (KEY, &material.key)];
        let data = parts.map(|(name, text)| (name.to_owned(), ByteString(text.clone()))).into();
        Secret { data: Some(data), ..Secret::default() }
    }

    #[test]
    fn a_secret_is_what_an_authority_is_made_of_or_named_with_the_key_that_is_wrong() {
        let material = Material::generate("cluster.local").unwrap();
        let other = Material::generate("cluster.local").unwrap();
        let (same, authority) = understood("ns", OWN, &secret(&material)).unwrap();
        assert!(same == material && authority.roots().len() == 1);
        // Istio's own self-signed authority has an empty chain.
        understood("ns", OWN, &secret(&Material { chain: Vec::new(), ..material.clone() })).unwrap();
        let two = [material.root.clone(), other.root.clone()].concat();
        let (_, authority) = understood("ns", OPERATORS, &secret(&Material { root: two, ..material.clone() })).unwrap();
        assert_eq!(authority.roots_pem().matches("BEGIN CERTIFICATE").count(), 2, "both are published");

        let cases = [
            (Secret::default(), "Secret ns/cacerts, root-cert.pem: it is missing"),
            (secret(&Material { key: other.key.clone(), ..material.clone() }), "ca-cert.pem: belongs to another key"),
            (secret(&Material { root: other.root.clone(), ..material.clone() }), "ca-cert.pem: does not lead to root-cert.pem"),
            (secret(&Material { key: b"x".to_vec(), ..material.clone() }), "ca-key.pem: no private key"),
            (secret(&Material { certificate: b"x".to_vec(), ..material }), "ca-cert.pem: no certificates in PEM"),
        ];
        for (broken, reason) in cases {
            let error = understood("ns", OPERATORS, &broken).map(|_| ()).expect_err(reason);
            assert_eq!(error.code(), &code::CA_MATERIAL);
            assert!(error.to_string().contains(reason) && !error.to_string().contains("PRIVATE"), "{reason}: {error}");
        }
    }
}
