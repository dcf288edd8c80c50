//! A tunnel that stops in one task and goes on in another, which may be another process's: neither the peer nor the
//! applications notice. What those outside hold of it (handles, requests that are not answered yet) ends with the old
//! task and is made anew for the new one.

#![allow(dead_code, reason = "the hand-over between processes is to use it")]

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::super::core::{Connection, Role};
use super::buffer::{RECORDS, Stretch};
use super::client::Opener;
use super::frozen::{Buffers, Frozen, Kind, Stream, Tunnel, unreadable};
use super::place::{Carried, Place, Reading, State};
use super::queue::Queue;
use super::server::Acceptor;
use super::turns::Turns;
use super::{App, Carrying, Client, Command, Count, Engine, Host, Of, Opening, Owner, Shared, Side};
use crate::base::{Error, Result, code};
use crate::tls::record::Session;

/// Told of each connection that goes on: its application's socket, by whose addresses it is known again, which end that
/// is, and what to wait for. Says who counts its bytes from now on.
pub(in crate::hbone) type GoesOn<'a> = &'a mut (dyn FnMut(&TcpStream, Side, Carrying) -> Arc<dyn Count> + Send);

impl Client {
    /// Stops the tunnel. What was asked of it before is done or goes along.
    ///
    /// # Errors
    /// It has ended.
    pub(in crate::hbone) async fn freeze(self) -> Result<Frozen> {
        self.shared.freeze().await
    }

    /// Goes on with a tunnel. `cut` is as in [`start`](Client::start).
    ///
    /// # Errors
    /// It is not a client's, was written by another version, or is not whole. Its connections are torn.
    pub(in crate::hbone) fn thaw(frozen: Frozen, cut: CancellationToken, goes_on: GoesOn<'_>) -> Result<Self> {
        let owner = |_: &Connection| {
            let (sender, settled) = watch::channel(false);
            (Opener { settled: Some(sender) }, settled)
        };
        let (engine, settled) = Engine::thaw(frozen, Role::Client, owner, goes_on)?;
        let shared = engine.shared.clone();
        tokio::spawn(engine.run(cut.cancelled_owned()));
        Ok(Self { shared, settled })
    }
}

impl Host {
    /// Stops the tunnel. What was asked of it before is done or goes along.
    ///
    /// # Errors
    /// It has ended.
    pub(in crate::hbone) async fn freeze(self) -> Result<Frozen> {
        self.shared.freeze().await
    }

    /// Goes on with a tunnel. Requests that were not answered come again from [`next`](Host::next).
    ///
    /// # Errors
    /// It is not a server's, was written by another version, or is not whole. Its connections are torn.
    pub(in crate::hbone) fn thaw(frozen: Frozen, goes_on: GoesOn<'_>) -> Result<Self> {
        let owner = |connection: &Connection| {
            let (sender, incoming) = mpsc::channel(connection.own_limit().max(1));
            (Acceptor { sender: Some(sender) }, incoming)
        };
        let (engine, incoming) = Engine::thaw(frozen, Role::Server, owner, goes_on)?;
        let (shared, cut) = (engine.shared.clone(), CancellationToken::new());
        tokio::spawn(engine.run(cut.clone().cancelled_owned()));
        Ok(Self { incoming, shared, _cut: cut.drop_guard() })
    }
}

impl Shared {
    async fn freeze(&self) -> Result<Frozen> {
        let (sender, frozen) = oneshot::channel();
        // Of a tunnel that is over the sender is dropped.
        let _ = self.send(Command::Freeze(sender));
        frozen.await.unwrap_or_else(|_| Err(self.reason()))
    }
}

