//! The tunnel engine: one task per tunnel moves bytes between the applications' sockets and the records of the tunnel's
//! socket. Nothing is copied in between but by the ciphers, and by an application that does not keep up.
//!
//! [`Engine`] is that task's state: a [`core`](super::core) connection, a TLS session, and a [`Place`] for each stream.
//! Whoever opens or accepts streams talks to it by [`Shared`]: a short list of commands, one or two in a stream's life.

mod app;
mod buffer;
mod client;
mod commands;
mod end;
mod frozen;
mod inward;
#[cfg(test)]
mod model;
mod moving;
mod outward;
mod place;
mod queue;
mod server;
mod sync;
#[cfg(test)]
mod tests;
mod turns;
mod wake;

use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::HeaderMap;
use parking_lot::Mutex;
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::time::{Instant, Sleep};

pub use self::app::{App, Count, Side};
use self::buffer::Stretch;
pub(super) use self::client::{Carrying, Client};
use self::commands::Commands;
use self::frozen::Frozen;
pub(super) use self::place::Outcome;
use self::place::{Carried, Place, Reading, State, of_app};
use self::queue::Queue;
pub(super) use self::server::{Arrival, Host};
use self::turns::Turns;
use self::wake::Woken;
use super::Settings;
use super::core::{Connection, Head, Reason, Slot, Torn};
use super::dial::Wanted;
use super::link::Link;
use crate::base::{Error, Result, code};
use crate::net::socket;
use crate::tls::record::Session;
use crate::tls::secured::Secured;

/// Turns of a tunnel before it lets others run. One can take a quarter of a millisecond.
const TURNS: usize = 2;

/// What somebody outside wants of the engine.
enum Command {
    /// A stream for an application (client).
    Open(Box<Opening>),
    /// The answer to a request (server).
    Answer(Box<Answering>),
    /// An answer that ends the stream.
    Refuse { of: Of, status: u16 },
    /// No answer.
    Reset { of: Of, reason: Reason },
    /// Nothing new.
    Drain,
    /// The tunnel itself: it goes on elsewhere.
    Freeze(oneshot::Sender<Result<Frozen>>),
}

/// Which stream: the number tells those apart that had the same slot one after the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Of {
    slot: Slot,
    number: u64,
}

struct Opening {
    wanted: Box<Wanted>,
    app: App,
    done: oneshot::Sender<Outcome>,
}

struct Answering {
    of: Of,
    headers: HeaderMap,
    app: App,
    done: oneshot::Sender<Outcome>,
}

/// What the engine shares with those outside.
struct Shared {
    woken: Arc<Woken>,
    commands: Commands<Command>,
    link: Link,
    /// What the peer's limits allow, or nothing any more.
    limits: Mutex<Limits>,
}

#[derive(Clone, Copy, Debug)]
struct Limits {
    usable: bool,
    streams: usize,
}

impl Shared {
    /// Gives the command back when the tunnel is over.
    fn send(&self, command: Command) -> std::result::Result<(), Command> {
        self.commands.send(command)
    }
}

/// What the engine tells whoever owns the tunnel.
trait Owner: Send + 'static {
    /// A peer asks for a stream.
    fn asked(&mut self, of: Of, head: Arc<Head>, gone: oneshot::Receiver<Error>, shared: &Arc<Shared>);
    /// The peer's limits are known.
    fn settled(&mut self);
    /// The tunnel is over; parting from the peer may still take a while.
    fn ended(&mut self);
}

/// The state of one tunnel.
struct Engine<O> {
    socket: TcpStream,
    session: Session,
    connection: Connection,
    /// From the tunnel, not looked at yet: the beginning of a record.
    input: Stretch,
    /// Sealed, not written yet.
    output: Stretch,
    /// By slot.
    places: Vec<Option<Place>>,
    /// Streams whose application may have bytes, in the order of their turns.
    readable: Turns,
    /// Streams that something happened to in this turn.
    touched: Vec<u32>,
    /// Payloads in `input`, by stream: where, and how long.
    pieces: Vec<(u32, usize, usize)>,
    awake: Vec<u32>,
    /// Requests without an answer so far, the oldest first: their slots, numbers and deadlines.
    waiting: VecDeque<(u32, u64, Instant)>,
    /// Streams so far: tells those in the same slot apart.
    numbers: u64,
    answer_limit: Duration,
    /// Until the peer's first SETTINGS have come: the deadline for them.
    silent_until: Option<Instant>,
    started: Instant,
    timer: Pin<Box<Sleep>>,
    /// It is to be frozen for this one.
    leaving: Option<oneshot::Sender<Result<Frozen>>>,
    shared: Arc<Shared>,
    owner: O,
}

