//! A stand-in for the API server: answers TokenReviews, and fails as real ones do. The real one is asked in
//! `tests/e2e/control-auth`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::post;
use axum::{Json, Router};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use parking_lot::Mutex;
use serde_json::{Value, json};

use super::accept;
use crate::base::drain;
use crate::telemetry::http;

/// The server and the answers it is to give.
pub(super) struct Fake {
    pub(super) client: kube::Client,
    state: Arc<Mutex<Answers>>,
    _trigger: drain::Trigger,
}

#[derive(Default)]
struct Answers {
    /// Status of the review of a token.
    tokens: BTreeMap<String, Value>,
    /// Instead of a review.
    failure: Option<u16>,
    delay: Duration,
    reviews: usize,
}

impl Fake {
    pub(super) async fn start() -> Self {
        let listener = accept::listen("127.0.0.1:0".parse().unwrap()).unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let state = Arc::<Mutex<Answers>>::default();
        let router = Router::new().route("/apis/authentication.k8s.io/v1/tokenreviews", post(review)).with_state(Arc::clone(&state));
        let (trigger, watch) = drain::new();
        tokio::spawn(http::serve(listener, router, watch));
        let mut config = kube::Config::new(url.parse().unwrap());
        config.default_retry = false;
        Fake { client: kube::Client::try_from(config).unwrap(), state, _trigger: trigger }
    }

    /// A token that is good for the audience, of that user, bound to that pod.
    pub(super) fn token(&self, user: &str, pod: Option<(&str, &str, Option<&str>)>) -> String {
        let extra: BTreeMap<String, Vec<&str>> = pod
            .into_iter()
            .flat_map(|(name, uid, node)| [("pod-name", Some(name)), ("pod-uid", Some(uid)), ("node-name", node)])
            .filter_map(|(key, value)| Some((format!("authentication.kubernetes.io/{key}"), vec![value?])))
            .collect();
        let status = json!({"authenticated": true, "audiences": ["istio-ca"], "user": {"username": user, "extra": extra}});
        let token = jwt(&json!({"aud": ["istio-ca"], "exp": 4_000_000_000_u64, "who": format!("{user} {extra:?}")}));
        self.accept(&token, status);
        token
    }

    /// What the review of that token says.
    pub(super) fn accept(&self, token: &str, status: Value) {
        self.state.lock().tokens.insert(token.to_owned(), status);
    }

    pub(super) fn fail(&self, status: Option<u16>) {
        self.state.lock().failure = status;
    }

    pub(super) fn delay(&self, delay: Duration) {
        self.state.lock().delay = delay;
    }

    /// How many were asked for.
    pub(super) fn reviews(&self) -> usize {
        self.state.lock().reviews
    }
}

/// A token with those claims and a signature that only the fake accepts.
pub(super) fn jwt(claims: &Value) -> String {
    format!("e30.{}.sig", URL_SAFE_NO_PAD.encode(claims.to_string()))
}

async fn review(State(state): State<Arc<Mutex<Answers>>>, Json(review): Json<Value>) -> (StatusCode, Json<Value>) {
    let (status, failure, delay) = {
        let mut state = state.lock();
        state.reviews += 1;
        assert_eq!(review["spec"]["audiences"], json!(["istio-ca"]));
        let token = review["spec"]["token"].as_str().unwrap_or_default();
        let unknown = json!({"authenticated": false, "error": "[invalid bearer token]"});
        (state.tokens.get(token).cloned().unwrap_or(unknown), state.failure, state.delay)
    };
    tokio::time::sleep(delay).await;
    if let Some(code) = failure {
        let text = format!("the answer is {code}");
        let body = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": text, "reason": "Test", "code": code});
        return (StatusCode::from_u16(code).unwrap(), Json(body));
    }
    let body = json!({"kind": "TokenReview", "apiVersion": "authentication.k8s.io/v1", "metadata": {}, "spec": {}, "status": status});
    (StatusCode::CREATED, Json(body))
}
