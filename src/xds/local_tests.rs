use super::*;
use crate::mesh::{GatewayDestination, Health, LoadBalancerMode, MeshStore, Protocol, StringMatch};

const EXAMPLE: &str = r#"
workloads:
- uid: c1//Pod/shop/cart-0
  name: cart-0
  namespace: shop
  serviceAccount: cart
  trustDomain: example.org
  workloadIps: [10.0.0.7, "fd00::7"]
  network: ""
  node: node-a
  protocol: HBONE
  networkMode: Standard
  status: Unhealthy
  capacity: 2
  clusterId: c1
  workloadName: cart
  workloadType: deployment
  canonicalName: cart
  canonicalRevision: v2
  locality: {region: eu, zone: eu-a, subzone: ""}
  hostname: ""
  nativeTunnel: false
  applicationTunnel: {protocol: PROXY, port: 15088}
  waypoint: {destination: shop/wp.shop.svc.cluster.local, hboneMtlsPort: 15008}
  networkGateway: {destination: net2/192.0.2.9, hboneMtlsPort: 15009}
  authorizationPolicies: [shop/only-web]
  services:
    shop/cart.shop.svc.cluster.local: {80: 8080}
- name: plain
  namespace: shop
  workloadIps: []
  services: {}
services:
- name: cart
  namespace: shop
  hostname: cart.shop.svc.cluster.local
  vips: [/10.96.0.20]
  cidrVips: [{network: "", cidr: 10.9.0.0/16}]
  ports: {80: 8080}
  subjectAltNames: []
  canonical: true
  visibility: Public
  ipFamilies: IPv4
  loadBalancer:
    routingPreferences: [Network, Region, Zone]
    mode: Failover
    healthPolicy: OnlyHealthy
  weightedWaypoints:
  - {destination: {destination: shop/wp2.shop.svc.cluster.local, hboneMtlsPort: 15008}, weight: 10}
policies:
- name: only-web
  namespace: shop
  scope: WorkloadSelector
  action: Allow
  dryRun: false
  rules:
  - - - principals: [!Exact cluster.local/ns/web/sa/web, !Prefix a, !Suffix b, !Presence []]
        notSourceIps: [10.1.0.0/16]
        destinationPorts: [8080]
        serviceAccounts: [{namespace: web, serviceAccount: web}]
"#;

#[test]
fn every_field_of_the_format_is_read() {
    let local = parse("example", EXAMPLE).expect("readable");
    assert!(local.refused.is_empty(), "{:?}", local.refused);
    let [cart, plain] = &local.workloads[..] else { panic!("two workloads") };
    assert_eq!((cart.protocol, cart.status, cart.capacity), (Protocol::HBONE, Health::Unhealthy, 2));
    assert_eq!(cart.principal(), "example.org/ns/shop/sa/cart");
    assert_eq!(cart.services.values().next().expect("a service")[&80], 8080);
    assert!(matches!(cart.network_gateway.as_ref().expect("a gateway").destination, GatewayDestination::Address(_)));
    assert_eq!((&*plain.uid, &*plain.principal()), ("Kubernetes//Pod/shop/plain", "cluster.local/ns/shop/sa/default"));
    let [service] = &local.services[..] else { panic!("one service") };
    assert_eq!(service.load_balancer.as_ref().expect("a balancer").mode, LoadBalancerMode::Failover);
    assert_eq!(service.weighted_waypoints[0].weight, 10);
    let [policy] = &local.policies[..] else { panic!("one policy") };
    let expected = [
        StringMatch::Exact(Str::from("cluster.local/ns/web/sa/web")),
        StringMatch::Prefix(Str::from("a")),
        StringMatch::Suffix(Str::from("b")),
        StringMatch::Presence(),
    ];
    assert_eq!(policy.rules[0][0][0].principals, expected);

    let store = MeshStore::new(None);
    store.edit(|edit| local.apply(edit));
    let mesh = store.snapshot();
    assert_eq!((mesh.workload_count(), mesh.service_count(), mesh.policy_count()), (2, 1, 1));
}

