//! Text → mesh: a broken text is refused as a whole, a broken element alone.

use std::collections::{BTreeSet, HashSet};
use std::fmt;
use std::io::Read;
use std::path::Path;

use super::parse::{Element, Label, Place, Raw, Readable};
use super::{Action, MeshFile, Pod, Policy, Rule, Service, check};
use crate::base::{Error, Result, code};

/// Largest file that is read, bytes: about 50 000 pods.
const MAX_BYTES: u64 = 32 * 1024 * 1024;

/// What an element of the file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// Of `pods`.
    Pod,
    /// Of `services`.
    Service,
    /// Of `policies`.
    Policy,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::Pod => "pod",
            Kind::Service => "service",
            Kind::Policy => "policy",
        })
    }
}

/// A file that was understood, and what of it was not.
#[derive(Debug, Default)]
pub struct Loaded {
    /// The elements that are in force.
    pub mesh: MeshFile,
    /// One for each element that is not, with name, line, column and reason.
    pub rejected: Vec<Error>,
    names: BTreeSet<(Kind, String, String)>,
    /// For each rejected policy that is not in dry run: one that refuses everything in its place.
    refusals: Vec<Policy>,
}

impl Loaded {
    /// Puts a policy that refuses everything in the place of each rejected one that has no version in force, and returns
    /// these as `namespace/name`. Call it after [`Loaded::keep_previous`].
    ///
    /// Who writes a policy wants something refused; what, is not known. Leaving it out would open the pods it is for.
    pub fn refuse_instead(&mut self) -> Vec<String> {
        let mut refused = Vec::new();
        for policy in std::mem::take(&mut self.refusals) {
            if !self.mesh.policies.iter().any(|known| known.name() == policy.name()) {
                refused.push(format!("{}/{}", policy.namespace, policy.name));
                self.mesh.policies.push(policy);
            }
        }
        refused
    }

    /// Gives each rejected element its version of `previous` back, if there is one, and returns what was given back,
    /// as `pod namespace/name`.
    pub fn keep_previous(&mut self, previous: &MeshFile) -> Vec<String> {
        let mut kept = Vec::new();
        for (kind, namespace, name) in &self.names {
            let found = match kind {
                Kind::Pod => keep(&mut self.mesh.pods, &previous.pods, namespace, name),
                Kind::Service => keep(&mut self.mesh.services, &previous.services, namespace, name),
                Kind::Policy => keep(&mut self.mesh.policies, &previous.policies, namespace, name),
            };
            if found {
                kept.push(format!("{kind} {namespace}/{name}"));
            }
        }
        kept
    }
}

/// Reads and understands a file.
///
/// # Errors
/// SOURCE_BROKEN: it cannot be read, is no YAML, or is not of the right shape at the top.
pub fn load(path: &Path) -> Result<Loaded> {
    let broken = |error: std::io::Error| Error::caused(&code::SOURCE_BROKEN, path.display().to_string(), error);
    let mut text = String::new();
    let file = std::fs::File::open(path).map_err(broken)?;
    file.take(MAX_BYTES + 1).read_to_string(&mut text).map_err(broken)?;
    if text.len() as u64 > MAX_BYTES {
        return Err(Error::new(&code::SOURCE_BROKEN, format!("{}: larger than {MAX_BYTES} bytes", path.display())));
    }
    parse_named(&path.display().to_string(), &text)
}

/// Understands a text.
///
/// # Errors
/// SOURCE_BROKEN: it is no YAML or is not of the right shape at the top. An empty text is refused too: it is what a
/// reader sees of a file that is being written in place.
pub fn parse(text: &str) -> Result<Loaded> {
    parse_named("mesh", text)
}

fn parse_named(file: &str, text: &str) -> Result<Loaded> {
    let raw = Raw::parse(text).map_err(|fault| Error::new(&code::SOURCE_BROKEN, fault.to_string_in(file)))?;
    if let Some((trust_domain, place)) = &raw.trust_domain
        && let Err(reason) = check::trust_domain(trust_domain)
    {
        return Err(Error::new(&code::SOURCE_BROKEN, format!("{file}:{place}: {reason}")));
    }
    let mut loaded = Loaded::default();
    loaded.mesh.trust_domain = raw.trust_domain.map(|(name, _)| name);
    let mut sieve = Sieve { file, rejected: Vec::new(), names: BTreeSet::new(), refusals: Vec::new() };
    loaded.mesh.pods = sieve.keep_good(Kind::Pod, raw.pods, check::pod);
    loaded.mesh.services = sieve.keep_good(Kind::Service, raw.services, check::service);
    loaded.mesh.policies = sieve.keep_good(Kind::Policy, raw.policies, check::policy);
    loaded.rejected = sieve.rejected;
    loaded.names = sieve.names;
    loaded.refusals = sieve.refusals;
    Ok(loaded)
}

