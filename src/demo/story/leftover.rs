//! What the agent left in a pod, read back from the kernel.

use rtnetlink::IpVersion;

use crate::agent::redirect::nft::Nft;
use crate::agent::redirect::{Options, Redirect, State};
use crate::base::{Error, Result, code};
use crate::demo::lab::{Place, link};

/// Redirection and routing rules that a pod outside the mesh does not have; one text each.
///
/// # Errors
/// The kernel does not answer.
pub(super) fn rules(place: &Place) -> Result<Vec<String>> {
    let mut left = Vec::new();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Error::caused(&code::INTERNAL, "start a runtime", error))?;
    let state = runtime.block_on(Nft::new(Options::default()).state(&place.netns))?;
    if state != State::Absent {
        left.push(format!("redirection in {}: {state:?}", place.name));
    }
    // A fresh namespace has the rules for the tables local, main and default; IPv6 has no default.
    for (version, own) in [(IpVersion::V4, 3), (IpVersion::V6, 2)] {
        let rules = link::rules(&place.netns, version)?;
        if rules > own {
            left.push(format!("{} routing rules in {}", rules - own, place.name));
        }
    }
    Ok(left)
}
