//! The rules for probes, as values.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::ops::RangeInclusive;

use crate::agent::redirect::plan::{Action, Chain, Family, Hook, Kind, Match, Plan, Rule, Set};
use crate::agent::redirect::{Options, has_ipv6};

/// The table in the node's namespace, in either family.
pub const TABLE: &str = "warren-probes";

const PODS: &str = "pods";

/// On connections that the kubelet opens to an enrolled pod: one bit of the connection's mark. Few network plugins keep
/// marks on connections, and none is known to use this bit.
const PROBE: u32 = 0x1000;

/// Before the chains that make connections look as if they came from the node (100): the first that translates wins.
const BEFORE_SOURCE_NAT: i32 = 99;

/// By what a packet is known to come from the kubelet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sender {
    /// Its socket was made in this control group.
    Group {
        /// The group's id, which is its directory's inode.
        id: u64,
        /// How far below the root the group is, as far as can be told. Ids are unique, so that a level too many matches
        /// nothing else.
        levels: RangeInclusive<u32>,
    },
    /// Its socket belongs to this user id.
    User(u32),
}

/// What is to be in force in the calling thread's namespace.
pub(super) fn plans(sender: &Sender, pods: &BTreeSet<IpAddr>, options: &Options) -> Vec<Plan> {
    let mut plans = vec![plan(Family::V4, sender, pods, options.probe_v4.into())];
    if has_ipv6() {
        plans.push(plan(Family::V6, sender, pods, options.probe_v6.into()));
    }
    plans
}

fn plan(family: Family, sender: &Sender, pods: &BTreeSet<IpAddr>, probe: IpAddr) -> Plan {
    let senders: Vec<Match> = match sender {
        Sender::Group { id, levels } => levels.clone().map(|level| Match::SocketIn { level, group: *id }).collect(),
        Sender::User(user) => vec![Match::SocketOf(*user)],
    };
    let mark = |sender| Rule {
        why: "mark what the kubelet opens to enrolled pods",
        matches: vec![Match::Tcp, Match::Opens, Match::ToMember(PODS), sender],
        action: Action::AddToConnection(PROBE),
    };
    let translate = Rule {
        why: "probes carry the address that pods let in",
        matches: vec![Match::Tcp, Match::ToMember(PODS), Match::ConnectionHas(PROBE)],
        action: Action::ReplaceSource(probe),
    };
    let members = pods.iter().filter(|ip| ip.is_ipv4() == (family == Family::V4)).copied().collect();
    Plan {
        family,
        table: TABLE,
        purpose: "probes",
        set: Some(Set { name: PODS, members }),
        chains: vec![
            // Where a packet's socket can be looked at it is too early to translate, and the other way round.
            Chain { name: "mark", kind: Kind::Filter, hook: Hook::Output, priority: 0, rules: senders.into_iter().map(mark).collect() },
            Chain { name: "translate", kind: Kind::Nat, hook: Hook::Postrouting, priority: BEFORE_SOURCE_NAT, rules: vec![translate] },
        ],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_family_has_its_own_members_and_address() {
        let pods: BTreeSet<IpAddr> = ["10.0.0.1", "10.0.0.2", "fd00::1"].map(|ip| ip.parse().expect("an address")).into();
        let options = Options::default();
        let sender = Sender::Group { id: 77, levels: 2..=3 };
        for (family, probe, count) in [(Family::V4, options.probe_v4.into(), 2), (Family::V6, options.probe_v6.into(), 1)] {
            let plan = plan(family, &sender, &pods, probe);
            assert_eq!(plan.set.as_ref().map(|set| set.members.len()), Some(count));
            assert_eq!(plan.chains[1].rules[0].action, Action::ReplaceSource(probe));
            let levels: Vec<_> = plan.chains[0].rules.iter().map(|rule| rule.matches[3]).collect();
            assert_eq!(levels, [2, 3].map(|level| Match::SocketIn { level, group: 77 }));
        }
    }

    #[test]
    fn a_group_that_was_made_anew_is_told_from_the_old_one() {
        let plan = |sender| plan(Family::V4, &sender, &BTreeSet::new(), Options::default().probe_v4.into()).fingerprint();
        let texts = [
            plan(Sender::Group { id: 77, levels: 2..=2 }),
            plan(Sender::Group { id: 78, levels: 2..=2 }),
            plan(Sender::Group { id: 77, levels: 3..=3 }),
            plan(Sender::User(0)),
            plan(Sender::User(77)),
        ];
        assert_eq!(texts.iter().collect::<BTreeSet<_>>().len(), texts.len());
    }
}
