//! The rules that redirect a pod's traffic, as values: the same for every back-end.

use std::net::IpAddr;
use std::net::{Ipv4Addr, Ipv6Addr};

use super::{Options, port};
use crate::net::socket::PROXY_MARK;

/// Bumped when rules change their meaning: pods with an older version are brought up to date.
const VERSION: u32 = 1;

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
    /// Its mode.
    pub mode: Mode,
    /// Its chains.
    pub chains: Vec<Chain>,
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
        Self { family, mode, chains }
    }

    /// How many rules it has.
    pub fn rules(&self) -> usize {
        self.chains.iter().map(|chain| chain.rules.len()).sum()
    }

    /// A short text that is stored beside the rules: equal texts mean equal rules.
    pub fn fingerprint(&self) -> String {
        let mode = match self.mode {
            Mode::Redirect => "redirect",
            Mode::Hold => "hold",
        };
        // FNV-1a over the rules as text: stable over builds, which the standard library's hashers are not.
        let text = format!("{:?}", self.chains);
        let hash = text.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
        format!("warren {VERSION} {mode} {hash:016x}")
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
mod tests {
    use super::*;

    /// A packet that opens a connection, as the rules see it.
    #[derive(Clone, Copy)]
    struct Packet {
        hook: Hook,
        from: &'static str,
        to: &'static str,
        port: u16,
        mark: u32,
        loopback: bool,
        opens: bool,
    }

    fn verdict(plan: &Plan, packet: Packet) -> Action {
        let decides = |chain: &&Chain| chain.hook == packet.hook && (chain.kind == Kind::Nat || chain.hook == Hook::Input);
        let chain = plan.chains.iter().find(decides).expect("a chain that decides");
        let is = |text: &str, ip: IpAddr| text.parse::<IpAddr>().expect("an address") == ip;
        let holds = |condition: &Match| match *condition {
            Match::Tcp | Match::New => true,
            Match::Opens => packet.opens,
            Match::From(ip) => is(packet.from, ip),
            Match::To(ip) => is(packet.to, ip),
            Match::NotTo(ip) => !is(packet.to, ip),
            Match::NotToPort(port) => packet.port != port,
            Match::Marked(mark) => packet.mark & MARK_MASK == mark,
            Match::NotMarked(mark) => packet.mark & MARK_MASK != mark,
            Match::ConnectionMarked(_) => false,
            Match::InLoopback | Match::OutLoopback => packet.loopback,
        };
        chain.rules.iter().find(|rule| rule.matches.iter().all(holds)).map_or(Action::Accept, |rule| rule.action)
    }

    #[test]
    fn who_goes_to_the_proxy() {
        let into = Packet { hook: Hook::Prerouting, from: "10.0.0.9", to: "10.0.0.2", port: 80, mark: 0, loopback: false, opens: true };
        let out = Packet { hook: Hook::Output, from: "10.0.0.2", to: "10.0.0.9", ..into };
        let cases = [
            ("plaintext from outside", into, Action::Redirect(15006)),
            ("a tunnel", Packet { port: 15008, ..into }, Action::Accept),
            ("a probe", Packet { from: "169.254.7.127", ..into }, Action::Accept),
            ("the proxy's call of the application", Packet { mark: 0x539, ..into }, Action::Accept),
            ("the same with foreign bits in the mark", Packet { mark: 0xab539, ..into }, Action::Accept),
            ("a foreign mark", Packet { mark: 0xab000, ..into }, Action::Redirect(15006)),
            ("the middle of an old connection", Packet { opens: false, ..into }, Action::Accept),
            ("the application calls out", out, Action::Redirect(15001)),
            ("the application calls a tunnel port", Packet { port: 15008, ..out }, Action::Redirect(15001)),
            ("the proxy calls out", Packet { mark: 0x539, ..out }, Action::Accept),
            ("an answer to the proxy", Packet { mark: 0x111, ..out }, Action::Accept),
            ("the application calls its own address", Packet { to: "10.0.0.2", loopback: true, ..out }, Action::Accept),
            ("the application calls localhost", Packet { to: "127.0.0.1", loopback: true, ..out }, Action::Accept),
            ("the application calls the prober", Packet { to: "169.254.7.127", ..out }, Action::Accept),
            ("the middle of an old outbound connection", Packet { opens: false, ..out }, Action::Accept),
        ];
        let plan = Plan::new(Family::V4, Mode::Redirect, &Options::default());
        let holding = Plan::new(Family::V4, Mode::Hold, &Options::default());
        for (name, packet, expected) in cases {
            assert_eq!(verdict(&plan, packet), expected, "{name}");
            assert!(matches!(verdict(&holding, packet), Action::Count), "{name}: nothing is redirected any more");
        }
    }

    #[test]
    fn what_was_not_translated_is_dropped_before_the_application() {
        let untranslated = Packet { hook: Hook::Input, from: "10.0.0.9", to: "10.0.0.2", port: 80, mark: 0, loopback: false, opens: true };
        let cases = [
            ("plaintext that went round the proxy", untranslated, Action::Drop),
            ("translated plaintext", Packet { port: 15006, ..untranslated }, Action::Accept),
            ("a tunnel", Packet { port: 15008, ..untranslated }, Action::Accept),
            ("a probe", Packet { from: "169.254.7.127", ..untranslated }, Action::Accept),
            ("the proxy's call of the application", Packet { mark: 0x539, loopback: true, ..untranslated }, Action::Accept),
            ("the application calls its own address", Packet { loopback: true, ..untranslated }, Action::Accept),
            ("the middle of an old connection", Packet { opens: false, ..untranslated }, Action::Accept),
        ];
        let plan = Plan::new(Family::V4, Mode::Redirect, &Options::default());
        for (name, packet, expected) in cases {
            assert_eq!(verdict(&plan, packet), expected, "{name}");
        }
        let holding = Plan::new(Family::V4, Mode::Hold, &Options::default());
        assert!(holding.chains.iter().all(|chain| chain.hook != Hook::Input), "a pod that leaves is open");
    }

    #[test]
    fn ipv6_has_the_same_rules_with_its_own_addresses() {
        let v4 = Plan::new(Family::V4, Mode::Redirect, &Options::default());
        let v6 = Plan::new(Family::V6, Mode::Redirect, &Options::default());
        assert_eq!(v4.rules(), v6.rules());
        let text = format!("{v4:?}").replace("V4", "V6");
        let text = text.replace("169.254.7.127", "fd16:9254:7127:1337:ffff:ffff:ffff:ffff").replace("127.0.0.1", "::1");
        assert_eq!(text, format!("{v6:?}"));
    }

    #[test]
    fn fingerprints_tell_modes_and_options_apart() {
        let other = Options { probe_v4: Ipv4Addr::new(169, 254, 7, 1), ..Options::default() };
        let texts = [
            Plan::new(Family::V4, Mode::Redirect, &Options::default()).fingerprint(),
            Plan::new(Family::V4, Mode::Hold, &Options::default()).fingerprint(),
            Plan::new(Family::V4, Mode::Redirect, &other).fingerprint(),
        ];
        for (at, text) in texts.iter().enumerate() {
            assert!(!texts[..at].contains(text), "{text}");
            assert!(text.len() < 100, "fits the kernel's 256 bytes of user data with room to spare");
        }
    }
}
