//! Labels, and the selectors that ask for them.

use crate::base::Str;

/// Keys and values, sorted by key.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Labels(Box<[(Str, Str)]>);

impl Labels {
    /// The value of a key.
    pub fn get(&self, key: &str) -> Option<&Str> {
        let found = self.0.binary_search_by(|(known, _)| (**known).cmp(key)).ok()?;
        self.0.get(found).map(|(_, value)| value)
    }

    /// Whether all of these are among them.
    pub fn has_all(&self, asked: &Labels) -> bool {
        asked.0.iter().all(|(key, value)| self.get(key) == Some(value))
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl<K: AsRef<str>, V: AsRef<str>> FromIterator<(K, V)> for Labels {
    /// Of a key that comes twice one value is kept.
    fn from_iter<I: IntoIterator<Item = (K, V)>>(pairs: I) -> Self {
        let mut pairs: Vec<(Str, Str)> = pairs.into_iter().map(|(key, value)| (key.as_ref().into(), value.as_ref().into())).collect();
        pairs.sort();
        pairs.dedup_by(|(one, _), (other, _)| one == other);
        Self(pairs.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_selector_asks_for_all_its_labels() {
        let labels: Labels = [("b", "2"), ("a", "1"), ("c", "3")].into_iter().collect();
        let asked = |pairs: &[(&str, &str)]| labels.has_all(&pairs.iter().copied().collect());
        assert!(asked(&[]) && asked(&[("a", "1")]) && asked(&[("c", "3"), ("b", "2")]));
        assert!(!asked(&[("a", "2")]) && !asked(&[("d", "")]) && !asked(&[("a", "1"), ("d", "4")]));
        assert_eq!(labels.get("b").map(AsRef::as_ref), Some("2"));
    }
}
