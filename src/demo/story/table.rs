//! How fast it is: the same applications, direct and through the mesh.

use std::fmt::Write;
use std::net::SocketAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::mesh::Mesh;
use crate::base::{Error, Result, code};
use crate::demo::pod::{Bulk, ECHO_PORT, ONCE_PORT, PingPong, Rate, SINK_PORT};

/// How many connections are made at once where it says `many`.
const MANY: usize = 32;
/// Added to a measurement's own time before it is given up.
const PATIENCE: Duration = Duration::from_secs(20);

/// How long each figure is measured.
#[derive(Clone, Copy, Debug)]
pub struct Times {
    /// Throughput, for 1 and for 8 connections each.
    pub bulk: Duration,
    /// Round trips.
    pub round_trips: Duration,
    /// New connections, one at a time and many at once each.
    pub rate: Duration,
}

/// Figures of one way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// Throughput of 1 connection, 10^9 bits per second, at the receiver.
    pub gbps_1: f64,
    /// Throughput of 8 connections together.
    pub gbps_8: f64,
    /// Round trip of 1 KiB, median, microseconds.
    pub rtt_p50_us: f64,
    /// Round trip of 1 KiB, 99 of 100 are faster, microseconds.
    pub rtt_p99_us: f64,
    /// Connect, exchange one message, close: per second, one at a time.
    pub connections_per_s: f64,
    /// The same, 32 at once.
    pub connections_per_s_32: f64,
    /// Processor seconds of both proxies per 10^9 bytes of throughput.
    pub proxy_cpu_s_per_gb: f64,
    /// Processor seconds of both proxies and both applications per 10^9 bytes of throughput.
    pub cpu_s_per_gb: f64,
}

/// A column of the table: its title, its figure, how many digits after the point.
type Figure = (&'static str, fn(&Row) -> f64, usize);

/// What the table shows, in order.
pub const FIGURES: [Figure; 8] = [
    ("throughput, 1 connection, Gb/s", |row| row.gbps_1, 2),
    ("throughput, 8 connections, Gb/s", |row| row.gbps_8, 2),
    ("1 KiB round trip, p50, us", |row| row.rtt_p50_us, 0),
    ("1 KiB round trip, p99, us", |row| row.rtt_p99_us, 0),
    ("new connections per second, one at a time", |row| row.connections_per_s, 0),
    ("new connections per second, 32 at once", |row| row.connections_per_s_32, 0),
    ("CPU seconds per GB, proxies", |row| row.proxy_cpu_s_per_gb, 2),
    ("CPU seconds per GB, proxies and applications", |row| row.cpu_s_per_gb, 2),
];

/// Both ways.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Table {
    /// Without the mesh.
    pub direct: Row,
    /// Through it.
    pub mesh: Row,
}

impl Table {
    /// For people.
    pub fn text(&self) -> String {
        let mut text = format!("{:46} {:>10} {:>10}\n", "", "direct", "mesh");
        for (title, figure, digits) in FIGURES {
            let _ = writeln!(text, "{title:46} {:>10.digits$} {:>10.digits$}", figure(&self.direct), figure(&self.mesh));
        }
        text
    }
}

/// Measures whatever way the traffic from client to server takes now.
///
/// # Errors
/// A connection broke or was refused.
pub fn measure(mesh: &mut Mesh, times: Times) -> Result<Row> {
    let server = mesh.lab().pod("server")?.ip();
    let at = |port: u16| SocketAddr::from((server, port)).to_string();
    let (sink, echo, once) = (at(SINK_PORT), at(ECHO_PORT), at(ONCE_PORT));

    let (proxies, application) = (mesh.proxy_cpu()?, mesh.server_cpu()?);
    let mut bulk = |connections: &str| -> Result<Bulk> {
        let time = times.bulk.as_secs_f64().to_string();
        mesh.run("client", &["bulk", &sink, "--connections", connections, "--seconds", &time], times.bulk + PATIENCE)
    };
    let (one, eight) = (bulk("1")?, bulk("8")?);
    let gigabytes = (one.bytes + eight.bytes).max(1) as f64 / 1e9;
    let proxies = mesh.proxy_cpu()? - proxies;
    let applications = mesh.server_cpu()? - application + one.cpu_seconds + eight.cpu_seconds;

    let time = times.round_trips.as_secs_f64().to_string();
    let trips: PingPong = mesh.run("client", &["ping-pong", &echo, "--seconds", &time], times.round_trips + PATIENCE)?;

    let mut rate = |concurrency: usize| -> Result<Rate> {
        let (concurrency, time) = (concurrency.to_string(), times.rate.as_secs_f64().to_string());
        let rate: Rate = mesh.run("client", &["rate", &once, "--concurrency", &concurrency, "--seconds", &time], times.rate + PATIENCE)?;
        match rate.errors {
            0 => Ok(rate),
            errors => {
                let last = rate.last_error.unwrap_or_default();
                Err(Error::new(&code::DEMO_CLAIM, format!("{errors} of {} new connections failed: {last}", rate.connections + errors)))
            }
        }
    };
    let (single, many) = (rate(1)?, rate(MANY)?);
    Ok(Row {
        gbps_1: one.gbps,
        gbps_8: eight.gbps,
        rtt_p50_us: trips.p50_us,
        rtt_p99_us: trips.p99_us,
        connections_per_s: single.per_second,
        connections_per_s_32: many.per_second,
        proxy_cpu_s_per_gb: proxies / gigabytes,
        cpu_s_per_gb: (proxies + applications) / gigabytes,
    })
}