impl<O: Owner> Engine<O> {
    /// Makes the tunnel a value, between two turns.
    pub(super) fn freeze(mut self) -> Result<Frozen> {
        self.listen_no_more();
        // Those who have let go of their connections by now are heard.
        self.look();
        self.conclude();
        let sockets = match self.sockets() {
            Ok(sockets) => sockets,
            Err(error) => {
                let error = Error::caused(&code::DRAINED, "the tunnel cannot be handed over", error);
                self.end(Some(error.clone()));
                return Err(error);
            }
        };
        // What fails from here on drops it, which tears the connections.
        let mut frozen = Frozen::new(sockets);
        let now = Instant::now();
        let left = |deadline: Instant| deadline.saturating_duration_since(now);
        // Out of reach of whoever tears what a tunnel leaves behind.
        let places = std::mem::take(&mut self.places);
        let (input, output) = (self.input.filled(), self.output.filled());
        let mut buffers = vec![IoSlice::new(input), IoSlice::new(output)];
        for place in places.iter().flatten() {
            buffers.extend(place.queue.slices());
            if let State::Carried(carried) = &place.state {
                buffers.push(IoSlice::new(&carried.early));
            }
        }
        let noted = self.session.take().and_then(|session| {
            let tunnel = Tunnel {
                connection: &self.connection,
                session,
                input: input.len(),
                output: output.len(),
                streams: places.iter().map(|place| place.as_ref().map(Stream::from)).collect(),
                waiting: self.waiting.iter().map(|(slot, number, deadline)| (*slot, *number, left(*deadline))).collect(),
                numbers: self.numbers,
                answer_limit: self.answer_limit,
                silence: self.silent_until.map(left),
                age: now - self.started,
            };
            frozen.note(&tunnel, &buffers)
        });
        // Before the places go, whose owners then ask for the reason.
        let reason = noted.clone().err().unwrap_or_else(|| Error::new(&code::DRAINED, "the tunnel was handed over"));
        self.shared.link.end(Some(reason));
        self.shared.limits.lock().usable = false;
        self.owner.ended();
        noted.map(|()| frozen)
    }

    /// Does what was asked so far; nothing more can be asked.
    fn listen_no_more(&mut self) {
        let last = self.shared.commands.close();
        self.carry_out(last);
    }

    /// Second handles of all sockets: the first are given up when nothing can fail any more.
    fn sockets(&self) -> io::Result<Vec<std::net::TcpStream>> {
        let carried = self.places.iter().flatten().filter_map(|place| match &place.state {
            State::Carried(carried) => Some(&*carried.socket),
            State::Asked { .. } => None,
        });
        let all = std::iter::once(&self.socket).chain(carried);
        all.map(|socket| Ok(socket.as_fd().try_clone_to_owned()?.into())).collect()
    }

    /// A tunnel that does not run yet. `owner` makes the one that it has from now on, and what goes with it.
    fn thaw<H>(frozen: Frozen, role: Role, owner: impl FnOnce(&Connection) -> (O, H), goes_on: GoesOn<'_>) -> Result<(Self, H)> {
        let (state, mut buffers) = frozen.read()?;
        if state.connection.role() != role {
            return Err(unreadable("it is the other end"));
        }
        // Until all is well the first handles stay in `frozen`, which tears what does not go on.
        let sockets = frozen.sockets().iter().map(registered).collect::<io::Result<Vec<_>>>();
        let mut sockets = sockets.map_err(|error| Error::caused(&code::DRAINED, "a socket that was handed over", error))?.into_iter();
        let socket = sockets.next().ok_or_else(|| unreadable("it has no socket"))?;
        let (input, output) = (stretch(buffers.next(state.input)?)?, stretch(buffers.next(state.output)?)?);
        let now = Instant::now();
        let until = |left: Duration| now.checked_add(left).ok_or_else(|| unreadable("a deadline that never comes"));
        let waiting = state.waiting.into_iter().map(|(slot, number, left)| Ok((slot, number, until(left)?)));
        let shared = Shared::new(state.connection.peer_limit());
        shared.limits.lock().usable = state.connection.is_usable();
        let (owner, handle) = owner(&state.connection);
        let mut engine = Self {
            socket,
            session: Session::import(state.session)?,
            connection: state.connection,
            input,
            output,
            places: Vec::with_capacity(state.streams.len()),
            readable: Turns::default(),
            touched: Vec::new(),
            pieces: Vec::new(),
            awake: Vec::new(),
            waiting: waiting.collect::<Result<VecDeque<_>>>()?,
            numbers: state.numbers,
            answer_limit: state.answer_limit,
            silent_until: state.silence.map(until).transpose()?,
            started: now.checked_sub(state.age).ok_or_else(|| unreadable("it is older than time"))?,
            timer: Box::pin(tokio::time::sleep_until(now)),
            leaving: None,
            shared,
            owner,
        };
        let settled = state.streams.into_iter().try_for_each(|stream| {
            let place = stream.map(|stream| engine.place_again(stream, &mut buffers, &mut sockets, goes_on)).transpose()?;
            engine.places.push(place);
            Ok(())
        });
        let all = settled.and_then(|()| match buffers.is_empty() && sockets.next().is_none() {
            true => Ok(()),
            false => Err(unreadable("it is of more than one tunnel")),
        });
        // Connections that were announced already are told the same.
        all.inspect_err(|error| engine.shared.link.end(Some(error.clone())))?;
        if engine.silent_until.is_none() {
            engine.owner.settled();
        }
        drop(frozen.into_parts());
        Ok((engine, handle))
    }