#[test]
fn a_broken_resource_is_refused_by_itself_with_its_name_and_place() {
    // (the file, what the refusal starts with, where it is)
    let cases = [
        (
            "workloads:\n- {name: a, namespace: n, workloadIps: [x], services: {}}",
            "f: workload n/a: invalid IP address",
            "line 2, column 41",
        ),
        (
            "workloads:\n- {uid: u, namespace: n, workloadIps: [], services: {}, color: red}",
            "f: workload u: unknown field `color`",
            "line 2, column 57",
        ),
        ("workloads:\n- {name: a, namespace: n}", "f: workload n/a: missing field `workloadIps`", "line 2, column"),
        ("workloads:\n- {namespace: n, workloadIps: [], services: {}}", "f: workload number 1: a workload needs a uid or a name", "line 2"),
        (
            "workloads:\n- {name: a, namespace: n, workloadIps: [], services: {h: {}}}",
            r#"f: workload n/a: "h" is not of the form namespace/hostname"#,
            "line 2, column 55",
        ),
        (
            "services:\n- {name: s, namespace: n, hostname: h, vips: [10.0.0.1], ports: {}}",
            r#"f: service n/s: "10.0.0.1" is not of the form network/ip"#,
            "line 2, column 47",
        ),
        ("services:\n- {name: s, namespace: n, hostname: h, vips: [], ports: {70000: 1}}", "f: service n/s: ", "line 2, column"),
        ("services:\n- [not, a, map]", "f: service number 1: ", "line 2, column"),
    ];
    for (text, expected, place) in cases {
        let more = "policies:\n- {name: p, namespace: n, scope: Global, action: Deny, dryRun: false, rules: []}";
        let local = parse("f", &format!("{text}\n{more}")).unwrap_or_else(|error| panic!("{text}: {error}"));
        let [refused] = &local.refused[..] else { panic!("{text}: {:?}", local.refused) };
        let said = refused.to_string();
        assert!(said.starts_with(expected) && said.contains(place), "{said}");
        assert_eq!(refused.code(), &code::XDS_REJECTED);
        assert_eq!((local.workloads.len(), local.services.len(), local.policies.len()), (0, 0, 1), "all others apply");
    }
}

#[test]
fn several_broken_resources_are_all_named_and_the_good_ones_between_them_kept() {
    let one = |name: &str, ip: &str| format!("- {{name: {name}, namespace: n, workloadIps: [{ip}], services: {{}}}}\n");
    let text = format!("workloads:\n{}{}{}{}", one("a", "x"), one("b", "10.0.0.1"), one("c", "y"), one("d", "10.0.0.2"));
    let local = parse("f", &text).expect("readable");
    assert_eq!(local.workloads.iter().map(|workload| &*workload.name).collect::<Vec<_>>(), ["b", "d"]);
    assert_eq!(local.refused.len(), 2);
}

#[test]
fn a_refused_policy_is_held_against_its_scope() {
    let policy = |name: &str, scope: &str, dry_run| {
        format!("- {{name: {name}, namespace: n, scope: {scope}, action: Deny, dryRun: {dry_run}, rules: [[[{{sourceIps: [x]}}]]]}}\n")
    };
    let text = format!("policies:\n{}{}{}", policy("a", "Global", false), policy("b", "Nowhere", false), policy("c", "Global", true));
    let local = parse("f", &text).expect("readable");
    assert_eq!(local.refused.len(), 3);
    let held: Vec<_> = local.unusable_policies.iter().map(|(key, policy)| (&**key, policy.scope)).collect();
    assert_eq!(held, [("n/a", Scope::Global), ("n/b", Scope::WorkloadSelector)]);
}

#[test]
fn a_file_that_is_broken_as_a_whole_is_refused_as_a_whole() {
    let cases = [
        ("workloads: [", "line 1, column 12"),
        ("workload: []", "unknown variant `workload`, expected one of workloads, services, policies at line 1, column 1"),
        ("[]", "line 1, column 1"),
        ("workloads:\n- {name: a}\n- x: [\n", "line 3, column 6"),
    ];
    for (text, expected) in cases {
        let error = parse("f", text).expect_err(text);
        assert_eq!(error.code(), &code::BAD_FILE);
        assert!(error.to_string().contains(expected), "{error}");
    }
    let many: String = (0..=MAX_REFUSED).map(|_| "- {}\n").collect();
    assert_eq!(parse("f", &format!("workloads:\n{many}")).expect_err("too many").code(), &code::BAD_FILE);
}

#[test]
fn an_empty_file_is_an_empty_mesh() {
    for text in ["", "{}", "workloads: []\nservices: []\npolicies: []\n"] {
        let local = parse("f", text).expect("readable");
        assert_eq!((local.workloads.len(), local.refused.len()), (0, 0));
    }
}
