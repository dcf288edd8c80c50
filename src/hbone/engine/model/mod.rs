//! What threads share around a tunnel's task, in every order in which they can meet and with every value that they may
//! see then. A wake-up that is lost leaves all threads waiting, which the model checker tells.

#[allow(clippy::duplicate_mod, reason = "the same code, with the model beneath it")]
#[path = "../commands.rs"]
mod commands;
mod sync;
#[allow(clippy::duplicate_mod, reason = "the same code, with the model beneath it")]
#[path = "../wake.rs"]
mod wake;

use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;

use loom::future::block_on;
use loom::model::Builder;
use loom::thread;

use self::commands::Commands;
use self::sync::{AtomicBool, Ordering};
use self::wake::{SlotWaker, Woken};

/// How often a thread is stopped in the middle.
type Interruptions = Option<usize>;

const ANY: Interruptions = None;

/// Where three threads meet: all orders would take minutes, and what goes wrong does so with fewer.
const THREE: Interruptions = Some(3);

fn every_order(interruptions: Interruptions, of: impl Fn() + Sync + Send + 'static) {
    let mut model = Builder::new();
    model.preemption_bound = interruptions;
    model.check(of);
}

/// A stream, and what can happen to it: its application has bytes, takes more, is let go of.
struct Stream {
    wake: SlotWaker,
    happened: Vec<Arc<AtomicBool>>,
}

impl Stream {
    /// It is looked at at once, as the engine does with a new one.
    fn new(woken: &Arc<Woken>, slot: u32, sources: usize) -> Self {
        let wake = woken.one(slot);
        wake.waker.wake_by_ref();
        Self { wake, happened: (0..sources).map(|_| Arc::new(AtomicBool::new(false))).collect() }
    }

    /// Each source tells what happened on a thread of its own.
    fn start(&self) -> Vec<thread::JoinHandle<()>> {
        let sources = self.happened.iter().map(|happened| (happened.clone(), self.wake.waker.clone()));
        let threads = sources.map(|(happened, waker)| {
            thread::spawn(move || {
                // As a channel of tokio does; a socket has a lock besides.
                happened.swap(true, Ordering::AcqRel);
                waker.wake_by_ref();
            })
        });
        threads.collect()
    }
}

/// Looks at the streams that are woken, as the engine does, until all has been seen that happens to them.
fn serve(woken: &Woken, streams: &[Stream]) {
    let mut awake = Vec::new();
    let mut left: Vec<Vec<_>> = streams.iter().map(|stream| stream.happened.clone()).collect();
    block_on(poll_fn(|cx| {
        woken.register(cx.waker());
        woken.take(&mut awake);
        for slot in awake.drain(..) {
            streams[slot as usize].wake.again();
            left[slot as usize].retain(|happened| !happened.load(Ordering::Acquire));
        }
        if left.iter().all(Vec::is_empty) { Poll::Ready(()) } else { Poll::Pending }
    }));
}

/// For each entry a stream with so many sources.
fn all_is_seen(interruptions: Interruptions, sources: &'static [usize]) {
    every_order(interruptions, move || {
        let woken = Arc::<Woken>::default();
        let streams: Vec<_> = sources.iter().zip(0..).map(|(sources, slot)| Stream::new(&woken, slot, *sources)).collect();
        let threads: Vec<_> = streams.iter().flat_map(Stream::start).collect();
        serve(&woken, &streams);
        threads.into_iter().for_each(|thread| thread.join().unwrap());
    });
}

#[test]
fn what_happens_to_a_stream_is_seen() {
    all_is_seen(ANY, &[1]);
}

#[test]
fn two_things_that_happen_to_a_stream_are_both_seen() {
    all_is_seen(THREE, &[2]);
}

#[test]
fn what_happens_to_two_streams_is_seen() {
    all_is_seen(THREE, &[1, 1]);
}

#[test]
fn a_stream_that_was_seen_is_woken_anew() {
    every_order(ANY, || {
        let woken = Arc::<Woken>::default();
        let stream = [Stream::new(&woken, 0, 2)];
        let (happened, waker) = (stream[0].happened.clone(), stream[0].wake.waker.clone());
        let source = thread::spawn(move || {
            for happened in happened {
                happened.swap(true, Ordering::AcqRel);
                waker.wake_by_ref();
            }
        });
        serve(&woken, &stream);
        source.join().unwrap();
    });
}

/// Two send a command each to a task that ends when it has had so many.
fn send_two(enough: usize) {
    every_order(THREE, move || {
        let woken = Arc::<Woken>::default();
        let commands = Arc::new(Commands::new(woken.clone()));
        let senders = [1, 2].map(|command| {
            let commands = commands.clone();
            thread::spawn(move || commands.send(command).err())
        });
        let mut had = Vec::new();
        block_on(poll_fn(|cx| {
            woken.register(cx.waker());
            had.extend(commands.take());
            if had.len() >= enough { Poll::Ready(()) } else { Poll::Pending }
        }));
        had.extend(commands.close());
        had.extend(senders.into_iter().filter_map(|sender| sender.join().unwrap()));
        had.sort_unstable();
        assert_eq!(had, [1, 2], "each is taken once or given back");
        assert_eq!(commands.send(3), Err(3));
    });
}

#[test]
fn a_command_reaches_a_task_that_goes_on() {
    send_two(2);
}

#[test]
fn a_command_is_taken_or_given_back_when_the_task_ends() {
    send_two(1);
    send_two(0);
}
