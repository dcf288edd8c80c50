//! The one accept loop.

use std::collections::HashMap;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures::future::BoxFuture;
use parking_lot::Mutex;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio::task::AbortHandle;

use super::workers::{Kind, Moving, Workers};
use crate::base::drain::{Ending, Mode, Watch};

/// Connections taken from the kernel's queue when the drain starts: more come in than this only if a client never pauses.
const QUEUED: usize = 1024;

/// Where connections go.
pub(super) struct Spread {
    pub(super) workers: Arc<Workers>,
    pub(super) kind: Kind,
    /// The thread that this runs on.
    pub(super) here: usize,
}

/// The connections of one listener: all can be ended at once, and none pays for it with more than a line here.
struct Open {
    next: AtomicU64,
    /// `None` when all have been ended.
    tasks: Mutex<Option<HashMap<u64, Option<AbortHandle>>>>,
}

/// A task's line.
struct Listed {
    number: u64,
    open: Arc<Open>,
}

impl Open {
    /// `work` gets its line and keeps it to its end.
    fn spawn<W: Future<Output = ()> + Send + 'static>(self: &Arc<Self>, handle: &Handle, work: impl FnOnce(Listed) -> W) {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let work = work(Listed { number, open: self.clone() });
        match &mut *self.tasks.lock() {
            Some(tasks) => drop(tasks.insert(number, None)),
            None => return,
        }
        // Without the lock: a runtime that ends drops the task at once, and with it the line.
        let task = handle.spawn(work).abort_handle();
        let mut tasks = self.tasks.lock();
        match tasks.as_mut().map(|tasks| tasks.get_mut(&number)) {
            Some(Some(line)) => *line = Some(task),
            // It is over already.
            Some(None) => {}
            None => {
                drop(tasks);
                task.abort();
            }
        }
    }
}

impl Drop for Listed {
    fn drop(&mut self) {
        if let Some(tasks) = &mut *self.open.tasks.lock() {
            tasks.remove(&self.number);
        }
    }
}

/// Ends what is still open when a drain's time is over.
async fn end_all(open: Arc<Open>, ending: Ending) {
    ending.ended().await;
    // Without the lock: a task that ends takes its line away.
    let tasks = open.tasks.lock().take();
    tasks.into_iter().flat_map(HashMap::into_values).flatten().for_each(|task| task.abort());
}

