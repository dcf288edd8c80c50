//! Tokens of service accounts, looked at by the API server: TokenReview, with answers that are kept for a short time.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use aws_lc_rs::digest;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, TokenReviewStatus, UserInfo};
use kube::api::{Api, PostParams};
use parking_lot::Mutex;
use serde::Deserialize;
use tokio::sync::{OnceCell, Semaphore};
use tokio::time::Instant;

use crate::base::{Error, Result, Str, code, deadline};
use crate::control::api;

/// The audience that tokens for a control plane are made for. One that is meant for the API server is no good here: who
/// is shown it could use it there.
pub(super) const AUDIENCE: &str = "istio-ca";

/// For one review, with its wait for a turn.
const LIMIT: Duration = Duration::from_secs(5);

/// Reviews at once.
const AT_ONCE: usize = 16;

/// An accepted token is taken for as long as this without asking again, but never longer than it is valid.
const KEEP: Duration = Duration::from_secs(60);

/// A refused one: long enough for those who come at the same time.
const KEEP_REFUSED: Duration = Duration::from_secs(1);

/// Tokens whose answers are kept. Of what is above, each is reviewed every time.
const MAX_KEPT: usize = 4096;

const EXTRA: &str = "authentication.kubernetes.io/";

/// Whose token it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Holder {
    pub(super) namespace: Str,
    pub(super) service_account: Str,
    /// The pod that the token was made for and ends with.
    pub(super) pod: Option<BoundPod>,
}

/// Of a token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct BoundPod {
    pub(super) name: Str,
    pub(super) uid: Str,
    /// Older API servers do not say.
    pub(super) node: Option<Str>,
}

/// Asks the API server about tokens.
pub(super) struct Reviews {
    client: kube::Client,
    answers: Mutex<HashMap<[u8; 32], Arc<OnceCell<Answer>>>>,
    turns: Semaphore,
    most: usize,
}

#[derive(Clone)]
struct Answer {
    /// Or the reason.
    holder: std::result::Result<Holder, Str>,
    until: Instant,
}

impl Reviews {
    pub(super) fn new(client: kube::Client) -> Self {
        Self { client, answers: Mutex::default(), turns: Semaphore::new(AT_ONCE), most: MAX_KEPT }
    }

    /// Whose token it is. Those who ask about the same one at the same time share one review.
    ///
    /// # Errors
    /// NOT_AUTHENTICATED: the API server says no. API_UNAVAILABLE, API_REFUSED: it does not say.
    pub(super) async fn holder(&self, token: &str) -> Result<Holder> {
        let refused = |reason: &str| Error::new(&code::NOT_AUTHENTICATED, reason);
        let claims = Claims::read(token).ok_or_else(|| refused("the bearer token is no service account's"))?;
        if !claims.audiences().any(|audience| audience == AUDIENCE) {
            return Err(refused(&format!("the bearer token is not for the audience {AUDIENCE}")));
        }
        let answer = self.answer_of(token);
        let review = answer.get_or_try_init(|| self.review(token, claims.exp));
        let answer = deadline(LIMIT, &code::API_UNAVAILABLE, "create tokenreviews", review).await??;
        answer.holder.clone().map_err(|reason| refused(&reason))
    }

    /// Where the answer is or will be.
    fn answer_of(&self, token: &str) -> Arc<OnceCell<Answer>> {
        let key = sha256(token.as_bytes());
        let now = Instant::now();
        let mut answers = self.answers.lock();
        if let Some(known) = answers.get(&key)
            && known.get().is_none_or(|answer| now < answer.until)
        {
            return Arc::clone(known);
        }
        if answers.len() >= self.most {
            answers.retain(|_, answer| answer.get().map_or(Arc::strong_count(answer) > 1, |answer| now < answer.until));
        }
        let new = Arc::default();
        if answers.len() < self.most || answers.contains_key(&key) {
            answers.insert(key, Arc::clone(&new));
        }
        new
    }

    async fn review(&self, token: &str, ends: Option<u64>) -> Result<Answer> {
        let _turn = self.turns.acquire().await.map_err(|_| Error::internal("reviews are closed"))?;
        let spec = TokenReviewSpec { token: Some(token.to_owned()), audiences: Some(vec![AUDIENCE.to_owned()]) };
        let review = TokenReview { spec, ..TokenReview::default() };
        let reviewed = Api::all(self.client.clone()).create(&PostParams::default(), &review).await;
        let status = reviewed.map_err(|error| api::failed("create tokenreviews", error))?.status.unwrap_or_default();
        let holder = holder(status);
        let keep = match &holder {
            Ok(_) => KEEP.min(ends.map_or(KEEP, left)),
            Err(_) => KEEP_REFUSED,
        };
        Ok(Answer { holder, until: Instant::now() + keep })
    }
}

/// Never shows a token, nor what it hashes to.
impl std::fmt::Debug for Reviews {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reviews").field("answers", &self.answers.lock().len()).finish_non_exhaustive()
    }
}

fn holder(status: TokenReviewStatus) -> std::result::Result<Holder, Str> {
    if status.authenticated != Some(true) {
        let why: String = status.error.unwrap_or_default().chars().filter(|char| !char.is_control()).take(256).collect();
        return Err(format!("the API server does not accept the bearer token: {why}").into());
    }
    // An API server that knows no audiences accepts any token that is good for itself, and names none.
    if !status.audiences.iter().flatten().any(|audience| audience == AUDIENCE) {
        return Err("the API server did not look at the audience of the bearer token".into());
    }
    let UserInfo { username, extra, .. } = status.user.unwrap_or_default();
    let username = username.unwrap_or_default();
    let Some((namespace, service_account)) = username.strip_prefix("system:serviceaccount:").and_then(|rest| rest.split_once(':')) else {
        return Err("the bearer token is no service account's".into());
    };
    let extra = extra.unwrap_or_default();
    let text = |name: &str| extra.get(&format!("{EXTRA}{name}")).and_then(|values| values.first()).map(|value| Str::from(value.as_str()));
    let pod = match (text("pod-name"), text("pod-uid")) {
        (Some(name), Some(uid)) => Some(BoundPod { name, uid, node: text("node-name") }),
        _ => None,
    };
    Ok(Holder { namespace: namespace.into(), service_account: service_account.into(), pod })
}

/// What a token says of itself. It is believed only after the API server has accepted the token.
#[derive(Deserialize)]
struct Claims {
    #[serde(default)]
    aud: Audiences,
    exp: Option<u64>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Audiences {
    One(String),
    Many(Vec<String>),
}

impl Default for Audiences {
    fn default() -> Self {
        Audiences::Many(Vec::new())
    }
}

impl Claims {
    fn read(token: &str) -> Option<Self> {
        let mut parts = token.split('.');
        let (_, claims, _) = (parts.next()?, parts.next()?, parts.next()?);
        if parts.next().is_some() {
            return None;
        }
        serde_json::from_slice(&URL_SAFE_NO_PAD.decode(claims).ok()?).ok()
    }

    fn audiences(&self) -> impl Iterator<Item = &str> {
        match &self.aud {
            Audiences::One(one) => std::slice::from_ref(one),
            Audiences::Many(many) => many,
        }
        .iter()
        .map(String::as_str)
    }
}

/// From now until that second since the epoch.
fn left(ends: u64) -> Duration {
    (SystemTime::UNIX_EPOCH + Duration::from_secs(ends.min(u64::from(u32::MAX)))).duration_since(SystemTime::now()).unwrap_or_default()
}

fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut hash = [0; 32];
    hash.copy_from_slice(digest::digest(&digest::SHA256, bytes).as_ref());
    hash
}
