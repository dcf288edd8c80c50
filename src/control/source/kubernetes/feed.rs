//! One kind of object, watched for ever.

use std::time::Duration;

use futures::stream::BoxStream;
use futures::{Stream, StreamExt};
use kube::error::DiscoveryError;
use kube::runtime::watcher::{self, Event};
use kube::{Api, Client, discovery};

use crate::base::{Result, code, deadline};
use crate::config::cluster::WATCH_PERIOD;
use crate::control::api;
use crate::control::kubernetes::Watched;
use crate::control::objects::{Change, Id, Mesh};
use crate::control::status::Wishes;

/// Objects in one answer when all are listed.
const PAGE: u32 = 250;

/// Between attempts: the first pause and the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// A kind that is not defined is looked for this often.
const ABSENT_PAUSE: Duration = Duration::from_secs(5);

/// For looking whether it is there in another version.
const LOOK_LIMIT: Duration = Duration::from_secs(10);

/// A kind that was defined must be missing as often before its objects count as gone: without policies all is open.
const ABSENCES: u32 = 6;

/// A watch that was broken and has not failed again for this long may stand.
const PROBE_AFTER: Duration = Duration::from_secs(1);
const PROBE_LIMIT: Duration = Duration::from_secs(2);

/// What a feed tells.
#[derive(Debug)]
pub(super) enum Signal {
    /// One object has changed.
    One(News),
    /// These are all.
    All(Vec<News>),
    /// It cannot be watched, and is tried again.
    Failed(String),
    /// It is watched again.
    Recovered,
}

/// What is new about an object.
#[derive(Debug)]
pub(super) struct News {
    pub(super) id: Id,
    pub(super) change: Option<Change>,
    /// Why this version is not used.
    pub(super) refused: Option<String>,
}

/// Follows one kind.
pub(super) struct Feed<W: Watched> {
    client: Client,
    mesh: Mesh,
    wishes: Wishes,
    events: BoxStream<'static, watcher::Result<Event<W>>>,
    listed: Vec<News>,
    pause: Option<Duration>,
    /// Attempts that failed since the last that did not.
    failures: u32,
    /// It was listed, and has not been found missing for good since.
    is_defined: bool,
    /// Attempts at which it was not defined, since the last at which it was.
    absences: u32,
}

impl<W: Watched> Feed<W> {
    pub(super) fn new(client: Client, mesh: Mesh, wishes: Wishes) -> Self {
        let events = events(&client);
        Self { client, mesh, wishes, events, listed: Vec::new(), pause: None, failures: 0, is_defined: false, absences: 0 }
    }

    /// Never ends.
    pub(super) fn into_signals(self) -> impl Stream<Item = Signal> + Send {
        futures::stream::unfold(self, |mut feed| async move {
            let signal = feed.next().await;
            Some((signal, feed))
        })
    }

    async fn next(&mut self) -> Signal {
        loop {
            if let Some(pause) = self.pause.take() {
                tokio::time::sleep(pause).await;
            }
            let event = match self.failures {
                0 => self.events.next().await,
                _ => match tokio::time::timeout(PROBE_AFTER, self.events.next()).await {
                    Ok(event) => event,
                    // A watch that is asked for again says nothing until something changes.
                    Err(_) if answers(&self.client).await => {
                        self.failures = 0;
                        return Signal::Recovered;
                    }
                    Err(_) => continue,
                },
            };
            match event {
                Some(Ok(event)) => {
                    if let Some(signal) = self.take(event) {
                        return signal;
                    }
                }
                Some(Err(error)) if W::IS_CUSTOM && is_absent(&error) => {
                    self.pause = Some(ABSENT_PAUSE);
                    self.failures = 0;
                    // When it is there again, all are listed.
                    self.events = events(&self.client);
                    match served::<W>(&self.client).await {
                        Ok(versions) if versions.is_empty() => {}
                        Ok(versions) => return Signal::Failed(in_versions::<W>(&versions)),
                        Err(error) => return Signal::Failed(error.to_string()),
                    }
                    self.absences = self.absences.saturating_add(1);
                    if self.is_defined && self.absences < ABSENCES {
                        return Signal::Failed("it is no longer defined in the cluster".to_owned());
                    }
                    if std::mem::take(&mut self.is_defined) || self.absences == 1 {
                        tracing::info!(kind = %W::KIND, "this kind is not defined in the cluster; it is looked for");
                        return Signal::All(Vec::new());
                    }
                }
                Some(Err(error)) => {
                    self.pause = Some(pause(self.failures));
                    self.failures = self.failures.saturating_add(1);
                    tracing::debug!(kind = %W::KIND, %error, failures = self.failures, "watching");
                    if is_unreadable(&error) {
                        // The watch would go on without it: only a list tells what it was.
                        self.events = events(&self.client);
                        return Signal::Failed("a change cannot be read; all are listed anew".to_owned());
                    }
                    // Servers close watches as they like; what fails again at once is a fault.
                    if self.failures > 1 {
                        return Signal::Failed(api::watch_failed("watching", error).to_string());
                    }
                }
                // The library's stream never ends.
                None => self.pause = Some(LONGEST_PAUSE),
            }
        }
    }

