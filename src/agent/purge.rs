//! Takes Warren off a node without asking anybody: no agent need have run, no API server need answer.

use super::cni;
use super::find::Finder;
use super::probe::ProbeTable;
use super::redirect::{Redirect, State};
use crate::base::{Error, Result, code};

/// Removes the rules from every network namespace of the node, those for probes, and the CNI plugin. Returns from how
/// many namespaces. Connections through the proxy break.
///
/// # Errors
/// Something could not be removed; all else is. The text of the first failure, and how many there were.
pub async fn purge(finder: &Finder, redirect: &impl Redirect, probes: &ProbeTable, plugin: &cni::Settings) -> Result<usize> {
    let mut failures = Vec::new();
    // First what would have new pods wait for an agent.
    failures.extend(cni::uninstall(plugin).err());
    failures.extend(probes.remove().await.err());
    let (mut cleaned, looking) = (0, finder.clone());
    let namespaces = tokio::task::spawn_blocking(move || looking.all()).await;
    match namespaces.map_err(|error| Error::caused(&code::INTERNAL, "look through the node's processes", error)).flatten() {
        Ok(namespaces) => {
            for netns in namespaces {
                match redirect.state(&netns).await {
                    Ok(State::Absent) => {}
                    Ok(_) => match redirect.remove(&netns).await {
                        Ok(()) => {
                            tracing::info!(netns = %netns.id(), "rules removed");
                            cleaned += 1;
                        }
                        Err(error) => failures.push(error),
                    },
                    Err(error) => failures.push(error),
                }
            }
        }
        Err(error) => failures.push(error),
    }
    for error in &failures {
        tracing::error!(%error, "could not be removed");
    }
    let count = failures.len();
    match failures.into_iter().next() {
        None => Ok(cleaned),
        Some(first) => Err(Error::caused(&code::UNINSTALL, format!("{count} things could not be removed, the first"), first)),
    }
}