/// Why a tunnel is over; `None` in good order.
type Over = Option<Error>;

impl<O: Owner> Engine<O> {
    fn new(secured: Secured, connection: Connection, settings: &Settings, shared: Arc<Shared>, owner: O) -> Self {
        socket::carrier(&secured.socket);
        let mut input = Stretch::default();
        let leftover = secured.leftover;
        if let Some(room) = input.room().get_mut(..leftover.len()) {
            room.copy_from_slice(&leftover);
            input.fill(leftover.len());
        }
        input.clear();
        let started = Instant::now();
        Self {
            socket: secured.socket,
            session: secured.session,
            connection,
            input,
            output: Stretch::default(),
            places: Vec::new(),
            readable: Turns::default(),
            touched: Vec::new(),
            pieces: Vec::new(),
            awake: Vec::new(),
            waiting: VecDeque::new(),
            numbers: 0,
            answer_limit: settings.answer_limit,
            silent_until: Some(started + settings.preface_limit),
            started,
            timer: Box::pin(tokio::time::sleep_until(started)),
            leaving: None,
            shared,
            owner,
        }
    }

    /// Runs the tunnel to its end, or to `cut`.
    async fn run(mut self, cut: impl Future<Output = ()>) {
        let mut cut = std::pin::pin!(cut);
        // What came with the last bytes of the handshake.
        let begun = self.process();
        let reason = match begun {
            Err(over) => over,
            Ok(()) => {
                poll_fn(|cx| match cut.as_mut().poll(cx) {
                    Poll::Ready(()) => Poll::Ready(Some(Error::new(&code::DRAINED, "the pod is being removed or the proxy stops"))),
                    Poll::Pending => self.poll(cx),
                })
                .await
            }
        };
        if let Some(to) = self.leaving.take() {
            // Nobody waits for it any more: it ends there.
            let _ = to.send(self.freeze());
            return;
        }
        self.end(reason);
        self.part().await;
    }

    /// Ready when the tunnel is over.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Over> {
        self.shared.woken.register(cx.waker());
        for _ in 0..TURNS {
            match self.turn(cx) {
                Ok(true) => {}
                Ok(false) => return Poll::Pending,
                Err(over) => return Poll::Ready(over),
            }
        }
        // Others first.
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Does what can be done without waiting; whether there may be more.
    fn turn(&mut self, cx: &mut Context<'_>) -> std::result::Result<bool, Over> {
        self.on_time(cx)?;
        let mut busy = self.obey();
        if self.leaving.is_some() {
            return Err(None);
        }
        busy |= self.look();
        busy |= self.read(cx)?;
        self.conclude();
        busy |= self.write(cx)?;
        self.conclude();
        if self.connection.is_over() && self.output.is_empty() && self.connection.control().is_empty() {
            return Err(None);
        }
        Ok(busy)
    }

    /// Keepalive and deadlines.
    fn on_time(&mut self, cx: &mut Context<'_>) -> std::result::Result<(), Over> {
        let now = Instant::now();
        if let Err(silent) = self.connection.advance(now - self.started) {
            let what = format!("HTTP/2 PING: no answer within {:?}", silent.0);
            tracing::warn!(what, "tunnel ended: the peer does not answer");
            self.connection.abort(Reason::NO_ERROR);
            return Err(Some(Error::new(&code::TUNNEL_BROKEN, what)));
        }
        if self.silent_until.is_some_and(|deadline| now >= deadline) {
            self.connection.abort(Reason::NO_ERROR);
            return Err(Some(Error::new(&code::TUNNEL_BROKEN, "the tunnel: the peer has not said its HTTP/2 SETTINGS in time")));
        }
        while let Some((slot, number, deadline)) = self.waiting.front().copied() {
            let waits = self.is_current(slot, number) && self.carried(slot).is_some_and(|carried| !carried.answered);
            if waits && now < deadline {
                break;
            }
            self.waiting.pop_front();
            if waits {
                let limit = self.answer_limit;
                self.finish(slot, Err(Error::new(&code::CONNECT_SILENT, format!("no answer to CONNECT within {limit:?}"))), true);
            }
        }
        let next = self.started + self.connection.deadline();
        let next = self.waiting.front().map_or(next, |(_, _, deadline)| next.min(*deadline));
        let next = self.silent_until.map_or(next, |deadline| next.min(deadline));
        // One that rings too early is only wound up again.
        if next < self.timer.deadline() || self.timer.as_mut().poll(cx).is_ready() {
            self.timer.as_mut().reset(next);
            if self.timer.as_mut().poll(cx).is_ready() {
                cx.waker().wake_by_ref();
            }
        }
        Ok(())
    }

