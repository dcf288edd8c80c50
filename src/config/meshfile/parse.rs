//! YAML → elements, each with its place. An element that cannot be deserialised is passed over in a further pass, so
//! that places stay those of the real text; the number of passes is bounded.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;

use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_saphyr::{Budget, Location, MessageFormatter, Options, Spanned, UserMessageFormatter};

use super::{Kind, Pod, Policy, Service};

/// Elements that may be wrong in form before the whole file is refused: each costs a pass over the text.
const MAX_BAD: usize = 32;

/// The file as it was written.
#[derive(Debug, Default)]
pub(super) struct Raw {
    pub(super) trust_domain: Option<(String, Place)>,
    pub(super) pods: Vec<Element<Pod>>,
    pub(super) services: Vec<Element<Service>>,
    pub(super) policies: Vec<Element<Policy>>,
}

/// One element of a list.
#[derive(Debug)]
pub(super) enum Element<T> {
    Good {
        value: T,
        place: Place,
    },
    /// Without a label when not even that can be read.
    Bad {
        label: Option<Label>,
        place: Place,
        reason: String,
    },
}

/// Line and column, from 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Place {
    line: u64,
    column: u64,
}

impl From<Location> for Place {
    fn from(location: Location) -> Self {
        Self { line: location.line(), column: location.column() }
    }
}

/// `line:column`
impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.line, self.column)
    }
}

/// Why the text as a whole is refused.
#[derive(Debug)]
pub(super) struct Fault {
    place: Place,
    reason: String,
}

impl Fault {
    pub(super) fn to_string_in(&self, file: &str) -> String {
        format!("{file}:{}: {}", self.place, self.reason)
    }
}

impl From<serde_saphyr::Error> for Fault {
    fn from(error: serde_saphyr::Error) -> Self {
        let error = error.without_snippet();
        let place = error.location().map(Place::from).unwrap_or(Place { line: 1, column: 1 });
        Fault { place, reason: UserMessageFormatter.format_message(error).into_owned() }
    }
}

impl Raw {
    pub(super) fn parse(text: &str) -> Result<Self, Fault> {
        if text.trim().is_empty() {
            return Err(Fault { place: Place { line: 1, column: 1 }, reason: "the text is empty; an empty mesh is `pods: []`".to_owned() });
        }
        // Syntax first: what is wrong after this pass is the shape of one element, or of the top.
        serde_saphyr::from_str_with_options::<IgnoredAny>(text, options())?;
        let mut bad = BTreeMap::new();
        loop {
            let walk = Walk { bad: &bad, at: Cell::new(None) };
            let result = serde_saphyr::with_deserializer_from_str_with_options(text, options(), |de| walk.deserialize_file(de));
            match (result, walk.at.get()) {
                (Ok(raw), _) => return Ok(raw),
                (Err(error), None) => return Err(error.into()),
                (Err(error), Some(at)) => pass_over(&mut bad, at, error.into())?,
            }
        }
    }
}

/// Notes that the element is wrong, or, if that is known, that not even its name can be read.
fn pass_over(bad: &mut BTreeMap<At, Skip>, at: At, fault: Fault) -> Result<(), Fault> {
    let known = bad.len();
    match bad.get_mut(&at) {
        Some(skip) if !skip.nameless => skip.nameless = true,
        Some(_) => return Err(fault),
        None if known == MAX_BAD => {
            return Err(Fault { reason: format!("more than {MAX_BAD} elements are wrong, here: {}", fault.reason), ..fault });
        }
        None => {
            bad.insert(at, Skip { fault, nameless: false });
        }
    }
    Ok(())
}

fn options() -> Options {
    let mut options = Options::default();
    options.with_snippet = false;
    let mut budget = Budget::default();
    budget.max_events = 16_000_000;
    budget.max_nodes = 4_000_000;
    budget.max_depth = 16;
    options.budget = Some(budget);
    options
}

type At = (Kind, usize);

