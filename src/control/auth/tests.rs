use std::collections::BTreeMap;

use serde_json::json;

use super::*;
use crate::control::fake::{Fake, jwt};

const PROXY: &str = "system:serviceaccount:warren-system:warren-proxy";
const APP: &str = "system:serviceaccount:shop:web";

/// Pods by namespace and name.
#[derive(Clone, Debug, Default)]
pub(in crate::control) struct Pods(BTreeMap<(String, String), PodRef>);

impl Pods {
    pub(in crate::control) fn with(mut self, namespace: &str, name: &str, uid: &str, node: &str, account: &str) -> Self {
        let pod = PodRef { uid: uid.into(), node: node.into(), service_account: account.into() };
        self.0.insert((namespace.to_owned(), name.to_owned()), pod);
        self
    }
}

impl Inventory for Pods {
    fn pod(&self, namespace: &str, name: &str) -> Option<PodRef> {
        self.0.get(&(namespace.to_owned(), name.to_owned())).cloned()
    }

    fn runs_on(&self, node: &str, namespace: &str, account: &str) -> bool {
        self.0.iter().any(|((ns, _), pod)| ns == namespace && *pod.node == *node && *pod.service_account == *account)
    }

    fn trust_domain(&self) -> &str {
        "cluster.local"
    }
}

struct Cluster {
    fake: Fake,
    pods: watch::Sender<Arc<Pods>>,
    callers: Authenticator<Pods>,
}

impl Cluster {
    async fn start() -> Self {
        let fake = Fake::start().await;
        let pods = Pods::default()
            .with("warren-system", "proxy-1", "u1", "n1", "warren-proxy")
            .with("warren-system", "other", "u3", "n1", "other")
            .with("shop", "web-1", "u2", "n2", "web");
        let (pods, inventory) = watch::channel(Arc::new(pods));
        let callers = Authenticator::cluster(fake.client.clone(), "warren-system/warren-proxy".parse().unwrap(), inventory);
        Self { fake, pods, callers }
    }

    async fn call(&self, token: &str) -> Result<Caller> {
        self.callers.caller(shown(token)).await
    }

    async fn refused(&self, token: &str) -> Error {
        self.call(token).await.expect_err("refused")
    }
}

fn shown(token: &str) -> Credential {
    Credential { token: Ok(token.to_owned()), cluster: Some("Kubernetes".to_owned()), gate: None }
}

#[tokio::test]
async fn a_nodes_proxy_and_any_other_pod_are_told_apart() {
    let cluster = Cluster::start().await;
    // An older API server does not name the node; the inventory does.
    for node in [Some("n1"), None] {
        let token = cluster.fake.token(PROXY, Some(("proxy-1", "u1", node)));
        let Caller::Proxy(proxy) = cluster.call(&token).await.unwrap() else { panic!("a proxy") };
        assert_eq!(&*proxy.node, "n1");
        assert_eq!(cluster.callers.proxy(shown(&token)).await.unwrap(), proxy);
        assert!(cluster.callers.is_valid(&proxy));
    }
    let token = cluster.fake.token(APP, Some(("web-1", "u2", Some("n2"))));
    assert_eq!(cluster.call(&token).await.unwrap(), Caller::Pod(("shop".into(), "web".into())));
    let error = cluster.callers.proxy(shown(&token)).await.unwrap_err();
    assert!(error.code() == &code::NOT_A_PROXY && error.to_string().contains("shop/web"), "{error}");
    assert_eq!(status(&error).code(), Code::PermissionDenied);
}

#[tokio::test]
async fn what_a_proxy_has_shown_holds_until_its_pod_is_another() {
    let cluster = Cluster::start().await;
    let token = cluster.fake.token(PROXY, Some(("proxy-1", "u1", Some("n1"))));
    let proxy = cluster.callers.proxy(shown(&token)).await.unwrap();
    cluster.pods.send_replace(Arc::new(Pods::default().with("warren-system", "proxy-1", "u9", "n1", "warren-proxy")));
    assert!(!cluster.callers.is_valid(&proxy));
}

#[tokio::test]
async fn tokens_that_do_not_count() {
    let cluster = Cluster::start().await;
    let good = json!({"username": PROXY, "extra": {}});
    let status_of =
        |user: serde_json::Value, audiences: serde_json::Value| json!({"authenticated": true, "audiences": audiences, "user": user});
    let claims = |name: &str| jwt(&json!({"aud": "istio-ca", "name": name}));
    let (no_audience, person) = (claims("no audience"), claims("person"));
    cluster.fake.accept(&no_audience, status_of(good.clone(), json!([])));
    cluster.fake.accept(&person, status_of(json!({"username": "admin"}), json!(["istio-ca"])));
    let other_audience = jwt(&json!({"aud": ["https://kubernetes.default.svc"]}));
    cluster.fake.accept(&other_audience, status_of(good, json!(["istio-ca"])));
    let unknown = claims("unknown");

    let cases = [
        ("garbage", "no service account's"),
        ("", "no service account's"),
        ("a.b.c", "no service account's"),
        (&other_audience, "not for the audience istio-ca"),
        (&no_audience, "did not look at the audience"),
        (&person, "no service account's"),
        (&unknown, "does not accept the bearer token: [invalid bearer token]"),
    ];
    for (token, reason) in cases {
        let error = cluster.refused(token).await;
        assert!(error.to_string().contains(reason), "{token}: {error}");
        assert_eq!((error.code(), status(&error).code()), (&code::NOT_AUTHENTICATED, Code::Unauthenticated), "{token}");
        assert!(token.is_empty() || !error.to_string().contains(token), "a token is never told");
    }
    assert_eq!(cluster.fake.reviews(), 3, "what is no token of a service account costs no review");

    let token = cluster.fake.token(PROXY, Some(("proxy-1", "u1", Some("n1"))));
    let elsewhere = Credential { cluster: Some("elsewhere".to_owned()), ..shown(&token) };
    assert_eq!(cluster.callers.caller(elsewhere).await.unwrap_err().code(), &code::NOT_AUTHENTICATED);
    cluster.callers.caller(Credential { cluster: None, ..shown(&token) }).await.expect("no header is no other cluster");
}

