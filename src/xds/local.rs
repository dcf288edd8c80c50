//! The local file: workloads, services and policies as YAML, read once at start.
//!
//! A resource that cannot be read is refused by itself, with its name, the reason and the place; all others apply. The
//! YAML reader gives the elements of a list one after the other and cannot go on behind a broken one. So the file is read
//! again for each refusal with the refused elements left out: nothing is guessed about where a broken element ends.

use std::collections::BTreeSet;
use std::fmt;
use std::marker::PhantomData;

use serde::de::{DeserializeOwned, DeserializeSeed, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

use crate::base::{Error, Result, Str, code};
use crate::mesh::{Edit, Policy, Scope, Service, UnusablePolicy, Workload};

/// A file is read once more for each refused resource; past this it is refused as a whole.
const MAX_REFUSED: usize = 100;

/// What a local file says.
#[derive(Debug, Default)]
pub struct Local {
    /// Its workloads.
    pub workloads: Vec<Workload>,
    /// Its services.
    pub services: Vec<Service>,
    /// Its policies.
    pub policies: Vec<Policy>,
    /// Policies among what was refused, by key: they are held against connections.
    pub unusable_policies: Vec<(Str, UnusablePolicy)>,
    /// What in it was refused, each `XDS_REJECTED` with name, reason, line and column.
    pub refused: Vec<Error>,
}

impl Local {
    /// Puts all of it into the mesh.
    pub fn apply(self, edit: &mut Edit) {
        self.workloads.into_iter().for_each(|workload| edit.upsert_workload(workload));
        self.services.into_iter().for_each(|service| edit.upsert_service(service));
        self.policies.into_iter().for_each(|policy| edit.upsert_policy(policy.key(), policy));
        self.unusable_policies.into_iter().for_each(|(key, policy)| edit.upsert_unusable_policy(key, policy));
    }
}

/// Reads a local file; `name` is what messages call it.
///
/// # Errors
/// `BAD_FILE` with line and column if it is not YAML, has keys that no local file has, or is broken in too many places.
pub fn parse(name: &str, text: &str) -> Result<Local> {
    let bad_file = |error: &serde_saphyr::Error| Error::new(&code::BAD_FILE, format!("{name}: {}", described(error)));
    let mut skipped = BTreeSet::new();
    let mut refused = Vec::new();
    let mut unusable_policies = Vec::new();
    loop {
        let mut at = None;
        match serde_saphyr::with_deserializer_from_str_with_options(text, options(), |deserializer| {
            deserializer.deserialize_map(Root { skipped: &skipped, at: &mut at })
        }) {
            Ok(mut local) => {
                local.refused = refused;
                local.unusable_policies = unusable_policies;
                return Ok(local);
            }
            Err(error) => {
                // YAML that is broken as such is no single resource's fault.
                if refused.is_empty()
                    && let Err(error) = read::<IgnoredAny>(text)
                {
                    return Err(bad_file(&error));
                }
                let Some(place) = at.filter(|_| refused.len() < MAX_REFUSED) else { return Err(bad_file(&error)) };
                let names = names(text, place);
                let reason = described(&error);
                unusable_policies.extend(names.unusable(place, &reason));
                refused.push(Error::new(&code::XDS_REJECTED, format!("{name}: {}: {reason}", names.label(place))));
                skipped.insert(place);
            }
        }
    }
}

/// Which element of which list.
type Place = (List, usize);

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "camelCase")]
enum List {
    Workloads,
    Services,
    Policies,
}

/// The file, without the elements that are skipped; `at` is the element that is being read.
struct Root<'a> {
    skipped: &'a BTreeSet<Place>,
    at: &'a mut Option<Place>,
}

impl<'de> Visitor<'de> for Root<'_> {
    type Value = Local;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a map of workloads, services and policies")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Local, A::Error> {
        let mut local = Local::default();
        while let Some(list) = map.next_key()? {
            let (skipped, at) = (self.skipped, &mut *self.at);
            match list {
                List::Workloads => local.workloads = map.next_value_seed(Elements::new(list, skipped, at, check_workload))?,
                List::Services => local.services = map.next_value_seed(Elements::new(list, skipped, at, check_service))?,
                List::Policies => local.policies = map.next_value_seed(Elements::new(list, skipped, at, |_| Ok(())))?,
            }
            *self.at = None;
        }
        Ok(local)
    }
}

type Check<T> = fn(&mut T) -> std::result::Result<(), String>;

