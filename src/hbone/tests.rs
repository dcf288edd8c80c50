//! Both ends joined in memory.

mod pool;
mod server;
mod stream;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use tokio::io::{DuplexStream, duplex};
use tokio_util::sync::CancellationToken;

use super::client::{Connection, OpenError};
use super::{Receive, Request, Send, Server, Settings, Stream};
use crate::base::{Error, Result, code, deadline};

/// For anything that is to happen at all.
async fn soon<T>(future: impl Future<Output = T>) -> T {
    deadline(Duration::from_secs(60), &code::INTERNAL, "the event", future).await.unwrap()
}

fn request(authority: &str) -> Request {
    Request { authority: authority.to_owned(), headers: HeaderMap::new() }
}

/// Both ends of one stream; the tunnel lives as long as the last value.
pub(crate) async fn stream() -> (Stream, Stream, impl Sized) {
    let mut pair = pair(Settings::client(), Settings::server()).await;
    let accept = async { pair.server.next().await.unwrap().accept(HeaderMap::new()).unwrap() };
    let request = request("10.0.0.1:80");
    let (opened, accepted) = soon(async { tokio::join!(pair.client.open(&request, Arc::new(())), accept) }).await;
    let opened = done(opened).unwrap().1;
    (opened, accepted, pair)
}

struct Pair {
    client: Connection,
    server: Server,
    cut: CancellationToken,
}

async fn pair(client: Settings, server: Settings) -> Pair {
    let (near, far) = duplex(1 << 16);
    join(near, far, client, server).await
}

async fn join(near: DuplexStream, far: DuplexStream, client: Settings, server: Settings) -> Pair {
    let cut = CancellationToken::new();
    let (client, server) = tokio::join!(Connection::handshake(near, &client, cut.clone()), Server::handshake(far, &server));
    Pair { client: client.unwrap(), server: server.unwrap(), cut }
}

impl Pair {
    /// A stream that both ends have.
    async fn stream(&mut self) -> ((Receive, Send), (Receive, Send)) {
        let accept = async { self.server.next().await.unwrap().accept(HeaderMap::new()).unwrap() };
        let request = request("10.0.0.1:80");
        let (opened, accepted) = soon(async { tokio::join!(self.client.open(&request, Arc::new(())), accept) }).await;
        (done(opened).unwrap().1.into_split(), accepted.into_split())
    }
}

fn done(opened: std::result::Result<(HeaderMap, Stream), OpenError>) -> Result<(HeaderMap, Stream)> {
    opened.map_err(|error| match error {
        OpenError::Spent(error) | OpenError::Untouched(error) | OpenError::Final(error) => error,
    })
}

async fn all(receive: &mut Receive) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    while let Some(chunk) = soon(receive.data()).await {
        bytes.extend_from_slice(&chunk?);
    }
    Ok(bytes)
}

fn code_of(error: &Error) -> &'static str {
    error.code().id
}

fn megabytes(count: usize) -> Bytes {
    Bytes::from(vec![7; count << 20])
}
