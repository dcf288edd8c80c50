use super::*;

const GOOD: &str = r#"
trustDomain: example.org
pods:
  - name: client
    node: n1
    ips: [10.0.1.2]
    netns: /run/netns/client
    ambient: true
    labels: {app: client, version: 1}
  - {name: outside, namespace: other, node: n2, ips: ["fd00::2"], ready: false}
services:
  - name: web
    vips: [10.96.0.1]
    ports: {80: 8080}
    selector: {app: web}
policies:
  - name: deny-other
    selector: {app: web}
    action: Deny
    rules:
      - principals: ["example.org/ns/other/sa/*"]
        notPorts: [443]
        sourceIps: [10.0.0.0/8]
"#;

#[test]
fn a_good_file_is_read_whole_and_written_back_equal() {
    let loaded = parse(GOOD).unwrap();
    assert!(loaded.rejected.is_empty(), "{:?}", loaded.rejected);
    let mesh = loaded.mesh;
    assert_eq!(mesh.trust_domain(), "example.org");
    assert_eq!(mesh.pods[0].labels["version"], "1");
    assert_eq!(mesh.pods[0].service_account, "default");
    assert!(mesh.pods[0].ready && !mesh.pods[1].ready);
    assert_eq!(mesh.services[0].ports, BTreeMap::from([(80, 8080)]));
    assert_eq!(mesh.policies[0].rules[0].not_ports, [443]);
    let again = parse(&mesh.to_yaml().unwrap()).unwrap();
    assert!(again.rejected.is_empty(), "{:?}", again.rejected);
    assert_eq!(again.mesh, mesh);
}

#[test]
fn a_text_that_is_broken_as_a_whole_is_refused_with_its_place() {
    let cases = [
        ("", "mesh:1:1:"),
        ("pods:\n  - name: a\n   node: n1\n", "mesh:3:"),
        ("pods: [\n", "mesh:1:7: unclosed bracket"),
        ("podz: []\n", "mesh:1:1: unknown field `podz`"),
        ("pods: 5\n", "mesh:1:7:"),
        ("- a\n- b\n", "mesh:1:1:"),
        ("pods: []\npods: []\n", "mesh:2:1:"),
        ("trustDomain: UPPER\n", "mesh:1:14: trustDomain \"UPPER\""),
    ];
    for (text, expected) in cases {
        let error = parse(text).expect_err(text);
        assert_eq!(error.code(), &code::SOURCE_BROKEN, "{text:?}: {error}");
        assert!(error.detail().starts_with(expected), "{text:?}: {error}");
    }
}

#[test]
fn a_bad_element_is_rejected_alone_with_name_and_place() {
    let pod = |fields: &str| format!("pods:\n  - {{name: good, node: n1, ips: [10.0.0.1]}}\n  - {{name: p, {fields}}}\n");
    let cases = [
        (pod("node: n1, ips: [10.0.0.2], colour: red"), "mesh:3:42: pod default/p: unknown field `colour`"),
        (pod("node: n1, ips: 7"), "mesh:3:"),
        (pod("node: n1, ips: [x]"), "mesh:3:"),
        (pod("node: n1, ips: []"), "mesh:3:5: pod default/p: ips must name"),
        (pod("ips: [10.0.0.2]"), "mesh:3:"),
        (pod("node: n1, ips: [10.0.0.2], ambient: true"), "mesh:3:5: pod default/p: ambient is true, but netns is missing"),
        (pod("node: n1, ips: [10.0.0.2], netns: rel"), "mesh:3:5: pod default/p: netns"),
        (pod("node: n1, ips: [10.0.0.2], serviceAccount: A_b"), "mesh:3:5: pod default/p: serviceAccount"),
        (pod("node: n1, ips: [10.0.0.2], namespace: a.b"), "mesh:3:5: pod a.b/p: namespace"),
        (pod("node: n1, ips: [10.0.0.2], labels: {a: '-'}"), "mesh:3:5: pod default/p: labels"),
        (pod("node: n1, ips: [10.0.0.2]").replace("name: p", "name: good"), "mesh:3:5: pod default/good: a second one"),
        (pod("node: n1, ips: [10.0.0.2]").replace("name: p", "name: [1]"), "mesh:3:12: pod number 2:"),
    ];
    for (text, expected) in cases {
        let loaded = parse(&text).unwrap_or_else(|error| panic!("{text}: {error}"));
        assert_eq!(loaded.mesh.pods.len(), 1, "{text}");
        assert_eq!(loaded.mesh.pods[0].name, "good");
        assert_eq!(loaded.rejected.len(), 1, "{text}");
        assert_eq!(loaded.rejected[0].code(), &code::ELEMENT_REJECTED);
        assert!(loaded.rejected[0].detail().starts_with(expected), "{text}: {}", loaded.rejected[0]);
    }
}

