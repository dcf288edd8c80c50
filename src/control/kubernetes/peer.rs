//! PeerAuthentication.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Deserialize;
use serde_json::Value;

use super::authorization::{Selector, Verdict, readable_selector};
use super::{Refusal, Watched, api};
use crate::control::objects::{Kind, Mesh, Mode, Object, PeerAuthentication};

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct Spec {
    selector: Option<Selector>,
    mtls: Option<MutualTls>,
    port_level_mtls: Option<BTreeMap<String, Option<MutualTls>>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct MutualTls {
    mode: Option<String>,
}

impl Watched for api::PeerAuthentication {
    const KIND: Kind = Kind::PeerAuthentication;
    const IS_CUSTOM: bool = true;

    fn read(&self, _mesh: &Mesh) -> Result<Option<Object>, Refusal> {
        let policy = self.convert().map_err(|reason| Refusal { reason, instead: Some(self.refusal()) })?;
        Ok(Some(Object::PeerAuthentication(Arc::new(policy))))
    }

    fn verdict(&self, mesh: &Mesh) -> Option<Verdict> {
        let is_root = *self.id().namespace == *mesh.root_namespace;
        Some(match self.convert() {
            Ok(policy) if is_root && !policy.selector.is_empty() => {
                Verdict::invalid("a selector has no effect in the root namespace: policies there are for the mesh".to_owned())
            }
            Ok(policy) if policy.selector.is_empty() && !policy.ports.is_empty() => {
                Verdict { accepted: true, ..Verdict::invalid("portLevelMtls has no effect without a selector".to_owned()) }
            }
            Ok(_) => Verdict::attached(),
            Err(reason) => {
                Verdict::invalid(format!("{reason}. Until it is corrected, its last correct version or else STRICT is in force."))
            }
        })
    }

    fn status(&self) -> Option<&Value> {
        Some(&self.status)
    }
}

impl api::PeerAuthentication {
    fn convert(&self) -> Result<PeerAuthentication, String> {
        let spec = match &self.spec {
            Value::Null => Spec::default(),
            spec => Spec::deserialize(spec).map_err(|error| error.to_string())?,
        };
        let port = |(port, tls): (&String, &Option<MutualTls>)| {
            let port: u16 = port.parse().map_err(|_| format!("portLevelMtls: {port:?} is no port"))?;
            Ok((port, mode(tls.as_ref())?))
        };
        Ok(PeerAuthentication {
            id: self.id(),
            created: self.metadata.creation_timestamp.as_ref().map_or(i64::MAX, |time| time.0.as_second()),
            selector: spec.selector.map(|selector| selector.labels()).unwrap_or_default(),
            mode: mode(spec.mtls.as_ref())?,
            ports: spec.port_level_mtls.iter().flatten().map(port).collect::<Result<_, String>>()?,
            is_stand_in: false,
        })
    }

    /// Refuses connections without identity wherever this one may have wanted to, and wins over others.
    fn refusal(&self) -> Object {
        let selector = readable_selector(&self.spec).map(|selector| selector.labels()).unwrap_or_default();
        let id = self.id();
        Object::PeerAuthentication(Arc::new(PeerAuthentication {
            id,
            created: i64::MIN,
            selector,
            mode: Mode::Strict,
            ports: BTreeMap::new(),
            is_stand_in: true,
        }))
    }
}

fn mode(tls: Option<&MutualTls>) -> Result<Mode, String> {
    match tls.and_then(|tls| tls.mode.as_deref()) {
        None | Some("UNSET") => Ok(Mode::Unset),
        Some("PERMISSIVE" | "DISABLE") => Ok(Mode::Permissive),
        Some("STRICT") => Ok(Mode::Strict),
        Some(mode) => Err(format!("the mode {mode:?} is not known")),
    }
}
