//! The applications of the demo: real TCP servers and clients, run inside a pod as `warren demo-pod …`. Each says what it
//! measured as one line of JSON on stdout.

mod client;
mod impostor;
mod load;
mod server;

use std::net::SocketAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use self::client::{idle, say};
pub use self::impostor::{Impostor, impersonate};
pub use self::load::{bulk, ping_pong, rate};
pub use self::server::serve;

/// Sends back whatever comes.
pub const ECHO_PORT: u16 = 8080;
/// Takes everything and, at its end, says what it took.
pub const SINK_PORT: u16 = 8081;
/// Sends the first message back and closes.
pub const ONCE_PORT: u16 = 8082;
/// All of them.
pub const APP_PORTS: [u16; 3] = [ECHO_PORT, SINK_PORT, ONCE_PORT];

/// How an attempt to talk ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// The text came back.
    Echoed,
    /// The connection was refused, reset, or closed before the text came back.
    Refused,
    /// Nothing happened until the deadline.
    Silent,
}

/// What `say` saw.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Said {
    /// How it ended.
    pub outcome: Outcome,
    /// In the kernel's words.
    pub detail: String,
    /// From connect to the end.
    pub milliseconds: u64,
}

/// What `bulk` measured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Bulk {
    /// How many connections sent at once.
    pub connections: usize,
    /// That arrived, counted by the receiver.
    pub bytes: u64,
    /// From the first byte to the last, by the receiver's clock; of the slowest connection.
    pub seconds: f64,
    /// 10^9 bits per second.
    pub gbps: f64,
    /// Processor time of the sending process.
    pub cpu_seconds: f64,
}

/// What `ping-pong` measured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PingPong {
    /// Round trips.
    pub count: u64,
    /// Half of them were faster; microseconds.
    pub p50_us: f64,
    /// 99 of 100 were faster; microseconds.
    pub p99_us: f64,
}

/// What `rate` measured: connect, one message there and back, close.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Rate {
    /// How many were open at once.
    pub concurrency: usize,
    /// That went well.
    pub connections: u64,
    /// That did not.
    pub errors: u64,
    /// The last error.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
    /// Of those that went well.
    pub per_second: f64,
}

/// What `idle` holds open.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Idle {
    /// Connections that answered once and stay open.
    pub open: usize,
    /// That did not.
    pub failed: usize,
    /// The last error.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
}

/// Makes a blocking connection without delay of small writes; reads and writes end after `limit` too.
fn connect(to: SocketAddr, limit: Duration) -> std::io::Result<std::net::TcpStream> {
    let stream = std::net::TcpStream::connect_timeout(&to, limit)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(limit))?;
    stream.set_write_timeout(Some(limit))?;
    Ok(stream)
}

#[cfg(test)]
mod tests;
