//! A mesh file.

mod objects;

pub(super) use objects::of as objects_of;

use std::path::PathBuf;

use super::{Batch, Source};
use crate::base::Result;
use crate::config::meshfile::{self, MeshFile};
use crate::config::watch::{self, Watch};

/// Faults that the health endpoint lists.
const MAX_WRONG: usize = 100;

/// A mesh file that is watched.
#[derive(Debug)]
pub struct FileSource {
    path: PathBuf,
    watch: Watch,
    last: Option<MeshFile>,
    is_read: bool,
}

impl FileSource {
    /// A source of that file.
    ///
    /// # Errors
    /// BAD_FILE: the path is none of a file.
    pub fn new(path: PathBuf) -> Result<Self> {
        // Watched before it is first read: no change is missed.
        let watch = watch::watch(&path)?;
        Ok(Self { path, watch, last: None, is_read: false })
    }
}

impl Source for FileSource {
    async fn next(&mut self) -> Result<Batch> {
        if self.is_read {
            self.watch.changed().await;
        }
        self.is_read = true;
        let mut loaded = meshfile::load(&self.path)?;
        let kept = self.last.as_ref().map(|last| loaded.keep_previous(last)).unwrap_or_default();
        self.last = Some(loaded.mesh.clone());
        // After it was noted: only what was once understood is a version to come back to.
        let refused = loaded.refuse_instead();
        let wrong = loaded.rejected.iter().take(MAX_WRONG).map(ToString::to_string).collect();
        let (mesh, changes) = objects_of(&loaded.mesh);
        Ok(Batch { mesh, changes, rejected: loaded.rejected, kept, refused, wrong, fault: None })
    }

    fn name(&self) -> String {
        format!("file:{}", self.path.display())
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::time::Duration;

    use super::*;
    use crate::base::code;
    use crate::control::objects::{Change, Kind};

    const GOOD: &str = "pods:\n  - {name: a, node: n1, ips: [10.0.0.1]}\n";

    async fn next(source: &mut FileSource) -> Result<Batch> {
        tokio::time::timeout(Duration::from_secs(5), source.next()).await.expect("a state in time")
    }

    fn names(batch: &Batch, kind: Kind) -> Vec<String> {
        let of_kind = |change: &Change| match change {
            Change::Replace(known, versions) if *known == kind => {
                Some(versions.iter().map(|version| version.id().name.to_string()).collect())
            }
            _ => None,
        };
        let mut names: Vec<String> = batch.changes.iter().find_map(of_kind).expect("each kind is replaced");
        names.sort_unstable();
        names
    }

    #[tokio::test]
    async fn a_broken_file_is_an_error_and_a_broken_element_keeps_its_version() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("mesh.yaml");
        fs::write(&path, GOOD).unwrap();
        let mut source = FileSource::new(path.clone()).unwrap();
        assert_eq!(names(&next(&mut source).await.unwrap(), Kind::Pod), ["a"]);
        fs::write(&path, "pods: {").unwrap();
        assert_eq!(next(&mut source).await.unwrap_err().code(), &code::SOURCE_BROKEN);
        fs::write(&path, format!("{}  - {{name: b, node: n1, ips: [10.0.0.2]}}\n", GOOD.replace("10.0.0.1", "x"))).unwrap();
        let snapshot = next(&mut source).await.unwrap();
        assert_eq!((snapshot.rejected.len(), snapshot.kept.as_slice()), (1, ["pod default/a".to_owned()].as_slice()));
        assert_eq!(names(&snapshot, Kind::Pod), ["a", "b"]);
    }

    #[tokio::test]
    async fn a_policy_that_was_never_good_is_refused_each_time_and_never_taken_for_a_version() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("mesh.yaml");
        let bad = |tail: &str| format!("{GOOD}policies:\n  - {{name: p, action: Alow}}\n{tail}");
        fs::write(&path, bad("")).unwrap();
        let mut source = FileSource::new(path.clone()).unwrap();
        for tail in ["# again\n", ""] {
            let snapshot = next(&mut source).await.unwrap();
            assert_eq!((snapshot.refused.as_slice(), snapshot.kept.len()), (["default/p".to_owned()].as_slice(), 0));
            assert_eq!(names(&snapshot, Kind::AuthorizationPolicy).len(), 1);
            fs::write(&path, bad(tail)).unwrap();
        }
        fs::write(&path, GOOD).unwrap();
        let snapshot = next(&mut source).await.unwrap();
        assert!(snapshot.refused.is_empty() && names(&snapshot, Kind::AuthorizationPolicy).is_empty(), "gone with its entry");
    }
}