/// What all elements have.
pub(super) trait Named {
    fn name(&self) -> (&str, &str);

    /// What else no two may have.
    fn also_unique(&self) -> Option<String> {
        None
    }

    /// What can be said of it if it is rejected.
    fn label(self) -> Label;
}

impl Named for Pod {
    fn name(&self) -> (&str, &str) {
        (&self.namespace, &self.name)
    }

    fn also_unique(&self) -> Option<String> {
        Some(format!("uid {}", self.effective_uid()))
    }

    fn label(self) -> Label {
        Label { name: Some(self.name), namespace: Some(self.namespace), ..Label::default() }
    }
}

impl Named for Service {
    fn name(&self) -> (&str, &str) {
        (&self.namespace, &self.name)
    }

    fn also_unique(&self) -> Option<String> {
        Some(format!("{}/{}", self.namespace, self.effective_hostname()))
    }

    fn label(self) -> Label {
        Label { name: Some(self.name), namespace: Some(self.namespace), ..Label::default() }
    }
}

impl Named for Policy {
    fn name(&self) -> (&str, &str) {
        (&self.namespace, &self.name)
    }

    fn label(self) -> Label {
        Label {
            name: Some(self.name),
            namespace: Some(self.namespace),
            selector: Some(Readable::Yes(self.selector)),
            global: Some(Readable::Yes(self.global)),
            dry_run: Some(Readable::Yes(self.dry_run)),
        }
    }
}

struct Sieve<'a> {
    file: &'a str,
    rejected: Vec<Error>,
    names: BTreeSet<(Kind, String, String)>,
    refusals: Vec<Policy>,
}

impl Sieve<'_> {
    fn keep_good<T: Named>(&mut self, kind: Kind, elements: Vec<Element<T>>, check: fn(&T) -> check::Verdict) -> Vec<T> {
        let (mut seen, mut others) = (HashSet::new(), HashSet::new());
        let mut good = Vec::with_capacity(elements.len());
        for (index, element) in elements.into_iter().enumerate() {
            match element {
                Element::Bad { label, place, reason } => self.reject(kind, index, label, place, &reason),
                Element::Good { value, place } => {
                    let (namespace, name) = value.name();
                    let key = (namespace.to_owned(), name.to_owned());
                    let verdict = check(&value).and_then(|()| match (seen.insert(key), value.also_unique()) {
                        (false, _) => Err("a second one of that name; the first is used".to_owned()),
                        (true, Some(other)) if !others.insert(other.clone()) => Err(format!("{other} is another one's; the first is used")),
                        (true, _) => Ok(()),
                    });
                    match verdict {
                        Ok(()) => good.push(value),
                        Err(reason) => self.reject(kind, index, Some(value.label()), place, &reason),
                    }
                }
            }
        }
        good
    }

    fn reject(&mut self, kind: Kind, index: usize, label: Option<Label>, place: Place, reason: &str) {
        let name = label.as_ref().and_then(Label::name);
        let what = match &name {
            Some((namespace, name)) => format!("{kind} {namespace}/{name}"),
            None => format!("{kind} number {}", index + 1),
        };
        self.rejected.push(Error::new(&code::ELEMENT_REJECTED, format!("{}:{place}: {what}: {reason}", self.file)));
        if let Some((namespace, name)) = name {
            self.names.insert((kind, namespace, name));
        }
        if kind == Kind::Policy {
            self.refusals.extend(label.and_then(|label| refusal(label, index)));
        }
    }
}

/// A policy that refuses everything wherever the labelled one may have wanted to refuse something. What cannot be read of
/// its scope makes the scope wider, never narrower.
fn refusal(label: Label, index: usize) -> Option<Policy> {
    if label.dry_run.and_then(Readable::ok) == Some(true) {
        return None;
    }
    let readable = |name: &String| check::policy_name(name).is_ok();
    let name = label.name.filter(readable).unwrap_or_else(|| format!("rejected-{}", index + 1));
    let namespace = label.namespace.unwrap_or_else(super::default_name);
    let global = label.global.is_some_and(|global| global.ok().unwrap_or(true));
    let selector = label.selector.and_then(Readable::ok).filter(|selector| !global && check::selector(selector).is_ok());
    let selector = selector.unwrap_or_default();
    Some(Policy { name, namespace, selector, global, action: Action::Deny, dry_run: false, rules: vec![Rule::default()] })
}

fn keep<T: Named + Clone>(current: &mut Vec<T>, previous: &[T], namespace: &str, name: &str) -> bool {
    let Some(old) = previous.iter().find(|element| element.name() == (namespace, name)) else { return false };
    let unique = old.also_unique();
    let in_the_way = |other: &T| other.name() == old.name() || (unique.is_some() && other.also_unique() == unique);
    if current.iter().any(in_the_way) {
        return false;
    }
    current.push(old.clone());
    true
}
