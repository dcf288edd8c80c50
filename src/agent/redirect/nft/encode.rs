//! A plan as one nf_tables batch: the kernel takes all of it or none.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::expression;
use super::message::{Attributes, Head, attributes, find, message, number};
use crate::agent::redirect::plan::{Chain, Family, Hook, Kind, Plan, Rule, Set};

// Attribute numbers.
pub(super) const TABLE_NAME: u16 = 1;
pub(super) const TABLE_USERDATA: u16 = 6;
const CHAIN_TABLE: u16 = 1;
const CHAIN_NAME: u16 = 3;
const CHAIN_HOOK: u16 = 4;
const CHAIN_TYPE: u16 = 7;
const HOOK_NUMBER: u16 = 1;
const HOOK_PRIORITY: u16 = 2;
pub(super) const RULE_TABLE: u16 = 1;
const RULE_CHAIN: u16 = 2;
const RULE_EXPRESSIONS: u16 = 4;
const RULE_USERDATA: u16 = 7;
const LIST_ELEMENT: u16 = 1;
const DATA_VALUE: u16 = 1;
pub(super) const SET_TABLE: u16 = 1;
pub(super) const SET_NAME: u16 = 2;
const SET_KEY_TYPE: u16 = 4;
const SET_KEY_LENGTH: u16 = 5;
const SET_ID: u16 = 10;
pub(super) const ELEMENTS_TABLE: u16 = 1;
pub(super) const ELEMENTS_SET: u16 = 2;
pub(super) const ELEMENTS: u16 = 3;
const ELEMENT_KEY: u16 = 1;

/// Members in one message: the length of an attribute is at most 65535 bytes, and one takes up to 32.
const MEMBERS: usize = 1000;

/// A batch under construction.
#[derive(Debug)]
pub(super) struct Batch {
    bytes: Vec<u8>,
    steps: Vec<String>,
}

impl Batch {
    pub(super) fn new() -> Self {
        let mut batch = Self { bytes: Vec::new(), steps: Vec::new() };
        batch.push("begin", Head { kind: number::BATCH_BEGIN, flags: 0, family: 0 }, &Attributes::default());
        batch
    }

    /// Removes the table of that name.
    pub(super) fn remove(&mut self, table: &str, family: Family) {
        let mut name = Attributes::default();
        name.text(TABLE_NAME, table);
        self.add("old table", number::DELETE_TABLE, 0, family, &name);
    }

    /// Makes the table with all that the plan holds; it must not exist.
    pub(super) fn install(&mut self, plan: &Plan) {
        let mut table = Attributes::default();
        table.text(TABLE_NAME, plan.table).bytes(TABLE_USERDATA, &comment(&plan.fingerprint()));
        self.add("table", number::NEW_TABLE, number::CREATE | number::EXCLUSIVE, plan.family, &table);
        if let Some(set) = &plan.set {
            self.install_set(plan, set);
        }
        for chain in &plan.chains {
            self.add(&format!("chain {}", chain.name), number::NEW_CHAIN, number::CREATE, plan.family, &chain_attributes(plan, chain));
            for rule in &chain.rules {
                let attributes = rule_attributes(plan, chain, rule);
                let what = format!("rule \"{}\"", rule.why);
                self.add(&what, number::NEW_RULE, number::CREATE | number::APPEND, plan.family, &attributes);
            }
        }
    }

    fn install_set(&mut self, plan: &Plan, set: &Set) {
        // As `nft` numbers its types: an IPv4 address and an IPv6 address.
        let (kind, length) = match plan.family {
            Family::V4 => (7, 4),
            Family::V6 => (8, 16),
        };
        let mut attributes = Attributes::default();
        attributes.text(SET_TABLE, plan.table).text(SET_NAME, set.name).number(SET_KEY_TYPE, kind).number(SET_KEY_LENGTH, length);
        attributes.number(SET_ID, 1);
        self.add(&format!("set {}", set.name), number::NEW_SET, number::CREATE, plan.family, &attributes);
        self.add_members(plan, set.name, &set.members);
    }

    /// Puts members into the plan's set, which must exist.
    pub(super) fn add_members(&mut self, plan: &Plan, set: &str, members: &BTreeSet<IpAddr>) {
        self.members(plan, set, members, (number::NEW_ELEMENTS, number::CREATE));
    }

    /// Takes members out of it; they must be in it.
    pub(super) fn remove_members(&mut self, plan: &Plan, set: &str, members: &BTreeSet<IpAddr>) {
        self.members(plan, set, members, (number::DELETE_ELEMENTS, 0));
    }

    fn members(&mut self, plan: &Plan, set: &str, members: &BTreeSet<IpAddr>, (kind, flags): (u16, u16)) {
        let members: Vec<&IpAddr> = members.iter().collect();
        for members in members.chunks(MEMBERS) {
            let mut attributes = Attributes::default();
            attributes.text(ELEMENTS_TABLE, plan.table).text(ELEMENTS_SET, set).nest(ELEMENTS, |list| {
                for member in members {
                    list.nest(LIST_ELEMENT, |element| {
                        element.nest(ELEMENT_KEY, |key| {
                            match member {
                                IpAddr::V4(ip) => key.bytes(DATA_VALUE, &ip.octets()),
                                IpAddr::V6(ip) => key.bytes(DATA_VALUE, &ip.octets()),
                            };
                        });
                    });
                }
            });
            self.add(&format!("members of set {set}"), kind, flags, plan.family, &attributes);
        }
    }

