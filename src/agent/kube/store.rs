//! What the watches have told, and which pods follow from it. Pure: events in, pods out.

use std::collections::{BTreeMap, BTreeSet};

use kube::runtime::watcher::Event;

use super::object::{Meta, Pod};
use crate::agent::discovery;
use crate::agent::enrolment::{self, Existing, MODE, Map, Membership, Subject};
use crate::base::Str;
use crate::zds::WorkloadInfo;

/// The annotation that says whether a pod is captured: `enabled` or `pending`. Written, and read only to write it right.
pub(super) const REDIRECTION: &str = "ambient.istio.io/redirection";

/// The annotations of a static pod: what the kubelet calls it, and that this object only mirrors it. The first alone may be
/// on any pod.
const STATIC_UID: &str = "kubernetes.io/config.hash";
const MIRROR: &str = "kubernetes.io/config.mirror";

/// What is chosen by the operator.
#[derive(Clone, Debug, Default)]
pub struct Rules {
    /// Namespaces whose pods are never in the mesh.
    pub excluded: BTreeSet<String>,
    /// What becomes of connections that are older than the enrolment.
    pub existing: Existing,
}

/// The pods of the node and all namespaces, cut down to what decides.
#[derive(Debug)]
pub(super) struct Store {
    rules: Rules,
    pods: BTreeMap<Str, Record>,
    namespaces: BTreeMap<String, Namespace>,
    /// Being listed: what was not named when the list ends is gone.
    listing_pods: Option<BTreeSet<Str>>,
    listing_namespaces: Option<BTreeSet<String>>,
    synced: (bool, bool),
}

#[derive(Clone, Debug)]
pub(super) struct Record {
    pod: discovery::Pod,
    labels: Map,
    annotations: Map,
    host_network: bool,
    /// It has ended, and is kept because of what its annotation may still say.
    over: bool,
    /// The annotation as it is in the API.
    redirection: Option<String>,
}

#[derive(Clone, Debug, Default)]
struct Namespace {
    labels: Map,
    existing: Option<Existing>,
}

impl Store {
    pub(super) fn new(rules: Rules) -> Self {
        Self {
            rules,
            pods: BTreeMap::new(),
            namespaces: BTreeMap::new(),
            listing_pods: None,
            listing_namespaces: None,
            synced: (false, false),
        }
    }

    /// Both lists have been read once.
    pub(super) fn is_synced(&self) -> bool {
        self.synced == (true, true)
    }

    pub(super) fn pod_event(&mut self, event: Event<Pod>) {
        match event {
            Event::Init => self.listing_pods = Some(BTreeSet::new()),
            Event::InitApply(pod) | Event::Apply(pod) => {
                let Some(uid) = pod.metadata.uid.as_deref().map(Str::from) else { return };
                if let Some(listed) = &mut self.listing_pods {
                    listed.insert(uid.clone());
                }
                self.pods.insert(uid, record(pod));
            }
            Event::Delete(pod) => {
                pod.metadata.uid.and_then(|uid| self.pods.remove(uid.as_str()));
            }
            Event::InitDone => {
                if let Some(listed) = self.listing_pods.take() {
                    self.pods.retain(|uid, _| listed.contains(uid));
                }
                self.synced.0 = true;
            }
        }
    }

    pub(super) fn namespace_event(&mut self, event: Event<Meta>) {
        match event {
            Event::Init => self.listing_namespaces = Some(BTreeSet::new()),
            Event::InitApply(meta) | Event::Apply(meta) => {
                let Some(name) = meta.metadata.name.clone() else { return };
                if let Some(listed) = &mut self.listing_namespaces {
                    listed.insert(name.clone());
                }
                self.namespaces.insert(name, namespace(&meta));
            }
            Event::Delete(meta) => {
                meta.metadata.name.and_then(|name| self.namespaces.remove(&name));
            }
            Event::InitDone => {
                if let Some(listed) = self.listing_namespaces.take() {
                    self.namespaces.retain(|name, _| listed.contains(name));
                }
                self.synced.1 = true;
            }
        }
    }

    /// All pods of the node that have not ended. One whose namespace is not known yet is not in the mesh.
    pub(super) fn pods(&self) -> Vec<discovery::Pod> {
        let running = self.pods.values().filter(|record| !record.over);
        running.map(|record| self.decided(record, self.namespaces.get(&record.pod.info.namespace))).collect()
    }

