//! Clients that make a point: one that talks, one that holds connections.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use super::{Idle, Outcome, Said, connect};

/// Connects, sends `text` and waits until it has come back.
pub fn say(to: SocketAddr, text: &str, limit: Duration) -> Said {
    let start = Instant::now();
    let (outcome, detail) = match connect(to, limit).and_then(|stream| exchange(stream, text)) {
        Ok(()) => (Outcome::Echoed, "the text came back".to_owned()),
        Err(error) if matches!(error.kind(), io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock) => {
            (Outcome::Silent, format!("no answer within {limit:?}"))
        }
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => (Outcome::Refused, "closed before the text came back".to_owned()),
        Err(error) => (Outcome::Refused, error.to_string()),
    };
    Said { outcome, detail, milliseconds: u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX) }
}

/// Opens `count` connections that have exchanged one message each. They are closed when the second value is dropped.
pub fn idle(to: SocketAddr, count: usize, limit: Duration) -> (Idle, Vec<TcpStream>) {
    // One descriptor a connection; the soft limit is often 1024, the hard one high.
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE)
        && soft < hard
    {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
    let mut held = Vec::with_capacity(count);
    let mut last_error = None;
    for number in 0..count {
        match connect(to, limit).and_then(|stream| exchange_kept(stream, &format!("held {number}\n"))) {
            Ok(stream) => held.push(stream),
            Err(error) => last_error = Some(error.to_string()),
        }
    }
    (Idle { open: held.len(), failed: count - held.len(), last_error }, held)
}

fn exchange(stream: TcpStream, text: &str) -> io::Result<()> {
    exchange_kept(stream, text).map(drop)
}

fn exchange_kept(mut stream: TcpStream, text: &str) -> io::Result<TcpStream> {
    stream.write_all(text.as_bytes())?;
    let mut answer = vec![0; text.len()];
    stream.read_exact(&mut answer)?;
    if answer == text.as_bytes() { Ok(stream) } else { Err(io::Error::other("something else came back")) }
}
