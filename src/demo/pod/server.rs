//! The servers of a pod.

use std::future::Future;
use std::io;
use std::net::IpAddr;
use std::time::Instant;

use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};

use super::{ECHO_PORT, ONCE_PORT, SINK_PORT};
use crate::base::{Error, Result, code};
use crate::net::socket::SocketFactory;

/// Read at once by the sink.
const LARGE: usize = 256 * 1024;
/// Read at once by the echo: a held connection owns no buffer.
const SMALL: usize = 16 * 1024;
/// A message of `once` is no longer than this.
const MESSAGE: usize = 1024;

/// Serves all three ports on `ip` until the process ends; prints `listening` when they listen.
///
/// # Errors
/// A port is taken.
pub async fn serve(ip: IpAddr) -> Result<()> {
    let echo = accept(listen(ip, ECHO_PORT)?, echo);
    let sink = accept(listen(ip, SINK_PORT)?, sink);
    let once = accept(listen(ip, ONCE_PORT)?, once);
    println!("listening");
    tokio::join!(echo, sink, once);
    Ok(())
}

pub(super) fn listen(ip: IpAddr, port: u16) -> Result<TcpListener> {
    let plain = SocketFactory::default();
    let bound = plain.listen((ip, port).into(), false);
    bound.map(|(listener, _)| listener).map_err(|error| Error::caused(&code::BIND_FAILED, format!("port {port}"), error))
}

pub(super) async fn accept<F, W>(listener: TcpListener, serve: F)
where
    F: Fn(TcpStream) -> W + Copy + Send + 'static,
    W: Future<Output = io::Result<()>> + Send + 'static,
{
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                tokio::spawn(async move {
                    let _ = stream.set_nodelay(true);
                    // The client says what went wrong: a broken connection is its to report.
                    let _ = serve(stream).await;
                });
            }
            // Out of descriptors: those that are open go on, and closing one makes room.
            Err(_) => tokio::task::yield_now().await,
        }
    }
}

pub(super) async fn echo(mut stream: TcpStream) -> io::Result<()> {
    loop {
        stream.readable().await?;
        match bounce(&stream) {
            Ok(Some(rest)) if rest.is_empty() => {}
            Ok(Some(rest)) => stream.write_all(&rest).await?,
            Ok(None) => return stream.shutdown().await,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
}

/// Sends back what can be read now; returns what did not fit, `None` at the end.
fn bounce(stream: &TcpStream) -> io::Result<Option<Vec<u8>>> {
    let mut buffer = [0; SMALL];
    let length = stream.try_read(&mut buffer)?;
    if length == 0 {
        return Ok(None);
    }
    let data = buffer.get(..length).unwrap_or_default();
    let written = match stream.try_write(data) {
        Ok(written) => written,
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
        Err(error) => return Err(error),
    };
    Ok(Some(data.get(written..).unwrap_or_default().to_vec()))
}

/// Answers the client's end of stream with two numbers: bytes, and nanoseconds from the first to the last.
pub(super) async fn sink(mut stream: TcpStream) -> io::Result<()> {
    let mut buffer = vec![0; LARGE];
    let (mut bytes, mut first, mut last) = (0_u64, None, Instant::now());
    loop {
        stream.readable().await?;
        match stream.try_read(&mut buffer) {
            Ok(0) => break,
            Ok(length) => {
                bytes += length as u64;
                last = Instant::now();
                first.get_or_insert(last);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    let nanoseconds = first.map_or(0, |first| last.duration_since(first).as_nanos());
    stream.write_all(format!("{bytes} {nanoseconds}\n").as_bytes()).await?;
    stream.shutdown().await
}

/// Closes first, so that the client's port is free for the next connection at once.
pub(super) async fn once(mut stream: TcpStream) -> io::Result<()> {
    let mut buffer = [0; MESSAGE];
    loop {
        stream.readable().await?;
        match stream.try_read(&mut buffer) {
            Ok(length) => {
                stream.write_all(buffer.get(..length).unwrap_or_default()).await?;
                return stream.shutdown().await;
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
}