    /// One pod with its namespace, if both are known.
    pub(super) fn pod(&self, uid: &str, namespace: &str, name: &str) -> Option<discovery::Pod> {
        let mut records = self.pods.values();
        let record = records.find(|record| {
            let pod = &record.pod;
            let same_name = pod.info.namespace == namespace && pod.info.name == name;
            same_name && (uid.is_empty() || *pod.uid == *uid || *pod.runtime_uid == *uid)
        })?;
        Some(self.decided(record, Some(self.namespaces.get(namespace)?)))
    }

    /// A pod that was asked for, as it would be if it were listed.
    pub(super) fn decide(&self, pod: Pod, meta: &Meta) -> discovery::Pod {
        self.decided(&record(pod), Some(&namespace(meta)))
    }

    /// What the API says about each pod.
    pub(super) fn records(&self) -> impl Iterator<Item = Told<'_>> {
        self.pods.iter().map(|(uid, record)| {
            let info = &record.pod.info;
            let ambient = !record.over && self.membership(record, self.namespaces.get(&info.namespace)).is_in();
            Told { uid, info, is: record.redirection.as_deref(), ambient }
        })
    }

    /// The annotation was written.
    pub(super) fn wrote(&mut self, uid: &str, redirection: Option<String>) {
        if let Some(record) = self.pods.get_mut(uid) {
            record.redirection = redirection;
        }
    }

    /// The namespaces that are known, each with whether its label says ambient, or that of a pod of the node that is in it.
    pub(super) fn namespaces(&self) -> BTreeMap<String, bool> {
        let labelled = |labels: &Map| labels.get(MODE).is_some_and(|mode| mode == "ambient");
        let all = self.namespaces.iter().map(|(name, namespace)| (name.clone(), labelled(&namespace.labels)));
        let pods = self.pods.values().filter(|record| !record.over && labelled(&record.labels));
        all.chain(pods.map(|record| (record.pod.info.namespace.clone(), true))).collect()
    }

    fn membership(&self, record: &Record, namespace: Option<&Namespace>) -> Membership {
        let Some(namespace) = namespace else { return Membership::Out("its namespace is not known yet") };
        let subject = Subject {
            namespace: &record.pod.info.namespace,
            namespace_labels: &namespace.labels,
            labels: &record.labels,
            annotations: &record.annotations,
            host_network: record.host_network,
        };
        enrolment::membership(&subject, &self.rules.excluded)
    }

    fn decided(&self, record: &Record, namespace: Option<&Namespace>) -> discovery::Pod {
        let mut pod = record.pod.clone();
        let decided = self.membership(record, namespace);
        (pod.ambient, pod.why) = (decided.is_in(), decided.why());
        pod.existing = enrolment::existing(&record.annotations, namespace.and_then(|namespace| namespace.existing), self.rules.existing);
        pod
    }
}

/// What the API says about a pod.
pub(super) struct Told<'a> {
    pub(super) uid: &'a Str,
    pub(super) info: &'a WorkloadInfo,
    /// The annotation.
    pub(super) is: Option<&'a str>,
    /// It is to be in the mesh.
    pub(super) ambient: bool,
}

fn record(pod: Pod) -> Record {
    let ips = pod.ips();
    let (running_since, over) = (pod.running_since(), pod.is_over());
    let Pod { metadata, spec, .. } = pod;
    let uid: Str = metadata.uid.unwrap_or_default().into();
    let (mut labels, mut annotations) = (metadata.labels.unwrap_or_default(), metadata.annotations.unwrap_or_default());
    let redirection = annotations.remove(REDIRECTION);
    let static_uid = annotations.remove(STATIC_UID).filter(|_| annotations.contains_key(MIRROR));
    let runtime_uid = static_uid.map_or_else(|| uid.clone(), Str::from);
    labels.retain(|name, _| enrolment::LABELS.contains(&name.as_str()));
    annotations.retain(|name, _| enrolment::ANNOTATIONS.contains(&name.as_str()));
    // The identity of a pod that names no account is that of `default`, as the API server would have it.
    let service_account = if spec.service_account_name.is_empty() { "default".to_owned() } else { spec.service_account_name };
    let info = WorkloadInfo { name: metadata.name.unwrap_or_default(), namespace: metadata.namespace.unwrap_or_default(), service_account };
    let pod = discovery::Pod {
        uid,
        runtime_uid,
        info,
        ips,
        netns: None,
        ambient: false,
        why: "",
        existing: Existing::Keep,
        running_since,
        // One on the node's network was never captured, whatever somebody has written on it.
        marked: redirection.is_some() && !spec.host_network,
    };
    Record { pod, labels, annotations, host_network: spec.host_network, over, redirection }
}

