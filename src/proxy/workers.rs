//! The threads that carry connections. Each has a runtime of its own: what belongs to one connection stays on one thread,
//! and nobody is woken to look for work that is done already.

use std::net::TcpStream as StdStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::runtime::{Builder, Handle};
use tokio_util::sync::CancellationToken;

use crate::base::{Error, Result, code};

/// Tasks that run before a thread asks the kernel what else there is. A task of a tunnel can take a quarter of a
/// millisecond: what is urgent must not wait for many of them.
const TASKS: u32 = 2;

/// For what is still running when all is to end.
const FAREWELL: Duration = Duration::from_secs(1);

/// Connections of this kind more than the idlest thread has, before one is handed to another thread.
const AHEAD: usize = 1;

/// What is spread evenly, each kind by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Connections that applications open.
    Outbound,
    /// Connections that arrive in plaintext.
    Passthrough,
    /// Tunnels that arrive.
    Tunnel,
}

/// All threads.
pub struct Workers {
    all: Vec<Worker>,
    next: AtomicUsize,
}

struct Worker {
    handle: Handle,
    /// Open ones by kind.
    open: [AtomicUsize; 3],
}

/// Ends the threads.
pub struct Ending {
    stop: CancellationToken,
    threads: Vec<JoinHandle<()>>,
}

impl Workers {
    /// Starts `count` threads.
    ///
    /// # Errors
    /// The system refuses threads or descriptors.
    pub fn start(count: usize) -> Result<(Arc<Self>, Ending)> {
        let refused = |error| Error::caused(&code::NO_PERMISSION, "cannot start threads", error);
        let mut ending = Ending { stop: CancellationToken::new(), threads: Vec::new() };
        let mut all = Vec::new();
        for _ in 0..count.max(1) {
            let runtime = Builder::new_current_thread().enable_all().event_interval(TASKS).global_queue_interval(TASKS).build();
            let runtime = runtime.map_err(refused)?;
            all.push(Worker { handle: runtime.handle().clone(), open: Default::default() });
            let stop = ending.stop.clone();
            let thread = thread::Builder::new().name("warren-data".to_owned()).spawn(move || {
                runtime.block_on(stop.cancelled());
                runtime.shutdown_timeout(FAREWELL);
            });
            ending.threads.push(thread.map_err(refused)?);
        }
        Ok((Arc::new(Self { all, next: AtomicUsize::new(0) }), ending))
    }

    /// How many there are.
    pub(super) fn count(&self) -> usize {
        self.all.len()
    }

    /// How many connections of a kind a thread has.
    #[cfg(test)]
    pub(super) fn open(&self, kind: Kind, worker: usize) -> usize {
        self.all[worker].open[kind as usize].load(Ordering::Relaxed)
    }

    /// The thread that listens for the next pod.
    pub(super) fn home(&self) -> usize {
        self.next.fetch_add(1, Ordering::Relaxed) % self.all.len()
    }

    /// The runtime of a thread.
    pub(super) fn handle(&self, worker: usize) -> &Handle {
        // Numbers come from here.
        &self.all[worker % self.all.len()].handle
    }

    /// Where a new connection goes: it stays where it was accepted unless others have clearly less to do.
    pub(super) fn place(self: &Arc<Self>, kind: Kind, here: usize) -> Place {
        let open = |worker: &Worker| worker.open[kind as usize].load(Ordering::Relaxed);
        let own = self.all.get(here).map_or(usize::MAX, open);
        let idlest = self.all.iter().enumerate().map(|(number, worker)| (open(worker), number)).min();
        let worker = match idlest {
            Some((least, number)) if own > least.saturating_add(AHEAD) => number,
            _ => here,
        };
        self.all[worker % self.all.len()].open[kind as usize].fetch_add(1, Ordering::Relaxed);
        Place { workers: self.clone(), kind, worker }
    }
}

impl Ending {
    /// Ends all tasks; waits for the threads.
    pub fn end(self) {
        self.stop.cancel();
        for thread in self.threads {
            // One that panicked has said so.
            let _ = thread.join();
        }
    }
}

/// A connection's place on a thread; given back when dropped.
pub(super) struct Place {
    workers: Arc<Workers>,
    kind: Kind,
    pub(super) worker: usize,
}

impl Drop for Place {
    fn drop(&mut self) {
        let worker = &self.workers.all[self.worker % self.workers.all.len()];
        worker.open[self.kind as usize].fetch_sub(1, Ordering::Relaxed);
    }
}

/// A socket on its way to the thread that carries it.
pub(super) enum Moving {
    Here(TcpStream),
    There(StdStream),
}

impl Moving {
    /// Leaves the runtime where it was accepted.
    pub(super) fn away(stream: TcpStream) -> std::io::Result<Self> {
        stream.into_std().map(Self::There)
    }

    /// Joins the runtime that this runs on.
    pub(super) fn arrive(self) -> std::io::Result<TcpStream> {
        match self {
            Self::Here(stream) => Ok(stream),
            Self::There(stream) => TcpStream::from_std(stream),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_stay_where_they_arrive_until_others_have_clearly_less() {
        let (workers, ending) = Workers::start(3).expect("threads");
        let places: Vec<_> = (0..9).map(|_| workers.place(Kind::Outbound, 1)).collect();
        let mut of = [0; 3];
        places.iter().for_each(|place| of[place.worker] += 1);
        assert!(of.iter().all(|open| (2..=4).contains(open)), "{of:?}");
        assert_eq!(workers.place(Kind::Tunnel, 2).worker, 2, "each kind by itself");
        drop(places);
        for _ in 0..5 {
            assert_eq!(workers.place(Kind::Outbound, 1).worker, 1, "one at a time stays");
        }
        ending.end();
    }
}
