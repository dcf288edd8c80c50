//! A persistent map from a key to an ordered group: copying one is free, changing one entry copies only the path to it.

use std::hash::Hash;

use rpds::{HashTrieMapSync, RedBlackTreeMapSync};

/// Groups are never empty, and their order does not depend on the order of insertion.
#[derive(Clone, Debug)]
pub(super) struct Index<K: Eq + Hash, O: Ord, V>(HashTrieMapSync<K, RedBlackTreeMapSync<O, V>>);

impl<K: Eq + Hash, O: Ord, V> Default for Index<K, O, V> {
    fn default() -> Self {
        Self(HashTrieMapSync::new_sync())
    }
}

impl<K: Eq + Hash + Clone, O: Ord + Clone, V: Clone> Index<K, O, V> {
    pub(super) fn insert(&mut self, key: K, member: O, value: V) {
        match self.0.get_mut(&key) {
            Some(group) => group.insert_mut(member, value),
            None => {
                let mut group = RedBlackTreeMapSync::new_sync();
                group.insert_mut(member, value);
                self.0.insert_mut(key, group);
            }
        }
    }

    pub(super) fn remove(&mut self, key: &K, member: &O) {
        let Some(group) = self.0.get_mut(key) else { return };
        group.remove_mut(member);
        if group.is_empty() {
            self.0.remove_mut(key);
        }
    }

    pub(super) fn group(&self, key: &K) -> impl Iterator<Item = (&O, &V)> + use<'_, K, O, V> {
        self.0.get(key).into_iter().flat_map(RedBlackTreeMapSync::iter)
    }

    pub(super) fn members(&self, key: &K) -> impl Iterator<Item = &V> + use<'_, K, O, V> {
        self.group(key).map(|(_, value)| value)
    }

    pub(super) fn keys(&self) -> impl Iterator<Item = &K> {
        self.0.keys()
    }

    #[cfg(test)]
    pub(super) fn size(&self) -> usize {
        self.0.size()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_vanishes_with_its_last_member() {
        let mut index = Index::default();
        index.insert("a", 2, "two");
        index.insert("a", 1, "one");
        let before = index.clone();
        index.remove(&"a", &1);
        index.remove(&"a", &2);
        index.remove(&"a", &2);
        assert_eq!(index.size(), 0);
        assert_eq!(before.members(&"a").copied().collect::<Vec<_>>(), ["one", "two"], "a copy does not change");
    }
}