    /// Does what was asked from outside.
    fn obey(&mut self) -> bool {
        let commands = self.shared.commands.take();
        let busy = !commands.is_empty();
        self.carry_out(commands);
        busy
    }

    fn carry_out(&mut self, commands: Vec<Command>) {
        for command in commands {
            match command {
                Command::Open(opening) => self.open(*opening),
                Command::Answer(answering) => {
                    let Answering { of, headers, app, done } = *answering;
                    match self.unanswered(of) {
                        Some(place) => {
                            place.state = State::Carried(Box::new(Carried::new(app, done)));
                            place.wake.waker.wake_by_ref();
                            self.connection.answer(of.slot, &headers);
                            self.readable.come(of.slot.0, true);
                        }
                        // It was torn meanwhile. The slot may have another request by now, which asks for something else.
                        None => {
                            app.reset();
                            let gone = Error::new(&code::PEER_CLOSED, "the peer gave up before the answer");
                            let _ = done.send(Outcome::Done(Err(gone)));
                        }
                    }
                }
                Command::Refuse { of, status } if self.unanswered(of).is_some() => {
                    self.connection.refuse(of.slot, status);
                    self.drop_place(of.slot.0);
                }
                Command::Reset { of, reason } if self.unanswered(of).is_some() => {
                    self.connection.reset(of.slot, reason);
                    self.drop_place(of.slot.0);
                }
                Command::Refuse { .. } | Command::Reset { .. } => {}
                Command::Freeze(to) => self.leaving = Some(to),
                Command::Drain => {
                    self.connection.go_away();
                    self.shared.limits.lock().usable = false;
                }
            }
        }
    }

    fn open(&mut self, opening: Opening) {
        let request = &opening.wanted.request;
        let slot = self.connection.open(&request.authority, &request.headers);
        let carried = Box::new(Carried::asking(opening));
        let Some(slot) = slot else {
            return carried.give_back(Error::new(&code::DRAINED, "the tunnel takes no more requests for now"));
        };
        let number = self.settle_in(slot, State::Carried(carried));
        // Answered ones are dropped when they come to the front, or when there are many.
        if self.waiting.len() > 2 * self.places.len() + 64 {
            let places = &self.places;
            self.waiting.retain(|(slot, number, _)| {
                let place = places.get(*slot as usize).and_then(Option::as_ref);
                place.is_some_and(|place| place.number == *number && matches!(&place.state, State::Carried(carried) if !carried.answered))
            });
        }
        self.waiting.push_back((slot.0, number, Instant::now() + self.answer_limit));
        self.readable.come(slot.0, true);
    }

    /// A place for a new stream; its number.
    fn settle_in(&mut self, slot: Slot, state: State) -> u64 {
        self.numbers += 1;
        let number = self.numbers;
        let index = slot.0 as usize;
        if self.places.len() <= index {
            self.places.resize_with(index + 1, || None);
        }
        let wake = self.shared.woken.one(slot.0);
        // It is looked at at once.
        wake.waker.wake_by_ref();
        if let Some(place) = self.places.get_mut(index) {
            *place = Some(Place { number, wake, queue: Queue::default(), ended: false, torn: None, state });
        }
        number
    }

    /// Attends to the streams that were woken.
    fn look(&mut self) -> bool {
        let mut awake = std::mem::take(&mut self.awake);
        self.shared.woken.take(&mut awake);
        let busy = !awake.is_empty();
        for slot in awake.drain(..) {
            let Some(place) = self.place(slot) else { continue };
            place.wake.again();
            let waker = place.wake.waker.clone();
            let State::Carried(carried) = &mut place.state else { continue };
            let own = &mut Context::from_waker(&waker);
            if carried.is_unwanted(own) {
                self.finish(slot, Ok(()), true);
                continue;
            }
            if let Some(error) = carried.broken(own) {
                let outcome = of_app(carried.side, error);
                self.finish(slot, outcome, true);
                continue;
            }
            if carried.reading == Reading::Waiting {
                carried.reading = Reading::Listed;
                let sparse = carried.records == 1;
                self.readable.come(slot, sparse);
            }
            self.drain_queue(slot);
        }
        self.awake = awake;
        if self.connection.is_holding() {
            self.mind_what_waits();
        }
        busy
    }

