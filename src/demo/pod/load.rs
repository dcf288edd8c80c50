//! Clients that measure.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr};
use std::time::{Duration, Instant};

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;

use super::{Bulk, PingPong, Rate, connect};
use crate::base::{Error, Result, code};

/// Longest silence of a server before a measurement is given up.
const SILENCE: Duration = Duration::from_secs(10);
/// Written at once.
const LARGE: usize = 256 * 1024;
/// First round trips, not counted: connections and caches are new.
const WARM_UP: usize = 100;
/// Message of a short connection, bytes.
const MESSAGE: usize = 64;

/// Sends as much as goes through, on `connections` at once, for `time`; to the sink.
///
/// # Errors
/// A connection broke.
pub fn bulk(to: SocketAddr, connections: usize, time: Duration) -> Result<Bulk> {
    let parts = each(connections, || send(to, time))?;
    let bytes = parts.iter().map(|(bytes, _)| bytes).sum();
    let seconds = parts.iter().map(|(_, nanoseconds)| *nanoseconds as f64 / 1e9).fold(0.0, f64::max);
    let gbps = if seconds > 0.0 { bytes as f64 * 8.0 / 1e9 / seconds } else { 0.0 };
    let usage = getrusage(UsageWho::RUSAGE_SELF).map_err(|errno| Error::caused(&code::INTERNAL, "getrusage", errno))?;
    let cpu = usage.user_time() + usage.system_time();
    Ok(Bulk { connections, bytes, seconds, gbps, cpu_seconds: cpu.num_microseconds() as f64 / 1e6 })
}

/// Sends `size` bytes and waits until they are back, over and over for `time`; to the echo.
///
/// # Errors
/// The connection broke.
pub fn ping_pong(to: SocketAddr, size: usize, time: Duration) -> Result<PingPong> {
    let broken = |error| failed(to, error);
    let mut stream = connect(to, SILENCE).map_err(broken)?;
    let (message, mut answer) = (vec![b'p'; size], vec![0; size]);
    let mut trips = Vec::with_capacity(1 << 16);
    let mut end = None;
    for number in 0.. {
        let start = Instant::now();
        stream.write_all(&message).and_then(|()| stream.read_exact(&mut answer)).map_err(broken)?;
        if number >= WARM_UP {
            trips.push(start.elapsed().as_nanos() as f64 / 1e3);
            if Instant::now() >= *end.get_or_insert(start + time) {
                break;
            }
        }
    }
    trips.sort_by(f64::total_cmp);
    let at = |share: f64| trips.get(((trips.len() - 1) as f64 * share).round() as usize).copied().unwrap_or_default();
    Ok(PingPong { count: trips.len() as u64, p50_us: at(0.5), p99_us: at(0.99) })
}

/// Connects, exchanges one message and closes, over and over for `time`, `concurrency` at once; to the server that
/// answers once.
///
/// # Errors
/// Not for a connection that fails: those are counted.
pub fn rate(to: SocketAddr, concurrency: usize, time: Duration) -> Result<Rate> {
    let start = Instant::now();
    let end = start + time;
    let parts = each(concurrency, || {
        let (mut good, mut bad, mut last) = (0_u64, 0_u64, None);
        while Instant::now() < end {
            match once(to) {
                Ok(()) => good += 1,
                Err(error) => {
                    bad += 1;
                    last = Some(error.to_string());
                }
            }
        }
        Ok((good, bad, last))
    })?;
    let seconds = start.elapsed().as_secs_f64();
    let connections = parts.iter().map(|part| part.0).sum();
    let errors = parts.iter().map(|part| part.1).sum();
    let last_error = parts.into_iter().find_map(|part| part.2);
    Ok(Rate { concurrency, connections, errors, last_error, per_second: connections as f64 / seconds })
}

fn send(to: SocketAddr, time: Duration) -> Result<(u64, u128)> {
    let broken = |error| failed(to, error);
    let mut stream = connect(to, SILENCE).map_err(broken)?;
    let buffer = vec![b'b'; LARGE];
    let end = Instant::now() + time;
    while Instant::now() < end {
        stream.write_all(&buffer).map_err(broken)?;
    }
    stream.shutdown(Shutdown::Write).map_err(broken)?;
    let mut report = String::new();
    stream.read_to_string(&mut report).map_err(broken)?;
    let mut numbers = report.split_whitespace();
    let bytes = numbers.next().and_then(|text| text.parse().ok());
    let nanoseconds = numbers.next().and_then(|text| text.parse().ok());
    bytes.zip(nanoseconds).ok_or_else(|| Error::new(&code::DEMO_CHILD, format!("the sink at {to} reported {report:?}")))
}

fn once(to: SocketAddr) -> io::Result<()> {
    let mut stream = connect(to, SILENCE)?;
    stream.write_all(&[b'c'; MESSAGE])?;
    let mut answer = Vec::with_capacity(MESSAGE);
    stream.read_to_end(&mut answer)?;
    if answer.len() == MESSAGE { Ok(()) } else { Err(io::Error::other(format!("{} of {MESSAGE} bytes came back", answer.len()))) }
}

/// Runs `work` on `count` threads at once.
fn each<T: Send>(count: usize, work: impl Fn() -> Result<T> + Sync) -> Result<Vec<T>> {
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..count).map(|_| scope.spawn(&work)).collect();
        threads.into_iter().map(|thread| thread.join().map_err(|_| Error::internal("a client thread ended by itself"))?).collect()
    })
}

fn failed(to: SocketAddr, error: io::Error) -> Error {
    Error::caused(&code::DEMO_CHILD, format!("connection to {to}"), error)
}