    fn take(&mut self, event: Event<W>) -> Option<Signal> {
        match event {
            Event::Init => {
                self.listed.clear();
                None
            }
            Event::InitApply(object) => {
                self.listed.push(self.news(&object));
                None
            }
            Event::InitDone => {
                self.failures = 0;
                if std::mem::take(&mut self.absences) > 0 {
                    tracing::info!(kind = %W::KIND, "this kind is defined now");
                }
                self.is_defined = true;
                Some(Signal::All(std::mem::take(&mut self.listed)))
            }
            Event::Apply(object) => Some(Signal::One(self.news(&object))),
            Event::Delete(object) => {
                let id = object.id();
                self.wishes.forget(W::KIND, &id);
                Some(Signal::One(News { change: Some(Change::Remove(W::KIND, id.clone())), id, refused: None }))
            }
        }
    }

    fn news(&self, object: &W) -> News {
        self.wishes.look_at(object, &self.mesh);
        let (change, refused) = object.change(&self.mesh);
        News { id: object.id(), change: Some(change), refused }
    }
}

fn events<W: Watched>(client: &Client) -> BoxStream<'static, watcher::Result<Event<W>>> {
    let config = watcher::Config::default().timeout(WATCH_PERIOD).page_size(PAGE);
    watcher::watcher(Api::<W>::all(client.clone()), config).boxed()
}

/// The versions in which the cluster has this kind.
async fn served<W: Watched>(client: &Client) -> Result<Vec<String>> {
    let what = "look for the kind among /apis";
    match deadline(LOOK_LIMIT, &code::API_UNAVAILABLE, what, discovery::group(client, &W::group(&()))).await? {
        Ok(group) => {
            let has_it = |version: &&str| group.versioned_resources(version).iter().any(|(resource, _)| resource.plural == W::plural(&()));
            Ok(group.versions().filter(has_it).map(str::to_owned).collect())
        }
        Err(kube::Error::Discovery(DiscoveryError::MissingApiGroup(_))) => Ok(Vec::new()),
        Err(error) => Err(api::failed(what, error)),
    }
}

fn in_versions<W: Watched>(served: &[String]) -> String {
    let (group, version, served) = (W::group(&()), <W as kube::Resource>::version(&()), served.join(", "));
    format!("the cluster serves {group} as {served}, and {version} is read: bring its CRDs up to date")
}

async fn answers(client: &Client) -> bool {
    matches!(tokio::time::timeout(PROBE_LIMIT, client.apiserver_version()).await, Ok(Ok(_)))
}

/// Longer with each failure, and not the same for all who lost the same server.
fn pause(failures: u32) -> Duration {
    let longest = FIRST_PAUSE.saturating_mul(1 << failures.min(10)).min(LONGEST_PAUSE);
    longest.mul_f64(rand::random_range(0.5..=1.0))
}

/// What the library cannot read of a watch it may take for a status without a code.
fn is_unreadable(error: &watcher::Error) -> bool {
    match error {
        watcher::Error::WatchFailed(kube::Error::SerdeError(_)) => true,
        watcher::Error::WatchFailed(kube::Error::Api(status)) => status.code == 0,
        _ => false,
    }
}

fn is_absent(error: &watcher::Error) -> bool {
    match error {
        watcher::Error::InitialListFailed(kube::Error::Api(status)) | watcher::Error::WatchStartFailed(kube::Error::Api(status)) => {
            status.code == 404
        }
        _ => false,
    }
}
