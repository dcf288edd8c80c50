//! The end of a tunnel: of its streams, of what was still asked of it, and the parting from the peer.

use std::time::Duration;

use super::place::{Outcome, State};
use super::{Carried, Command, Engine, Over, Owner};
use crate::base::Error;
use crate::net::socket;

impl<O: Owner> Engine<O> {
    /// Ends all streams.
    pub(super) fn end(&mut self, reason: Over) {
        let orderly = reason.is_none();
        self.shared.link.end(reason);
        self.owner.ended();
        self.shared.limits.lock().usable = false;
        let late = self.shared.commands.close();
        let error = self.shared.reason();
        for place in std::mem::take(&mut self.places).into_iter().flatten() {
            match place.state {
                State::Asked { gone, .. } => drop(gone.send(error.clone())),
                // All of it is here; only the application has not taken it yet.
                State::Carried(carried) if place.ended && carried.has_said_all() => {
                    tokio::spawn(carried.hand_over_the_rest(place.queue));
                }
                State::Carried(mut carried) => {
                    carried.tear();
                    carried.settle(Err(error.clone()));
                }
            }
        }
        for command in late {
            match command {
                // Nothing of it was done.
                Command::Open(opening) => Carried::asking(*opening).give_back(error.clone()),
                Command::Answer(answering) => {
                    answering.app.reset();
                    let _ = answering.done.send(Outcome::Done(Err(error.clone())));
                }
                Command::Refuse { .. } | Command::Reset { .. } | Command::Drain | Command::Freeze(_) => {}
            }
        }
        tracing::trace!(orderly, "tunnel over");
    }

    /// Parts from the peer without losing what it has not read yet: closing a socket with unread bytes makes the kernel
    /// send a reset. It says that it is done and reads until the peer says so too.
    pub(super) async fn part(mut self) {
        let parting = async {
            let mut closed = false;
            loop {
                let sealed = self.seal_control();
                if self.output.is_empty() {
                    // What the connection has to say comes before TLS says that nothing more comes.
                    if std::mem::replace(&mut closed, true) {
                        break;
                    }
                    self.session.close();
                    continue;
                }
                if sealed.is_err() {
                    self.connection.control().clear();
                }
                self.socket.writable().await?;
                match self.socket.try_write(self.output.filled()) {
                    Ok(length) => self.output.consume(length),
                    Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                    Err(error) => return Err(error),
                }
            }
            socket::finish(&self.socket);
            let mut sink = [0; 4096];
            loop {
                self.socket.readable().await?;
                match self.socket.try_read(&mut sink) {
                    Ok(0) => return Ok(()),
                    Err(error) if error.kind() != std::io::ErrorKind::WouldBlock => return Err(error),
                    _ => {}
                }
            }
        };
        // Whether the peer answers or not, the connection is over.
        let _: std::result::Result<std::io::Result<()>, _> = tokio::time::timeout(LINGER, parting).await;
    }
}

impl<O> Drop for Engine<O> {
    /// One that comes to its end leaves nothing to do here. When its runtime stops or it panics, whoever waits is told.
    fn drop(&mut self) {
        if !self.shared.link.is_closed() {
            self.shared.link.end(Some(Error::internal("the task of the tunnel is gone")));
        }
        self.shared.limits.lock().usable = false;
        for place in self.places.iter().flatten() {
            if let State::Carried(carried) = &place.state {
                carried.tear();
            }
        }
        for command in self.shared.commands.close() {
            match command {
                Command::Open(opening) => opening.app.reset(),
                Command::Answer(answering) => answering.app.reset(),
                Command::Refuse { .. } | Command::Reset { .. } | Command::Drain | Command::Freeze(_) => {}
            }
        }
    }
}

/// How long a closed connection is read on.
const LINGER: Duration = Duration::from_secs(5);
