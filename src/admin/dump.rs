//! `/config_dump`: the whole state as one JSON object, in the shape that `istioctl ztunnel-config` reads.

use std::time::SystemTime;

use rustls_pki_types::CertificateDer;
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::Admin;
use crate::identity::{self, Listed};

/// The state now.
pub(super) fn dump(admin: &Admin) -> Value {
    let mesh = admin.mesh.snapshot();
    let mut dump = serde_json::to_value(mesh.dump()).unwrap_or_else(|error| json!({"error": error.to_string()}));
    if let Some(fields) = dump.as_object_mut() {
        fields.insert("certificates".to_owned(), admin.certificates.list().iter().map(certificate).collect());
        fields.insert("workloadState".to_owned(), json!(admin.pods.list()));
        fields.insert("config".to_owned(), admin.settings.clone());
        fields.insert("version".to_owned(), json!({"version": env!("CARGO_PKG_VERSION"), "name": "warren"}));
    }
    dump
}

fn certificate(listed: &Listed) -> Value {
    let (chain, roots) = match &listed.certificate {
        Some(certificate) => (facts(&certificate.chain), facts(&certificate.roots)),
        None => (vec![], vec![]),
    };
    json!({"identity": listed.id.to_string(), "state": listed.state.to_string(), "certChain": chain, "rootCerts": roots})
}

fn facts(certificates: &[CertificateDer<'_>]) -> Vec<Value> {
    let fact = |certificate| match identity::facts(certificate) {
        Ok(facts) => json!({
            "pem": facts.pem,
            "serialNumber": facts.serial_number,
            "validFrom": rfc3339(facts.valid_from),
            "expirationTime": rfc3339(facts.expiration_time),
        }),
        Err(error) => json!({"error": error.to_string()}),
    };
    certificates.iter().map(fact).collect()
}

fn rfc3339(time: SystemTime) -> String {
    let seconds = OffsetDateTime::from(time).replace_nanosecond(0).unwrap_or_else(|_| time.into());
    seconds.format(&Rfc3339).unwrap_or_default()
}
