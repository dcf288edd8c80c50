//! Where mesh objects come from.

use std::path::PathBuf;
use std::str::FromStr;

use crate::base::{Error, Result, code};
use crate::config::meshfile::{self, MeshFile};
use crate::config::watch::{self, Watch};

/// Gives one state of the mesh after the other.
pub trait Source: Send {
    /// The next state; the first call returns the state that is, the others wait for a change. Can be cancelled without
    /// losing a state.
    ///
    /// # Errors
    /// SOURCE_BROKEN: there is something new, but it cannot be used; the state before stays in force.
    fn next(&mut self) -> impl Future<Output = Result<Snapshot>> + Send;

    /// What the log calls it.
    fn name(&self) -> String;
}

/// One state.
#[derive(Debug)]
pub struct Snapshot {
    /// What is in force.
    pub mesh: MeshFile,
    /// What was left out, and why.
    pub rejected: Vec<Error>,
    /// The left-out elements whose version of the state before is in force instead.
    pub kept: Vec<String>,
    /// The left-out policies, as `namespace/name`, in whose place everything is refused.
    pub refused: Vec<String>,
}

/// Which source, as the command line names it: `file:PATH`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Location {
    /// A mesh file.
    File(PathBuf),
    /// The API server of the cluster that this runs in, or of `KUBECONFIG`.
    Kubernetes,
}

impl FromStr for Location {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text.split_once(':') {
            Some(("file", path)) if !path.is_empty() => Ok(Location::File(path.into())),
            None if text == "kubernetes" => Ok(Location::Kubernetes),
            _ => Err(Error::new(&code::BAD_SETTING, format!("source {text:?}: known is file:PATH"))),
        }
    }
}

/// Opens the source there.
///
/// # Errors
/// BAD_FILE: the path is none of a file.
pub async fn open(location: &Location, _root_namespace: &str) -> Result<AnySource> {
    match location {
        Location::File(path) => FileSource::new(path.clone()),
        Location::Kubernetes => Err(Error::internal("kubernetes")),
    }
}

/// One of the sources.
pub type AnySource = FileSource;

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
    async fn next(&mut self) -> Result<Snapshot> {
        if self.is_read {
            self.watch.changed().await;
        }
        self.is_read = true;
        let mut loaded = meshfile::load(&self.path)?;
        let kept = self.last.as_ref().map(|last| loaded.keep_previous(last)).unwrap_or_default();
        self.last = Some(loaded.mesh.clone());
        // After it was noted: only what was once understood is a version to come back to.
        let refused = loaded.refuse_instead();
        Ok(Snapshot { mesh: loaded.mesh, rejected: loaded.rejected, kept, refused })
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

    const GOOD: &str = "pods:\n  - {name: a, node: n1, ips: [10.0.0.1]}\n";

    async fn next(source: &mut FileSource) -> Result<Snapshot> {
        tokio::time::timeout(Duration::from_secs(5), source.next()).await.expect("a state in time")
    }

    #[tokio::test]
    async fn a_broken_file_is_an_error_and_a_broken_element_keeps_its_version() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("mesh.yaml");
        fs::write(&path, GOOD).unwrap();
        let mut source = FileSource::new(path.clone()).unwrap();
        assert_eq!(next(&mut source).await.unwrap().mesh.pods.len(), 1);
        fs::write(&path, "pods: {").unwrap();
        assert_eq!(next(&mut source).await.unwrap_err().code(), &code::SOURCE_BROKEN);
        fs::write(&path, format!("{}  - {{name: b, node: n1, ips: [10.0.0.2]}}\n", GOOD.replace("10.0.0.1", "x"))).unwrap();
        let snapshot = next(&mut source).await.unwrap();
        assert_eq!((snapshot.rejected.len(), snapshot.kept.as_slice()), (1, ["pod default/a".to_owned()].as_slice()));
        let mut names: Vec<_> = snapshot.mesh.pods.iter().map(|pod| pod.name.as_str()).collect();
        names.sort_unstable();
        assert_eq!(names, ["a", "b"]);
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
            assert_eq!(snapshot.mesh.policies.len(), 1);
            fs::write(&path, bad(tail)).unwrap();
        }
        fs::write(&path, GOOD).unwrap();
        let snapshot = next(&mut source).await.unwrap();
        assert!(snapshot.refused.is_empty() && snapshot.mesh.policies.is_empty(), "gone with its entry");
    }

    #[test]
    fn locations() {
        assert_eq!("file:/a/b.yaml".parse::<Location>().unwrap(), Location::File("/a/b.yaml".into()));
        for bad in ["", "file:", "/a/b.yaml", "http:x"] {
            assert_eq!(bad.parse::<Location>().unwrap_err().code(), &code::BAD_SETTING);
        }
    }
}
