//! The handle of a tunnel that this side has opened.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use parking_lot::Mutex;
use tokio::sync::{oneshot, watch};
use tokio_util::sync::CancellationToken;

use super::super::core::{Connection, Head, Role};
use super::{App, Command, Commands, Engine, Limits, Of, Opening, Outcome, Owner, Shared, Woken};
use crate::base::{Error, Result, code};
use crate::hbone::{Settings, Wanted};
use crate::tls::secured::Secured;

/// A tunnel as the client sees it. It ends by itself when this and all its streams are gone.
pub(in crate::hbone) struct Client {
    pub(super) shared: Arc<Shared>,
    pub(super) settled: watch::Receiver<bool>,
}

pub(super) struct Opener {
    /// `None` when the tunnel is over.
    pub(super) settled: Option<watch::Sender<bool>>,
}

impl Owner for Opener {
    fn asked(&mut self, of: Of, _head: Arc<Head>, _gone: oneshot::Receiver<Error>, shared: &Arc<Shared>) {
        // The core lets nobody open streams on a client; should it, they are told.
        let _ = shared.send(Command::Reset { of, reason: super::Reason::REFUSED_STREAM });
    }

    fn settled(&mut self) {
        if let Some(settled) = &self.settled {
            settled.send_replace(true);
        }
    }

    fn ended(&mut self) {
        self.settled = None;
    }
}

impl Client {
    /// Starts HTTP/2. The peer's SETTINGS are not waited for: see [`settled`](Client::settled). `cut` ends the tunnel and
    /// all its streams.
    pub(in crate::hbone) fn start(secured: Secured, settings: &Settings, cut: CancellationToken) -> Self {
        let connection = Connection::new(Role::Client, settings.local());
        let (sender, settled) = watch::channel(false);
        let shared = Shared::new(connection.peer_limit());
        let engine = Engine::new(secured, connection, settings, shared.clone(), Opener { settled: Some(sender) });
        tokio::spawn(engine.run(cut.cancelled_owned()));
        Self { shared, settled }
    }

    /// The handle of a tunnel that nobody serves.
    #[cfg(any(test, feature = "counts"))]
    pub(in crate::hbone) fn without_engine() -> Self {
        Self { shared: Shared::new(100), settled: watch::channel(true).1 }
    }

    /// Waits until the peer's limits are known. An error if the tunnel ends first.
    pub(in crate::hbone) async fn settled(&self) -> Result<()> {
        let mut settled = self.settled.clone();
        if settled.wait_for(|known| *known).await.is_ok() {
            return Ok(());
        }
        self.shared.link.closed().await;
        Err(self.shared.reason())
    }

    /// Streams that the peer allows to be open.
    pub(in crate::hbone) fn peer_limit(&self) -> usize {
        self.shared.limits.lock().streams
    }

    /// Whether new streams can be opened: not lost, not told to go away.
    pub(in crate::hbone) fn is_usable(&self) -> bool {
        !self.shared.link.is_closed() && self.shared.limits.lock().usable
    }

    pub(in crate::hbone) async fn closed(&self) {
        self.shared.link.closed().await;
    }

    /// Carries an application's connection in a stream of its own.
    pub(in crate::hbone) fn carry(&self, wanted: Box<Wanted>, app: App) -> Carrying {
        let (done, ended) = oneshot::channel();
        if let Err(Command::Open(opening)) = self.shared.send(Command::Open(Box::new(Opening { wanted, app, done }))) {
            // The receiver is here.
            let _ = opening.done.send(Outcome::Again(Box::new(opening.app), opening.wanted, self.shared.reason()));
        }
        Carrying { ended, shared: self.shared.clone() }
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        // One that is over needs no telling.
        let _ = self.shared.send(Command::Drain);
    }
}

/// A connection that a tunnel has. Ends with it; dropped before, the connection is reset on both sides.
pub(in crate::hbone) struct Carrying {
    ended: oneshot::Receiver<Outcome>,
    shared: Arc<Shared>,
}

impl Carrying {
    pub(super) fn new(ended: oneshot::Receiver<Outcome>, shared: Arc<Shared>) -> Self {
        Self { ended, shared }
    }
}

impl Drop for Carrying {
    fn drop(&mut self) {
        // Nobody will try it elsewhere.
        if let Ok(Outcome::Again(app, ..)) = self.ended.try_recv() {
            app.reset();
        }
    }
}

impl Future for Carrying {
    type Output = Outcome;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Outcome> {
        // The engine settles all that it has; what is dropped without a word was lost with its stream.
        Pin::new(&mut self.ended).poll(cx).map(|ended| ended.unwrap_or_else(|_| Outcome::Done(Err(self.shared.reason()))))
    }
}

impl Shared {
    pub(super) fn new(streams: usize) -> Arc<Self> {
        let woken = Arc::<Woken>::default();
        Arc::new(Self {
            woken: woken.clone(),
            commands: Commands::new(woken),
            link: super::Link::default(),
            limits: Mutex::new(Limits { usable: true, streams }),
        })
    }

    /// Why the tunnel is over.
    pub(super) fn reason(&self) -> Error {
        self.link.reason().unwrap_or_else(|| Error::new(&code::PEER_CLOSED, "the peer closed the tunnel"))
    }
}
