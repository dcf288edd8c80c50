//! What goes on for as long as the agent runs: the plugin is put back in place when others change it, and what is known of
//! namespaces is written down.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use notify::{Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use super::files;
use super::install::Installer;
use super::{NodeState, Report};
use crate::base::drain::Watch;
use crate::base::{Error, Result, code};
use crate::cni::outside;

/// Between two looks when no event tells of a change.
const POLL: Duration = Duration::from_secs(10);

/// Before a write is tried again.
const RETRY: Duration = Duration::from_secs(2);

/// Between two changes of the same files. It doubles from the first to the last while somebody keeps undoing them.
const PAUSE: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(10));

/// A repair that has lasted this long was not part of a quarrel.
const PEACE: Duration = Duration::from_secs(60);

/// What was added to the state may wait this long, so that many changes are one write. What was taken away may not.
const GATHER: Duration = Duration::from_secs(1);

/// Puts the plugin in place again and again, until a drain starts.
pub(super) async fn keep_installed(mut installer: Installer, report: Report, mut drain: Watch) {
    let stirred = Arc::new(Notify::new());
    let _watchers: Vec<_> = installer.directories().iter().map(|directory| follow(directory, &stirred)).collect();
    let mut last: Option<(Instant, Duration)> = None;
    loop {
        let look = tokio::task::spawn_blocking(move || {
            let outcome = installer.ensure();
            (installer, outcome)
        });
        let outcome;
        match look.await {
            Ok(looked) => (installer, outcome) = looked,
            Err(error) => {
                tracing::error!(%error, "the CNI plugin is not looked after any more");
                return;
            }
        }
        let mut pause = Duration::ZERO;
        match outcome {
            Ok(changed) => {
                report.readiness.ready("cni");
                if changed {
                    pause = match last {
                        Some((before, used)) if before.elapsed() < PEACE => (used * 2).min(PAUSE.1),
                        _ => PAUSE.0,
                    };
                    if last.replace((Instant::now(), pause)).is_some() {
                        report.metrics.repairs.inc();
                    }
                }
            }
            Err(error) => report.readiness.waits("cni", error.to_string()),
        }
        tokio::select! {
            _ = drain.started() => return,
            () = async {
                tokio::time::sleep(pause).await;
                let _ = tokio::time::timeout(POLL, stirred.notified()).await;
            } => {}
        }
    }
}

/// Writes each state to `bin_dir` until a drain starts; then the last one, which has to serve until there is another agent.
pub(super) async fn keep_state(bin_dir: PathBuf, mut state: watch::Receiver<NodeState>, mut drain: Watch) {
    let path = bin_dir.join(outside::FILE);
    let mut written: Option<NodeState> = None;
    if !state.borrow().outside.is_empty() {
        state.mark_changed();
    }
    let mut ending = false;
    while !ending {
        tokio::select! {
            _ = drain.started() => ending = true,
            changed = state.changed() => ending = changed.is_err(),
            () = tokio::time::sleep(POLL), if written.is_some() => {
                if path.exists() {
                    continue;
                }
                tracing::warn!(path = %path.display(), "somebody has removed the file, it is written again");
                written = None;
            }
        }
        if ending && !state.has_changed().unwrap_or(false) {
            return;
        }
        let grows_only = written.as_ref().is_some_and(|written| written.outside.is_subset(&state.borrow().outside));
        if grows_only && !ending {
            tokio::select! {
                _ = drain.started() => ending = true,
                () = tokio::time::sleep(GATHER) => {}
            }
        }
        let now = state.borrow_and_update().clone();
        if written.as_ref() == Some(&now) {
            continue;
        }
        match write(path.clone(), now.clone()).await {
            Ok(()) => written = Some(now),
            Err(error) => {
                tracing::warn!(%error, "cannot write down which namespaces are outside of the mesh, will try again");
                tokio::select! {
                    _ = drain.started() => ending = true,
                    () = tokio::time::sleep(RETRY) => state.mark_changed(),
                }
            }
        }
    }
}

async fn write(path: PathBuf, state: NodeState) -> Result<()> {
    let write = tokio::task::spawn_blocking(move || {
        let text = state.text()?;
        let broken = |error| Error::caused(&code::CNI_INSTALL, path.display().to_string(), error);
        files::put(&path, &mut text.as_bytes(), 0o600).map_err(broken)
    });
    write.await.unwrap_or_else(|error| Err(Error::caused(&code::INTERNAL, "a write", error)))
}

