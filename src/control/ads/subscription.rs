//! What one client wants and holds of one type.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use crate::base::{Error, Result, Str, code};
use crate::control::index::{Delta, Index, Resource, Type};

/// Names a client may subscribe to. A client that needs more uses the wildcard.
const MAX_NAMES: usize = 65_536;

/// Longest name, bytes: a namespace, a host name and a margin.
const MAX_NAME: usize = 512;

/// Nonces that are remembered, so that a late rejection is still understood.
const MAX_NONCES: usize = 16;

/// One type on one stream.
#[derive(Debug)]
pub(super) struct Subscription {
    of: Type,
    wants: Wants,
    nonces: VecDeque<String>,
}

#[derive(Debug)]
enum Wants {
    /// All, and the index that the client was last told.
    All(Arc<Index>),
    /// By name.
    Names { asked: BTreeSet<Str>, held: BTreeMap<Str, Str> },
}

/// What answers one request.
#[derive(Debug, Default)]
pub(super) struct Answer {
    pub(super) delta: Delta,
    /// Clients that look up by name are told the other names of what they get.
    pub(super) with_aliases: bool,
}

impl Subscription {
    /// The first request of the type, and its answer. `versions` is what the client holds from an earlier stream.
    ///
    /// # Errors
    /// Too many names.
    pub(super) fn open(
        of: Type,
        (subscribe, unsubscribe): (&[String], &[String]),
        versions: &BTreeMap<String, String>,
        node: &str,
        index: &Arc<Index>,
    ) -> Result<(Self, Answer)> {
        let star = |names: &[String]| names.iter().any(|name| name == "*");
        // No names at all is the wildcard's older form; subscribing and unsubscribing `*` at once asks for none yet.
        let all = (subscribe.is_empty() || star(subscribe)) && !star(unsubscribe);
        let mut subscription = Self { of, wants: Wants::All(Arc::clone(index)), nonces: VecDeque::new() };
        if all {
            return Ok((subscription, Answer { delta: since_versions(index, of, versions), with_aliases: false }));
        }
        let held = versions.iter().map(|(name, version)| (name.as_str().into(), version.as_str().into())).collect();
        subscription.wants = Wants::Names { asked: versions.keys().map(|name| name.as_str().into()).collect(), held };
        subscription.ask(&named(subscribe))?;
        // What the client claims to hold and what it asks for now are answered together.
        let mut answer = subscription.refresh(node, index);
        answer.delta.removed.extend(subscription.unknown(subscribe, index));
        answer.delta.removed.sort();
        answer.delta.removed.dedup();
        Ok((subscription, answer))
    }

    /// A later change of what is wanted. `None`: there is nothing to answer.
    ///
    /// Every name that is asked for is answered, also one that was asked for before: a client that asks waits.
    ///
    /// # Errors
    /// Too many names.
    pub(super) fn change(&mut self, subscribe: &[String], unsubscribe: &[String], index: &Arc<Index>) -> Result<Option<Answer>> {
        if unsubscribe.iter().any(|name| name == "*") && matches!(self.wants, Wants::All(_)) {
            // What is not asked for by name is no longer followed; the client forgets it.
            self.wants = Wants::Names { asked: BTreeSet::new(), held: BTreeMap::new() };
        }
        self.unsubscribe(unsubscribe, index);
        if subscribe.iter().any(|name| name == "*")
            && let Wants::Names { held, .. } = &self.wants
        {
            let versions = held.iter().map(|(name, version)| (name.to_string(), version.to_string())).collect();
            let mut delta = since_versions(index, self.of, &versions);
            self.wants = Wants::All(Arc::clone(index));
            delta.removed.extend(self.unknown(subscribe, index));
            return Ok(Some(Answer { delta, with_aliases: false }));
        }
        let names = named(subscribe);
        if names.is_empty() {
            return Ok(None);
        }
        self.ask(&names)?;
        let mut found = BTreeMap::new();
        for name in &names {
            found.extend(index.resolve(self.of, name).into_iter().map(|resource| (resource.name.clone(), resource)));
        }
        if let Wants::Names { held, .. } = &mut self.wants {
            held.extend(found.values().map(|resource| (resource.name.clone(), resource.version.clone())));
        }
        let delta = Delta { changed: found.into_values().collect(), removed: self.unknown(subscribe, index) };
        Ok(Some(Answer { delta, with_aliases: matches!(self.wants, Wants::Names { .. }) }))
    }

