//! Whether a watch is up, so that what it has told can be relied on.
//!
//! A connection that has died in silence gives no error. What counts is therefore what was heard: that the API server has
//! begun a watch, which it does anew every [`WATCH_PERIOD`], or an event.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::Request;
use kube::Client;
use kube::client::Body;
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::config::cluster::WATCH_PERIOD;

/// A watch that is silent for longer has died: by then it should have been begun anew.
const SILENCE: Duration = Duration::from_secs(WATCH_PERIOD as u64 + 5);

/// After an interruption, what was missed comes within this time.
const CATCH_UP: Duration = Duration::from_secs(1);

/// Of one watch.
#[derive(Debug, Default)]
pub(super) struct Pulse(Mutex<Option<Up>>);

#[derive(Clone, Copy, Debug)]
struct Up {
    since: Instant,
    heard: Instant,
}

impl Pulse {
    /// A watch was begun, or has told something.
    pub(super) fn heard(&self) {
        let now = Instant::now();
        let mut up = self.0.lock();
        let since = up.filter(|up| up.heard.elapsed() < SILENCE).map_or(now, |up| up.since);
        *up = Some(Up { since, heard: now });
    }

    /// It has failed.
    pub(super) fn lost(&self) {
        *self.0.lock() = None;
    }

    /// Whether what the watch has told is how things are, but for the moment that it takes to tell.
    pub(super) fn is_fresh(&self) -> bool {
        self.0.lock().is_some_and(|up| up.since.elapsed() >= CATCH_UP && up.heard.elapsed() < SILENCE)
    }

    /// The same client, of which each watch that is begun is heard.
    pub(super) fn listen(self: &Arc<Self>, client: &Client) -> Client {
        let (client, pulse) = (client.clone(), self.clone());
        let namespace = client.default_namespace().to_owned();
        let service = tower::service_fn(move |request: Request<Body>| {
            let (client, pulse) = (client.clone(), pulse.clone());
            let is_watch = request.uri().query().is_some_and(|query| query.contains("watch=true"));
            async move {
                let answer = client.send(request).await?;
                if is_watch && answer.status().is_success() {
                    pulse.heard();
                }
                Ok::<_, kube::Error>(answer)
            }
        });
        Client::new(service, namespace)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_watch_is_relied_on_while_it_is_heard_and_has_caught_up() {
        let pulse = Pulse::default();
        assert!(!pulse.is_fresh(), "it was not begun yet");
        pulse.heard();
        assert!(!pulse.is_fresh(), "what was missed may be on its way");
        tokio::time::advance(CATCH_UP).await;
        assert!(pulse.is_fresh());
        tokio::time::advance(SILENCE - CATCH_UP * 2).await;
        pulse.heard();
        tokio::time::advance(SILENCE - CATCH_UP).await;
        assert!(pulse.is_fresh(), "it was begun anew in time");
        tokio::time::advance(CATCH_UP).await;
        assert!(!pulse.is_fresh(), "it has died in silence");
        pulse.heard();
        assert!(!pulse.is_fresh(), "what was missed may be on its way");
        tokio::time::advance(CATCH_UP).await;
        assert!(pulse.is_fresh());
        pulse.lost();
        assert!(!pulse.is_fresh(), "it has failed");
    }
}