#[tokio::test]
async fn a_token_is_worth_what_its_pod_is() {
    let cluster = Cluster::start().await;
    let token = |user, pod| cluster.fake.token(user, pod);
    let cases = [
        (token(PROXY, None), "not bound to a pod"),
        (token(PROXY, Some(("proxy-1", "u9", Some("n1")))), "which is not there"),
        (token(PROXY, Some(("proxy-9", "u1", Some("n1")))), "which is not there"),
        (token(PROXY, Some(("other", "u3", Some("n1")))), "which is not there"),
        (token(PROXY, Some(("proxy-1", "u1", Some("n2")))), "of another node"),
    ];
    let (cluster, cases) = (&cluster, &cases);
    let all = cases.iter().map(|(token, reason)| async move { (cluster.refused(token).await, reason) });
    for (error, reason) in futures::future::join_all(all).await {
        assert!(error.code() == &code::NOT_A_PROXY && error.to_string().contains(reason), "{reason}: {error}");
    }
}

#[tokio::test]
async fn a_pod_that_is_newer_than_what_is_known_is_waited_for() {
    for is_known_without_node in [false, true] {
        let cluster = Cluster::start().await;
        let add = |node| {
            let pods = cluster.pods.borrow().as_ref().clone();
            cluster.pods.send_replace(Arc::new(pods.with("warren-system", "proxy-2", "u4", node, "warren-proxy")));
        };
        if is_known_without_node {
            add("");
        }
        let token = cluster.fake.token(PROXY, Some(("proxy-2", "u4", Some("n2"))));
        let later = async {
            // Until the call looks at what is known.
            while cluster.pods.receiver_count() == 1 {
                tokio::task::yield_now().await;
            }
            add("n2");
        };
        let both = async { tokio::join!(cluster.call(&token), later) };
        let (caller, ()) = tokio::time::timeout(PATIENCE * 2, both).await.expect("it is waited for");
        assert!(matches!(caller.unwrap(), Caller::Proxy(proxy) if &*proxy.node == "n2"), "{is_known_without_node}");
    }
}

#[tokio::test]
async fn an_api_server_that_does_not_say_is_no_refusal_and_what_is_known_goes_on() {
    let cluster = Cluster::start().await;
    let known = cluster.fake.token(PROXY, Some(("proxy-1", "u1", Some("n1"))));
    cluster.call(&known).await.unwrap();
    let new = cluster.fake.token(APP, Some(("web-1", "u2", Some("n2"))));
    for (answer, reason) in [(500, &code::API_UNAVAILABLE), (429, &code::API_UNAVAILABLE), (403, &code::API_REFUSED)] {
        cluster.fake.fail(Some(answer));
        let error = cluster.refused(&new).await;
        assert_eq!((error.code(), status(&error).code()), (reason, Code::Unavailable), "{error}");
        assert!(error.to_string().contains("create tokenreviews: the answer is"), "{error}");
        cluster.call(&known).await.expect("it was reviewed before");
    }
    cluster.fake.fail(None);
    cluster.call(&new).await.expect("a failure is not kept");
}

#[tokio::test]
async fn one_token_is_reviewed_once_by_those_who_come_together_and_again_when_it_ends() {
    let cluster = Cluster::start().await;
    cluster.fake.delay(Duration::from_millis(100));
    let token = cluster.fake.token(PROXY, Some(("proxy-1", "u1", Some("n1"))));
    for caller in futures::future::join_all((0..50).map(|_| cluster.call(&token))).await {
        caller.unwrap();
    }
    cluster.call(&token).await.unwrap();
    assert_eq!(cluster.fake.reviews(), 1);

    let unknown = jwt(&json!({"aud": "istio-ca"}));
    for caller in futures::future::join_all((0..50).map(|_| cluster.call(&unknown))).await {
        caller.unwrap_err();
    }
    assert_eq!(cluster.fake.reviews(), 2, "a refusal is shared too");

    // It has ended: nothing of it is kept.
    let ended = jwt(&json!({"aud": "istio-ca", "exp": 1}));
    let extra = json!({"authentication.kubernetes.io/pod-name": ["proxy-1"], "authentication.kubernetes.io/pod-uid": ["u1"]});
    cluster.fake.accept(&ended, json!({"authenticated": true, "audiences": ["istio-ca"], "user": {"username": PROXY, "extra": extra}}));
    cluster.call(&ended).await.unwrap();
    cluster.fake.accept(&ended, json!({"authenticated": false, "error": "expired"}));
    cluster.refused(&ended).await;
}

#[tokio::test]
async fn a_silent_api_server_costs_a_bounded_time() {
    let cluster = Cluster::start().await;
    cluster.fake.delay(Duration::from_secs(3600));
    let token = cluster.fake.token(PROXY, Some(("proxy-1", "u1", Some("n1"))));
    let begun = std::time::Instant::now();
    let refused = futures::future::join_all((0..40).map(|_| cluster.refused(&token))).await;
    assert!(refused.iter().all(|error| error.code() == &code::API_UNAVAILABLE));
    assert!(begun.elapsed() < Duration::from_secs(8), "{:?}", begun.elapsed());
}
