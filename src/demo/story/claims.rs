//! Before, during and after enrolment.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::mesh::{LogMark, MESHED, Mesh, SERVICE, SERVICE_PORT, text};
use super::report::{Identities, Report};
use super::table::{self, Table};
use super::{MEASURE, Progress, leftover, policy};
use crate::agent::redirect::port;
use crate::base::Result;
use crate::demo::capture::{Capture, Counters, Recorder, Wanted};
use crate::demo::lab::WIRE;
use crate::demo::pod::{APP_PORTS, ECHO_PORT, Outcome};

const PATIENCE: Duration = Duration::from_secs(15);
/// How often the client says the marker in each part.
const TIMES: usize = 3;

/// All of them, and the table.
pub(super) fn all(mesh: &mut Mesh, recorder: Option<Recorder>, progress: &Progress, report: &mut Report) -> Result<()> {
    let marker = format!("warren-demo-{:016x}", rand::random::<u64>());
    let wanted = Wanted { marker: marker.clone().into_bytes(), app_ports: APP_PORTS.to_vec(), hbone_port: port::TUNNEL };
    let node = mesh.lab().node(1)?.netns.clone();
    let capture = Capture::start(&node, WIRE, wanted.clone(), recorder)?;

    plain(mesh, &capture, &marker, Part::Before, progress, report)?;

    let start = Instant::now();
    mesh.enrol(true)?;
    mesh.wait_until_enrolled()?;
    let took = milliseconds(start);
    report.enrolment_ms = Some(took);
    progress.say(&format!("client, local and server are enrolled, {took} ms after the file changed"));
    enrolled(mesh, &capture, &marker, progress, report)?;

    policy::denied(mesh, &marker, progress, report)?;
    policy::impostor(mesh, progress, report)?;

    // Frames at full speed would not fit, and reading them would take from what is measured.
    let recorder = capture.stop()?;
    progress.say("measuring through the mesh");
    let through = table::measure(mesh, MEASURE)?;

    let capture = Capture::start(&node, WIRE, wanted, recorder)?;
    mesh.enrol(false)?;
    mesh.wait_until_left()?;
    plain(mesh, &capture, &marker, Part::After, progress, report)?;
    rules_are_gone(mesh, report)?;
    if let Some(recorder) = capture.stop()? {
        recorder.finish()?;
    }

    progress.say("measuring direct");
    let direct = table::measure(mesh, MEASURE)?;
    report.table = Some(Table { direct, mesh: through });
    Ok(())
}

#[derive(Clone, Copy)]
enum Part {
    Before,
    After,
}

/// Without the mesh: whoever sits on the wire reads everything.
fn plain(mesh: &mut Mesh, capture: &Capture, marker: &str, part: Part, progress: &Progress, report: &mut Report) -> Result<()> {
    let server = SocketAddr::from((mesh.lab().pod("server")?.ip(), ECHO_PORT));
    let start = capture.counters()?;
    let answers = say(mesh, "client", server, marker)?;
    let seen = capture.counters()? - start;
    let when = match part {
        Part::Before => {
            report.before = Some(seen);
            "before enrolment"
        }
        Part::After => {
            report.after = Some(seen);
            "after un-enrolment"
        }
    };
    progress.say(&format!("{when}: {}", summary(&seen)));
    report.claim(&format!("{when} the client reaches the server"), answers == TIMES, format!("{answers} of {TIMES} texts came back"));
    let readable = seen.plaintext_payload_hits > 0 && seen.app_port_packets > 0;
    report.claim(&format!("{when} the payload can be read on the wire"), readable, summary(&seen));
    Ok(())
}

