//! What the story tests share: each story runs in network and mount namespaces of its own.
#![allow(dead_code, unreachable_pub, reason = "every test file uses its own part")]
#![allow(clippy::expect_used, clippy::panic, reason = "helpers of tests are test code")]

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::sync::mpsc;
use std::time::Duration;

use warren::demo::lab::{Lab, Place};
use warren::demo::pod::{Outcome, Said};
use warren::demo::sandbox::{DIRECTORY, PARENT};

/// The program under test.
pub const WARREN: &str = env!("CARGO_BIN_EXE_warren");

/// Longest time a story may take.
const LIMIT: Duration = Duration::from_secs(120);
const STORY: &str = "WARREN_STORY";

/// Runs `story`, which is the body of the test called `name`, in a sandbox. It gets the sandbox's scratch directory.
///
/// The test process has threads already, and the kernel lets only a process with one make namespaces: the test binary is
/// started once more, for this test alone, by `warren sandbox`. Works as root and without privilege; where the kernel
/// does not allow it, the test fails and says what to do.
pub fn sandboxed(name: &str, story: impl FnOnce(&Path)) {
    if std::env::var(STORY).is_ok_and(|running| running == name) {
        let dir = PathBuf::from(std::env::var_os(DIRECTORY).expect("`warren sandbox` names the directory"));
        story(&dir);
        println!("\n{}", told(name));
        return;
    }
    run_in_sandbox(name);
}

/// The same for a story that awaits.
pub fn sandboxed_async<F: Future<Output = ()>>(name: &str, story: impl FnOnce(PathBuf) -> F) {
    sandboxed(name, |dir| {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
        runtime.block_on(story(dir.to_owned()));
    });
}

/// `warren` with these arguments.
pub fn warren(args: &[&str]) -> Command {
    let mut command = Command::new(WARREN);
    command.args(args);
    command
}

/// Says `text` from a pod to `to` and tells how that went.
pub fn say(lab: &Lab, from: &Place, to: &str, text: &str) -> Said {
    let name = format!("say-from-{}", from.name);
    let client = lab.start(from, &name, warren(&["demo-pod", "say", to, text])).expect("a client starts");
    let output = client.finish(Duration::from_secs(10)).expect("the client ends");
    serde_json::from_str(output.trim()).unwrap_or_else(|error| panic!("{error}: {output}"))
}

/// The text that a client said came back.
pub fn assert_echoed(said: &Said) {
    assert_eq!(said.outcome, Outcome::Echoed, "{said:?}");
}

fn run_in_sandbox(name: &str) {
    let (reader, writer) = std::io::pipe().expect("a pipe");
    let mut command = Command::new(WARREN);
    command
        .args(["sandbox", "--"])
        .arg(std::env::current_exe().expect("own path"))
        .args(["--exact", name, "--nocapture", "--test-threads=1"])
        .env(STORY, name)
        .env(PARENT, std::process::id().to_string())
        .stdout(writer.try_clone().expect("a descriptor"))
        .stderr(writer);
    let child = Killed(command.spawn().expect("the program under test is built"));
    // It holds the writing end, and the output would have no end.
    drop(command);

    let (lines, output) = mpsc::channel();
    let reading = std::thread::spawn(move || {
        for line in BufReader::new(reader).lines().map_while(Result::ok) {
            if lines.send(line).is_err() {
                break;
            }
        }
    });
    let end = std::time::Instant::now() + LIMIT;
    let mut complete = false;
    loop {
        match output.recv_timeout(end.saturating_duration_since(std::time::Instant::now())) {
            Ok(line) => {
                complete |= line == told(name);
                println!("{line}");
            }
            Err(mpsc::RecvTimeoutError::Disconnected) => break,
            Err(mpsc::RecvTimeoutError::Timeout) => panic!("{name}: not finished within {LIMIT:?}; its output is above"),
        }
    }
    reading.join().expect("the reader ends with the output");
    let status = child.wait();
    assert!(status.success(), "{name}: {status}; its output is above");
    // A name that matches no test would pass without having run anything.
    assert!(complete, "{name}: the story was not told to its end; is that the name of the test?");
}

fn told(name: &str) -> String {
    format!("story told: {name}")
}

/// A child that does not outlive its handle.
struct Killed(Child);

impl Killed {
    fn wait(mut self) -> ExitStatus {
        self.0.wait().expect("a child of this process")
    }
}

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