/// Accepts until the drain starts; each connection is a task that ends with its work or when the drain's time is over.
/// `serve` is told on which thread it runs.
///
/// `permits` bounds the connections that are open at once: at the bound new ones wait in the kernel's queue.
pub(super) async fn accept<F>(listener: TcpListener, permits: Arc<Semaphore>, mut drain: Watch, spread: Spread, serve: F)
where
    F: Fn(TcpStream, usize) -> BoxFuture<'static, ()> + Clone + Send + 'static,
{
    let open = Arc::new(Open { next: AtomicU64::new(0), tasks: Mutex::new(Some(HashMap::new())) });
    tokio::spawn(end_all(open.clone(), drain.ending()));
    let start = |stream: TcpStream, permit, drain: Watch| {
        let place = spread.workers.place(spread.kind, spread.here);
        let worker = place.worker;
        let moving = if worker == spread.here { Ok(Moving::Here(stream)) } else { Moving::away(stream) };
        let (serve, handle) = (serve.clone(), spread.workers.handle(worker));
        open.spawn(handle, |listed| async move {
            // They are held as they came: what is moved within a task takes its place twice.
            let _ = (&permit, &place, &drain, &listed);
            // It fails when there are no descriptors; the peer then sees the connection end.
            let Ok(stream) = moving.and_then(Moving::arrive) else { return };
            serve(stream, worker).await;
        });
    };
    let mode = loop {
        let next = async {
            let permit = permits.clone().acquire_owned().await.ok()?;
            Some((listener.accept().await, permit))
        };
        let accepted = tokio::select! {
            accepted = next => accepted,
            mode = drain.started() => break mode,
        };
        match accepted {
            Some((Ok((stream, _)), permit)) => start(stream, permit, drain.clone()),
            Some((Err(error), _permit)) => {
                // Out of descriptors or memory: at once again would spin.
                tracing::warn!(%error, "cannot accept");
                tokio::select! {
                    () = tokio::time::sleep(Duration::from_millis(100)) => {}
                    mode = drain.started() => break mode,
                }
            }
            None => return,
        }
    };
    if mode != Mode::Graceful {
        return;
    }
    // Clients in the kernel's queue are connected already: closing the listener would reset them. They are taken from it
    // directly, the runtime may not have heard of them yet.
    let Ok(listener) = listener.into_std() else { return };
    for _ in 0..QUEUED {
        let Ok(permit) = permits.clone().try_acquire_owned() else { return };
        let Ok((stream, _)) = listener.accept() else { return };
        if let Ok(stream) = stream.set_nonblocking(true).and_then(|()| TcpStream::from_std(stream)) {
            start(stream, permit, drain.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot;

    use super::*;
    use crate::base::addr::NextHop;
    use crate::base::drain;
    use crate::net::socket::SocketFactory;

    fn lines(open: &Open) -> Option<usize> {
        open.tasks.lock().as_ref().map(HashMap::len)
    }

    #[tokio::test]
    async fn a_connection_has_its_permit_and_its_place_until_its_end() {
        let (workers, ending) = Workers::start(1).expect("threads");
        let sockets = SocketFactory::default();
        let (listener, _) = sockets.listen("127.0.0.1:0".parse().expect("address"), false).expect("listens");
        let address = listener.local_addr().expect("address");
        let (permits, (_trigger, watch)) = (Arc::new(Semaphore::new(1)), drain::new());
        let spread = Spread { workers: workers.clone(), kind: Kind::Outbound, here: 0 };
        let (begins, mut begun) = tokio::sync::mpsc::channel(1);
        let (ends, end) = tokio::sync::watch::channel(false);
        let serve = move |_, _| {
            let (begins, mut end) = (begins.clone(), end.clone());
            Box::pin(async move {
                begins.send(()).await.expect("heard");
                let _ = end.wait_for(|end| *end).await;
            }) as BoxFuture<'static, ()>
        };
        let accepting = tokio::spawn(accept(listener, permits, watch, spread, serve));
        let connect = || sockets.connect(NextHop::new(address), None);
        let clients = [connect().await.expect("first"), connect().await.expect("second")];
        begun.recv().await.expect("the first is served");
        assert!(tokio::time::timeout(Duration::from_millis(100), begun.recv()).await.is_err(), "the second waits for the permit");
        assert_eq!(workers.open(Kind::Outbound, 0), 1);
        ends.send(true).expect("heard");
        tokio::time::timeout(Duration::from_secs(5), begun.recv()).await.expect("in time").expect("the second is served");
        drop(clients);
        accepting.abort();
        drop(workers);
        ending.end();
    }

    #[tokio::test]
    async fn the_end_reaches_what_is_open_and_what_comes_too_late() {
        let open = Arc::new(Open { next: AtomicU64::new(0), tasks: Mutex::new(Some(HashMap::new())) });
        let (trigger, watch) = drain::new();
        let ended = tokio::spawn(end_all(open.clone(), watch.ending()));
        let spawn = || {
            let (alive, gone) = oneshot::channel::<()>();
            open.spawn(&Handle::current(), |listed| async move {
                let _held = (listed, alive);
                std::future::pending().await
            });
            gone
        };
        let (first, second) = (spawn(), spawn());
        let (done, over) = oneshot::channel();
        open.spawn(&Handle::current(), |listed| async move {
            drop(listed);
            let _ = done.send(());
        });
        over.await.expect("it ran");
        assert_eq!(lines(&open), Some(2), "one that is over has no line");
        drop(watch);
        trigger.stop().await;
        ended.await.expect("ended");
        // Their ends are dropped with the tasks.
        assert!(first.await.is_err() && second.await.is_err());
        assert!(spawn().await.is_err(), "not even started");
        assert_eq!(lines(&open), None);
    }
}
