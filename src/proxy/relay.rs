//! Moves bytes between two ends until both are done.
//!
//! Each direction runs by itself; an end that says "no more" closes only its direction (half-close). A socket that has
//! nothing to read owns no buffer.

mod plain;

use std::cell::RefCell;
use std::io;
use std::net::Shutdown;
use std::pin::{Pin, pin};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use socket2::SockRef;
use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio::sync::Notify;

use self::plain::Half;
use super::workers;
use crate::base::{Error, Result, code};
use crate::hbone::{Count, Side, Stream};

/// First buffer of a direction; it grows while reads fill it.
const SMALL: usize = 16 * 1024;
/// Largest buffer of a direction.
const LARGE: usize = 256 * 1024;

impl Count for crate::telemetry::tcp::Connection {
    fn client_sent(&self, bytes: usize) {
        workers::moved(bytes);
        self.received(bytes);
    }

    fn server_sent(&self, bytes: usize) {
        workers::moved(bytes);
        self.sent(bytes);
    }
}

/// Copies between a client socket and a server socket until both directions have ended.
///
/// A reset on one side is given to the other as a reset; that is an application's way to end, not an error.
///
/// # Errors
/// RELAY_FAILED when a side broke in any other way; both are then reset, also when this is dropped before its end.
pub(super) async fn tcp_to_tcp(client: &TcpStream, server: &TcpStream, count: &impl Count) -> Result<()> {
    let torn = Torn([Some(client), Some(server)]);
    let sent = |bytes| count.client_sent(bytes);
    let answered = |bytes| count.server_sent(bytes);
    let up = Half { from: client, to: server, names: ["client", "destination"], count: sent };
    let down = Half { from: server, to: client, names: ["destination", "client"], count: answered };
    let result = both(pin!(up.run()), pin!(down.run()), failed(client, "client"), failed(server, "destination")).await;
    if result.is_ok() {
        torn.mended();
    }
    outcome(result)
}

/// Copies between an application's socket and a tunnel stream until both directions have ended.
///
/// A reset of the application resets the stream; a stream that did not end cleanly resets the application's socket:
/// neither side may take a torn connection for a complete one. That holds also when this is dropped before its end.
///
/// # Errors
/// RELAY_FAILED when a side broke in any other way than a reset.
pub(super) async fn tcp_to_tunnel(app: &TcpStream, stream: Stream, app_is: Side, count: &impl Count) -> Result<()> {
    let torn = Torn([Some(app), None]);
    let (mut receive, mut send) = stream.into_split();
    let name = app_is.name();
    let answered = Notify::new();
    let up = async {
        let (mut size, mut alone) = (SMALL, false);
        loop {
            let data = tokio::select! {
                biased;
                data = read(app, &mut size) => data.map_err(|error| Broken::tcp(name, error))?,
                () = answered.notified(), if !alone => {
                    alone = true;
                    continue;
                }
                // As long as the other direction runs, it tells of a reset; to ask here too would wake this up with each
                // change of the window. Then nobody else does, and an application that is quiet would never show it.
                reason = send.closed(), if alone => match reason.code() {
                    // The peer has ended the stream and wants no more (RFC 9113 §8.1): what it sent is complete.
                    closed if *closed == code::PEER_CLOSED => return Ok(()),
                    _ => return Err(Broken::Tunnel(reason)),
                },
            };
            let Some(data) = data else { break };
            let length = data.len();
            send.data(data).await.map_err(Broken::Tunnel)?;
            app_is.count_from(count, length);
        }
        send.finish().map_err(Broken::Tunnel)
    };
    let down = async {
        while let Some(data) = receive.data().await {
            let data = data.map_err(Broken::Tunnel)?;
            let length = data.len();
            write(app, data).await.map_err(|error| Broken::tcp(name, error))?;
            app_is.count_to(count, length);
        }
        shutdown(app);
        answered.notify_one();
        Ok(())
    };
    // While bytes are sent, sending shows that the stream is gone.
    let result = both(pin!(up), pin!(down), failed(app, name), std::future::pending()).await;
    match result {
        Ok(()) => torn.mended(),
        Err(_) => send.reset(),
    }
    outcome(result)
}