struct Elements<'a, T> {
    list: List,
    skipped: &'a BTreeSet<Place>,
    at: &'a mut Option<Place>,
    check: Check<T>,
    of: PhantomData<T>,
}

impl<'a, T> Elements<'a, T> {
    fn new(list: List, skipped: &'a BTreeSet<Place>, at: &'a mut Option<Place>, check: Check<T>) -> Self {
        Self { list, skipped, at, check, of: PhantomData }
    }
}

impl<'de, T: Deserialize<'de>> DeserializeSeed<'de> for Elements<'_, T> {
    type Value = Vec<T>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> std::result::Result<Vec<T>, D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de, T: Deserialize<'de>> Visitor<'de> for Elements<'_, T> {
    type Value = Vec<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> std::result::Result<Vec<T>, A::Error> {
        let mut values = Vec::new();
        for index in 0.. {
            let place = (self.list, index);
            *self.at = Some(place);
            if self.skipped.contains(&place) {
                elements.next_element::<IgnoredAny>()?;
                continue;
            }
            let Some(mut value) = elements.next_element::<T>()? else { break };
            (self.check)(&mut value).map_err(A::Error::custom)?;
            values.push(value);
        }
        *self.at = None;
        Ok(values)
    }
}

fn check_workload(workload: &mut Workload) -> std::result::Result<(), String> {
    if workload.uid.is_empty() {
        if workload.name.is_empty() {
            return Err("a workload needs a uid or a name".to_owned());
        }
        workload.uid = Str::from(format!("{}//Pod/{}/{}", workload.cluster_id, workload.namespace, workload.name));
    }
    Ok(())
}

fn check_service(service: &mut Service) -> std::result::Result<(), String> {
    if service.hostname.is_empty() { Err("a service needs a hostname".to_owned()) } else { Ok(()) }
}

/// What can be read of an element that cannot be read.
#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Names {
    uid: Option<String>,
    namespace: Option<String>,
    name: Option<String>,
    scope: Option<String>,
    dry_run: Option<bool>,
}

impl Names {
    fn label(&self, (list, index): Place) -> String {
        let kind = match list {
            List::Workloads => "workload",
            List::Services => "service",
            List::Policies => "policy",
        };
        match (&self.uid, &self.namespace, &self.name) {
            (Some(uid), _, _) => format!("{kind} {uid}"),
            (None, Some(namespace), Some(name)) => format!("{kind} {namespace}/{name}"),
            (None, None, Some(name)) => format!("{kind} {name}"),
            _ => format!("{kind} number {}", index + 1),
        }
    }

    /// A policy that is refused is not a policy that is not there.
    fn unusable(&self, (list, _): Place, reason: &str) -> Option<(Str, UnusablePolicy)> {
        if list != List::Policies || self.dry_run == Some(true) {
            return None;
        }
        let (namespace, name) = (self.namespace.as_deref()?, self.name.as_deref()?);
        let scope = match self.scope.as_deref() {
            Some("Global") => Scope::Global,
            Some("Namespace") => Scope::Namespace,
            _ => Scope::WorkloadSelector,
        };
        let policy = UnusablePolicy { namespace: Str::from(namespace), scope, reason: reason.to_owned() };
        Some((Str::from(format!("{namespace}/{name}")), policy))
    }
}

fn names(text: &str, (list, index): Place) -> Names {
    #[derive(Default, Deserialize)]
    #[serde(default)]
    struct All {
        workloads: Vec<Names>,
        services: Vec<Names>,
        policies: Vec<Names>,
    }
    let mut all: All = read(text).unwrap_or_default();
    let of_list = match list {
        List::Workloads => &mut all.workloads,
        List::Services => &mut all.services,
        List::Policies => &mut all.policies,
    };
    if index < of_list.len() { of_list.swap_remove(index) } else { Names::default() }
}

fn read<T: DeserializeOwned>(text: &str) -> std::result::Result<T, serde_saphyr::Error> {
    serde_saphyr::from_str_with_options(text, options())
}

/// The reader's limits are for small untrusted documents. This file is the operator's and may hold a large mesh; what is
/// bounded still is depth and what grows out of little text.
fn options() -> serde_saphyr::Options {
    serde_saphyr::options! {
        with_snippet: false,
        budget: serde_saphyr::budget! { max_events: 64_000_000, max_nodes: 32_000_000, max_total_scalar_bytes: 1 << 30, max_depth: 32 },
    }
}

fn described(error: &serde_saphyr::Error) -> String {
    error.to_string()
}

#[cfg(test)]
#[path = "local_tests.rs"]
mod tests;