fn enrolled(mesh: &mut Mesh, capture: &Capture, marker: &str, progress: &Progress, report: &mut Report) -> Result<()> {
    let server = SocketAddr::from((mesh.lab().pod("server")?.ip(), ECHO_PORT));
    let local = SocketAddr::from((mesh.lab().pod("local")?.ip(), ECHO_PORT));
    let service = SocketAddr::from((SERVICE, SERVICE_PORT));
    let (start, mark) = (capture.counters()?, mesh.log_mark());
    let direct = say(mesh, "client", server, marker)?;
    let by_service = say(mesh, "client", service, marker)?;
    let same_node = say(mesh, "client", local, marker)?;
    let seen = capture.counters()? - start;
    report.enrolled = Some(seen);
    progress.say(&format!("enrolled: {}", summary(&seen)));
    let came_back = |answers: usize| format!("{answers} of {TIMES} texts came back");
    report.claim("enrolled, the client reaches the server", direct == TIMES, came_back(direct));
    report.claim("enrolled, the client reaches the service by its virtual address", by_service == TIMES, came_back(by_service));
    report.claim("enrolled, the client reaches the server on its own node", same_node == TIMES, came_back(same_node));
    let unreadable = seen.plaintext_payload_hits == 0 && seen.app_port_packets == 0;
    report.claim("enrolled, no byte of payload and no packet to the application's port is on the wire", unreadable, summary(&seen));
    let encrypted = seen.tls13_records > 0;
    report.claim("enrolled, the traffic is in TLS 1.3 records to port 15008", encrypted, summary(&seen));

    let (by_client, by_server) = (ends(mesh, 1, server, &mark)?, ends(mesh, 2, server, &mark)?);
    let by_local = ends(mesh, 1, local, &mark)?;
    let expected = |server: &str| Identities { source: spiffe("client"), destination: spiffe(server) };
    let named = by_client == expected("server") && by_server == by_client;
    report.claim("both proxies name the two identities of the tunnel", named, format!("{} -> {}", by_client.source, by_client.destination));
    let seen = format!("{} -> {}", by_local.source, by_local.destination);
    report.claim("traffic on one node has identities too", by_local == expected("local"), seen);
    report.identities = Some(by_client);
    Ok(())
}

/// Who the access log of a node says is at the ends of the tunnel to `target`.
fn ends(mesh: &mut Mesh, node: u8, target: SocketAddr, mark: &LogMark) -> Result<Identities> {
    mesh.until(PATIENCE, "the access log names the two ends of the tunnel", |mesh| {
        let lines = mesh.access_log(node, mark);
        let line = lines.iter().find(|line| text(line, "dst.hbone_addr") == target.to_string())?;
        Some(Identities { source: text(line, "src.identity").to_owned(), destination: text(line, "dst.identity").to_owned() })
    })
}

/// No redirection, no routing rule of ours: read back from the kernel.
fn rules_are_gone(mesh: &mut Mesh, report: &mut Report) -> Result<()> {
    let mut left = Vec::new();
    for name in MESHED {
        left.extend(leftover::rules(mesh.lab().pod(name)?)?);
    }
    let seen = if left.is_empty() { "none in client, local and server".to_owned() } else { left.join(", ") };
    report.claim("after un-enrolment no rule is left in the pods", left.is_empty(), seen);
    Ok(())
}

/// How many of the texts came back.
pub(super) fn say(mesh: &mut Mesh, from: &str, to: SocketAddr, marker: &str) -> Result<usize> {
    let mut answers = 0;
    for number in 1..=TIMES {
        let said = mesh.say(from, to, &format!("{marker} {number}"))?;
        answers += usize::from(said.outcome == Outcome::Echoed);
    }
    Ok(answers)
}

pub(super) fn spiffe(account: &str) -> String {
    format!("spiffe://cluster.local/ns/default/sa/{account}")
}

pub(super) fn milliseconds(start: Instant) -> u64 {
    u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX)
}

fn summary(seen: &Counters) -> String {
    format!(
        "{} frames with readable payload, {} packets to the application's port, {} TLS 1.3 records ({} bytes) to port 15008",
        seen.plaintext_payload_hits, seen.app_port_packets, seen.tls13_records, seen.tls13_record_bytes
    )
}