fn namespace(meta: &Meta) -> Namespace {
    let mut labels = meta.metadata.labels.clone().unwrap_or_default();
    labels.retain(|name, _| name == MODE);
    Namespace { labels, existing: meta.metadata.annotations.as_ref().and_then(enrolment::existing_in) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(uid: &str, mode: &str, phase: &str) -> Pod {
        let pod = json!({
            "metadata": {"uid": uid, "name": format!("name-{uid}"), "namespace": "shop", "labels": {MODE: mode, "app": "a"}},
            "spec": {"serviceAccountName": "clerk"},
            "status": {"phase": phase, "podIP": "10.0.0.1"},
        });
        serde_json::from_value(pod).expect("a pod")
    }

    fn shop(mode: &str) -> Meta {
        serde_json::from_value(json!({"metadata": {"name": "shop", "labels": {MODE: mode}}})).expect("a namespace")
    }

    fn ambient(store: &Store) -> Vec<(String, bool)> {
        store.pods().into_iter().map(|pod| (pod.uid.to_string(), pod.ambient)).collect()
    }

    fn list<const N: usize>(store: &mut Store, pods: [Pod; N]) {
        store.pod_event(Event::Init);
        for pod in pods {
            store.pod_event(Event::InitApply(pod));
        }
        store.pod_event(Event::InitDone);
    }

    #[test]
    fn a_namespaces_label_decides_for_its_pods_at_once() {
        let mut store = Store::new(Rules::default());
        list(&mut store, [pod("a", "", "Running"), pod("b", "none", "Running")]);
        assert!(!store.is_synced(), "namespaces are not known yet");
        assert!(store.pod("a", "shop", "name-a").is_none(), "nothing is decided without its namespace");
        store.namespace_event(Event::Init);
        store.namespace_event(Event::InitApply(shop("")));
        store.namespace_event(Event::InitDone);
        assert!(store.is_synced());
        assert_eq!(ambient(&store), [("a".into(), false), ("b".into(), false)]);
        store.namespace_event(Event::Apply(shop("ambient")));
        assert_eq!(ambient(&store), [("a".into(), true), ("b".into(), false)]);
        assert!(store.pod("", "shop", "name-a").is_some_and(|pod| pod.ambient), "runtimes that do not tell the UID");
        assert!(store.pod("other", "shop", "name-a").is_none());
        assert_eq!(store.namespaces(), [("shop".to_owned(), true)].into());
        store.namespace_event(Event::Delete(shop("ambient")));
        assert_eq!(ambient(&store), [("a".into(), false), ("b".into(), false)]);
    }

    #[test]
    fn only_a_pod_that_mirrors_a_static_one_has_another_uid_for_the_runtime() {
        let hash = "2ba3f1c09d4e4c57a1b20123456789ab";
        let cases = [
            ("a static pod", json!({STATIC_UID: hash, MIRROR: hash}), hash),
            ("any pod", json!({STATIC_UID: hash}), "a"),
            ("none is said", json!({MIRROR: hash}), "a"),
        ];
        for (name, annotations, expected) in cases {
            let mut pod = pod("a", "", "Running");
            pod.metadata.annotations = serde_json::from_value(annotations).expect("annotations");
            assert_eq!(*record(pod).pod.runtime_uid, *expected, "{name}");
        }
    }

    #[test]
    fn pods_that_are_over_or_missing_from_a_new_list_leave() {
        let mut store = Store::new(Rules::default());
        list(&mut store, [pod("a", "ambient", "Running"), pod("b", "", "Pending"), pod("c", "", "Running"), pod("d", "", "Succeeded")]);
        assert_eq!(store.pods().len(), 3);
        store.pod_event(Event::Apply(pod("c", "", "Failed")));
        assert_eq!(store.pods().len(), 2);
        store.pod_event(Event::Init);
        store.pod_event(Event::InitApply(pod("b", "", "Running")));
        assert_eq!(store.pods().len(), 2, "nothing is missing before the list is complete");
        store.pod_event(Event::InitDone);
        assert_eq!(ambient(&store), [("b".into(), false)]);
        store.pod_event(Event::Delete(pod("b", "", "Running")));
        assert!(store.pods().is_empty());
    }
}
