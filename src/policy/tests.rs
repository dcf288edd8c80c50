use super::*;
use crate::mesh::fixture::{addr, pod};
use crate::mesh::{Match, MeshStore, ServiceAccountMatch, StringMatch, UnusablePolicy};

const WEB: Peer<'static> = Peer { trust_domain: "cluster.local", namespace: "web", service_account: "front" };

fn connection(identity: Option<Peer<'_>>) -> Connection<'_> {
    Connection { source: addr("10.0.0.7:40000"), destination: addr("10.0.0.1:8080"), identity }
}

fn exact(text: &str) -> StringMatch {
    StringMatch::Exact(Str::from(text))
}

fn prefix(text: &str) -> StringMatch {
    StringMatch::Prefix(Str::from(text))
}

fn suffix(text: &str) -> StringMatch {
    StringMatch::Suffix(Str::from(text))
}

fn account(namespace: &str, service_account: &str) -> ServiceAccountMatch {
    ServiceAccountMatch { namespace: Str::from(namespace), service_account: Str::from(service_account) }
}

fn net(text: &str) -> ipnet::IpNet {
    text.parse().expect("a range")
}

fn policy(name: &str, action: Action, rules: Vec<Vec<Vec<Match>>>) -> Policy {
    Policy { name: Str::from(name), namespace: Str::from("shop"), scope: Scope::Namespace, action, rules, dry_run: false }
}

/// One rule of one clause of one match.
fn one(change: impl FnOnce(&mut Match)) -> Vec<Vec<Vec<Match>>> {
    let mut this = Match::default();
    change(&mut this);
    vec![vec![vec![this]]]
}

fn mesh(policies: impl IntoIterator<Item = Policy>) -> Arc<Mesh> {
    let store = MeshStore::new(None);
    store.edit(|edit| policies.into_iter().for_each(|policy| edit.upsert_policy(policy.key(), policy)));
    store.snapshot()
}

fn shop() -> Workload {
    pod("shop", "cart", "10.0.0.1")
}

#[test]
fn what_a_match_matches() {
    type Change = fn(&mut Match);
    let cases: &[(&str, Change, bool, bool)] = &[
        // (what, the match, matches an identity, matches plaintext)
        ("no field set", |_| {}, false, false),
        ("namespace", |this| this.namespaces = vec![exact("web")], true, false),
        ("another namespace", |this| this.namespaces = vec![exact("Web")], false, false),
        ("any value of a field", |this| this.namespaces = vec![exact("db"), prefix("we")], true, false),
        ("the empty namespace is no identity", |this| this.namespaces = vec![exact("")], false, true),
        ("not that namespace", |this| this.not_namespaces = vec![exact("web")], false, true),
        ("none of these", |this| this.not_namespaces = vec![exact("db"), suffix("eb")], false, true),
        ("principal", |this| this.principals = vec![exact("cluster.local/ns/web/sa/front")], true, false),
        ("principal with scheme", |this| this.principals = vec![exact("spiffe://cluster.local/ns/web/sa/front")], false, false),
        ("principal by prefix", |this| this.principals = vec![prefix("cluster.local/ns/web/")], true, false),
        ("principal by suffix", |this| this.principals = vec![suffix("/sa/front")], true, false),
        ("an empty prefix still needs an identity", |this| this.principals = vec![prefix("")], true, false),
        ("any identity", |this| this.principals = vec![StringMatch::Presence()], true, false),
        ("no identity", |this| this.not_principals = vec![StringMatch::Presence()], false, true),
        ("account", |this| this.service_accounts = vec![account("web", "front")], true, false),
        ("account of another namespace", |this| this.service_accounts = vec![account("db", "front")], false, false),
        ("not that account", |this| this.not_service_accounts = vec![account("web", "front")], false, true),
        ("source", |this| this.source_ips = vec![net("10.0.0.0/24")], true, true),
        ("source elsewhere", |this| this.source_ips = vec![net("10.1.0.0/24"), net("::/0")], false, false),
        ("not that source", |this| this.not_source_ips = vec![net("10.0.0.7/32")], false, false),
        ("destination", |this| this.destination_ips = vec![net("10.0.0.1/32")], true, true),
        ("not that destination", |this| this.not_destination_ips = vec![net("10.0.0.1/32")], false, false),
        ("port", |this| this.destination_ports = vec![80, 8080], true, true),
        ("not that port", |this| this.not_destination_ports = vec![8080], false, false),
        (
            "all fields",
            |this| {
                this.namespaces = vec![exact("web")];
                this.destination_ports = vec![8080];
            },
            true,
            false,
        ),
        (
            "one field does not match",
            |this| {
                this.namespaces = vec![exact("web")];
                this.destination_ports = vec![80];
            },
            false,
            false,
        ),
    ];
    for (what, change, identity, plaintext) in cases {
        let mesh = mesh([policy("deny", Action::Deny, one(change))]);
        let denied = |peer| !evaluate(&mesh, &shop(), &connection(peer)).is_allowed();
        assert_eq!((denied(Some(WEB)), denied(None)), (*identity, *plaintext), "{what}");
    }
}

#[test]
fn rules_are_alternatives_clauses_conditions_and_matches_alternatives() {
    let yes = || Match { destination_ports: vec![8080], ..Match::default() };
    let no = || Match { destination_ports: vec![1], ..Match::default() };
    let cases = [
        ("no rules", vec![], false),
        ("a rule without clauses", vec![vec![]], true),
        ("a clause without matches", vec![vec![vec![]]], true),
        ("an empty match among others", vec![vec![vec![Match::default(), yes()]]], true),
        ("only an empty match", vec![vec![vec![Match::default()]]], false),
        ("one of two matches", vec![vec![vec![no(), yes()]]], true),
        ("one of two clauses", vec![vec![vec![no()], vec![yes()]]], false),
        ("both clauses", vec![vec![vec![yes()], vec![yes()]]], true),
        ("one of two rules", vec![vec![vec![no()]], vec![vec![yes()]]], true),
    ];
    for (what, rules, expected) in cases {
        let mesh = mesh([policy("deny", Action::Deny, rules)]);
        assert_eq!(!evaluate(&mesh, &shop(), &connection(None)).is_allowed(), expected, "{what}");
    }
}

#[test]
fn deny_goes_before_allow_and_dry_runs_decide_nothing() {
    let always = || vec![vec![]];
    let never = Vec::new;
    let dry = |mut policy: Policy| {
        policy.dry_run = true;
        policy
    };
    let allowed = |by: Option<&str>| Verdict::Allowed { by: by.map(Str::from) };
    let denied = |policy: &str| Verdict::Denied { reason: format!("explicitly denied by: {policy}"), policy: Some(Str::from(policy)) };
    let none_allowed = |names: &str| Verdict::Denied { reason: format!("allow policies exist, but none allowed: {names}"), policy: None };
    let cases = [
        ("no policy", vec![], allowed(None), vec![]),
        ("deny without rules", vec![policy("d", Action::Deny, never())], allowed(None), vec![]),
        ("allow without rules", vec![policy("a", Action::Allow, never())], none_allowed("shop/a"), vec![]),
        (
            "many that allow nothing",
            ["a", "b", "c", "d", "e", "f"].map(|name| policy(name, Action::Allow, never())).into(),
            none_allowed("shop/a, shop/b, shop/c, shop/d and 2 more"),
            vec![],
        ),
        ("allow", vec![policy("a", Action::Allow, never()), policy("b", Action::Allow, always())], allowed(Some("shop/b")), vec![]),
        ("both match", vec![policy("a", Action::Allow, always()), policy("d", Action::Deny, always())], denied("shop/d"), vec![]),
        ("the first of two", vec![policy("e", Action::Deny, always()), policy("d", Action::Deny, always())], denied("shop/d"), vec![]),
        ("deny in dry run", vec![dry(policy("d", Action::Deny, always()))], allowed(None), vec![DryRun::WouldDeny(Str::from("shop/d"))]),
        ("allow in dry run", vec![dry(policy("a", Action::Allow, never()))], allowed(None), vec![DryRun::NoneWouldAllow]),
        (
            "allow in dry run beside an enforced one",
            vec![dry(policy("a", Action::Allow, always())), policy("b", Action::Allow, never())],
            none_allowed("shop/b"),
            vec![DryRun::WouldAllow(Str::from("shop/a"))],
        ),
    ];
    for (what, policies, verdict, dry_run) in cases {
        let explanation = explain(&mesh(policies), &shop(), &connection(Some(WEB)));
        assert_eq!((explanation.verdict, explanation.dry_run), (verdict, dry_run), "{what}");
    }
}

#[test]
fn which_policies_apply() {
    let scoped =
        |namespace: &str, name: &str, scope| Policy { namespace: Str::from(namespace), scope, ..policy(name, Action::Deny, vec![vec![]]) };
    let mut named = shop();
    named.authorization_policies = vec![Str::from("shop/sel"), Str::from("shop/ns"), Str::from("shop/gone")];
    let policies = [
        scoped("shop", "ns", Scope::Namespace),
        scoped("other", "ns", Scope::Namespace),
        scoped("root", "all", Scope::Global),
        scoped("shop", "sel", Scope::WorkloadSelector),
        scoped("shop", "other-sel", Scope::WorkloadSelector),
    ];
    let mesh = mesh(policies);
    let explanation = explain(&mesh, &named, &connection(None));
    assert_eq!(explanation.applied, ["shop/ns", "root/all", "shop/sel"].map(Str::from));
    assert_eq!(explanation.missing, ["shop/gone"].map(Str::from));
}

#[test]
fn a_policy_that_is_not_known_has_no_effect_and_one_that_is_not_understood_denies() {
    let mut workload = shop();
    workload.authorization_policies = vec![Str::from("shop/sel")];
    let store = MeshStore::new(None);
    store.edit(|edit| edit.upsert_workload(workload.clone()));
    let verdict = |workload: &Workload| evaluate(&store.snapshot(), workload, &connection(Some(WEB)));
    assert!(verdict(&workload).is_allowed());
    assert_eq!(store.snapshot().missing_policies().into_iter().collect::<Vec<_>>(), [(Str::from("shop/sel"), 1)]);

    let broken = |scope| UnusablePolicy { namespace: Str::from("shop"), scope, reason: "source_ips: 3 bytes".to_owned() };
    let denied = |key: &str| Verdict::Denied {
        reason: format!("policy {key} could not be understood: source_ips: 3 bytes"),
        policy: Some(Str::from(key)),
    };
    let other = pod("other", "p", "10.0.0.2");
    let cases = [("shop/sel", Scope::WorkloadSelector, false), ("shop/ns", Scope::Namespace, false), ("root/all", Scope::Global, true)];
    for (key, scope, others) in cases {
        store.edit(|edit| edit.upsert_unusable_policy(Str::from(key), broken(scope)));
        assert_eq!(verdict(&workload), denied(key));
        assert_eq!(!verdict(&other).is_allowed(), others, "{key} for a workload of another namespace");
        assert!(store.edit(|edit| edit.remove_policy(key)));
        assert!(verdict(&workload).is_allowed());
    }

    // What is in force stays in force, and what is understood takes the place of what was not.
    let good = Policy { scope: Scope::WorkloadSelector, ..policy("sel", Action::Allow, vec![vec![]]) };
    store.edit(|edit| edit.upsert_unusable_policy(Str::from("shop/sel"), broken(Scope::WorkloadSelector)));
    store.edit(|edit| edit.upsert_policy(Str::from("shop/sel"), good));
    assert_eq!(verdict(&workload), Verdict::Allowed { by: Some(Str::from("shop/sel")) });
    store.edit(|edit| edit.upsert_unusable_policy(Str::from("shop/sel"), broken(Scope::WorkloadSelector)));
    assert_eq!(verdict(&workload), Verdict::Allowed { by: Some(Str::from("shop/sel")) });
}

#[test]
fn mapped_addresses_are_compared_in_their_ipv4_form() {
    let mesh = mesh([policy("deny", Action::Deny, one(|this| this.source_ips = vec![net("10.0.0.7/32")]))]);
    let mapped = Connection { source: addr("[::ffff:10.0.0.7]:40000"), ..connection(None) };
    assert!(!evaluate(&mesh, &shop(), &mapped).is_allowed());
}

#[test]
fn a_certificates_identity_is_a_peer() {
    let id: crate::identity::SpiffeId = "spiffe://cluster.local/ns/web/sa/front".parse().expect("an identity");
    assert_eq!(Peer::from(&id), WEB);
}
