//! Takes Warren off a node without asking anybody: no agent need have run, no API server need answer. Only an agent that
//! runs there is in its way.

use std::path::Path;

use super::cni;
use super::find::Finder;
use super::probe::ProbeTable;
use super::redirect::{Redirect, State};
use crate::base::{Error, Result, code};
use crate::net::seqpacket;

/// Removes the rules from every network namespace of the node, those for probes, the CNI plugin, and `zds_socket`, the file
/// on which proxies connected. Returns from how many namespaces. Connections through the proxy break.
///
/// # Errors
/// PURGE_REFUSED: an agent runs; nothing was removed. UNINSTALL: something could not be removed; all else is. The text of
/// the first failure, and how many there were.
pub async fn purge(
    finder: &Finder,
    redirect: &impl Redirect,
    probes: &ProbeTable,
    plugin: &cni::Settings,
    zds_socket: &Path,
) -> Result<usize> {
    for socket in [&plugin.socket, zds_socket] {
        if seqpacket::is_alive(socket).await {
            return Err(Error::new(&code::PURGE_REFUSED, format!("somebody listens on {}", socket.display())));
        }
    }
    let mut failures = Vec::new();
    // First what would have new pods wait for an agent.
    failures.extend(cni::uninstall(plugin).err());
    failures.extend(probes.remove().await.err());
    failures.extend(remove(zds_socket).err());
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

fn remove(path: &Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(Error::caused(&code::UNINSTALL, format!("remove {}", path.display()), error))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::redirect::Options;
    use crate::agent::redirect::nft::Nft;
    use crate::net::seqpacket::Listener;

    #[tokio::test]
    async fn a_node_on_which_an_agent_runs_is_left_as_it_is() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let at = |name| directory.path().join(name);
        let plugin = cni::Settings::new(at("cni.sock"), at(""), at(""), Vec::new());
        let zds_socket = at("zds.sock");
        std::fs::write(at("warren"), "the plugin").expect("write");
        let (finder, probes) = (Finder::new(at("proc")), ProbeTable::new(Options::default(), at("proc"), 1));
        for socket in [&plugin.socket, &zds_socket] {
            let agent = Listener::bind(socket).expect("an agent listens");
            let error = purge(&finder, &Nft::default(), &probes, &plugin, &zds_socket).await.expect_err("it is refused");
            assert_eq!(error.code(), &code::PURGE_REFUSED);
            assert!(agent.is_at(socket) && at("warren").exists(), "nothing was removed");
            std::fs::remove_file(socket).expect("remove");
        }
        drop(Listener::bind(&zds_socket).expect("an agent that was killed leaves it"));
        // Without privileges not all can be done, but all is tried.
        let _ = purge(&finder, &Nft::default(), &probes, &plugin, &zds_socket).await;
        assert!(!zds_socket.exists() && !at("warren").exists());
    }
}
