//! One stream of a tunnel and the application behind it.

use std::future::Future;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use serde::{Deserialize, Serialize};
use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio::sync::oneshot;

use super::super::core::{Head, Torn};
use super::super::dial::Wanted;
use super::Opening;
use super::app::{App, Count, Side};
use super::queue::Queue;
use super::wake::SlotWaker;
use crate::base::{Error, Result, code};
use crate::net::socket;

/// How a connection through a tunnel ended.
pub(in crate::hbone) enum Outcome {
    /// It is over.
    Done(Result<()>),
    /// The peer did nothing with it: here it is again.
    Again(Box<App>, Box<Wanted>, Error),
}

/// What is kept of one stream.
pub(super) struct Place {
    /// Of the stream, in this tunnel.
    pub(super) number: u64,
    pub(super) wake: SlotWaker,
    /// Bytes that the application has not taken. At most the stream's window.
    pub(super) queue: Queue,
    /// The peer sends no more.
    pub(super) ended: bool,
    /// Why the stream is torn, until that is dealt with.
    pub(super) torn: Option<Torn>,
    pub(super) state: State,
}

pub(super) enum State {
    /// The peer's request waits for an answer; whoever has it is told if the peer gives up.
    Asked { head: Arc<Head>, gone: oneshot::Sender<Error> },
    /// Bytes go to and fro.
    Carried(Box<Carried>),
}

/// An application's connection in a stream.
pub(super) struct Carried {
    /// Shared with `watch` only.
    pub(super) socket: Arc<TcpStream>,
    pub(super) side: Side,
    pub(super) count: Arc<dyn Count>,
    done: Option<oneshot::Sender<Outcome>>,
    pub(super) reading: Reading,
    /// Full records to ask the socket for: few while it gives little.
    pub(super) records: usize,
    /// The peer has accepted the stream.
    pub(super) answered: bool,
    /// What it was asked, until then.
    pub(super) wanted: Option<Box<Wanted>>,
    /// What was sent before that, for another tunnel.
    pub(super) early: Vec<u8>,
    /// So many bytes at its end come from another tunnel and have not been sent in this one.
    pub(super) resend: usize,
    /// The application was told that no more comes.
    pub(super) shut: bool,
    /// Sees a reset of a socket that is not read any more.
    watch: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
}

/// What happens with the bytes of the application.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Reading {
    /// It is in the list of those that may have some.
    Listed,
    /// Its waker is with the socket.
    Waiting,
    /// The peer takes no more for now.
    Blocked,
    /// There are no more.
    Done,
    /// The peer wants no more of them.
    Unwanted,
}

impl Carried {
    /// In a stream that is accepted.
    pub(super) fn new(app: App, done: oneshot::Sender<Outcome>) -> Self {
        Self {
            socket: Arc::new(app.socket),
            side: app.side,
            count: app.count,
            done: Some(done),
            reading: Reading::Listed,
            records: 1,
            answered: true,
            wanted: None,
            resend: app.unsent.len(),
            early: app.unsent,
            shut: false,
            watch: None,
        }
    }

    /// In a stream that the peer is asked for.
    pub(super) fn asking(Opening { wanted, app, done }: Opening) -> Self {
        Self { answered: false, wanted: Some(wanted), ..Self::new(app, done) }
    }

    /// The peer has accepted the stream: what was kept to ask another is not needed any more.
    pub(super) fn accepted(&mut self) {
        self.answered = true;
        self.wanted = None;
        if self.resend == 0 {
            self.early = Vec::new();
        }
    }

    pub(super) fn count_from(&self, bytes: usize) {
        self.side.count_from(&*self.count, bytes);
    }

    pub(super) fn count_to(&self, bytes: usize) {
        self.side.count_to(&*self.count, bytes);
    }

    /// Gives bytes to the application; how many it took.
    pub(super) fn write(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        write(&self.socket, slices)
    }

    /// Watches a socket that is not read any more for a reset.
    pub(super) fn watch(&mut self) {
        let socket = self.socket.clone();
        self.watch.get_or_insert_with(|| {
            Box::pin(async move {
                // Which error it is, is asked by whoever is told.
                let _ = socket.ready(Interest::ERROR).await;
            })
        });
    }

    /// The error of a socket that nobody reads, if there is one by now.
    pub(super) fn broken(&mut self, cx: &mut Context<'_>) -> Option<io::Error> {
        let watch = self.watch.as_mut()?;
        if watch.as_mut().poll(cx).is_pending() {
            return None;
        }
        self.watch = None;
        match self.socket.take_error() {
            Ok(None) => Some(io::ErrorKind::ConnectionReset.into()),
            Ok(Some(error)) | Err(error) => Some(error),
        }
    }