#[test]
fn services_and_policies_have_rules_of_their_own() {
    let text = "
services:
  - {name: a, ports: {0: 80}}
  - {name: b, ports: {}}
  - {name: c.d, ports: {80: 80}}
  - {name: e, ports: {80: 70000}}
  - {name: ok, ports: {80: 80}}
  - {name: f, hostname: ok.default.svc.cluster.local, ports: {80: 80}}
policies:
  - {name: a, action: Deny, global: true, selector: {app: x}}
  - {name: b, action: Audit}
  - {name: c, action: Deny, rules: [{principals: ['a*b']}]}
  - {name: d, action: Deny, rules: [{principals: ['spiffe://td/ns/a/sa/b']}]}
  - {name: e, action: Deny, rules: [{ports: [0]}]}
  - {name: ok, action: Allow, rules: [{}]}
";
    let loaded = parse(text).unwrap();
    assert_eq!(loaded.mesh.services.iter().map(|service| service.name.as_str()).collect::<Vec<_>>(), ["ok"]);
    assert_eq!(loaded.mesh.policies.iter().map(|policy| policy.name.as_str()).collect::<Vec<_>>(), ["ok"]);
    assert_eq!(loaded.rejected.len(), 10, "{:?}", loaded.rejected);
    let lines: Vec<_> = loaded.rejected.iter().map(|error| error.detail().split(':').nth(1).unwrap()).collect();
    assert_eq!(lines, ["3", "4", "5", "6", "8", "10", "11", "12", "13", "14"]);
}

#[test]
fn too_many_bad_elements_refuse_the_whole() {
    let text = format!("pods:\n{}", "  - {name: 5, nope: 1}\n".repeat(40));
    let error = parse(&text).unwrap_err();
    assert_eq!(error.code(), &code::SOURCE_BROKEN);
}

#[test]
fn a_rejected_element_keeps_its_previous_version() {
    let previous = parse(GOOD).unwrap().mesh;
    let mut loaded = parse(&GOOD.replace("ports: {80: 8080}", "ports: {80: x}").replace("node: n2", "nod: n2")).unwrap();
    assert_eq!((loaded.mesh.pods.len(), loaded.mesh.services.len()), (1, 0));
    assert_eq!(loaded.keep_previous(&previous), ["pod other/outside", "service default/web"]);
    assert_eq!(loaded.mesh, previous);
}

#[test]
fn a_rejected_policy_without_an_older_version_refuses_everything_in_its_scope() {
    let refusal = |text: &str| {
        let mut loaded = parse(&format!("pods: []\npolicies:\n  - {text}\n")).expect(text);
        assert_eq!(loaded.rejected.len(), 1, "{text}");
        assert!(loaded.mesh.policies.is_empty(), "{text}");
        loaded.refuse_instead();
        loaded.mesh.policies.pop()
    };
    let selector = |pairs: &[(&str, &str)]| pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    let everything = |namespace: &str, name: &str| Policy {
        name: name.to_owned(),
        namespace: namespace.to_owned(),
        selector: BTreeMap::new(),
        global: false,
        action: Action::Deny,
        dry_run: false,
        rules: vec![Rule::default()],
    };
    let web = Policy { selector: selector(&[("app", "web")]), ..everything("shop", "p") };
    let cases = [
        ("{name: p, namespace: shop, selector: {app: web}, action: Permit}", Some(web.clone())),
        ("{name: p, namespace: shop, selector: {app: web}, action: Allow, rules: [{principals: ['']}]}", Some(web)),
        ("{name: p, namespace: shop, selector: web, action: Allow}", Some(everything("shop", "p"))),
        ("{name: p, namespace: shop, selector: {app: 'we b'}, action: Allow}", Some(everything("shop", "p"))),
        ("{name: p, action: Allow, ruels: []}", Some(everything("default", "p"))),
        ("{name: No Name, namespace: shop, action: Allow}", Some(everything("shop", "rejected-1"))),
        ("{namespace: shop, action: Allow}", Some(everything("shop", "rejected-1"))),
        ("{name: p, global: true, action: Maybe}", Some(Policy { global: true, ..everything("default", "p") })),
        ("{name: p, global: [], action: Allow}", Some(Policy { global: true, ..everything("default", "p") })),
        ("{name: p, dryRun: true, action: Maybe}", None),
        ("{name: [], action: Allow}", None),
        ("5", None),
    ];
    for (text, expected) in cases {
        assert_eq!(refusal(text), expected, "{text}");
    }
}

#[test]
fn a_policy_with_a_good_version_keeps_it_instead_of_refusing_everything() {
    let previous = parse(GOOD).expect("good").mesh;
    let mut loaded = parse(&GOOD.replace("action: Deny", "action: Maybe")).expect("shape");
    assert_eq!(loaded.keep_previous(&previous), ["policy default/deny-other"]);
    assert!(loaded.refuse_instead().is_empty());
    assert_eq!(loaded.mesh.policies, previous.policies);
}

#[test]
fn two_pods_have_two_uids() {
    let pod = |name: &str, uid: &str| format!("  - {{name: {name}, node: n1, ips: [10.0.0.1], uid: {uid}}}\n");
    let loaded = parse(&format!("pods:\n{}{}", pod("a", "u1"), pod("b", "u1"))).expect("shape");
    assert_eq!(loaded.mesh.pods.len(), 1);
    assert!(loaded.rejected[0].to_string().contains("uid u1 is another one's"), "{}", loaded.rejected[0]);

    // What comes back is not in the way of what is there.
    let previous = parse(&format!("pods:\n{}", pod("b", "u1"))).expect("good").mesh;
    let mut loaded = parse(&format!("pods:\n{}{}", pod("a", "u1"), pod("b", "u1"))).expect("shape");
    assert!(loaded.keep_previous(&previous).is_empty());
    assert_eq!(loaded.mesh.pods.len(), 1);
}
