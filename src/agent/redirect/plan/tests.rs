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
        Match::ConnectionHas(_) | Match::ToMember(_) | Match::SocketIn { .. } | Match::SocketOf(_) => panic!("no rule of a pod"),
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