/// Tells of changes in a directory for as long as it is kept. Without it there is the poll.
fn follow(directory: &Path, stirred: &Arc<Notify>) -> Option<RecommendedWatcher> {
    let stirred = stirred.clone();
    let handler = move |event: notify::Result<Event>| {
        // Reading is no change, and it is what follows from an event.
        if event.as_ref().map_or(true, |event| !matches!(event.kind, EventKind::Access(_)) || is_written(event)) {
            stirred.notify_one();
        }
    };
    notify::recommended_watcher(handler)
        .and_then(|mut watcher| watcher.watch(directory, RecursiveMode::NonRecursive).map(|()| watcher))
        .inspect_err(|error| tracing::warn!(path = %directory.display(), %error, "no file events, looking every {POLL:?} instead"))
        .ok()
}

/// Whether somebody has closed a file that he had opened to write.
fn is_written(event: &Event) -> bool {
    use notify::event::{AccessKind, AccessMode};
    event.kind == EventKind::Access(AccessKind::Close(AccessMode::Write))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::super::Settings;
    use super::*;
    use crate::base::drain;
    use crate::cni::outside::Outside;

    const LIST: &str = r#"{"cniVersion":"1.0.0","name":"pods","plugins":[{"type":"bridge"}]}"#;

    async fn until(what: &str, holds: impl Fn() -> bool) {
        let wait = async {
            while !holds() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(POLL * 3, wait).await.unwrap_or_else(|_| panic!("{what}"));
    }

    #[tokio::test]
    async fn the_entry_comes_back_whenever_another_writes_its_file() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let (list, program) = (directory.path().join("10.conflist"), directory.path().join("program"));
        fs::write(&program, "program").expect("program");
        let at = || directory.path().to_owned();
        let settings = Settings { program, ..Settings::new(at().join("cni.sock"), at(), at(), Vec::new()) };
        let installer = Installer::new(settings.clone(), settings.entry().expect("an entry"));
        let (trigger, watch) = drain::new();
        let report = Report::default();
        let keeper = tokio::spawn(keep_installed(installer, report.clone(), watch));
        until("it waits for a configuration", || !report.readiness.pending().is_empty()).await;
        for round in 0..4 {
            // In place and in two steps, as careless writers do.
            fs::write(&list, &LIST[..20]).expect("write");
            tokio::task::yield_now().await;
            fs::write(&list, LIST).expect("write");
            let started = Instant::now();
            until("the entry is there", || fs::read_to_string(&list).is_ok_and(|text| text.contains("warren"))).await;
            assert!(started.elapsed() < POLL, "by an event, not by the poll");
            until("it is ready", || report.readiness.pending().is_empty()).await;
            until("it is counted", || report.metrics.repairs.get() >= round).await;
        }
        assert!(trigger.drain(Duration::from_secs(5)).await, "the drain ends it");
        keeper.await.expect("ends by itself");
    }

    #[tokio::test(start_paused = true)]
    async fn namespaces_are_written_down_and_one_that_joins_at_once() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let path = directory.path().join(outside::FILE);
        let names = |names: &[&str]| Outside { outside: names.iter().map(|name| (*name).into()).collect() };
        names(&["earlier"]).text().map(|text| fs::write(&path, text)).expect("short").expect("write");
        let (sender, receiver) = watch::channel(NodeState::default());
        let (trigger, watch) = drain::new();
        let keeper = tokio::spawn(keep_state(directory.path().to_owned(), receiver, watch));
        tokio::task::yield_now().await;
        assert_eq!(Outside::read(&path).expect("kept"), names(&["earlier"]), "what is not known yet is not written");
        for state in [names(&["a", "b"]), names(&["a"]), names(&["a", "c"]), names(&[])] {
            sender.send(state.clone()).expect("followed");
            until("it is written", || Outside::read(&path).is_ok_and(|read| read == state)).await;
        }
        fs::remove_file(&path).expect("somebody removes it");
        until("it is written again", || Outside::read(&path).is_ok_and(|read| read == names(&[]))).await;
        sender.send(names(&["d"])).expect("followed");
        assert!(trigger.drain(Duration::from_secs(5)).await, "the drain ends it");
        keeper.await.expect("ends by itself");
        assert_eq!(Outside::read(&path).expect("written"), names(&["d"]), "the last one serves until there is another agent");
    }
}
