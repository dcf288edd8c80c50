//! Conditions and actions of a rule as expressions of nf_tables.

use std::net::IpAddr;

use super::encode::family_number;
use super::message::Attributes;
use crate::agent::redirect::plan::{Action, Family, MARK_MASK, Match};

const LIST_ELEMENT: u16 = 1;
const EXPRESSION_NAME: u16 = 1;
const EXPRESSION_DATA: u16 = 2;
const DATA_VALUE: u16 = 1;
const DATA_VERDICT: u16 = 2;

/// The one register that is needed: 16 bytes.
const REGISTER: u32 = 1;
const VERDICT_REGISTER: u32 = 0;

/// Adds a condition to a list of expressions.
pub(super) fn encode_match(list: &mut Attributes, family: Family, condition: Match) {
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
        Match::ConnectionHas(bits) => {
            load_ct(list, CT_MARK);
            mask(list, &bits.to_ne_bytes(), &[0; 4]);
            compare(list, EQUAL, &bits.to_ne_bytes());
        }
        Match::ToMember(set) => {
            match family {
                Family::V4 => load_payload(list, NETWORK_HEADER, 16, 4),
                Family::V6 => load_payload(list, NETWORK_HEADER, 24, 16),
            }
            expression(list, "lookup", |data| {
                data.text(1, set).number(2, REGISTER);
            });
        }
        Match::SocketIn { level, group } => {
            const KEY_CGROUP2: u32 = 3;
            expression(list, "socket", |data| {
                data.number(1, KEY_CGROUP2).number(2, REGISTER).number(3, level);
            });
            compare(list, EQUAL, &group.to_ne_bytes());
        }
        Match::SocketOf(user) => {
            load_meta(list, META_SKUID);
            compare(list, EQUAL, &user.to_ne_bytes());
        }
        Match::InLoopback | Match::OutLoopback => {
            let mut name = [0; 16];
            name[..2].copy_from_slice(b"lo");
            load_meta(list, if condition == Match::InLoopback { META_IIFNAME } else { META_OIFNAME });
            compare(list, EQUAL, &name);
        }
    }
}

/// Adds an action.
pub(super) fn encode_action(list: &mut Attributes, action: Action) {
    const DROP: u32 = 0;
    const ACCEPT: u32 = 1;
    const REDIRECT_PORT: u16 = 1;
    match action {
        Action::Accept => encode_verdict(list, ACCEPT),
        Action::Drop => encode_verdict(list, DROP),
        Action::Redirect(port) => {
            load_value(list, &port.to_be_bytes());
            expression(list, "redir", |data| {
                data.number(REDIRECT_PORT, REGISTER);
            });
        }
        Action::MarkConnection(mark) => {
            load_ct(list, CT_MARK);
            replace_mark(list, mark);
            store_ct_mark(list);
        }
        Action::MarkPacket(mark) => {
            load_meta(list, META_MARK);
            replace_mark(list, mark);
            expression(list, "meta", |data| {
                data.number(META_KEY, META_MARK).number(META_SOURCE, REGISTER);
            });
        }
        Action::AddToConnection(bits) => {
            load_ct(list, CT_MARK);
            mask(list, &(!bits).to_ne_bytes(), &bits.to_ne_bytes());
            store_ct_mark(list);
        }
        Action::ReplaceSource(ip) => {
            const SOURCE: u32 = 0;
            let (family, address) = match ip {
                IpAddr::V4(ip) => (Family::V4, ip.octets().to_vec()),
                IpAddr::V6(ip) => (Family::V6, ip.octets().to_vec()),
            };
            load_value(list, &address);
            expression(list, "nat", |data| {
                data.number(1, SOURCE).number(2, family_number(family).into()).number(3, REGISTER);
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
const META_SKUID: u32 = 10;
const META_L4PROTO: u32 = 16;
const CT_TARGET: u16 = 1;
const CT_KEY: u16 = 2;
const CT_SOURCE: u16 = 4;
const CT_STATE: u32 = 0;
const CT_MARK: u32 = 3;
const NETWORK_HEADER: u32 = 1;
const TRANSPORT_HEADER: u32 = 2;

/// Adds one expression.
pub(super) fn expression(list: &mut Attributes, name: &str, fill: impl FnOnce(&mut Attributes)) {
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

fn store_ct_mark(list: &mut Attributes) {
    expression(list, "ct", |data| {
        data.number(CT_KEY, CT_MARK).number(CT_SOURCE, REGISTER);
    });
}

fn load_value(list: &mut Attributes, value: &[u8]) {
    expression(list, "immediate", |data| {
        data.number(IMMEDIATE_REGISTER, REGISTER).nest(IMMEDIATE_DATA, |data| {
            data.bytes(DATA_VALUE, value);
        });
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
    use super::*;

    #[test]
    fn the_condition_for_the_first_packet_as_bytes() {
        let mut list = Attributes::default();
        encode_match(&mut list, Family::V4, Match::NotToPort(15008));
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
    fn the_condition_for_a_control_group_as_bytes() {
        let mut list = Attributes::default();
        encode_match(&mut list, Family::V6, Match::SocketIn { level: 2, group: 0x0102_0304_0506 });
        let mut by_hand = Attributes::default();
        by_hand.nest(1, |element| {
            element.text(1, "socket").nest(2, |data| {
                data.bytes(1, &[0, 0, 0, 3]).bytes(2, &[0, 0, 0, 1]).bytes(3, &[0, 0, 0, 2]);
            });
        });
        by_hand.nest(1, |element| {
            element.text(1, "cmp").nest(2, |data| {
                data.bytes(1, &[0, 0, 0, 1]).bytes(2, &[0, 0, 0, 0]).nest(3, |value| {
                    value.bytes(1, &0x0102_0304_0506_u64.to_ne_bytes());
                });
            });
        });
        assert_eq!(list, by_hand, "the id has eight bytes in the host's order");
    }
}