    /// The place of the stream in the next slot.
    fn place_again(
        &mut self,
        stream: Stream,
        buffers: &mut Buffers<'_>,
        sockets: &mut std::vec::IntoIter<TcpStream>,
        goes_on: GoesOn<'_>,
    ) -> Result<Place> {
        let slot = u32::try_from(self.places.len()).map_err(|_| unreadable("it has too many streams"))?;
        let mut queue = Queue::default();
        queue.push(buffers.next(stream.queue)?);
        let wake = self.shared.woken.one(slot);
        // Whatever it waited for may have happened meanwhile.
        wake.waker.wake_by_ref();
        self.touched.push(slot);
        let state = match stream.kind {
            Kind::Asked(head) => {
                let (head, (gone, receiver)) = (Arc::new(head.head()?), oneshot::channel());
                let of = Of { slot: super::Slot(slot), number: stream.number };
                self.owner.asked(of, head.clone(), receiver, &self.shared);
                State::Asked { head, gone }
            }
            Kind::Carried { side, reading, records, asked, early, resend, shut } => {
                let early = buffers.next(early)?.to_vec();
                let socket = sockets.next().ok_or_else(|| unreadable("it has too few sockets"))?;
                if resend > early.len() {
                    return Err(unreadable("more is to be sent again than was sent"));
                }
                let (done, ended) = oneshot::channel();
                let count = goes_on(&socket, side, Carrying::new(ended, self.shared.clone()));
                let app = App { socket, side, count, unsent: early };
                let mut carried = match asked {
                    Some(asked) => Carried::asking(Opening { wanted: Box::new(asked.wanted()?), app, done }),
                    None => Carried::new(app, done),
                };
                (carried.resend, carried.records, carried.shut) = (resend, records.clamp(1, RECORDS), shut);
                match reading {
                    Reading::Done | Reading::Unwanted => {
                        carried.reading = reading;
                        carried.watch();
                    }
                    // It is looked at anew.
                    Reading::Listed | Reading::Waiting | Reading::Blocked => self.readable.come(slot, carried.records == 1),
                }
                State::Carried(Box::new(carried))
            }
        };
        Ok(Place { number: stream.number, wake, queue, ended: stream.ended, torn: None, state })
    }
}

impl From<&Place> for Stream {
    fn from(place: &Place) -> Self {
        let kind = match &place.state {
            State::Asked { head, .. } => Kind::Asked((&**head).into()),
            State::Carried(carried) => Kind::Carried {
                side: carried.side,
                reading: carried.reading,
                records: carried.records,
                asked: carried.wanted.as_deref().map(Into::into),
                early: carried.early.len(),
                resend: carried.resend,
                shut: carried.shut,
            },
        };
        Self { number: place.number, ended: place.ended, queue: place.queue.len(), kind }
    }
}

/// A second handle of a socket, with this runtime.
fn registered(socket: &std::net::TcpStream) -> io::Result<TcpStream> {
    let socket = socket.try_clone()?;
    socket.set_nonblocking(true)?;
    TcpStream::from_std(socket)
}

fn stretch(bytes: &[u8]) -> Result<Stretch> {
    let mut stretch = Stretch::default();
    if !bytes.is_empty() {
        let room = stretch.room().get_mut(..bytes.len()).ok_or_else(|| unreadable("a buffer that is too large"))?;
        room.copy_from_slice(bytes);
        stretch.fill(bytes.len());
    }
    Ok(stretch)
}
