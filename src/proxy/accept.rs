//! The one accept loop.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

use crate::base::drain::{Mode, Watch};

/// Accepts until the drain starts; each connection is a task that ends with its work or when the drain's time is over.
///
/// `permits` bounds the connections that are open at once: at the bound new ones wait in the kernel's queue.
pub(super) async fn accept<F, Fut>(listener: TcpListener, permits: Arc<Semaphore>, mut drain: Watch, serve: F)
where
    F: Fn(TcpStream) -> Fut,
    Fut: Future<Output = ()> + Send + 'static,
{
    loop {
        let next = async {
            let permit = permits.clone().acquire_owned().await.ok()?;
            Some((listener.accept().await, permit))
        };
        let accepted = tokio::select! {
            accepted = next => accepted,
            _ = drain.started() => return,
        };
        match accepted {
            Some((Ok((stream, _)), permit)) => {
                // On the heap: moved into the task's select, the compiler would keep room for it twice.
                let work = Box::pin(serve(stream));
                let mut drain = drain.clone();
                tokio::spawn(async move {
                    let _permit = permit;
                    tokio::select! {
                        () = work => {}
                        () = drain.ended() => {}
                    }
                });
            }
            Some((Err(error), _permit)) => {
                // Out of descriptors or memory: at once again would spin.
                tracing::warn!(%error, "cannot accept");
                tokio::select! {
                    () = tokio::time::sleep(Duration::from_millis(100)) => {}
                    mode = drain.started() => if mode != Mode::Running { return },
                }
            }
            None => return,
        }
    }
}