/// Waits for both directions. One that has ended no longer looks at where it read from: a reset there, which can come
/// after the end of the bytes, is told by `up_broke` and `down_broke`.
async fn both(
    mut up: Pin<&mut impl Future<Output = Moved>>,
    mut down: Pin<&mut impl Future<Output = Moved>>,
    up_broke: impl Future<Output = Broken>,
    down_broke: impl Future<Output = Broken>,
) -> Moved {
    tokio::select! {
        moved = &mut up => {
            moved?;
            tokio::select! { moved = down => moved, broken = up_broke => Err(broken) }
        }
        moved = &mut down => {
            moved?;
            tokio::select! { moved = up => moved, broken = down_broke => Err(broken) }
        }
    }
}

/// How a direction ended.
type Moved = std::result::Result<(), Broken>;

/// Waits until the kernel reports an error on a socket that nobody reads: its other end was reset.
async fn failed(socket: &TcpStream, side: &'static str) -> Broken {
    let pending = || match socket.take_error()? {
        Some(error) => Ok(error),
        None => Err(io::ErrorKind::WouldBlock.into()),
    };
    match socket.async_io(Interest::ERROR, pending).await {
        Ok(error) | Err(error) => Broken::tcp(side, error),
    }
}

/// Sockets that are reset unless both directions have ended well: a relay may also be dropped in the middle, by a policy
/// or by a drain.
struct Torn<'a>([Option<&'a TcpStream>; 2]);

impl Torn<'_> {
    fn mended(mut self) {
        self.0 = [None, None];
    }
}

impl Drop for Torn<'_> {
    fn drop(&mut self) {
        self.0.iter().copied().flatten().for_each(reset);
    }
}

/// Why a relay ended early.
enum Broken {
    /// A socket, and whose.
    Tcp(&'static str, io::Error),
    /// The stream.
    Tunnel(Error),
}

impl Broken {
    fn tcp(side: &'static str, error: io::Error) -> Self {
        Self::Tcp(side, error)
    }
}

fn outcome(result: std::result::Result<(), Broken>) -> Result<()> {
    match result {
        Ok(()) => Ok(()),
        Err(Broken::Tcp(_, error)) if matches!(error.kind(), io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe) => Ok(()),
        Err(Broken::Tcp(side, error)) => Err(Error::caused(&code::RELAY_FAILED, format!("connection to the {side}"), error)),
        Err(Broken::Tunnel(error)) if error.code() == &code::STREAM_RESET => Ok(()),
        Err(Broken::Tunnel(error)) => Err(error),
    }
}

/// The next bytes; `None` at the end.
///
/// A message is read into a buffer of the thread and copied to its own size: ten thousand quiet connections hold ten
/// thousand small messages, not as many large buffers. Bulk is read where it stays.
async fn read(from: &TcpStream, size: &mut usize) -> io::Result<Option<Bytes>> {
    loop {
        from.readable().await?;
        let bulk = *size > SMALL;
        let result = if bulk { read_in_place(from, *size) } else { read_small(from) };
        match result {
            Ok(data) if data.is_empty() => return Ok(None),
            Ok(data) => {
                // A full buffer means bulk: fewer, larger reads.
                if data.len() == *size {
                    *size = (*size * 2).min(LARGE);
                } else if data.len() < *size / 2 {
                    *size = (*size / 2).max(SMALL);
                }
                return Ok(Some(data));
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
}

fn read_small(from: &TcpStream) -> io::Result<Bytes> {
    thread_local! {
        static SCRATCH: RefCell<[u8; SMALL]> = const { RefCell::new([0; SMALL]) };
    }
    SCRATCH
        .with_borrow_mut(|scratch| from.try_read(scratch).map(|length| Bytes::copy_from_slice(scratch.get(..length).unwrap_or_default())))
}

fn read_in_place(from: &TcpStream, size: usize) -> io::Result<Bytes> {
    let mut buffer = BytesMut::with_capacity(size);
    let length = from.try_read_buf(&mut buffer)?;
    // What waits in a full tunnel must not hold many times its size.
    Ok(if length < size / 2 { Bytes::copy_from_slice(&buffer) } else { buffer.freeze() })
}

async fn write(to: &TcpStream, mut data: Bytes) -> io::Result<()> {
    while !data.is_empty() {
        match to.try_write(&data) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(length) => drop(data.split_to(length)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => to.writable().await?,
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// No more to come. A peer that is gone already needs no telling.
fn shutdown(to: &TcpStream) {
    let _ = SockRef::from(to).shutdown(Shutdown::Write);
}

/// Closing the socket will send RST instead of FIN.
pub(super) fn reset(socket: &TcpStream) {
    let _ = SockRef::from(socket).set_linger(Some(Duration::ZERO));
}

#[cfg(test)]
mod tests;
