//! The rules that redirect a pod's traffic, as values: the same for every back-end.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::net::{Ipv4Addr, Ipv6Addr};

use super::{Options, port};
use crate::net::socket::PROXY_MARK;

/// Bumped when rules change their meaning: pods with an older version are brought up to date.
const VERSION: u32 = 1;

/// The table in a pod's namespace, in either family.
pub const TABLE: &str = "warren";

/// On the connection from the proxy to the application, and on the application's answers.
pub const ANSWER_MARK: u32 = 0x111;

/// The bits of packet and connection marks that are ours.
pub const MARK_MASK: u32 = 0xfff;

/// What a plan does with new connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mode {
    /// They go to the proxy.
    Redirect,
    /// They go direct; connections that are translated stay so.
    Hold,
}

/// IPv4 or IPv6.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// Everything that is to be in force for one family.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Plan {
    /// Its family.
    pub family: Family,
    /// The table that holds it; no other program has one of that name.
    pub table: &'static str,
    /// What it is for, one word; a part of its fingerprint.
    pub purpose: &'static str,
    /// Its set of addresses, if it has one.
    pub set: Option<Set>,
    /// Its chains.
    pub chains: Vec<Chain>,
}

/// Addresses of one family, by name: rules that look into the set stay as they are when a member comes or goes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Set {
    /// Unique in the plan.
    pub name: &'static str,
    /// All of the plan's family.
    pub members: BTreeSet<IpAddr>,
}

/// A list of rules at one place of a packet's way.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Chain {
    /// Unique in the plan.
    pub name: &'static str,
    /// What its rules may do.
    pub kind: Kind,
    /// Where it is called.
    pub hook: Hook,
    /// When, among the chains of that place.
    pub priority: i32,
    /// In order of evaluation.
    pub rules: Vec<Rule>,
}

/// What the rules of a chain may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Match and mark.
    Filter,
    /// Translate; sees the first packet of a connection only.
    Nat,
    /// Mark, and have the packet routed again.
    Route,
}

/// A place of a packet's way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Hook {
    /// As it comes in.
    Prerouting,
    /// Before it reaches a local socket.
    Input,
    /// As it leaves a local socket.
    Output,
    /// As it leaves the namespace, its way decided.
    Postrouting,
}

/// One rule.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Rule {
    /// What for; shown beside the rule in the kernel's listing.
    pub why: &'static str,
    /// All must hold.
    pub matches: Vec<Match>,
    /// What happens then. Every rule counts its packets.
    pub action: Action,
}

/// A condition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Match {
    /// A TCP packet.
    Tcp,
    /// The packet opens a TCP connection: of FIN, SYN, RST and ACK only SYN is set.
    Opens,
    /// The connection is new.
    New,
    /// From this address.
    From(IpAddr),
    /// To this address.
    To(IpAddr),
    /// To any other address.
    NotTo(IpAddr),
    /// To any other TCP port.
    NotToPort(u16),
    /// The packet has this mark.
    Marked(u32),
    /// It has another.
    NotMarked(u32),
    /// The connection has this mark.
    ConnectionMarked(u32),
    /// The connection's mark has these bits, whatever the others are.
    ConnectionHas(u32),
    /// To a member of the set of this name.
    ToMember(&'static str),
    /// The sender's socket was made in this control group (version 2) or one below it.
    SocketIn {
        /// How far below the root it is: 1 is the first.
        level: u32,
        /// Its id, which is its directory's inode.
        group: u64,
    },
    /// The sender's socket belongs to this user id.
    SocketOf(u32),
    /// It came by the loopback interface.
    InLoopback,
    /// It leaves by the loopback interface.
    OutLoopback,
}

/// What a rule does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// Ends the chain.
    Accept,
    /// The packet is gone.
    Drop,
    /// To this port of this host.
    Redirect(u16),
    /// Marks the connection, within the mask.
    MarkConnection(u32),
    /// Marks the packet, within the mask.
    MarkPacket(u32),
    /// Adds these bits to the connection's mark.
    AddToConnection(u32),
    /// The receiver is to see this sender.
    ReplaceSource(IpAddr),
    /// Nothing.
    Count,
}

