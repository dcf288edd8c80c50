//! Which pods are to be in the mesh: one pure function of labels and annotations. Labels, annotations and their order
//! are those of the reference node agent.

use std::collections::{BTreeMap, BTreeSet};

/// The label that decides, on pods and namespaces: `ambient` or `none`.
pub const MODE: &str = "istio.io/dataplane-mode";

/// Its value for pods that are to be in the mesh.
pub const AMBIENT: &str = "ambient";

/// The annotation of a pod that has a sidecar.
const SIDECAR: &str = "sidecar.istio.io/status";

/// The label of gateways and waypoints that a mesh control plane runs: they speak the mesh's protocol themselves.
const MANAGED: &str = "gateway.istio.io/managed";

/// The annotation that says what becomes of connections that are older than the enrolment: `keep` or `reset`.
const EXISTING: &str = "warren.dev/existing";

/// The labels of a pod that count here.
pub const LABELS: [&str; 2] = [MODE, MANAGED];

/// The annotations of a pod that count here.
pub const ANNOTATIONS: [&str; 2] = [SIDECAR, EXISTING];

/// Labels or annotations.
pub type Map = BTreeMap<String, String>;

/// What is known of a pod.
#[derive(Clone, Copy, Debug)]
pub struct Subject<'a> {
    /// Its namespace.
    pub namespace: &'a str,
    /// The labels of its namespace.
    pub namespace_labels: &'a Map,
    /// Its labels.
    pub labels: &'a Map,
    /// Its annotations.
    pub annotations: &'a Map,
    /// It has no network of its own.
    pub host_network: bool,
}

/// Whether a pod is to be in the mesh, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Membership {
    /// It is.
    In(&'static str),
    /// It is not.
    Out(&'static str),
}

impl Membership {
    /// Whether it is to be in the mesh.
    pub fn is_in(self) -> bool {
        matches!(self, Self::In(_))
    }

    /// The reason.
    pub fn why(self) -> &'static str {
        match self {
            Self::In(why) | Self::Out(why) => why,
        }
    }
}

/// What becomes of connections that are older than a pod's enrolment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Existing {
    /// They go on as they are, outside of the mesh.
    #[default]
    Keep,
    /// They are reset; applications open them anew, through the proxy.
    Reset,
}

/// Decides.
pub fn membership(subject: &Subject<'_>, excluded: &BTreeSet<String>) -> Membership {
    use Membership::{In, Out};
    let mode = subject.labels.get(MODE).map(String::as_str);
    let namespace_mode = subject.namespace_labels.get(MODE).map(String::as_str);
    if subject.host_network {
        return Out("it uses the node's network");
    }
    if subject.annotations.contains_key(SIDECAR) {
        return Out("it has a sidecar");
    }
    if excluded.contains(subject.namespace) {
        return Out("its namespace is excluded by the agent's settings");
    }
    match (mode, namespace_mode) {
        (Some(AMBIENT), _) => In("its label istio.io/dataplane-mode is ambient"),
        (Some("none"), _) => Out("its label istio.io/dataplane-mode is none"),
        (_, Some(AMBIENT)) if subject.labels.get(MANAGED).is_some_and(|by| by.starts_with("istio.io-")) => {
            Out("it is a gateway that speaks the mesh's protocol itself")
        }
        (_, Some(AMBIENT)) => In("the label istio.io/dataplane-mode of its namespace is ambient"),
        _ => Out("neither it nor its namespace has the label istio.io/dataplane-mode=ambient"),
    }
}

/// What becomes of a pod's old connections: its own annotation wins over that of its namespace, and that over the
/// agent's setting. Other values than `keep` and `reset` say nothing.
pub fn existing(pod: &Map, namespace: Option<Existing>, setting: Existing) -> Existing {
    existing_in(pod).or(namespace).unwrap_or(setting)
}

/// What one set of annotations says about old connections.
pub fn existing_in(annotations: &Map) -> Option<Existing> {
    match annotations.get(EXISTING).map(String::as_str) {
        Some("keep") => Some(Existing::Keep),
        Some("reset") => Some(Existing::Reset),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(text: &str) -> Map {
        text.split_whitespace().filter_map(|pair| pair.split_once('=')).map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
    }

    #[test]
    fn who_is_in_the_mesh() {
        let ambient = "istio.io/dataplane-mode=ambient";
        let none = "istio.io/dataplane-mode=none";
        let sidecar = "sidecar.istio.io/status={}";
        let waypoint = "gateway.istio.io/managed=istio.io-mesh-controller";
        let foreign = "gateway.envoyproxy.io/owning-gateway-name=web app.kubernetes.io/managed-by=envoy-gateway";
        // Name, namespace, its labels, the pod's labels, its annotations, hostNetwork, whether it is in.
        let cases = [
            ("nothing is labelled", "shop", "", "", "", false, false),
            ("the namespace is labelled", "shop", ambient, "", "", false, true),
            ("the pod is labelled", "shop", "", ambient, "", false, true),
            ("both are", "shop", ambient, ambient, "", false, true),
            ("the pod opts out", "shop", ambient, none, "", false, false),
            ("the namespace opts out, the pod in", "shop", none, ambient, "", false, true),
            ("another mode of the namespace", "shop", "istio.io/dataplane-mode=sidecar", "", "", false, false),
            ("another mode of the pod does not opt out", "shop", ambient, "istio.io/dataplane-mode=other", "", false, true),
            ("the node's network", "shop", ambient, ambient, "", true, false),
            ("a sidecar", "shop", ambient, "", sidecar, false, false),
            ("a sidecar, and labelled", "shop", "", ambient, sidecar, false, false),
            ("an excluded namespace", "kube-system", ambient, "", "", false, false),
            ("an excluded namespace, the pod labelled", "kube-system", "", ambient, "", false, false),
            ("a waypoint", "shop", ambient, waypoint, "", false, false),
            (
                "a waypoint that is labelled",
                "shop",
                "",
                "istio.io/dataplane-mode=ambient gateway.istio.io/managed=istio.io-x",
                "",
                false,
                true,
            ),
            ("a gateway of another controller is an application", "shop", ambient, foreign, "", false, true),
            ("the annotation that the agent writes decides nothing", "shop", "", "", "ambient.istio.io/redirection=enabled", false, false),
        ];
        let excluded = BTreeSet::from(["kube-system".to_owned()]);
        for (name, namespace, namespace_labels, labels, annotations, host_network, expected) in cases {
            let (namespace_labels, labels, annotations) = (map(namespace_labels), map(labels), map(annotations));
            let subject =
                Subject { namespace, namespace_labels: &namespace_labels, labels: &labels, annotations: &annotations, host_network };
            let decided = membership(&subject, &excluded);
            assert_eq!(decided.is_in(), expected, "{name}: {}", decided.why());
        }
    }

    #[test]
    fn the_nearest_word_about_old_connections_wins() {
        let (keep, reset) = (map("warren.dev/existing=keep"), map("warren.dev/existing=reset"));
        let cases = [
            (&map(""), &map(""), Existing::Reset, Existing::Reset),
            (&map(""), &reset, Existing::Keep, Existing::Reset),
            (&keep, &reset, Existing::Reset, Existing::Keep),
            (&map("warren.dev/existing=what"), &reset, Existing::Keep, Existing::Reset),
        ];
        for (pod, namespace, setting, expected) in cases {
            assert_eq!(existing(pod, existing_in(namespace), setting), expected, "{pod:?} {namespace:?}");
        }
    }
}
