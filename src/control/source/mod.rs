//! Where mesh objects come from.

mod file;
mod kubernetes;

use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use kube::Client;

use super::index::{Index, Indexer};
use super::objects::{Change, Mesh};
use super::status::Wishes;
use crate::base::{Error, Result, code};
use crate::config::meshfile::MeshFile;

pub use file::FileSource;
pub use kubernetes::KubernetesSource;

/// Gives one change of the mesh after the other.
pub trait Source: Send {
    /// What has changed: the first call returns everything there is, the others wait for a change. Can be cancelled
    /// without losing one.
    ///
    /// # Errors
    /// SOURCE_BROKEN: there is something new, but it cannot be used; the state before stays in force. API_UNAVAILABLE:
    /// not everything could be read for the first time; the next call goes on.
    fn next(&mut self) -> impl Future<Output = Result<Batch>> + Send;

    /// What the log calls it.
    fn name(&self) -> String;
}

/// Some changes.
#[derive(Debug)]
pub struct Batch {
    /// What holds for all of it.
    pub mesh: Mesh,
    /// In order.
    pub changes: Vec<Change>,
    /// What was found wrong now, and why.
    pub rejected: Vec<Error>,
    /// Rejected objects whose version before the source itself has put back in force.
    pub kept: Vec<String>,
    /// Rejected policies in whose place the source itself has put a refusal of everything.
    pub refused: Vec<String>,
    /// All that is wrong at the moment, for the health endpoint.
    pub wrong: Vec<String>,
    /// Why there may be more that cannot be had at the moment; what is known stays in force.
    pub fault: Option<String>,
}

/// Which source, as the command line names it: `file:PATH` or `kubernetes`.
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
            _ => Err(Error::new(&code::BAD_SETTING, format!("source {text:?}: known are file:PATH and kubernetes"))),
        }
    }
}

/// The index of a mesh file as it is.
pub fn index_of(file: &MeshFile) -> Arc<Index> {
    let (mesh, changes) = file::objects_of(file);
    let mut indexer = Indexer::default();
    indexer.apply(&mesh, changes);
    indexer.publish()
}

/// One of the sources.
pub enum AnySource {
    /// See [`Location::File`].
    File(Box<FileSource>),
    /// See [`Location::Kubernetes`].
    Kubernetes(Box<KubernetesSource>),
}

impl AnySource {
    /// The mesh file of that path.
    ///
    /// # Errors
    /// BAD_FILE: the path is none of a file.
    pub fn file(path: &Path) -> Result<Self> {
        FileSource::new(path.to_owned()).map(|source| AnySource::File(Box::new(source)))
    }

    /// The objects of a cluster.
    pub(super) fn kubernetes(mesh: Mesh, client: &Client, wishes: &Wishes) -> Self {
        AnySource::Kubernetes(Box::new(KubernetesSource::new(mesh, client, wishes)))
    }
}

impl Source for AnySource {
    async fn next(&mut self) -> Result<Batch> {
        match self {
            AnySource::File(source) => source.next().await,
            AnySource::Kubernetes(source) => source.next().await,
        }
    }

    fn name(&self) -> String {
        match self {
            AnySource::File(source) => source.name(),
            AnySource::Kubernetes(source) => source.name(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locations() {
        assert_eq!("file:/a/b.yaml".parse::<Location>().unwrap(), Location::File("/a/b.yaml".into()));
        assert_eq!("kubernetes".parse::<Location>().unwrap(), Location::Kubernetes);
        for bad in ["", "file:", "/a/b.yaml", "http:x", "kubernetes:x"] {
            assert_eq!(bad.parse::<Location>().unwrap_err().code(), &code::BAD_SETTING);
        }
    }
}
