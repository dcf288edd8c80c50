//! Tells when a file has changed, however it was changed: written in place, replaced by a rename, or through a symbolic
//! link that was turned (as mounted ConfigMaps are).

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use notify::event::{AccessKind, AccessMode};
use notify::{Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::base::{Error, Result, code};

/// A writer that pauses this long has finished.
const QUIET: Duration = Duration::from_millis(20);

/// A writer that never pauses is not waited for longer.
const LONGEST: Duration = Duration::from_millis(100);

/// The file is looked at this often without any event: network file systems give none, a replaced directory no more.
const POLL: Duration = Duration::from_millis(500);

/// Follows one file. Ends when dropped.
///
/// It keeps one bit, not a queue: any number of changes before [`Watch::changed`] is called are one.
#[derive(Debug)]
pub struct Watch {
    path: PathBuf,
    seen: Option<Fingerprint>,
    signal: Arc<Signal>,
    // Events come for as long as it lives.
    _watcher: Option<RecommendedWatcher>,
}

#[derive(Debug, Default)]
struct Signal {
    /// Something happened in the directory.
    stirred: Notify,
    /// It was the file itself.
    direct: AtomicBool,
}

/// Two equal ones mean: not changed, as far as the file system tells.
type Fingerprint = (u64, u64, u64, i64, i64);

/// Follows `path`, which need not exist yet. To miss nothing, call this before the file is first read.
///
/// # Errors
/// BAD_FILE: the path cannot be one of a file.
pub fn watch(path: &Path) -> Result<Watch> {
    let Some(name) = path.file_name().map(ToOwned::to_owned) else {
        return Err(Error::new(&code::BAD_FILE, format!("{} is no file name", path.display())));
    };
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let signal = Arc::new(Signal::default());
    let handler = Arc::clone(&signal);
    let watcher = notify::recommended_watcher(move |event: notify::Result<Event>| match event {
        Ok(event) if is_change(&event.kind) => {
            if event.paths.iter().any(|path| path.file_name() == Some(&name)) {
                handler.direct.store(true, Ordering::Release);
            }
            handler.stirred.notify_one();
        }
        Ok(_) => {}
        // Events were lost; the file is looked at.
        Err(_) => handler.stirred.notify_one(),
    })
    .and_then(|mut watcher| watcher.watch(directory, RecursiveMode::NonRecursive).map(|()| watcher))
    .inspect_err(|error| tracing::warn!(path = %path.display(), %error, "no file events (inotify limits?); looking every {POLL:?} instead"))
    .ok();
    Ok(Watch { path: path.to_owned(), seen: fingerprint(path), signal, _watcher: watcher })
}

impl Watch {
    /// Returns when the file has changed since the last return; at most 100 ms after the first sign where the system
    /// gives events. Can be cancelled without losing a change.
    pub async fn changed(&mut self) {
        loop {
            if tokio::time::timeout(POLL, self.signal.stirred.notified()).await.is_ok() {
                self.settle().await;
            }
            let now = fingerprint(&self.path);
            // Two writes within one tick of the file system's clock look the same; the event tells them apart.
            let direct = self.signal.direct.swap(false, Ordering::AcqRel);
            if direct || now != self.seen {
                self.seen = now;
                return;
            }
        }
    }

    async fn settle(&self) {
        let latest = Instant::now() + LONGEST;
        while tokio::time::timeout_at(latest.min(Instant::now() + QUIET), self.signal.stirred.notified()).await.is_ok() {
            if Instant::now() >= latest {
                break;
            }
        }
    }
}

/// Opening and reading is what the caller does itself.
fn is_change(kind: &EventKind) -> bool {
    match kind {
        EventKind::Access(access) => *access == AccessKind::Close(AccessMode::Write),
        _ => true,
    }
}

fn fingerprint(path: &Path) -> Option<Fingerprint> {
    let meta = std::fs::metadata(path).ok()?;
    Some((meta.dev(), meta.ino(), meta.size(), meta.mtime(), meta.mtime_nsec()))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    async fn expect_change(watch: &mut Watch) {
        tokio::time::timeout(Duration::from_secs(5), watch.changed()).await.expect("the change is seen");
    }

    #[tokio::test]
    async fn every_way_of_changing_a_file_is_seen_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("mesh.yaml");
        let mut watch = watch(&path).unwrap();

        fs::write(&path, "a").unwrap();
        expect_change(&mut watch).await;
        fs::write(&path, "b").unwrap();
        expect_change(&mut watch).await;
        fs::write(dir.path().join("new"), "c").unwrap();
        fs::rename(dir.path().join("new"), &path).unwrap();
        expect_change(&mut watch).await;
        fs::remove_file(&path).unwrap();
        expect_change(&mut watch).await;

        // Reading it and touching its neighbours is no change.
        fs::write(dir.path().join("neighbour"), "d").unwrap();
        let _ = fs::read_dir(dir.path()).unwrap().count();
        assert!(tokio::time::timeout(Duration::from_millis(700), watch.changed()).await.is_err());
    }

    #[tokio::test]
    async fn a_turned_link_is_seen() {
        let dir = tempfile::tempdir().unwrap();
        for version in ["..v1", "..v2"] {
            fs::create_dir(dir.path().join(version)).unwrap();
            fs::write(dir.path().join(version).join("mesh.yaml"), version).unwrap();
        }
        symlink("..v1", dir.path().join("..data")).unwrap();
        symlink("..data/mesh.yaml", dir.path().join("mesh.yaml")).unwrap();
        let mut watch = watch(&dir.path().join("mesh.yaml")).unwrap();
        symlink("..v2", dir.path().join("..data_tmp")).unwrap();
        fs::rename(dir.path().join("..data_tmp"), dir.path().join("..data")).unwrap();
        expect_change(&mut watch).await;
        assert_eq!(fs::read_to_string(dir.path().join("mesh.yaml")).unwrap(), "..v2");
    }
}
