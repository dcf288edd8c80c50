//! What an element that is well formed must still obey. The rules for names are those of Kubernetes, so that a file
//! can be taken to a cluster and back.

use std::collections::BTreeMap;

use super::{Pod, Policy, Rule, Service};

/// The reason is a sentence about the element.
pub(super) type Verdict = Result<(), String>;

pub(super) fn trust_domain(name: &str) -> Verdict {
    // SPIFFE-ID §2.1.
    let letters = name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'.' | b'-' | b'_'));
    match letters && !name.is_empty() && name.len() <= 255 {
        true => Ok(()),
        false => Err(format!("trustDomain {name:?} must be 1 to 255 of a-z 0-9 . - _")),
    }
}

pub(super) fn pod(pod: &Pod) -> Verdict {
    subdomain("name", &pod.name)?;
    label_name("namespace", &pod.namespace)?;
    subdomain("serviceAccount", &pod.service_account)?;
    subdomain("node", &pod.node)?;
    labels("labels", &pod.labels)?;
    if let Some(uid) = &pod.uid
        && (uid.is_empty() || uid.len() > 128 || !uid.bytes().all(|byte| byte.is_ascii_graphic()))
    {
        return Err(format!("uid {uid:?} must be 1 to 128 printable characters"));
    }
    if pod.ips.is_empty() {
        return Err("ips must name at least one address".to_owned());
    }
    if let Some(ip) = pod.ips.iter().find(|ip| ip.is_unspecified() || ip.is_multicast() || ip.is_loopback()) {
        return Err(format!("ips: {ip} cannot be a pod's address"));
    }
    match &pod.netns {
        None if pod.ambient => Err("ambient is true, but netns is missing".to_owned()),
        Some(path) if !path.is_absolute() => Err(format!("netns {:?} must be an absolute path", path.display().to_string())),
        _ => Ok(()),
    }
}

pub(super) fn service(service: &Service) -> Verdict {
    label_name("name", &service.name)?;
    label_name("namespace", &service.namespace)?;
    if let Some(hostname) = &service.hostname {
        subdomain("hostname", hostname)?;
    }
    if let Some(ip) = service.vips.iter().find(|ip| ip.is_unspecified() || ip.is_multicast()) {
        return Err(format!("vips: {ip} cannot be a service's address"));
    }
    if service.ports.is_empty() {
        return Err("ports must name at least one port".to_owned());
    }
    if let Some((port, target)) = service.ports.iter().find(|(port, target)| **port == 0 || **target == 0) {
        return Err(format!("ports: {port}: {target}: a port is 1 to 65535"));
    }
    labels("selector", &service.selector)
}

pub(super) fn policy(policy: &Policy) -> Verdict {
    policy_name(&policy.name)?;
    label_name("namespace", &policy.namespace)?;
    selector(&policy.selector)?;
    if policy.global && !policy.selector.is_empty() {
        return Err("global and selector exclude each other".to_owned());
    }
    policy
        .rules
        .iter()
        .enumerate()
        .try_for_each(|(index, rule)| rule_values(rule).map_err(|reason| format!("rule {}: {reason}", index + 1)))
}

pub(super) fn policy_name(name: &str) -> Verdict {
    subdomain("name", name)
}

pub(super) fn selector(selector: &BTreeMap<String, String>) -> Verdict {
    labels("selector", selector)
}

fn rule_values(rule: &Rule) -> Verdict {
    let texts = [
        ("principals", &rule.principals),
        ("notPrincipals", &rule.not_principals),
        ("namespaces", &rule.namespaces),
        ("notNamespaces", &rule.not_namespaces),
    ];
    for (field, values) in texts {
        for value in values {
            if value.is_empty() {
                return Err(format!("{field}: an empty value matches nothing"));
            }
            if value.starts_with("spiffe://") {
                return Err(format!("{field}: {value:?} must be written without spiffe://"));
            }
            // `*` is a wildcard alone, first or last; `*a*` and `a*b` would silently mean something else.
            let stars = value.matches('*').count();
            if stars > 1 || (stars == 1 && !value.starts_with('*') && !value.ends_with('*')) {
                return Err(format!("{field}: {value:?} may hold one *, first or last"));
            }
        }
    }
    match rule.ports.iter().chain(&rule.not_ports).any(|port| *port == 0) {
        true => Err("a port is 1 to 65535".to_owned()),
        false => Ok(()),
    }
}

/// RFC 1123 subdomain, at most 253 characters.
fn subdomain(field: &str, name: &str) -> Verdict {
    match name.len() <= 253 && name.split('.').all(is_label) {
        true => Ok(()),
        false => Err(format!("{field} {name:?} must be lower-case letters, digits, - and . (RFC 1123 subdomain)")),
    }
}

/// RFC 1123 label, at most 63 characters.
fn label_name(field: &str, name: &str) -> Verdict {
    match name.len() <= 63 && is_label(name) {
        true => Ok(()),
        false => Err(format!("{field} {name:?} must be at most 63 lower-case letters, digits and - (RFC 1123 label)")),
    }
}

fn is_label(part: &str) -> bool {
    let inner = part.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-');
    inner && !part.is_empty() && !part.starts_with('-') && !part.ends_with('-')
}

fn labels(field: &str, labels: &BTreeMap<String, String>) -> Verdict {
    labels.iter().try_for_each(|(key, value)| {
        let (prefix, name) = match key.split_once('/') {
            Some((prefix, name)) => (Some(prefix), name),
            None => (None, key.as_str()),
        };
        if !is_label_part(name) || prefix.is_some_and(|prefix| subdomain(field, prefix).is_err()) {
            return Err(format!("{field}: the key {key:?} is no label key"));
        }
        match value.is_empty() || is_label_part(value) {
            true => Ok(()),
            false => Err(format!("{field}: {key}: {value:?} must be at most 63 letters, digits, - _ .")),
        }
    })
}

fn is_label_part(text: &str) -> bool {
    let edge = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
    let bytes = text.as_bytes();
    let inner = bytes.iter().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'));
    inner && bytes.len() <= 63 && edge(bytes.first()) && edge(bytes.last())
}
