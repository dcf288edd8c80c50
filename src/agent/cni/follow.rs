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
const POLL: Duration = Duration::from_secs(5);

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
            Ok(done) => {
                report.readiness.ready("cni");
                for what in &done {
                    tracing::info!("CNI plugin: {what}");
                }
                if !done.is_empty() {
                    pause = match last.replace((Instant::now(), PAUSE.0)) {
                        None => PAUSE.0,
                        Some((before, used)) => {
                            report.metrics.repairs.inc();
                            if before.elapsed() < PEACE { (used * 2).min(PAUSE.1) } else { PAUSE.0 }
                        }
                    };
                    last = Some((Instant::now(), pause));
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

/// Writes each state to `bin_dir`, until a drain starts.
pub(super) async fn keep_state(bin_dir: PathBuf, mut state: watch::Receiver<NodeState>, mut drain: Watch) {
    let path = bin_dir.join(outside::FILE);
    let mut written: Option<NodeState> = None;
    if !state.borrow().outside.is_empty() {
        state.mark_changed();
    }
    loop {
        let open = tokio::select! {
            _ = drain.started() => return,
            changed = state.changed() => changed.is_ok(),
        };
        if !open {
            return;
        }
        let grows_only = written.as_ref().is_some_and(|written| written.outside.is_subset(&state.borrow().outside));
        if grows_only {
            tokio::select! {
                _ = drain.started() => return,
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
                    _ = drain.started() => return,
                    () = tokio::time::sleep(POLL) => state.mark_changed(),
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
