//! The objects of one kind.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::base::Str;
use crate::control::objects::Id;

/// Versions by name.
#[derive(Debug)]
pub(super) struct Table<T>(BTreeMap<Id, Arc<T>>);

impl<T> Default for Table<T> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<T> Table<T> {
    pub(super) fn get(&self, id: &Id) -> Option<&Arc<T>> {
        self.0.get(id)
    }

    /// Puts a version there, or takes it away.
    pub(super) fn set(&mut self, id: &Id, version: Option<Arc<T>>) {
        match version {
            Some(version) => self.0.insert(id.clone(), version),
            None => self.0.remove(id),
        };
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn ids(&self) -> impl Iterator<Item = &Id> {
        self.0.keys()
    }

    pub(super) fn within(&self, namespace: &Str) -> impl Iterator<Item = &Arc<T>> {
        self.0.range(first(namespace)..).take_while(move |(id, _)| id.namespace == *namespace).map(|(_, object)| object)
    }
}

/// Comes before all others of that namespace.
pub(super) fn first(namespace: &Str) -> Id {
    Id { namespace: namespace.clone(), name: Str::default() }
}
