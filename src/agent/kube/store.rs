//! What the watches have told, and which pods follow from it. Pure: events in, pods out.

use std::collections::{BTreeMap, BTreeSet};

use kube::runtime::watcher::Event;

use super::object::{Meta, Pod};
use crate::agent::discovery;
use crate::agent::enrolment::{self, AMBIENT, Existing, MODE, Map, Membership, Subject};
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

/// The pods of the node, all namespaces, and the pods of the cluster that ask for the mesh by their own label: cut down to
/// what decides.
#[derive(Debug)]
pub(super) struct Store {
    rules: Rules,
    pods: BTreeMap<Str, Record>,
    namespaces: BTreeMap<String, Namespace>,
    /// The namespaces of pods that ask for the mesh, on whatever node, by UID.
    asking: BTreeMap<Str, Str>,
    /// Being listed: what was not named when the list ends is gone.
    listing_pods: Option<BTreeSet<Str>>,
    listing_namespaces: Option<BTreeSet<String>>,
    listing_asking: Option<BTreeSet<Str>>,
    synced: (bool, bool),
    asking_synced: bool,
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
            asking: BTreeMap::new(),
            listing_pods: None,
            listing_namespaces: None,
            listing_asking: None,
            synced: (false, false),
            asking_synced: false,
        }
    }

    /// The pods of the node and the namespaces have been read once.
    pub(super) fn is_synced(&self) -> bool {
        self.synced == (true, true)
    }

    pub(super) fn pod_event(&mut self, event: Event<Pod>) {
        let uid = |pod: &Pod| pod.metadata.uid.as_deref().map(Str::from);
        self.synced.0 |= keep(&mut self.pods, &mut self.listing_pods, event, uid, record);
    }

    pub(super) fn namespace_event(&mut self, event: Event<Meta>) {
        let name = |meta: &Meta| meta.metadata.name.clone();
        self.synced.1 |= keep(&mut self.namespaces, &mut self.listing_namespaces, event, name, |meta| namespace(&meta));
    }

    /// A pod with the label `ambient`, on whatever node. Returns whether [`Self::namespaces`] may have changed: most that
    /// happens to such a pod is of no interest.
    pub(super) fn asking_event(&mut self, event: Event<Meta>) -> bool {
        let (before, is_change) = (self.asking.len(), matches!(event, Event::Apply(_) | Event::Delete(_)));
        let uid = |meta: &Meta| meta.metadata.uid.as_deref().map(Str::from);
        let namespace = |meta: Meta| meta.metadata.namespace.unwrap_or_default().into();
        self.asking_synced |= keep(&mut self.asking, &mut self.listing_asking, event, uid, namespace);
        !is_change || self.asking.len() != before
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

    /// All namespaces, each with whether its label says ambient, or that of a pod that is in it. None before all is known.
    pub(super) fn namespaces(&self) -> BTreeMap<String, bool> {
        if !self.is_synced() || !self.asking_synced {
            return BTreeMap::new();
        }
        let labelled = |labels: &Map| labels.get(MODE).is_some_and(|mode| mode == AMBIENT);
        let all = self.namespaces.iter().map(|(name, namespace)| (name.clone(), labelled(&namespace.labels)));
        // This node's own pods may be seen a moment earlier by the other watch.
        let pods = self.pods.values().filter(|record| !record.over && labelled(&record.labels));
        let asking = self.asking.values().map(|namespace| namespace.to_string());
        all.chain(pods.map(|record| record.pod.info.namespace.clone()).chain(asking).map(|name| (name, true))).collect()
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

/// Takes an event into all that a watch has told. `listing` is what is being listed. Returns whether a list is complete.
fn keep<T, K: Ord + Clone, V>(
    all: &mut BTreeMap<K, V>,
    listing: &mut Option<BTreeSet<K>>,
    event: Event<T>,
    key: impl Fn(&T) -> Option<K>,
    value: impl Fn(T) -> V,
) -> bool {
    match event {
        Event::Init => *listing = Some(BTreeSet::new()),
        Event::InitApply(object) | Event::Apply(object) => {
            let Some(key) = key(&object) else { return false };
            if let Some(listed) = listing {
                listed.insert(key.clone());
            }
            all.insert(key, value(object));
        }
        Event::Delete(object) => {
            key(&object).and_then(|key| all.remove(&key));
        }
        Event::InitDone => {
            if let Some(listed) = listing.take() {
                all.retain(|key, _| listed.contains(key));
            }
            return true;
        }
    }
    false
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
    fn a_namespace_is_outside_only_when_no_pod_in_it_asks_for_the_mesh_on_any_node() {
        let mut store = Store::new(Rules::default());
        let asking = |uid: &str| {
            let meta = json!({"metadata": {"uid": uid, "name": uid, "namespace": "shop", "labels": {MODE: "ambient"}}});
            serde_json::from_value::<Meta>(meta).expect("a pod's metadata")
        };
        let known = |inside| BTreeMap::from([("shop".to_owned(), inside)]);
        list(&mut store, []);
        for event in [Event::Init, Event::InitApply(shop("")), Event::InitDone] {
            store.namespace_event(event);
        }
        assert!(store.is_synced());
        assert_eq!(store.namespaces(), BTreeMap::new(), "pods of other nodes are not known yet");
        for event in [Event::Init, Event::InitApply(asking("a")), Event::InitDone] {
            assert!(store.asking_event(event));
        }
        assert_eq!(store.namespaces(), known(true), "by a pod of another node");
        assert!(!store.asking_event(Event::Apply(asking("a"))), "it has only become ready, say");
        assert!(store.asking_event(Event::Apply(asking("b"))));
        store.asking_event(Event::Delete(asking("a")));
        assert_eq!(store.namespaces(), known(true), "there is another");
        assert!(store.asking_event(Event::Delete(asking("b"))));
        assert_eq!(store.namespaces(), known(false));
        store.pod_event(Event::Apply(pod("c", "ambient", "Running")));
        assert_eq!(store.namespaces(), known(true), "by a pod of this node");
        store.pod_event(Event::Apply(pod("c", "ambient", "Succeeded")));
        assert_eq!(store.namespaces(), known(false));
        store.namespace_event(Event::Apply(shop("ambient")));
        assert_eq!(store.namespaces(), known(true), "by its own label");
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
