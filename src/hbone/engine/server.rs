//! The handle of a tunnel that a peer has opened.

use std::sync::Arc;

use http::HeaderMap;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::super::core::{Connection, Head, Reason, Role};
use super::{Answering, App, Carrying, Command, Engine, Of, Owner, Shared};
use crate::base::{Error, Result, code};
use crate::hbone::Settings;
use crate::tls::secured::Secured;

/// An accepted tunnel. Dropped, it ends with all its streams.
pub(in crate::hbone) struct Host {
    pub(super) incoming: mpsc::Receiver<Arrival>,
    pub(super) shared: Arc<Shared>,
    pub(super) _cut: DropGuard,
}

/// A request for a stream. Dropped without an answer, it is reset.
pub(in crate::hbone) struct Arrival {
    pub(in crate::hbone) head: Arc<Head>,
    pub(super) of: Of,
    pub(super) shared: Arc<Shared>,
    gone: Option<oneshot::Receiver<Error>>,
}

pub(super) struct Acceptor {
    /// `None` when the tunnel is over.
    pub(super) sender: Option<mpsc::Sender<Arrival>>,
}

impl Owner for Acceptor {
    fn asked(&mut self, of: Of, head: Arc<Head>, gone: oneshot::Receiver<Error>, shared: &Arc<Shared>) {
        let arrival = Arrival { head, of, shared: shared.clone(), gone: Some(gone) };
        let Some(sender) = &self.sender else { return arrival.reject() };
        // The queue holds as many as the peer may have open; one that still overflows it is refused.
        if let Err(mpsc::error::TrySendError::Full(arrival) | mpsc::error::TrySendError::Closed(arrival)) = sender.try_send(arrival) {
            arrival.reject();
        }
    }

    fn settled(&mut self) {}

    fn ended(&mut self) {
        self.sender = None;
    }
}

impl Host {
    /// Speaks HTTP/2 on an accepted connection.
    pub(in crate::hbone) fn start(secured: Secured, settings: &Settings) -> Self {
        let connection = Connection::new(Role::Server, settings.local());
        let (sender, incoming) = mpsc::channel((settings.max_streams as usize).max(1));
        let shared = Shared::new(0);
        let engine = Engine::new(secured, connection, settings, shared.clone(), Acceptor { sender: Some(sender) });
        let cut = CancellationToken::new();
        tokio::spawn(engine.run(cut.clone().cancelled_owned()));
        Self { incoming, shared, _cut: cut.drop_guard() }
    }

    /// The next request; `None` when the tunnel has ended, after a drain: when its last stream has.
    pub(in crate::hbone) async fn next(&mut self) -> Option<Arrival> {
        self.incoming.recv().await
    }

    /// Why it ended, if not in good order.
    pub(in crate::hbone) fn reason(&self) -> Option<Error> {
        self.shared.link.reason()
    }

    /// Whether this side ended it because the peer broke the rules.
    pub(in crate::hbone) fn is_abused(&self) -> bool {
        self.shared.link.is_abused()
    }

    /// Tells the peer to open no more streams (GOAWAY). Those that are open go on.
    pub(in crate::hbone) fn graceful_shutdown(&self) {
        // One that is over takes none anyway.
        let _ = self.shared.send(Command::Drain);
    }
}

impl Arrival {
    /// Answers 200 with `headers` and carries the connection to `app`.
    ///
    /// # Errors
    /// The peer has given up or the tunnel is lost.
    pub(in crate::hbone) fn carry(mut self, headers: HeaderMap, app: App) -> Result<Carrying> {
        let gone = self.gone.take();
        if let Some(given_up) = gone.and_then(|mut gone| gone.try_recv().ok()) {
            app.reset();
            return Err(given_up);
        }
        let (done, ended) = oneshot::channel();
        match self.shared.send(Command::Answer(Box::new(Answering { of: self.of, headers, app, done }))) {
            Ok(()) => Ok(Carrying::new(ended, self.shared.clone())),
            Err(command) => {
                if let Command::Answer(answering) = command {
                    answering.app.reset();
                }
                Err(self.shared.reason())
            }
        }
    }

    /// Answers `status` and ends the stream.
    pub(in crate::hbone) fn refuse(mut self, status: u16) {
        self.gone = None;
        let _ = self.shared.send(Command::Refuse { of: self.of, status });
    }

    /// Says that nothing was done with the request: the peer may repeat it elsewhere (REFUSED_STREAM, RFC 9113 §8.7).
    pub(in crate::hbone) fn reject(mut self) {
        self.gone = None;
        let _ = self.shared.send(Command::Reset { of: self.of, reason: Reason::REFUSED_STREAM });
    }

    /// Waits until the peer gives up: ends the work for a client that left.
    pub(in crate::hbone) async fn abandoned(&mut self) -> Error {
        match &mut self.gone {
            Some(gone) => gone.await.unwrap_or_else(|_| self.shared.reason()),
            None => Error::new(&code::PEER_CLOSED, "the request was answered"),
        }
    }
}

impl Drop for Arrival {
    fn drop(&mut self) {
        if self.gone.is_some() {
            let _ = self.shared.send(Command::Reset { of: self.of, reason: Reason::CANCEL });
        }
    }
}