    /// Whether whoever handed the connection over has let go of it.
    pub(super) fn is_unwanted(&mut self, cx: &mut Context<'_>) -> bool {
        self.done.as_mut().is_some_and(|done| matches!(done.poll_closed(cx), Poll::Ready(())))
    }

    /// No more to come. A peer that is gone already needs no telling.
    pub(super) fn shut(&mut self) {
        self.shut = true;
        socket::finish(&self.socket);
    }

    /// Closing the socket will send RST instead of FIN: neither side may take a torn connection for a complete one.
    pub(super) fn tear(&self) {
        socket::reset(&self.socket);
    }

    /// Nothing more is taken from the application.
    pub(super) fn has_said_all(&self) -> bool {
        matches!(self.reading, Reading::Done | Reading::Unwanted)
    }

    /// Both directions are done.
    pub(super) fn is_over(&self) -> bool {
        self.shut && self.has_said_all()
    }

    pub(super) fn settle(&mut self, outcome: Result<()>) {
        if let Some(done) = self.done.take() {
            // Whoever waited may have left.
            let _ = done.send(Outcome::Done(outcome));
        }
    }

    /// What came before the tunnel ended goes to an application that reads slowly, for a while.
    pub(super) async fn hand_over_the_rest(mut self, mut queue: Queue) {
        self.watch = None;
        let (socket, count) = (self.socket.clone(), self.count.clone());
        let side = self.side;
        // Given up before the end, it must not look like the end.
        let mut unless = Tearing(Some(socket.clone()));
        let all = async {
            while !queue.is_empty() {
                socket.writable().await?;
                let length = write(&socket, &queue.slices())?;
                side.count_to(&*count, length);
                queue.taken(length);
            }
            io::Result::Ok(())
        };
        let taken = tokio::select! {
            taken = tokio::time::timeout(REST, all) => taken,
            () = let_go(&mut self.done) => return,
        };
        match taken {
            Ok(Ok(())) => {
                unless.0 = None;
                self.shut();
                self.part().await;
            }
            Ok(Err(error)) => {
                let outcome = of_app(self.side, error);
                self.settle(outcome);
            }
            Err(_) => {
                self.tear();
                self.settle(Err(Error::new(&code::PEER_CLOSED, "the application did not take what came before the tunnel ended")));
            }
        }
    }

    /// Lets go of an application that was told all. One whose bytes nobody wants has to have it first (RFC 9113 §8.1).
    pub(super) async fn part(mut self) {
        self.watch = None;
        if self.reading == Reading::Unwanted {
            let socket = self.socket.clone();
            tokio::select! {
                biased;
                _ = tokio::time::timeout(REST, socket::delivered(&socket)) => {}
                () = let_go(&mut self.done) => socket::reset(&*socket),
            }
        }
        self.settle(Ok(()));
    }

    /// Gives the connection back to be tried elsewhere.
    pub(super) fn give_back(mut self, error: Error) {
        let Some(done) = self.done.take() else { return self.tear() };
        self.watch = None;
        let early = std::mem::take(&mut self.early);
        match (Arc::into_inner(self.socket), self.wanted) {
            (Some(socket), Some(wanted)) => {
                let mut app = App::new(socket, self.side, self.count);
                app.unsent = early;
                if let Err(Outcome::Again(app, ..)) = done.send(Outcome::Again(Box::new(app), wanted, error)) {
                    app.reset();
                }
            }
            _ => {
                let _ = done.send(Outcome::Done(Err(error)));
            }
        }
    }
}

/// Returns when whoever handed the connection over has let go of it.
async fn let_go(done: &mut Option<oneshot::Sender<Outcome>>) {
    match done {
        Some(done) => done.closed().await,
        None => std::future::pending().await,
    }
}

/// Closing it will send RST, unless the socket is taken out.
struct Tearing(Option<Arc<TcpStream>>);

impl Drop for Tearing {
    fn drop(&mut self) {
        if let Some(socket) = &self.0 {
            socket::reset(&**socket);
        }
    }
}

/// For an application to take what came before its tunnel ended.
const REST: std::time::Duration = std::time::Duration::from_secs(60);

fn write(socket: &TcpStream, slices: &[IoSlice<'_>]) -> io::Result<usize> {
    match socket::write(socket, slices) {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(0),
        result => result,
    }
}

/// How an error of an application's socket is told: a reset is its way to end.
pub(super) fn of_app(side: Side, error: io::Error) -> Result<()> {
    match error.kind() {
        io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => Ok(()),
        _ => Err(Error::caused(&code::RELAY_FAILED, format!("connection to the {}", side.name()), error)),
    }
}
