//! `warren demo`: what it claims, and that nothing of it stays behind however it ends.
#![allow(clippy::expect_used, clippy::panic, reason = "helpers of tests are test code")]

mod common;

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, ChildStderr, Command, ExitStatus, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use warren::demo::sandbox::PARENT;
use warren::demo::wait::wait_for;

const LIMIT: Duration = Duration::from_secs(10);
/// The last line before the story starts.
const UP: &str = "all are up";

#[test]
fn every_claim_holds_and_the_json_says_so() {
    let dir = tempfile::tempdir().expect("a directory");
    let pcap = dir.path().join("wire.pcap");
    let demo = Demo::start(&["--json", "--pcap", pcap.to_str().expect("a plain path")]);
    let traces = demo.traces();
    let (stdout, stderr, status) = demo.finish(Duration::from_secs(100));
    assert!(status.success(), "{status}\n{stdout}\n{stderr}");
    assert_eq!(stdout.lines().count(), 1, "one object, one line: {stdout}");
    let report: Value = serde_json::from_str(&stdout).expect("JSON");
    let number = |part: &str, field: &str| report[part][field].as_u64().unwrap_or_else(|| panic!("{part}.{field} in {report}"));
    for field in ["plaintext_payload_hits", "app_port_packets"] {
        assert!(number("before", field) > 0, "{field}: {report}");
        assert_eq!(number("enrolled", field), 0, "{field}: {report}");
        assert!(number("after", field) > 0, "{field}: {report}");
    }
    assert!(number("enrolled", "tls13_records") > 0, "{report}");
    assert_eq!(report["ok"], true);
    assert_eq!(report["identities"]["source"], "spiffe://cluster.local/ns/default/sa/client");
    assert_eq!(report["identities"]["destination"], "spiffe://cluster.local/ns/default/sa/server");
    assert_eq!(report["policy"]["code"], "W2004");
    assert_eq!(report["impostor"]["code"], "W3003");
    for way in ["direct", "mesh"] {
        for figure in ["gbps_1", "gbps_8", "rtt_p50_us", "rtt_p99_us", "connections_per_s", "connections_per_s_32", "cpu_s_per_gb"] {
            assert!(report["table"][way][figure].as_f64().is_some_and(|value| value > 0.0), "{way}.{figure}: {report}");
        }
    }
    let file = std::fs::File::open(&pcap).expect("written");
    let mut packets = pcap_file::pcap::PcapReader::new(file).expect("a pcap file");
    let first = packets.next_packet().expect("a packet").expect("a whole packet");
    assert!(first.data.len() >= 14);
    traces.assert_gone();
}

#[test]
fn an_interrupt_in_the_middle_leaves_nothing() {
    for (signal, code) in [(Signal::SIGINT, 130), (Signal::SIGTERM, 143)] {
        let mut demo = Demo::start(&[]);
        demo.wait_for_line(UP);
        let traces = demo.traces();
        assert!(!traces.processes.is_empty(), "it has children");
        demo.signal(signal);
        let (_, stderr, status) = demo.finish(LIMIT);
        assert_eq!(status.code(), Some(code), "{stderr}");
        traces.assert_gone();
    }
}

#[test]
fn the_death_of_a_child_is_told_and_leaves_nothing() {
    let mut demo = Demo::start(&["--json"]);
    demo.wait_for_line(UP);
    let traces = demo.traces();
    let proxy = children(demo.pid()).into_iter().find(|(_, line)| line.contains("proxy")).expect("a proxy runs").0;
    kill(pid(proxy), Signal::SIGKILL).expect("it is ours");
    let (stdout, stderr, status) = demo.finish(Duration::from_secs(30));
    assert_eq!(status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("W8003") && stderr.contains("proxy-node"), "{stderr}");
    let report: Value = serde_json::from_str(&stdout).expect("JSON also of a failure");
    assert_eq!(report["ok"], false);
    assert!(report["error"].as_str().is_some_and(|error| error.contains("proxy-node")), "{report}");
    traces.assert_gone();
}

#[test]
fn the_death_of_the_demo_itself_leaves_nothing() {
    let mut demo = Demo::start(&[]);
    demo.wait_for_line(UP);
    let traces = demo.traces();
    demo.signal(Signal::SIGKILL);
    let (_, _, status) = demo.finish(LIMIT);
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(9));
    traces.assert_gone();
}

/// A running `warren demo`; killed when dropped.
struct Demo {
    process: Child,
    stderr: BufReader<ChildStderr>,
    said: String,
}

