//! Conversations of a real node proxy with a real istiod: to the same requests over the same objects the same answers.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use prost::Message;
use serde_json::json;

use super::Session;
use crate::control::index::Index;
use crate::control::index::golden;
use crate::wire::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};

/// Of a ServiceEntry, which is not read yet.
const NOT_YET: [&str; 2] = ["Kubernetes/networking.istio.io/ServiceEntry/inc/ext/198.51.100.77", "inc/ext.example.com"];

fn folder(conversation: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/istiod/conversations").join(conversation)
}

fn read<T: Message + Default>(conversation: &str, file: &str) -> T {
    let bytes = std::fs::read(folder(conversation).join(file)).expect(file);
    T::decode(bytes.as_slice()).expect(file)
}

fn index() -> Arc<Index> {
    Arc::new(golden::index(&golden::items("conversations")))
}

/// The state when the client came back: pods had got labels, the policy named one more
/// account, and some objects were deleted.
fn later(without: &[&str]) -> Arc<Index> {
    let mut items = golden::items("conversations");
    items.retain(|item| !without.iter().any(|name| item["metadata"]["name"] == **name && item["kind"] != "Service"));
    for item in items.iter_mut().filter(|item| item["kind"] == "Pod" && item["metadata"]["namespace"] == "inc") {
        let version = if item["metadata"]["name"] == "remote" { "v10" } else { "v2" };
        item["metadata"]["labels"]["version"] = json!(version);
    }
    let accounts = json!(["cluster.local/ns/inc/sa/default", "cluster.local/ns/inc/sa/other"]);
    for item in items.iter_mut().filter(|item| item["kind"] == "AuthorizationPolicy") {
        item["spec"]["rules"][0]["from"][0]["source"]["principals"] = accounts.clone();
    }
    Arc::new(golden::index(&items))
}

fn session() -> Session {
    Session::new("node1".into())
}

fn answer(session: &mut Session, index: &Arc<Index>, conversation: &str, file: &str) -> Option<DeltaDiscoveryResponse> {
    session.request(&read::<DeltaDiscoveryRequest>(conversation, file), index).expect("within limits")
}

type Bodies = BTreeMap<String, Vec<u8>>;

/// Names with bodies, and names of what is gone.
fn content(response: &DeltaDiscoveryResponse) -> (Bodies, BTreeSet<&str>) {
    let is_read = |name: &&str| !NOT_YET.contains(name);
    let resources = response.resources.iter().filter(|resource| is_read(&resource.name.as_str()));
    let bodies = resources.map(|resource| (resource.name.clone(), resource.resource.clone().expect("a body").value));
    (bodies.collect(), response.removed_resources.iter().map(String::as_str).filter(is_read).collect())
}

#[test]
fn a_wildcard_client_gets_all_once() {
    let (mut session, index) = (session(), index());
    for (asked, answered) in [("01-send-address", "02-recv-address"), ("04-send-authorization", "05-recv-authorization")] {
        let ours = answer(&mut session, &index, "01-wildcard", &format!("{asked}.binpb")).expect("an answer");
        let theirs: DeltaDiscoveryResponse = read("01-wildcard", &format!("{answered}.binpb"));
        assert_eq!(content(&ours), content(&theirs), "{asked}");
        assert_eq!(ours.type_url, theirs.type_url);
        // Policies have a version too, so that those who come back with it need not get them again.
        let versions = |response: &DeltaDiscoveryResponse| -> BTreeMap<String, String> {
            let given = response.resources.iter().filter(|resource| !NOT_YET.contains(&resource.name.as_str()));
            given.map(|resource| (resource.name.clone(), resource.version.clone())).collect()
        };
        assert!(asked.contains("authorization") || versions(&ours) == versions(&theirs));
    }
}

#[test]
fn a_client_that_comes_back_gets_what_is_different() {
    // Policies were sent without versions, and come again.
    for (state, conversation) in [(later(&[]), "06-reconnect-unchanged"), (later(&["remote", "allow-remote"]), "07-reconnect-changed")] {
        let mut session = session();
        for (asked, answered) in [("01-send-address", "02-recv-address"), ("04-send-authorization", "05-recv-authorization")] {
            let ours = answer(&mut session, &state, conversation, &format!("{asked}.binpb")).expect("also when it is empty");
            let theirs: DeltaDiscoveryResponse = read(conversation, &format!("{answered}.binpb"));
            let ((ours, gone), (mut theirs, gone_there)) = (content(&ours), content(&theirs));
            // It was made meanwhile.
            theirs.remove("Kubernetes//Pod/inc/late");
            assert_eq!((ours, gone), (theirs, gone_there), "{conversation}: {asked}");
        }
    }
}

#[test]
fn unusual_requests_are_answered_alike() {
    let (mut session, index) = (session(), index());
    let mut ask = |file: &str| answer(&mut session, &index, "10-unusual-requests", file);
    let nonsense = ask("04-send-nonsense.binpb").expect("an answer");
    assert_eq!(content(&nonsense), content(&read("10-unusual-requests", "05-recv-nonsense.binpb")));
    let by_name = ask("07-send-authorization.binpb").expect("an answer");
    assert_eq!(content(&by_name), content(&read("10-unusual-requests", "08-recv-authorization.binpb")));
    assert!(ask("14-send-address.binpb").is_some());
    assert_eq!(ask("14-send-address.binpb"), None, "the same once more");
}