    /// What the client has to be told because the mesh has changed; afterwards it counts as told.
    pub(super) fn refresh(&mut self, node: &str, index: &Arc<Index>) -> Answer {
        match &mut self.wants {
            Wants::All(told) => {
                let delta = match told.generation() {
                    same if same == index.generation() => Delta::default(),
                    before if before + 1 == index.generation() => index.last_delta(self.of).clone(),
                    // A slow client skips states and gets their sum.
                    _ => index.diff(told, self.of),
                };
                *told = Arc::clone(index);
                Answer { delta, with_aliases: false }
            }
            Wants::Names { asked, held } => {
                let all = index.resources(self.of);
                let removed: Vec<Str> = held.keys().filter(|name| !all.contains(name)).cloned().collect();
                held.retain(|name, _| all.contains(name));
                // Everything that a name stands for now, what is held already, and what runs on the client's node: the
                // proxy must know its own pods before they ask.
                let mut wanted: BTreeMap<&Str, &Arc<Resource>> = held.keys().filter_map(|name| Some((name, all.get(name)?))).collect();
                let found: Vec<Arc<Resource>> = asked.iter().flat_map(|name| index.resolve(self.of, name)).collect();
                wanted.extend(found.iter().map(|resource| (&resource.name, resource)));
                if self.of == Type::Address {
                    wanted.extend(index.workloads_on(node).map(|resource| (&resource.name, resource)));
                }
                let news = wanted.into_iter().filter(|(name, resource)| held.get(*name) != Some(&resource.version));
                let changed: Vec<Arc<Resource>> = news.map(|(_, resource)| Arc::clone(resource)).collect();
                held.extend(changed.iter().map(|resource| (resource.name.clone(), resource.version.clone())));
                Answer { delta: Delta { changed, removed }, with_aliases: true }
            }
        }
    }

    /// Remembers the nonce of a response.
    pub(super) fn sent(&mut self, nonce: String) {
        if self.nonces.len() == MAX_NONCES {
            self.nonces.pop_front();
        }
        self.nonces.push_back(nonce);
    }

    /// Whether a nonce is one of a recent response. It and the older ones are done with.
    pub(super) fn answered(&mut self, nonce: &str) -> bool {
        let Some(position) = self.nonces.iter().position(|sent| sent == nonce) else { return false };
        self.nonces.drain(..=position);
        true
    }

    fn ask(&mut self, names: &[&str]) -> Result<()> {
        if let Some(name) = names.iter().find(|name| name.len() > MAX_NAME) {
            return Err(Error::new(&code::CAPACITY, format!("a subscribed name of {} bytes; at most {MAX_NAME}", name.len())));
        }
        if let Wants::Names { asked, .. } = &mut self.wants {
            asked.extend(names.iter().map(|name| Str::from(*name)));
            if asked.len() > MAX_NAMES {
                return Err(Error::new(&code::CAPACITY, format!("more than {MAX_NAMES} subscribed names; subscribe to *")));
            }
        }
        Ok(())
    }

    fn unsubscribe(&mut self, names: &[String], index: &Index) {
        let Wants::Names { asked, held } = &mut self.wants else { return };
        for name in names {
            asked.remove(name.as_str());
            for resource in index.resolve(self.of, name) {
                held.remove(&resource.name);
            }
        }
    }

    fn unknown(&self, names: &[String], index: &Index) -> Vec<Str> {
        named(names).into_iter().filter(|name| index.resolve(self.of, name).is_empty()).map(Str::from).collect()
    }
}

/// All but the wildcard.
fn named(names: &[String]) -> Vec<&str> {
    names.iter().map(String::as_str).filter(|name| *name != "*").collect()
}

/// From what a client holds to what is.
fn since_versions(index: &Index, of: Type, versions: &BTreeMap<String, String>) -> Delta {
    let all = index.resources(of);
    let is_held = |resource: &&Arc<Resource>| versions.get(&*resource.name).is_some_and(|version| **version == *resource.version);
    Delta {
        changed: all.iter().filter(|resource| !is_held(resource)).cloned().collect(),
        removed: versions.keys().filter(|name| !all.contains(name)).map(|name| name.as_str().into()).collect(),
    }
}