impl Demo {
    fn start(arguments: &[&str]) -> Self {
        let mut command = Command::new(common::WARREN);
        command.arg("demo").args(arguments).env(PARENT, std::process::id().to_string()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut process = command.spawn().expect("the program under test is built");
        let stderr = BufReader::new(process.stderr.take().expect("a pipe"));
        Self { process, stderr, said: String::new() }
    }

    fn pid(&self) -> u32 {
        self.process.id()
    }

    fn signal(&self, signal: Signal) {
        kill(pid(self.pid()), signal).expect("it runs");
    }

    fn wait_for_line(&mut self, text: &str) {
        loop {
            let mut line = String::new();
            let length = self.stderr.read_line(&mut line).expect("text");
            self.said.push_str(&line);
            assert!(length > 0, "it ended before it said {text:?}:\n{}", self.said);
            if line.contains(text) {
                return;
            }
        }
    }

    /// What exists because of it now, or as soon as its first child runs.
    fn traces(&self) -> Traces {
        let processes = wait_for(LIMIT, "the demo has children", || Some(children(self.pid())).filter(|found| !found.is_empty()));
        let processes: BTreeSet<u32> = processes.expect("it starts children").into_iter().map(|(pid, _)| pid).collect();
        let namespaces = processes.iter().chain([&self.pid()]).flat_map(|pid| namespaces(*pid)).collect();
        Traces { demo: self.pid(), processes, namespaces }
    }

    fn finish(mut self, limit: Duration) -> (String, String, ExitStatus) {
        // Both pipes are read while it runs: a full one would stop it.
        let mut stdout = self.process.stdout.take().expect("a pipe");
        let reader = std::thread::spawn(move || {
            let mut text = String::new();
            stdout.read_to_string(&mut text).map(|_| text)
        });
        let Self { process, stderr, said } = &mut self;
        let status = std::thread::scope(|scope| {
            scope.spawn(|| stderr.read_to_string(said));
            let status = wait_for(limit, "the demo ends", || process.try_wait().expect("it is ours"));
            if status.is_err() {
                let _ = process.kill();
            }
            status
        });
        let status = status.unwrap_or_else(|error| panic!("{error}\n{}", self.said));
        let stdout = reader.join().expect("no panic").expect("text");
        (stdout, std::mem::take(&mut self.said), status)
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

struct Traces {
    demo: u32,
    processes: BTreeSet<u32>,
    namespaces: BTreeSet<String>,
}

impl Traces {
    /// No process of the demo, none in its namespaces, no mount, no file.
    fn assert_gone(&self) {
        // The kernel kills the children of a killed parent by itself, a moment later.
        let gone = wait_for(LIMIT, "its processes end", || {
            let children_left = !children(self.demo).is_empty();
            let own = namespaces(std::process::id());
            let ours = self.namespaces.difference(&own).cloned().collect::<BTreeSet<_>>();
            let inhabited = pids().any(|pid| !namespaces(pid).is_disjoint(&ours));
            (!children_left && !inhabited).then_some(())
        });
        gone.unwrap_or_else(|error| panic!("{error}: {:?}; started were {:?}", children(self.demo), self.processes));
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").expect("proc is mounted");
        assert!(!mounts.lines().any(|line| line.ends_with("warren") || line.contains(" - tmpfs warren ")), "{mounts}");
        assert!(!Path::new("/run/warren/logs").exists());
    }
}

/// Processes that say in their environment that they are children of `parent`, with their command lines.
fn children(parent: u32) -> Vec<(u32, String)> {
    let wanted = format!("{PARENT}={parent}");
    let read = |pid: u32, file: &str| std::fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
    pids()
        .filter(|pid| read(*pid, "environ").split(|byte| *byte == 0).any(|entry| entry == wanted.as_bytes()))
        .map(|pid| (pid, String::from_utf8_lossy(&read(pid, "cmdline")).replace('\0', " ")))
        .collect()
}

fn namespaces(pid: u32) -> BTreeSet<String> {
    let link = |name: &&str| std::fs::read_link(format!("/proc/{pid}/ns/{name}")).ok();
    ["net", "mnt", "user"].iter().filter_map(link).map(|target| target.display().to_string()).collect()
}

fn pids() -> impl Iterator<Item = u32> {
    let entries = std::fs::read_dir("/proc").expect("proc is mounted");
    entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
}

fn pid(number: u32) -> Pid {
    Pid::from_raw(i32::try_from(number).expect("a process id"))
}
