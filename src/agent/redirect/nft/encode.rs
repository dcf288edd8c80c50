//! A plan as one nf_tables batch: the kernel takes all of it or none.

use std::net::IpAddr;

use super::message::{Attributes, Head, message, number};
use crate::agent::redirect::plan::{Action, Chain, Family, Hook, Kind, MARK_MASK, Match, Plan, Rule};

/// The name of our table in either family.
pub(super) const TABLE: &str = "warren";

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
const EXPRESSION_NAME: u16 = 1;
const EXPRESSION_DATA: u16 = 2;
const DATA_VALUE: u16 = 1;
const DATA_VERDICT: u16 = 2;

/// The one register that is needed: 16 bytes.
const REGISTER: u32 = 1;
const VERDICT_REGISTER: u32 = 0;

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

    /// Removes our table; it need not exist.
    pub(super) fn remove(&mut self, family: Family) {
        let mut name = Attributes::default();
        name.text(TABLE_NAME, TABLE);
        self.add("table", number::NEW_TABLE, number::CREATE, family, &name);
        self.add("old table", number::DELETE_TABLE, 0, family, &name);
    }

    /// Makes our table with all that the plan holds; it must not exist.
    pub(super) fn install(&mut self, plan: &Plan) {
        let mut table = Attributes::default();
        table.text(TABLE_NAME, TABLE).bytes(TABLE_USERDATA, &comment(&plan.fingerprint()));
        self.add("table", number::NEW_TABLE, number::CREATE, plan.family, &table);
        for chain in &plan.chains {
            self.add(&format!("chain {}", chain.name), number::NEW_CHAIN, number::CREATE, plan.family, &chain_attributes(chain));
            for rule in &chain.rules {
                let attributes = rule_attributes(chain, rule);
                let what = format!("rule \"{}\"", rule.why);
                self.add(&what, number::NEW_RULE, number::CREATE | number::APPEND, plan.family, &attributes);
            }
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

fn chain_attributes(chain: &Chain) -> Attributes {
    let kind = match chain.kind {
        Kind::Filter => "filter",
        Kind::Nat => "nat",
        Kind::Route => "route",
    };
    let hook = match chain.hook {
        Hook::Prerouting => 0,
        Hook::Input => 1,
        Hook::Output => 3,
    };
    let mut attributes = Attributes::default();
    attributes.text(CHAIN_TABLE, TABLE).text(CHAIN_NAME, chain.name).text(CHAIN_TYPE, kind).nest(CHAIN_HOOK, |at| {
        at.number(HOOK_NUMBER, hook).bytes(HOOK_PRIORITY, &chain.priority.to_be_bytes());
    });
    attributes
}

fn rule_attributes(chain: &Chain, rule: &Rule) -> Attributes {
    let mut attributes = Attributes::default();
    attributes.text(RULE_TABLE, TABLE).text(RULE_CHAIN, chain.name).bytes(RULE_USERDATA, &comment(rule.why));
    attributes.nest(RULE_EXPRESSIONS, |list| {
        for condition in &rule.matches {
            encode_match(list, *condition);
        }
        expression(list, "counter", |_| {});
        encode_action(list, rule.action);
    });
    attributes
}

fn encode_match(list: &mut Attributes, condition: Match) {
    const EQUAL: u32 = 0;
    const NOT_EQUAL: u32 = 1;
    match condition {
        Match::Tcp => {
            load_meta(list, META_L4PROTO);
            compare(list, EQUAL, &[6]);
        }
        Match::Opens => {
            const FIN_SYN_RST_ACK: u8 = 0x17;
            const SYN: u8 = 0x02;
            load_payload(list, TRANSPORT_HEADER, 13, 1);
            mask(list, &[FIN_SYN_RST_ACK], &[0]);
            compare(list, EQUAL, &[SYN]);
        }
        Match::New => {
            const STATE_NEW: u32 = 8;
            load_ct(list, CT_STATE);
            mask(list, &STATE_NEW.to_ne_bytes(), &[0; 4]);
            compare(list, NOT_EQUAL, &[0; 4]);
        }
        Match::From(ip) => address(list, ip, false, EQUAL),
        Match::To(ip) => address(list, ip, true, EQUAL),
        Match::NotTo(ip) => address(list, ip, true, NOT_EQUAL),
        Match::NotToPort(port) => {
            load_payload(list, TRANSPORT_HEADER, 2, 2);
            compare(list, NOT_EQUAL, &port.to_be_bytes());
        }
        Match::Marked(mark) => {
            load_meta(list, META_MARK);
            compare_mark(list, EQUAL, mark);
        }
        Match::NotMarked(mark) => {
            load_meta(list, META_MARK);
            compare_mark(list, NOT_EQUAL, mark);
        }
        Match::ConnectionMarked(mark) => {
            load_ct(list, CT_MARK);
            compare_mark(list, EQUAL, mark);
        }
        Match::InLoopback | Match::OutLoopback => {
            let mut name = [0; 16];
            name[..2].copy_from_slice(b"lo");
            load_meta(list, if condition == Match::InLoopback { META_IIFNAME } else { META_OIFNAME });
            compare(list, EQUAL, &name);
        }
    }
}

fn encode_action(list: &mut Attributes, action: Action) {
    const DROP: u32 = 0;
    const ACCEPT: u32 = 1;
    const REDIRECT_PORT: u16 = 1;
    match action {
        Action::Accept => encode_verdict(list, ACCEPT),
        Action::Drop => encode_verdict(list, DROP),
        Action::Redirect(port) => {
            expression(list, "immediate", |data| {
                data.number(IMMEDIATE_REGISTER, REGISTER).nest(IMMEDIATE_DATA, |value| {
                    value.bytes(DATA_VALUE, &port.to_be_bytes());
                });
            });
            expression(list, "redir", |data| {
                data.number(REDIRECT_PORT, REGISTER);
            });
        }
        Action::MarkConnection(mark) => {
            load_ct(list, CT_MARK);
            replace_mark(list, mark);
            expression(list, "ct", |data| {
                data.number(CT_KEY, CT_MARK).number(CT_SOURCE, REGISTER);
            });
        }
        Action::MarkPacket(mark) => {
            load_meta(list, META_MARK);
            replace_mark(list, mark);
            expression(list, "meta", |data| {
                data.number(META_KEY, META_MARK).number(META_SOURCE, REGISTER);
            });
        }
        Action::Count => {}
    }
}

fn encode_verdict(list: &mut Attributes, code: u32) {
    const VERDICT_CODE: u16 = 1;
    expression(list, "immediate", |data| {
        data.number(IMMEDIATE_REGISTER, VERDICT_REGISTER).nest(IMMEDIATE_DATA, |value| {
            value.nest(DATA_VERDICT, |verdict| {
                verdict.number(VERDICT_CODE, code);
            });
        });
    });
}

const IMMEDIATE_REGISTER: u16 = 1;
const IMMEDIATE_DATA: u16 = 2;
const META_TARGET: u16 = 1;
const META_KEY: u16 = 2;
const META_SOURCE: u16 = 3;
const META_MARK: u32 = 3;
const META_IIFNAME: u32 = 6;
const META_OIFNAME: u32 = 7;
const META_L4PROTO: u32 = 16;
const CT_TARGET: u16 = 1;
const CT_KEY: u16 = 2;
const CT_SOURCE: u16 = 4;
const CT_STATE: u32 = 0;
const CT_MARK: u32 = 3;
const NETWORK_HEADER: u32 = 1;
const TRANSPORT_HEADER: u32 = 2;

fn expression(list: &mut Attributes, name: &str, fill: impl FnOnce(&mut Attributes)) {
    list.nest(LIST_ELEMENT, |element| {
        element.text(EXPRESSION_NAME, name).nest(EXPRESSION_DATA, fill);
    });
}

fn load_meta(list: &mut Attributes, key: u32) {
    expression(list, "meta", |data| {
        data.number(META_TARGET, REGISTER).number(META_KEY, key);
    });
}

fn load_ct(list: &mut Attributes, key: u32) {
    expression(list, "ct", |data| {
        data.number(CT_TARGET, REGISTER).number(CT_KEY, key);
    });
}

fn load_payload(list: &mut Attributes, base: u32, offset: u32, length: u32) {
    expression(list, "payload", |data| {
        data.number(1, REGISTER).number(2, base).number(3, offset).number(4, length);
    });
}

fn compare(list: &mut Attributes, operator: u32, value: &[u8]) {
    expression(list, "cmp", |data| {
        data.number(1, REGISTER).number(2, operator).nest(3, |with| {
            with.bytes(DATA_VALUE, value);
        });
    });
}

/// register = (register & and) ^ xor
fn mask(list: &mut Attributes, and: &[u8], xor: &[u8]) {
    let length = u32::try_from(and.len()).unwrap_or(u32::MAX);
    expression(list, "bitwise", |data| {
        data.number(1, REGISTER).number(2, REGISTER).number(3, length);
        data.nest(4, |value| {
            value.bytes(DATA_VALUE, and);
        });
        data.nest(5, |value| {
            value.bytes(DATA_VALUE, xor);
        });
    });
}

fn compare_mark(list: &mut Attributes, operator: u32, mark: u32) {
    mask(list, &MARK_MASK.to_ne_bytes(), &[0; 4]);
    compare(list, operator, &mark.to_ne_bytes());
}

/// Sets our bits, leaves the others.
fn replace_mark(list: &mut Attributes, mark: u32) {
    mask(list, &(!MARK_MASK).to_ne_bytes(), &mark.to_ne_bytes());
}

fn address(list: &mut Attributes, ip: IpAddr, destination: bool, operator: u32) {
    match ip {
        IpAddr::V4(ip) => {
            load_payload(list, NETWORK_HEADER, if destination { 16 } else { 12 }, 4);
            compare(list, operator, &ip.octets());
        }
        IpAddr::V6(ip) => {
            load_payload(list, NETWORK_HEADER, if destination { 24 } else { 8 }, 16);
            compare(list, operator, &ip.octets());
        }
    }
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
        batch.remove(Family::V4);
        batch.install(&plan);
        let (bytes, steps) = batch.finish();
        let kinds: Vec<u16> = replies(&bytes).map(|message| message.kind).collect();
        let chain = [number::NEW_CHAIN, number::NEW_RULE];
        let expected = [
            &[number::BATCH_BEGIN, number::NEW_TABLE, number::DELETE_TABLE, number::NEW_TABLE][..],
            &chain.repeat(4),
            &[number::BATCH_END],
        ]
        .concat();
        assert_eq!(kinds, expected);
        let sequences: Vec<u32> = replies(&bytes).map(|message| message.sequence).collect();
        assert_eq!(sequences, (0..13).collect::<Vec<u32>>());
        assert_eq!((steps[4].as_str(), steps.len()), ("ip chain mark-inbound", 13), "sequence numbers lead to the text of the step");
    }

    #[test]
    fn the_condition_for_the_first_packet_as_bytes() {
        let mut list = Attributes::default();
        encode_match(&mut list, Match::NotToPort(15008));
        let mut by_hand = Attributes::default();
        by_hand.nest(1, |element| {
            element.text(1, "payload").nest(2, |data| {
                data.bytes(1, &[0, 0, 0, 1]).bytes(2, &[0, 0, 0, 2]).bytes(3, &[0, 0, 0, 2]).bytes(4, &[0, 0, 0, 2]);
            });
        });
        by_hand.nest(1, |element| {
            element.text(1, "cmp").nest(2, |data| {
                data.bytes(1, &[0, 0, 0, 1]).bytes(2, &[0, 0, 0, 1]).nest(3, |value| {
                    value.bytes(1, &[0x3a, 0xa0]);
                });
            });
        });
        assert_eq!(list, by_hand);
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