    /// Draws the consequences of what happened in this turn.
    fn conclude(&mut self) {
        while let Some(slot) = self.touched.pop() {
            let Some(place) = self.place(slot) else { continue };
            if let Some(torn) = place.torn.take() {
                self.torn(slot, torn);
            }
            let Some(place) = self.place(slot) else { continue };
            let (ended, empty) = (place.ended, place.queue.is_empty());
            let State::Carried(carried) = &mut place.state else { continue };
            if ended && empty && !carried.shut {
                carried.shut();
            }
            if carried.is_over() {
                self.finish(slot, Ok(()), false);
            }
        }
    }

    /// The peer has torn a stream, or broken a rule of it.
    fn torn(&mut self, slot: u32, torn: Torn) {
        let Some(place) = self.place(slot) else { return };
        let ended = place.ended;
        match &mut place.state {
            State::Asked { .. } => {
                self.connection.release(Slot(slot));
                if let Some(Place { state: State::Asked { gone, .. }, .. }) = self.places.get_mut(slot as usize).and_then(Option::take) {
                    let _ = gone.send(torn_error("the peer gave up before the answer", torn));
                }
            }
            State::Carried(carried) => match torn {
                // It has ended the stream and wants no more (RFC 9113 §8.1): what it sent is complete.
                Torn::ByPeer(Reason::NO_ERROR) if ended => {
                    carried.reading = Reading::Unwanted;
                    carried.watch();
                    self.touched.push(slot);
                }
                Torn::Untouched(_) if !carried.answered => {
                    let error = torn_error("CONNECT", torn);
                    self.connection.release(Slot(slot));
                    if let Some(Place { state: State::Carried(carried), .. }) = self.places.get_mut(slot as usize).and_then(Option::take) {
                        carried.give_back(error);
                    }
                }
                Torn::ByPeer(reason) if carried.answered && reason.is_of_application() => self.finish(slot, Ok(()), true),
                torn => self.finish(slot, Err(torn_error("the stream", torn)), true),
            },
        }
    }

    /// A connection is over; `tear` when it is not complete.
    fn finish(&mut self, slot: u32, outcome: Result<()>, tear: bool) {
        self.connection.release(Slot(slot));
        if let Some(Place { state: State::Carried(mut carried), .. }) = self.places.get_mut(slot as usize).and_then(Option::take) {
            if tear {
                carried.tear();
            } else if carried.reading == Reading::Unwanted {
                tokio::spawn(carried.part());
                return;
            }
            carried.settle(outcome);
        }
    }

    /// Lets go of a stream without an application.
    fn drop_place(&mut self, slot: u32) {
        self.connection.release(Slot(slot));
        if let Some(place) = self.places.get_mut(slot as usize) {
            *place = None;
        }
    }

    fn place(&mut self, slot: u32) -> Option<&mut Place> {
        self.places.get_mut(slot as usize)?.as_mut()
    }

    /// Whether the stream with this number still has the slot.
    fn is_current(&mut self, slot: u32, number: u64) -> bool {
        self.place(slot).is_some_and(|place| place.number == number)
    }

    /// The place of a request that waits for its answer, if it is still there.
    fn unanswered(&mut self, of: Of) -> Option<&mut Place> {
        self.place(of.slot.0).filter(|place| place.number == of.number && matches!(place.state, State::Asked { .. }))
    }

    fn carried(&mut self, slot: u32) -> Option<&mut Carried> {
        match &mut self.place(slot)?.state {
            State::Carried(carried) => Some(carried),
            State::Asked { .. } => None,
        }
    }
}

fn torn_error(doing: &str, torn: Torn) -> Error {
    match torn {
        Torn::ByPeer(reason) if reason.is_of_application() => {
            Error::new(&code::STREAM_RESET, format!("{doing}: the application behind the peer reset the connection"))
        }
        Torn::ByPeer(Reason::NO_ERROR) => Error::new(&code::PEER_CLOSED, format!("{doing}: the peer needs nothing more")),
        Torn::ByPeer(reason) | Torn::Untouched(reason) => {
            Error::new(&code::RELAY_FAILED, format!("{doing}: the peer reset the stream: {reason}"))
        }
        Torn::ByUs(reason, what) => {
            Error::new(&code::RELAY_FAILED, format!("{doing}: reset because the peer broke a rule of HTTP/2: {what} ({reason})"))
        }
    }
}
