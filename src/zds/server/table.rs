//! The set of pods and the sessions that follow it, behind one lock that is never held over a wait.

use std::collections::{BTreeMap, HashMap};

use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot, watch};

use super::{Pod, Served};
use crate::base::{Error, Result, Str, code};
use crate::net::netns::NetNsId;
use crate::zds::codec::Answer;

/// Changes that may wait for one proxy. A proxy this far behind is disconnected and gets a snapshot when it returns.
const MAX_QUEUED: usize = 256;

/// Told when the change has been answered; dropped when the session ended before.
pub(super) type Reply = oneshot::Receiver<Result<()>>;

/// A change for one session.
pub(super) enum Change {
    Add(Pod, oneshot::Sender<Result<()>>),
    Remove(Str, oneshot::Sender<Result<()>>),
}

#[derive(Debug)]
pub(super) struct Table {
    inner: Mutex<Inner>,
    changed: watch::Sender<u64>,
}

#[derive(Debug)]
struct Inner {
    pods: BTreeMap<Str, Pod>,
    /// Oldest first.
    sessions: Vec<Session>,
    next_id: u64,
}

#[derive(Debug)]
struct Session {
    id: u64,
    queue: mpsc::Sender<Change>,
    answers: HashMap<Str, (NetNsId, Answer)>,
}

impl Inner {
    fn insert(&mut self, pod: Pod) {
        let (uid, info) = (pod.uid.clone(), pod.info.clone());
        // Another identity under the same UID: what was said about the old one is void.
        if self.pods.insert(uid.clone(), pod).is_some_and(|old| old.info != info) {
            for session in &mut self.sessions {
                session.answers.remove(&uid);
            }
        }
    }
}

impl Table {
    pub(super) fn new() -> Self {
        Self { inner: Mutex::new(Inner { pods: BTreeMap::new(), sessions: Vec::new(), next_id: 1 }), changed: watch::channel(0).0 }
    }

    pub(super) fn register(&self, pod: Pod) {
        self.inner.lock().insert(pod);
    }

    pub(super) fn add(&self, pod: Pod) -> Result<Reply> {
        let mut inner = self.inner.lock();
        inner.insert(pod.clone());
        let Some(newest) = inner.sessions.last() else {
            return Err(Error::new(&code::ZDS_REFUSED, "no proxy is connected to this agent"));
        };
        let (reply, answer) = oneshot::channel();
        if newest.queue.try_send(Change::Add(pod, reply)).is_err() {
            inner.sessions.pop();
            return Err(Error::new(&code::ZDS_REFUSED, format!("more than {MAX_QUEUED} changes wait for the proxy")));
        }
        Ok(answer)
    }

    pub(super) fn remove(&self, uid: &str) -> Vec<Reply> {
        let mut inner = self.inner.lock();
        let Some((uid, _)) = inner.pods.remove_entry(uid) else { return Vec::new() };
        let mut replies = Vec::new();
        inner.sessions.retain_mut(|session| {
            session.answers.remove(&uid);
            let (reply, answer) = oneshot::channel();
            let queued = session.queue.try_send(Change::Remove(uid.clone(), reply)).is_ok();
            replies.push(answer);
            queued
        });
        replies
    }

    pub(super) fn served(&self, uid: &str) -> Served {
        let inner = self.inner.lock();
        let Some(newest) = inner.sessions.last() else { return Served::NoProxy };
        match newest.answers.get(uid) {
            None => Served::Unknown,
            Some((netns, Answer::Done)) => Served::Yes(*netns),
            Some((_, Answer::Refused(text))) => Served::Refused(text.clone()),
        }
    }

    pub(super) fn changed(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    pub(super) fn proxies(&self) -> usize {
        self.inner.lock().sessions.len()
    }

    /// A session begins: its id, the pods as they are now, and every change from now on. The queue ends when the table
    /// gives the session up.
    pub(super) fn open(&self) -> (u64, Vec<Pod>, mpsc::Receiver<Change>) {
        let (queue, changes) = mpsc::channel(MAX_QUEUED);
        let mut inner = self.inner.lock();
        let id = inner.next_id;
        inner.next_id += 1;
        inner.sessions.push(Session { id, queue, answers: HashMap::new() });
        let pods = inner.pods.values().cloned().collect();
        drop(inner);
        self.touch();
        (id, pods, changes)
    }

    /// The proxy answered about a pod in that namespace.
    pub(super) fn answered(&self, id: u64, pod: &Pod, netns: NetNsId, answer: Answer) {
        let mut inner = self.inner.lock();
        // What was removed or became another pod meanwhile is not what the answer is about.
        if inner.pods.get(&pod.uid).is_some_and(|wanted| wanted.info == pod.info)
            && let Some(session) = inner.sessions.iter_mut().find(|session| session.id == id)
        {
            session.answers.insert(pod.uid.clone(), (netns, answer));
        }
        drop(inner);
        self.touch();
    }

    pub(super) fn close(&self, id: u64) {
        self.inner.lock().sessions.retain(|session| session.id != id);
        self.touch();
    }

    fn touch(&self) {
        self.changed.send_modify(|count| *count += 1);
    }
}