    /// The bytes, and what each message is by sequence number. All are answered but the first (unless it fails) and the
    /// last.
    pub(super) fn finish(mut self) -> (Vec<u8>, Vec<String>) {
        self.push("end", Head { kind: number::BATCH_END, flags: 0, family: 0 }, &Attributes::default());
        (self.bytes, self.steps)
    }

    fn add(&mut self, what: &str, kind: u16, flags: u16, family: Family, attributes: &Attributes) {
        let name = match family {
            Family::V4 => "ip",
            Family::V6 => "ip6",
        };
        let head = Head { kind, flags: flags | number::ACK, family: family_number(family) };
        self.push(&format!("{name} {what}"), head, attributes);
    }

    fn push(&mut self, what: &str, head: Head, attributes: &Attributes) {
        let sequence = u32::try_from(self.steps.len()).unwrap_or(u32::MAX);
        self.bytes.extend(message(head, sequence, attributes));
        self.steps.push(what.to_owned());
    }
}

/// NFPROTO_IPV4, NFPROTO_IPV6.
pub(super) fn family_number(family: Family) -> u8 {
    match family {
        Family::V4 => 2,
        Family::V6 => 10,
    }
}

/// User data in the form that `nft list` shows as a comment: kind 0, length, text with its end mark.
pub(super) fn comment(text: &str) -> Vec<u8> {
    let text = &text.as_bytes()[..text.len().min(127)];
    let length = u8::try_from(text.len() + 1).unwrap_or(u8::MAX);
    [&[0, length], text, &[0]].concat()
}

/// The text of a comment.
pub(super) fn read_comment(data: &[u8]) -> Option<String> {
    let [0, length, rest @ ..] = data else { return None };
    let text = rest.get(..usize::from(*length))?;
    Some(String::from_utf8_lossy(text).trim_end_matches('\0').to_owned())
}

/// The addresses in a message about members of a set.
pub(super) fn read_members(body: &[u8]) -> Vec<IpAddr> {
    let elements = find(body, ELEMENTS).map(attributes).into_iter().flatten();
    let values = elements.filter_map(|(_, element)| find(find(element, ELEMENT_KEY)?, DATA_VALUE));
    let address = |value: &[u8]| match value.len() {
        4 => <[u8; 4]>::try_from(value).ok().map(IpAddr::from),
        16 => <[u8; 16]>::try_from(value).ok().map(IpAddr::from),
        _ => None,
    };
    values.filter_map(address).collect()
}

fn chain_attributes(plan: &Plan, chain: &Chain) -> Attributes {
    let kind = match chain.kind {
        Kind::Filter => "filter",
        Kind::Nat => "nat",
        Kind::Route => "route",
    };
    let hook = match chain.hook {
        Hook::Prerouting => 0,
        Hook::Input => 1,
        Hook::Output => 3,
        Hook::Postrouting => 4,
    };
    let mut attributes = Attributes::default();
    attributes.text(CHAIN_TABLE, plan.table).text(CHAIN_NAME, chain.name).text(CHAIN_TYPE, kind).nest(CHAIN_HOOK, |at| {
        at.number(HOOK_NUMBER, hook).bytes(HOOK_PRIORITY, &chain.priority.to_be_bytes());
    });
    attributes
}

fn rule_attributes(plan: &Plan, chain: &Chain, rule: &Rule) -> Attributes {
    let mut attributes = Attributes::default();
    attributes.text(RULE_TABLE, plan.table).text(RULE_CHAIN, chain.name).bytes(RULE_USERDATA, &comment(rule.why));
    attributes.nest(RULE_EXPRESSIONS, |list| {
        for condition in &rule.matches {
            expression::encode_match(list, plan.family, *condition);
        }
        expression::expression(list, "counter", |_| {});
        expression::encode_action(list, rule.action);
    });
    attributes
}

#[cfg(test)]
mod tests {
    use super::super::message::replies;
    use super::*;
    use crate::agent::redirect::Options;
    use crate::agent::redirect::plan::Mode;

    #[test]
    fn a_batch_replaces_the_table_between_begin_and_end() {
        let plan = Plan::new(Family::V4, Mode::Hold, &Options::default());
        let mut batch = Batch::new();
        batch.remove(plan.table, Family::V4);
        batch.install(&plan);
        let (bytes, steps) = batch.finish();
        let kinds: Vec<u16> = replies(&bytes).map(|message| message.kind).collect();
        let chain = [number::NEW_CHAIN, number::NEW_RULE];
        let expected =
            [&[number::BATCH_BEGIN, number::DELETE_TABLE, number::NEW_TABLE][..], &chain.repeat(4), &[number::BATCH_END]].concat();
        assert_eq!(kinds, expected);
        let sequences: Vec<u32> = replies(&bytes).map(|message| message.sequence).collect();
        assert_eq!(sequences, (0..12).collect::<Vec<u32>>());
        assert_eq!((steps[3].as_str(), steps.len()), ("ip chain mark-inbound", 12), "sequence numbers lead to the text of the step");
    }

    #[test]
    fn comments_survive_the_kernel_form() {
        let plan = Plan::new(Family::V6, Mode::Redirect, &Options::default());
        assert_eq!(read_comment(&comment(&plan.fingerprint())), Some(plan.fingerprint()));
        for chain in &plan.chains {
            for rule in &chain.rules {
                assert_eq!(read_comment(&comment(rule.why)).as_deref(), Some(rule.why));
            }
        }
        assert_eq!(read_comment(&[0, 9, b'x']), None);
        assert_eq!(read_comment(&[]), None);
    }
}
