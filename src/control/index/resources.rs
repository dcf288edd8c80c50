//! Encoded resources, and maps of them that are cheap to copy.

use std::borrow::Borrow;
use std::sync::Arc;

use bytes::Bytes;
use rpds::{RedBlackTreeMapSync, RedBlackTreeSetSync};

use super::hash::xxh64;
use crate::base::Str;

/// One resource as it goes on the wire.
#[derive(Debug, PartialEq, Eq)]
pub struct Resource {
    /// A workload's uid, or `namespace/name` of a service (its host name) or a policy.
    pub name: Str,
    /// xxhash64 of `body` in hex without leading zeros: equal bytes have equal versions, also after a restart, and the
    /// versions are those that istiod gives the same bytes.
    pub version: Str,
    /// The encoded message.
    pub body: Bytes,
    /// What else it is found by: `network/ip`.
    pub aliases: Vec<Str>,
    /// The services that it is an endpoint of.
    pub(super) services: Vec<Str>,
}

impl Resource {
    pub(super) fn new(name: Str, body: Vec<u8>, aliases: Vec<Str>, services: Vec<Str>) -> Self {
        let version = format!("{:x}", xxh64(&body)).into();
        Self { name, version, body: body.into(), aliases, services }
    }
}

/// Resources by name.
#[derive(Clone, Debug, Default)]
pub struct Resources(RedBlackTreeMapSync<Str, Arc<Resource>>);

impl Resources {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.size()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The one of that name.
    pub fn get(&self, name: &str) -> Option<&Arc<Resource>> {
        self.0.get(name)
    }

    /// Whether there is one of that name.
    pub fn contains(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    /// All of them, by name.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Resource>> {
        self.0.values()
    }

    /// What is different from an earlier state.
    pub(super) fn since(&self, earlier: &Resources) -> Delta {
        Delta {
            changed: self.iter().filter(|new| !earlier.get(&new.name).is_some_and(|old| is_same(old, new))).cloned().collect(),
            removed: earlier.0.keys().filter(|name| !self.contains(name)).cloned().collect(),
        }
    }

    /// The same, of these names alone.
    pub(super) fn since_of<'a>(&self, earlier: &Resources, names: impl Iterator<Item = &'a Str>) -> Delta {
        let mut delta = Delta::default();
        for name in names {
            match (self.get(name), earlier.get(name)) {
                (Some(new), Some(old)) if is_same(old, new) => {}
                (Some(new), _) => delta.changed.push(Arc::clone(new)),
                (None, Some(_)) => delta.removed.push(name.clone()),
                (None, None) => {}
            }
        }
        delta
    }

    pub(super) fn put(&mut self, resource: Arc<Resource>) {
        self.0.insert_mut(resource.name.clone(), resource);
    }

    pub(super) fn remove(&mut self, name: &str) {
        self.0.remove_mut(name);
    }
}

fn is_same(old: &Arc<Resource>, new: &Arc<Resource>) -> bool {
    Arc::ptr_eq(old, new) || old == new
}

/// What became different from one index to the next.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Delta {
    /// New or changed.
    pub changed: Vec<Arc<Resource>>,
    /// No longer there.
    pub removed: Vec<Str>,
}

impl Delta {
    /// Whether nothing is different.
    pub fn is_empty(&self) -> bool {
        self.changed.is_empty() && self.removed.is_empty()
    }
}

/// Sets by key; a key without members is not in it.
#[derive(Clone, Debug)]
pub(super) struct Sets<T: Ord>(RedBlackTreeMapSync<Str, RedBlackTreeSetSync<T>>);

impl<T: Ord> Default for Sets<T> {
    fn default() -> Self {
        Self(RedBlackTreeMapSync::new_sync())
    }
}

impl<T: Ord + Clone> Sets<T> {
    pub(super) fn of(&self, key: &str) -> impl Iterator<Item = &T> {
        self.0.get(key).into_iter().flat_map(RedBlackTreeSetSync::iter)
    }

    pub(super) fn keys(&self) -> impl Iterator<Item = &Str> {
        self.0.keys()
    }

    pub(super) fn add(&mut self, key: &Str, member: T) {
        match self.0.get_mut(&**key) {
            Some(set) => set.insert_mut(member),
            None => {
                let mut set = RedBlackTreeSetSync::new_sync();
                set.insert_mut(member);
                self.0.insert_mut(key.clone(), set);
            }
        }
    }

    pub(super) fn remove<Q: Ord + ?Sized>(&mut self, key: &str, member: &Q)
    where
        T: Borrow<Q>,
    {
        let Some(set) = self.0.get_mut(key) else { return };
        set.remove_mut(member);
        if set.is_empty() {
            self.0.remove_mut(key);
        }
    }
}
