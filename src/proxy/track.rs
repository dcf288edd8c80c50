//! The connections that are open: for the admin API, and so that policy can be asked again.

use std::collections::HashMap;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, Waker};

use parking_lot::Mutex;
use serde::Serialize;

use crate::base::addr::OrigDst;
use crate::base::{Error, Str};
use crate::identity::SpiffeId;
use crate::telemetry::tcp::Connection;

/// What policy is asked about a connection.
#[derive(Clone, Debug)]
pub(super) struct Subject {
    /// The client.
    pub source: SocketAddr,
    /// The application's address.
    pub destination: SocketAddr,
    /// Who the client is, from TLS.
    pub identity: Option<Arc<SpiffeId>>,
}

/// One open inbound connection.
#[derive(Debug)]
struct Inbound {
    subject: Subject,
    forwarded: Option<Str>,
    fate: Fate,
}

/// What has become of a connection.
#[derive(Debug)]
enum Fate {
    /// It goes on; who is to be told when it must not.
    Open(Option<Waker>),
    /// It must end, for this reason, which was not yet heard.
    Cut(Error),
    /// It was told.
    Told,
}

/// One open connection, as the admin API prints it.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Entry {
    /// Client.
    pub src: SocketAddr,
    /// What the client dialled, if it is known.
    pub original_dst: Option<String>,
    /// Where it went.
    pub actual_dst: SocketAddr,
    /// TCP or HBONE.
    pub protocol: &'static str,
}

/// The open connections of one pod. An entry lives as long as its guard.
#[derive(Debug, Default)]
pub(super) struct Connections {
    next: AtomicU64,
    inbound: Mutex<HashMap<u64, Inbound>>,
    outbound: Mutex<HashMap<u64, (OrigDst, Arc<Connection>)>>,
}

impl Connections {
    /// Takes an inbound connection in. Call it before policy is asked, so that no change is missed between.
    pub(super) fn inbound(self: &Arc<Self>, subject: Subject, forwarded: Option<Str>) -> InboundGuard {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        self.inbound.lock().insert(id, Inbound { subject, forwarded, fate: Fate::Open(None) });
        InboundGuard { id, connections: Arc::clone(self) }
    }

    /// Takes an outbound connection in.
    pub(super) fn outbound(self: &Arc<Self>, original: OrigDst, connection: Arc<Connection>) -> OutboundGuard {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        self.outbound.lock().insert(id, (original, connection));
        OutboundGuard { id, connections: Arc::clone(self) }
    }

    /// Asks `verdict` about every inbound connection and cuts those that it refuses.
    pub(super) fn review(&self, verdict: impl Fn(&Subject) -> Option<Error>) {
        // Without the lock, which every connection needs: policy takes its time. One that comes meanwhile asks for itself.
        let open = |(id, inbound): (&u64, &Inbound)| matches!(inbound.fate, Fate::Open(_)).then(|| (*id, inbound.subject.clone()));
        let open: Vec<_> = self.inbound.lock().iter().filter_map(open).collect();
        let refused: Vec<_> = open.into_iter().filter_map(|(id, subject)| Some((id, verdict(&subject)?))).collect();
        let mut to_tell = Vec::new();
        let mut inbound = self.inbound.lock();
        for (id, error) in refused {
            if let Some(connection) = inbound.get_mut(&id)
                && let Fate::Open(waker) = &mut connection.fate
            {
                to_tell.extend(waker.take());
                connection.fate = Fate::Cut(error);
            }
        }
        drop(inbound);
        to_tell.into_iter().for_each(Waker::wake);
    }

    /// All of them: inbound, outbound.
    pub(super) fn list(&self) -> (Vec<Entry>, Vec<Entry>) {
        let inbound = self.inbound.lock().values().map(Inbound::entry).collect();
        let outbound = self.outbound.lock().values().map(|(original, connection)| sent(*original, connection)).collect();
        (inbound, outbound)
    }
}

fn sent(original: OrigDst, connection: &Connection) -> Entry {
    let ends = connection.ends();
    Entry {
        src: ends.source,
        original_dst: Some(original.to_string()),
        actual_dst: ends.destination,
        protocol: if connection.parties().mutual_tls { "HBONE" } else { "TCP" },
    }
}

impl Inbound {
    fn entry(&self) -> Entry {
        Entry {
            src: self.subject.source,
            original_dst: self.forwarded.as_deref().map(str::to_owned),
            actual_dst: self.subject.destination,
            protocol: if self.subject.identity.is_some() { "HBONE" } else { "TCP" },
        }
    }
}

/// An inbound connection's place in the list.
#[derive(Debug)]
pub(super) struct InboundGuard {
    id: u64,
    connections: Arc<Connections>,
}

impl InboundGuard {
    /// Returns the reason when the connection must end.
    pub(super) async fn cut(&self) -> Error {
        poll_fn(|cx| self.poll_cut(cx)).await
    }

    /// The same, asked once.
    pub(super) fn poll_cut(&self, cx: &Context<'_>) -> Poll<Error> {
        let mut inbound = self.connections.inbound.lock();
        // The line lives as long as this guard.
        let Some(Inbound { fate, .. }) = inbound.get_mut(&self.id) else { return Poll::Pending };
        match std::mem::replace(fate, Fate::Told) {
            Fate::Cut(error) => return Poll::Ready(error),
            Fate::Told => {}
            Fate::Open(waker) => {
                let waker = waker.filter(|waker| waker.will_wake(cx.waker()));
                *fate = Fate::Open(waker.or_else(|| Some(cx.waker().clone())));
            }
        }
        Poll::Pending
    }
}

impl Drop for InboundGuard {
    fn drop(&mut self) {
        self.connections.inbound.lock().remove(&self.id);
    }
}

/// An outbound connection's place in the list.
#[derive(Debug)]
pub(super) struct OutboundGuard {
    id: u64,
    connections: Arc<Connections>,
}

impl Drop for OutboundGuard {
    fn drop(&mut self) {
        self.connections.outbound.lock().remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::code;

    fn subject(port: u16) -> Subject {
        Subject { source: "10.0.0.1:999".parse().expect("address"), destination: SocketAddr::from(([10, 0, 0, 2], port)), identity: None }
    }

    #[tokio::test]
    async fn one_that_waits_is_woken_wherever_it_waited_last() {
        let connections = Arc::new(Connections::default());
        let guard = connections.inbound(subject(80), None);
        assert!(tokio::time::timeout(std::time::Duration::ZERO, guard.cut()).await.is_err());
        let waiting = tokio::spawn(async move { guard.cut().await.code().id });
        tokio::task::yield_now().await;
        connections.review(|_| Some(Error::new(&code::POLICY_CUT, "no longer allowed")));
        connections.review(|_| panic!("asked about a connection that was cut"));
        let told = tokio::time::timeout(std::time::Duration::from_secs(5), waiting).await.expect("woken").expect("no panic");
        assert_eq!(told, code::POLICY_CUT.id);
    }

    #[tokio::test]
    async fn a_review_cuts_what_is_refused_and_nothing_else() {
        let connections = Arc::new(Connections::default());
        let (refused, kept) = (connections.inbound(subject(80), None), connections.inbound(subject(81), None));
        connections.review(|subject| (subject.destination.port() == 80).then(|| Error::new(&code::POLICY_CUT, "no longer allowed")));
        assert_eq!(refused.cut().await.code(), &code::POLICY_CUT);
        assert!(tokio::time::timeout(std::time::Duration::ZERO, kept.cut()).await.is_err());
        drop(refused);
        drop(kept);
        assert_eq!(connections.list().0.len(), 0);
    }
}