impl Plan {
    /// The rules of one family.
    pub fn new(family: Family, mode: Mode, options: &Options) -> Self {
        let (loopback, probe): (IpAddr, IpAddr) = match family {
            Family::V4 => (Ipv4Addr::LOCALHOST.into(), options.probe_v4.into()),
            Family::V6 => (Ipv6Addr::LOCALHOST.into(), options.probe_v6.into()),
        };
        let (inbound, outbound) = match mode {
            Mode::Redirect => (inbound(loopback, probe), outbound(loopback, probe)),
            // Without a rule that looks at connections the kernel would stop tracking them, and with that translating.
            Mode::Hold => (vec![hold()], vec![hold()]),
        };
        let chain = |name, kind, hook, priority, rules| Chain { name, kind, hook, priority, rules };
        let mut chains = vec![
            chain("mark-inbound", Kind::Filter, Hook::Prerouting, -150, vec![mark_proxy_leg()]),
            chain("mark-answers", Kind::Route, Hook::Output, -150, vec![mark_answers()]),
            chain("inbound", Kind::Nat, Hook::Prerouting, -100, inbound),
            chain("outbound", Kind::Nat, Hook::Output, -100, outbound),
        ];
        if mode == Mode::Redirect {
            chains.push(chain("closed", Kind::Filter, Hook::Input, 0, closed(probe)));
        }
        let purpose = match mode {
            Mode::Redirect => "redirect",
            Mode::Hold => "hold",
        };
        Self { family, table: TABLE, purpose, set: None, chains }
    }

    /// How many rules it has.
    pub fn rules(&self) -> usize {
        self.chains.iter().map(|chain| chain.rules.len()).sum()
    }

    /// A short text that is stored beside the rules: equal texts mean equal rules.
    pub fn fingerprint(&self) -> String {
        // FNV-1a over the rules as text: stable over builds, which the standard library's hashers are not.
        let text = format!("{:?}", self.chains);
        let hash = text.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
        format!("warren {VERSION} {} {hash:016x}", self.purpose)
    }
}

/// What comes in for the pod. Packets in the middle of a connection are left alone throughout: a connection that is
/// older than these rules lives on.
fn inbound(loopback: IpAddr, probe: IpAddr) -> Vec<Rule> {
    vec![
        Rule { why: "probes reach the application directly", matches: vec![Match::Tcp, Match::From(probe)], action: Action::Accept },
        Rule {
            why: "plaintext from outside goes to the proxy",
            matches: vec![Match::Tcp, Match::Opens, Match::NotTo(loopback), Match::NotToPort(port::TUNNEL), Match::NotMarked(PROXY_MARK)],
            action: Action::Redirect(port::INBOUND),
        },
    ]
}

/// What must not reach the application past the proxy.
///
/// The kernel decides once for each connection whether it is translated. A stray segment in the middle of nothing, sent
/// on purpose, decides that it is not, and whatever is opened with the same addresses and ports afterwards would come
/// through untranslated. So what is opened from outside and still has a port that is not the proxy's ends here.
fn closed(probe: IpAddr) -> Vec<Rule> {
    vec![
        Rule { why: "the pod and its proxy to the application", matches: vec![Match::InLoopback], action: Action::Accept },
        Rule { why: "probes", matches: vec![Match::Tcp, Match::From(probe)], action: Action::Accept },
        Rule {
            why: "nothing is opened past the proxy",
            matches: vec![
                Match::Tcp,
                Match::Opens,
                Match::NotToPort(port::TUNNEL),
                Match::NotToPort(port::INBOUND),
                Match::NotMarked(PROXY_MARK),
            ],
            action: Action::Drop,
        },
    ]
}

/// What the pod opens.
fn outbound(loopback: IpAddr, probe: IpAddr) -> Vec<Rule> {
    vec![
        Rule { why: "to the prober directly", matches: vec![Match::Tcp, Match::To(probe)], action: Action::Accept },
        Rule {
            why: "answers to the proxy are not outbound traffic",
            matches: vec![Match::Tcp, Match::Marked(ANSWER_MARK)],
            action: Action::Accept,
        },
        Rule {
            why: "the pod to its own address directly",
            matches: vec![Match::OutLoopback, Match::NotTo(loopback)],
            action: Action::Accept,
        },
        Rule {
            why: "all else goes to the proxy",
            matches: vec![Match::Tcp, Match::Opens, Match::NotTo(loopback), Match::NotMarked(PROXY_MARK)],
            action: Action::Redirect(port::OUTBOUND),
        },
    ]
}

/// The proxy calls the application from the client's address, by way of loopback. The connection is marked so that its
/// answers can be told from packets to that client.
fn mark_proxy_leg() -> Rule {
    Rule {
        why: "mark connections from the proxy to the application",
        matches: vec![Match::Marked(PROXY_MARK)],
        action: Action::MarkConnection(ANSWER_MARK),
    }
}

/// Marked answers are routed by table 100: back to the proxy's socket instead of out to the client.
fn mark_answers() -> Rule {
    Rule {
        why: "mark the application's answers to the proxy",
        matches: vec![Match::ConnectionMarked(ANSWER_MARK)],
        action: Action::MarkPacket(ANSWER_MARK),
    }
}

fn hold() -> Rule {
    Rule { why: "keep tracking connections", matches: vec![Match::New], action: Action::Count }
}

#[cfg(test)]
mod tests;