/// What is known of an element that is passed over.
struct Skip {
    fault: Fault,
    nameless: bool,
}

/// One pass over the text.
struct Walk<'a> {
    bad: &'a BTreeMap<At, Skip>,
    /// The element that is being read.
    at: Cell<Option<At>>,
}

impl Walk<'_> {
    fn deserialize_file<'de, D: Deserializer<'de>>(&self, deserializer: D) -> Result<Raw, D::Error> {
        deserializer.deserialize_map(FileVisitor(self))
    }
}

struct FileVisitor<'a>(&'a Walk<'a>);

impl<'de> Visitor<'de> for FileVisitor<'_> {
    type Value = Raw;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a mapping with trustDomain, pods, services, policies")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Raw, A::Error> {
        let mut raw = Raw::default();
        while let Some(key) = map.next_key::<String>()? {
            match key.as_str() {
                "trustDomain" => {
                    let value: Option<Spanned<String>> = map.next_value()?;
                    raw.trust_domain = value.map(|value| (value.value, value.referenced.into()));
                }
                "pods" => raw.pods = map.next_value_seed(ListSeed::new(self.0, Kind::Pod))?,
                "services" => raw.services = map.next_value_seed(ListSeed::new(self.0, Kind::Service))?,
                "policies" => raw.policies = map.next_value_seed(ListSeed::new(self.0, Kind::Policy))?,
                _ => return Err(A::Error::unknown_field(&key, &["trustDomain", "pods", "services", "policies"])),
            }
        }
        Ok(raw)
    }
}

/// Reads one list.
struct ListSeed<'a, T> {
    walk: &'a Walk<'a>,
    kind: Kind,
    of: PhantomData<T>,
}

impl<'a, T> ListSeed<'a, T> {
    fn new(walk: &'a Walk<'a>, kind: Kind) -> Self {
        Self { walk, kind, of: PhantomData }
    }
}

impl<'de, T: Deserialize<'de>> DeserializeSeed<'de> for ListSeed<'_, T> {
    type Value = Vec<Element<T>>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de, T: Deserialize<'de>> Visitor<'de> for ListSeed<'_, T> {
    type Value = Vec<Element<T>>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a list, each entry one {}", self.kind)
    }

    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(Vec::new())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
        let mut elements = Vec::new();
        loop {
            let at = (self.kind, elements.len());
            self.walk.at.set(Some(at));
            let element = match self.walk.bad.get(&at) {
                None => list.next_element::<Spanned<T>>()?.map(|read| Element::Good { value: read.value, place: read.referenced.into() }),
                Some(skip) => {
                    let label = match skip.nameless {
                        true => list.next_element::<IgnoredAny>()?.map(|_| None),
                        false => list.next_element::<Label>()?.map(Some),
                    };
                    let Fault { place, reason } = &skip.fault;
                    label.map(|label| Element::Bad { label, place: *place, reason: reason.clone() })
                }
            };
            self.walk.at.set(None);
            match element {
                Some(element) => elements.push(element),
                None => return Ok(elements),
            }
        }
    }
}

/// What can be read of an element that is wrong otherwise: its name, and of a policy which pods it is for.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Label {
    pub(super) name: Option<String>,
    pub(super) namespace: Option<String>,
    pub(super) selector: Option<Readable<BTreeMap<String, String>>>,
    pub(super) global: Option<Readable<bool>>,
    pub(super) dry_run: Option<Readable<bool>>,
}

impl Label {
    /// Namespace and name, if there is a name.
    pub(super) fn name(&self) -> Option<(String, String)> {
        Some((self.namespace.clone().unwrap_or_else(super::default_name), self.name.clone()?))
    }
}

/// A field that may itself be what is wrong.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub(super) enum Readable<T> {
    Yes(T),
    No(IgnoredAny),
}

impl<T> Readable<T> {
    pub(super) fn ok(self) -> Option<T> {
        match self {
            Readable::Yes(value) => Some(value),
            Readable::No(_) => None,
        }
    }
}
