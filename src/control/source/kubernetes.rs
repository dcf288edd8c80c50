//! The API server of a cluster.

mod feed;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures::stream::{BoxStream, SelectAll};
use futures::{FutureExt, StreamExt};
use kube::Client;
use tokio::time::Instant;

use super::{Batch, Source};
use crate::base::{Error, Result, code};
use crate::control::kubernetes::{AuthorizationPolicy, EndpointSlice, Namespace, Node, PeerAuthentication, Pod, Service, Watched};
use crate::control::objects::{Change, Id, Kind, Mesh};
use crate::control::status::Wishes;

use feed::{Feed, News, Signal};

/// Until everything has been read for the first time, or it is said what is not.
const START_LIMIT: Duration = Duration::from_secs(10);

/// What has come meanwhile is taken along, but not without end.
const MAX_SIGNALS: usize = 1000;

/// Faults that the health endpoint lists.
const MAX_WRONG: usize = 100;

/// All kinds of objects of a cluster that matter, watched.
pub struct KubernetesSource {
    mesh: Mesh,
    feeds: SelectAll<BoxStream<'static, (Kind, Signal)>>,
    /// Kinds that have not been read yet.
    unread: BTreeSet<Kind>,
    /// Not given out yet.
    changes: Vec<Change>,
    rejected: Vec<Error>,
    is_news: bool,
    /// What cannot be watched at the moment.
    faults: BTreeMap<Kind, String>,
    /// What is wrong at the moment.
    wrong: BTreeMap<(Kind, Id), String>,
}

impl KubernetesSource {
    /// Begins to watch. What the status of policies should say becomes wishes.
    pub(in crate::control) fn new(mesh: Mesh, client: &Client, wishes: &Wishes) -> Self {
        let mut source = Self {
            mesh,
            feeds: SelectAll::new(),
            unread: BTreeSet::new(),
            changes: Vec::new(),
            rejected: Vec::new(),
            is_news: false,
            faults: BTreeMap::new(),
            wrong: BTreeMap::new(),
        };
        source.watch::<Node>(client, wishes);
        source.watch::<Namespace>(client, wishes);
        source.watch::<Pod>(client, wishes);
        source.watch::<Service>(client, wishes);
        source.watch::<EndpointSlice>(client, wishes);
        source.watch::<PeerAuthentication>(client, wishes);
        source.watch::<AuthorizationPolicy>(client, wishes);
        source
    }

    fn watch<W: Watched>(&mut self, client: &Client, wishes: &Wishes) {
        self.unread.insert(W::KIND);
        let signals = Feed::<W>::new(client.clone(), self.mesh.clone(), wishes.clone()).into_signals();
        self.feeds.push(signals.map(|signal| (W::KIND, signal)).boxed());
    }

    fn take(&mut self, kind: Kind, signal: Signal) {
        match signal {
            Signal::One(news) => self.note(kind, news),
            Signal::All(all) => {
                self.unread.remove(&kind);
                self.faults.remove(&kind);
                self.is_news = true;
                let named: BTreeSet<Id> = all.iter().map(|news| news.id.clone()).collect();
                self.wrong.retain(|(known, id), _| *known != kind || named.contains(id));
                let mut versions = Vec::with_capacity(all.len());
                for mut news in all {
                    if let Some(Change::Put(version)) = news.change.take() {
                        versions.push(version);
                    }
                    self.note(kind, news);
                }
                self.changes.push(Change::Replace(kind, versions));
            }
            Signal::Failed(reason) => {
                self.is_news |= self.faults.insert(kind, reason).is_none();
            }
            Signal::Recovered => self.is_news |= self.faults.remove(&kind).is_some(),
        }
    }

    fn note(&mut self, kind: Kind, news: News) {
        let key = (kind, news.id);
        match news.refused {
            Some(reason) if self.wrong.get(&key) != Some(&reason) => {
                self.rejected.push(Error::new(&code::ELEMENT_REJECTED, reason.clone()));
                self.wrong.insert(key, reason);
            }
            Some(_) => {}
            None => drop(self.wrong.remove(&key)),
        }
        self.changes.extend(news.change);
    }

    fn batch(&mut self) -> Batch {
        self.is_news = false;
        Batch {
            mesh: self.mesh.clone(),
            changes: std::mem::take(&mut self.changes),
            rejected: std::mem::take(&mut self.rejected),
            kept: Vec::new(),
            refused: Vec::new(),
            wrong: self.wrong.values().take(MAX_WRONG).cloned().collect(),
            fault: self.fault(),
        }
    }

    fn fault(&self) -> Option<String> {
        let mut kinds: BTreeMap<&str, Vec<String>> = BTreeMap::new();
        for (kind, reason) in &self.faults {
            kinds.entry(reason).or_default().push(kind.to_string());
        }
        let faults: Vec<String> = kinds.into_iter().map(|(reason, kinds)| format!("{}: {reason}", kinds.join(", "))).collect();
        (!faults.is_empty()).then(|| faults.join("; "))
    }

    async fn signals(&mut self) {
        let Some((kind, signal)) = self.feeds.next().await else { return };
        self.take(kind, signal);
        for _ in 0..MAX_SIGNALS {
            let Some(Some((kind, signal))) = self.feeds.next().now_or_never() else { return };
            self.take(kind, signal);
        }
    }
}

impl Source for KubernetesSource {
    async fn next(&mut self) -> Result<Batch> {
        let limit = Instant::now() + START_LIMIT;
        while !self.unread.is_empty() {
            if tokio::time::timeout_at(limit, self.signals()).await.is_err() {
                let unread: Vec<String> = self.unread.iter().map(ToString::to_string).collect();
                let faults = self.fault().unwrap_or_else(|| "no answer".to_owned());
                let text = format!("{} not read within {START_LIMIT:?}: {faults}", unread.join(", "));
                return Err(Error::new(&code::API_UNAVAILABLE, text));
            }
        }
        while self.changes.is_empty() && !self.is_news {
            self.signals().await;
        }
        Ok(self.batch())
    }

    fn name(&self) -> String {
        "kubernetes".to_owned()
    }
}
