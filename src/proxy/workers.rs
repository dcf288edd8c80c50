//! The threads that carry connections. Each has a runtime of its own: what belongs to one connection stays on one thread,
//! and nobody is woken to look for work that is done already.
//!
//! As many threads again, a few at most, wait in reserve: what is opened while the others are busy does not stand behind
//! their work, neither on a thread nor in a tunnel.

mod pulse;

use std::net::TcpStream as StdStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use tokio::net::TcpStream;
use tokio::runtime::{Builder, Handle};
use tokio_util::sync::CancellationToken;

use self::pulse::Pulse;
pub(super) use self::pulse::moved;
use crate::base::{Error, Result, code};

/// Tasks that run before a thread asks the kernel what else there is. A task of a tunnel can take a quarter of a
/// millisecond: what is urgent must not wait for many of them.
const TASKS: u32 = 2;

/// For what is still running when all is to end.
const FAREWELL: Duration = Duration::from_secs(1);

/// Connections of this kind more than the idlest thread has, before one is handed to another thread.
const AHEAD: usize = 1;

/// The most that wait in reserve. One that does nothing holds 45 KB.
const RESERVE: usize = 4;

/// The share of time from which a thread counts as busy, and how much less another must have to take a connection from it.
const BUSY: f64 = 0.5;
const LESS: f64 = 0.25;

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
    /// All but the reserve.
    regular: usize,
    next: AtomicUsize,
}

struct Worker {
    handle: Handle,
    /// Open ones by kind.
    open: [AtomicUsize; 3],
    pulse: Arc<Pulse>,
}

/// Ends the threads.
pub struct Ending {
    stop: CancellationToken,
    threads: Vec<JoinHandle<()>>,
}

impl Workers {
    /// Starts `count` threads and the reserve.
    ///
    /// # Errors
    /// The system refuses threads or descriptors.
    pub fn start(count: usize) -> Result<(Arc<Self>, Ending)> {
        let refused = |error| Error::caused(&code::NO_PERMISSION, "cannot start threads", error);
        let mut ending = Ending { stop: CancellationToken::new(), threads: Vec::new() };
        let mut all = Vec::new();
        let regular = count.max(1);
        for _ in 0..regular + regular.min(RESERVE) {
            let pulse = Arc::new(Pulse::new(Instant::now()));
            let (own, park, unpark) = (pulse.clone(), pulse.clone(), pulse.clone());
            let runtime = Builder::new_current_thread()
                .enable_all()
                .event_interval(TASKS)
                .global_queue_interval(TASKS)
                .on_thread_park(move || park.park(Instant::now()))
                .on_thread_unpark(move || unpark.unpark(Instant::now()))
                .build()
                .map_err(refused)?;
            all.push(Worker { handle: runtime.handle().clone(), open: Default::default(), pulse });
            let stop = ending.stop.clone();
            let thread = thread::Builder::new().name("warren-data".to_owned()).spawn(move || {
                own.adopt();
                runtime.block_on(stop.cancelled());
                runtime.shutdown_timeout(FAREWELL);
            });
            ending.threads.push(thread.map_err(refused)?);
        }
        Ok((Arc::new(Self { all, regular, next: AtomicUsize::new(0) }), ending))
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
        self.next.fetch_add(1, Ordering::Relaxed) % self.regular
    }

    /// The runtime of a thread.
    pub(super) fn handle(&self, worker: usize) -> &Handle {
        &self.worker(worker).handle
    }

    fn worker(&self, number: usize) -> &Worker {
        // Numbers come from here.
        &self.all[number % self.all.len()]
    }

    /// Where a new connection goes: it stays where it was accepted unless another thread has fewer of its kind, or this one
    /// is busy and another clearly less so.
    pub(super) fn place(self: &Arc<Self>, kind: Kind, here: usize) -> Place {
        let open = |worker: &Worker| worker.open[kind as usize].load(Ordering::Relaxed);
        let own = self.all.get(here).map_or(usize::MAX, open);
        let idlest = self.all.iter().take(self.regular).enumerate().map(|(number, worker)| (open(worker), number)).min();
        let fewest = match idlest {
            Some((least, number)) if own > least.saturating_add(AHEAD) => number,
            _ => here,
        };
        let now = Instant::now();
        let worker = self.relieved(fewest, now);
        self.worker(worker).open[kind as usize].fetch_add(1, Ordering::Relaxed);
        self.worker(worker).pulse.expect(now);
        Place { workers: self.clone(), kind, worker }
    }

    /// Another thread, where this one is busy and that clearly less.
    fn relieved(&self, worker: usize, now: Instant) -> usize {
        let busy = self.worker(worker).pulse.busy(now);
        if busy < BUSY {
            return worker;
        }
        // The first: the last are to be free when they are needed.
        self.all.iter().position(|worker| worker.pulse.will_be_busy(now) + LESS <= busy).unwrap_or(worker)
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
        self.workers.worker(self.worker).open[self.kind as usize].fetch_sub(1, Ordering::Relaxed);
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
        assert_eq!(workers.count(), 6, "and as many in reserve");
        ending.end();
    }

    #[test]
    fn a_busy_thread_is_relieved_by_the_first_that_is_not() {
        let (workers, ending) = Workers::start(2).expect("threads");
        let keep_busy = |worker: usize| {
            let (begin, begun) = std::sync::mpsc::channel();
            let (end, ended) = std::sync::mpsc::channel::<()>();
            workers.handle(worker).spawn(async move {
                // The thread has parked once, and goes on.
                tokio::time::sleep(Duration::from_millis(1)).await;
                let _ = begin.send(());
                let _ = ended.recv_timeout(Duration::from_secs(60));
            });
            begun.recv_timeout(Duration::from_secs(30)).expect("it runs");
            end
        };
        // As it will be if nothing changes.
        let soon = || Instant::now() + Duration::from_secs(1);
        assert_eq!(workers.relieved(1, soon()), 1);
        let one = keep_busy(1);
        assert_eq!(workers.relieved(1, soon()), 0);
        let other = keep_busy(0);
        let now = soon();
        let placed = [(); 10].map(|()| {
            let worker = workers.relieved(1, now);
            workers.all[worker].pulse.expect(now);
            worker
        });
        assert_eq!(placed, [2, 2, 2, 2, 2, 2, 3, 3, 3, 3], "the reserve, one after the other");
        assert!((0..4).all(|_| workers.home() < 2), "pods do not listen there");
        drop((one, other));
        ending.end();
    }
}
