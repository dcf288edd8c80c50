//! The one way to serve HTTP: HTTP/1.1, bounded connections, a deadline for headers, ended by the drain.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Query, Request};
use axum::middleware::Next;
use axum::response::Response;
use axum::routing::MethodRouter;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::Instant;

use crate::base::drain::Watch;

/// How long a client may take to send its request head.
const HEADER_TIMEOUT: Duration = Duration::from_secs(2);
/// The longest any exchange on one connection may last.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(60);
/// Connections served at once; more wait in the kernel's queue.
const CONNECTIONS: usize = 128;

/// Serves `router` on `listener` until the drain starts.
pub async fn serve(listener: TcpListener, router: Router, mut drain: Watch) {
    let permits = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let next = async {
            let permit = permits.clone().acquire_owned().await.ok()?;
            Some((listener.accept().await, permit))
        };
        let accepted = tokio::select! {
            accepted = next => accepted,
            _ = drain.started() => return,
        };
        let Some((accepted, permit)) = accepted else { return };
        match accepted {
            Ok((stream, _)) => {
                let router = router.clone();
                tokio::spawn(async move {
                    let _permit = permit;
                    one(stream, router).await;
                });
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

/// The longest that an answer is put off, seconds.
const LONGEST_WAIT: u64 = 10;
/// Between two looks for one.
const LOOK: Duration = Duration::from_millis(100);
/// Those that wait at a time; others are answered at once. Each holds one of the connections.
static WAITING: Semaphore = Semaphore::const_new(8);

/// What may follow the path of a readiness page.
#[derive(serde::Deserialize)]
struct Patience {
    /// Seconds.
    wait: Option<u64>,
}

/// A readiness page that puts off its answer for as long as `?wait=SECONDS` says, at most ten, while it is one of "not
/// ready" (5xx): who asks seldom hears all the same when it becomes ready.
pub fn patient<S: Clone + Send + Sync + 'static>(page: MethodRouter<S>) -> MethodRouter<S> {
    page.layer(axum::middleware::from_fn(wait_until_ready))
}

async fn wait_until_ready(Query(Patience { wait }): Query<Patience>, request: Request, next: Next) -> Response {
    let permit = wait.and_then(|_| WAITING.try_acquire().ok());
    let until = Instant::now() + Duration::from_secs(wait.filter(|_| permit.is_some()).unwrap_or(0).min(LONGEST_WAIT));
    let (head, _) = request.into_parts();
    loop {
        let answer = next.clone().run(Request::from_parts(head.clone(), Body::empty())).await;
        if !answer.status().is_server_error() || Instant::now() + LOOK > until {
            return answer;
        }
        tokio::time::sleep(LOOK).await;
    }
}

async fn one(stream: TcpStream, router: Router) {
    let _ = stream.set_nodelay(true);
    let service = TowerToHyperService::new(router.into_service::<Incoming>());
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .half_close(true)
        .max_buf_size(8192)
        .serve_connection(TokioIo::new(stream), service);
    match tokio::time::timeout(CONNECTION_TIMEOUT, connection).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%error, "HTTP connection ended"),
        Err(_) => tracing::debug!("HTTP connection was open too long"),
    }
}

#[cfg(test)]
mod tests {
    use axum::routing::get;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;
    use crate::base::drain;

    #[tokio::test(start_paused = true)]
    async fn who_waits_hears_when_it_is_ready() {
        use std::sync::atomic::{AtomicUsize, Ordering};

        use axum::http::StatusCode;
        use tower::ServiceExt;

        let asked = Arc::new(AtomicUsize::new(0));
        let router = |ready_after: usize| {
            let asked = asked.clone();
            let page = async move || match asked.fetch_add(1, Ordering::Relaxed) < ready_after {
                true => StatusCode::SERVICE_UNAVAILABLE,
                false => StatusCode::OK,
            };
            Router::new().route("/readyz", patient(get(page)))
        };
        let ask = async |ready_after, path: &str| {
            asked.store(0, Ordering::Relaxed);
            let start = Instant::now();
            let answer = router(ready_after).oneshot(Request::get(path).body(Body::empty()).unwrap()).await.unwrap();
            (answer.status().as_u16(), start.elapsed().as_millis(), asked.load(Ordering::Relaxed))
        };
        assert_eq!(ask(0, "/readyz?wait=4").await, (200, 0, 1));
        assert_eq!(ask(3, "/readyz").await, (503, 0, 1));
        assert_eq!(ask(3, "/readyz?wait=0").await, (503, 0, 1));
        assert_eq!(ask(3, "/readyz?wait=4").await, (200, 300, 4));
        assert_eq!(ask(1000, "/readyz?wait=1").await, (503, 1000, 11));
        assert_eq!(ask(1000, "/readyz?wait=4000000000").await, (503, 10_000, 101));
        assert_eq!(ask(0, "/readyz?wait=long").await, (400, 0, 0));
        let _taken = WAITING.acquire_many(8).await.unwrap();
        assert_eq!(ask(3, "/readyz?wait=4").await, (503, 0, 1), "too many wait already");
    }

    #[tokio::test]
    async fn a_client_that_says_nothing_is_dropped_and_others_are_answered() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let to = listener.local_addr().unwrap();
        let (trigger, watch) = drain::new();
        let router = Router::new().route("/", get(async || "page"));
        let server = tokio::spawn(serve(TcpListener::from_std(listener).unwrap(), router, watch));
        let connect = || {
            let stream = std::net::TcpStream::connect(to).unwrap();
            stream.set_nonblocking(true).unwrap();
            TcpStream::from_std(stream).unwrap()
        };
        let (mut silent, mut client) = (connect(), connect());
        let mut answer = String::new();
        client.write_all(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await.unwrap();
        tokio::time::timeout(HEADER_TIMEOUT * 5, client.read_to_string(&mut answer)).await.unwrap().unwrap();
        assert!(answer.ends_with("page"), "{answer}");
        let closed = tokio::time::timeout(HEADER_TIMEOUT * 5, silent.read_to_end(&mut Vec::new())).await;
        closed.expect("the silent client is dropped").unwrap();
        assert!(trigger.drain(HEADER_TIMEOUT).await, "the drain ends the server");
        server.await.unwrap();
    }
}
