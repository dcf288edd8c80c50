use std::collections::BTreeMap;

use rand::SeedableRng;
use rand::rngs::StdRng;

use super::*;
use crate::mesh::fixture::{addr, endpoint, mesh, pod, service};
use crate::mesh::{
    ApplicationProtocol, ApplicationTunnel, GatewayAddress, Health, HealthPolicy, LoadBalancer, LoadBalancerMode, NetworkMode,
    RoutingPreference, WeightedWaypoint,
};

fn rng() -> StdRng {
    StdRng::seed_from_u64(1)
}

fn client() -> Workload {
    pod("a", "client", "10.0.0.100")
}

/// The next hop in a few words.
fn hop(mesh: &Mesh, source: &Workload, destination: &str) -> String {
    match route(mesh, source, addr(destination), &mut rng()) {
        Ok(Route::Passthrough) => "as dialled".to_owned(),
        Ok(Route::Direct(upstream)) => {
            let service = upstream.service.map(|service| format!(" of {}", service.hostname)).unwrap_or_default();
            format!("{} at {}{service}", upstream.workload.name, upstream.addr)
        }
        Ok(Route::Waypoint { waypoint, .. }) => format!("waypoint {} at {}", waypoint.workload.name, waypoint.addr),
        Err(error) => error.code().id.to_owned(),
    }
}

fn gateway(destination: &str) -> Option<GatewayAddress> {
    Some(GatewayAddress { destination: destination.parse().expect("a destination"), hbone_mtls_port: 15008 })
}

fn with(mut workload: Workload, change: impl FnOnce(&mut Workload)) -> Workload {
    change(&mut workload);
    workload
}

fn having(mut service: Service, change: impl FnOnce(&mut Service)) -> Service {
    change(&mut service);
    service
}

const NO_HEALTHY: &str = "W1004";
const NO_ROUTE: &str = "W1005";
const UNKNOWN_WAYPOINT: &str = "W1012";
const UNSUPPORTED: &str = "W1015";

#[test]
fn where_each_kind_of_destination_leads() {
    let workloads = [
        endpoint(pod("a", "web", "10.0.0.1"), "a/web.a"),
        with(pod("a", "own-port", "10.0.0.2"), |workload| {
            workload.services.insert("a/named.a".parse().expect("key"), [(80, 9090)].into());
        }),
        with(pod("a", "behind-waypoint", "10.0.0.3"), |workload| workload.waypoint = gateway("a/wp.a")),
        endpoint(with(pod("a", "wp", "10.0.0.4"), |workload| workload.protocol = crate::mesh::Protocol::TCP), "a/wp.a"),
        with(endpoint(pod("a", "host", "192.0.2.1"), "a/host.a"), |workload| workload.network_mode = NetworkMode::HostNetwork),
        with(endpoint(pod("a", "sick", "10.0.0.5"), "a/sick.a"), |workload| workload.status = Health::Unhealthy),
        with(endpoint(pod("a", "far", "10.0.0.6"), "a/far.a"), |workload| {
            workload.network = Str::from("net2");
            workload.network_gateway = gateway("/192.0.2.9");
        }),
        with(endpoint(pod("a", "lost", "10.0.0.7"), "a/lost.a"), |workload| workload.network = Str::from("net3")),
        with(endpoint(pod("a", "name", ""), "a/name.a"), |workload| workload.hostname = Str::from("db.example")),
        with(pod("a", "dangling", "10.0.0.8"), |workload| workload.waypoint = gateway("a/nowhere.a")),
    ];
    let passthrough = |service: &mut Service| {
        service.load_balancer = Some(LoadBalancer { mode: LoadBalancerMode::Passthrough, ..LoadBalancer::default() });
    };
    let services = [
        service("a/web.a", "10.1.0.1", &[(80, 8080), (81, 0)]),
        service("a/named.a", "10.1.0.2", &[(80, 0)]),
        service("a/wp.a", "10.1.0.4", &[(15008, 15008)]),
        having(service("a/guarded.a", "10.1.0.3", &[(80, 8080)]), |service| service.waypoint = gateway("/10.1.0.4")),
        service("a/host.a", "10.1.0.5", &[(80, 8080)]),
        service("a/sick.a", "10.1.0.6", &[(80, 8080)]),
        service("a/far.a", "10.1.0.7", &[(80, 8080)]),
        service("a/lost.a", "10.1.0.8", &[(80, 8080)]),
        service("a/name.a", "10.1.0.9", &[(80, 8080)]),
        having(service("a/through.a", "10.1.0.10", &[(80, 8080)]), passthrough),
        having(service("a/guarded-through.a", "10.1.0.11", &[(80, 8080)]), |service| {
            passthrough(service);
            service.waypoint = gateway("a/wp.a");
        }),
        having(service("b/private.b", "10.1.0.12", &[(80, 8080)]), |service| service.visibility = crate::mesh::Visibility::Namespace),
    ];
    let mesh = mesh(workloads, services);
    let cases = [
        ("198.51.100.1:443", "as dialled", "nobody's address"),
        ("10.0.0.1:1234", "web at 10.0.0.1:1234", "a workload's own address keeps the port"),
        ("10.1.0.1:80", "web at 10.0.0.1:8080 of web.a", "the service maps the port"),
        ("10.1.0.2:80", "own-port at 10.0.0.2:9090 of named.a", "the endpoint maps the port"),
        ("10.1.0.1:81", NO_HEALTHY, "nobody maps the port"),
        ("10.1.0.1:82", NO_HEALTHY, "the service has no such port"),
        ("10.0.0.3:80", "waypoint wp at 10.0.0.4:15008", "the workload's waypoint, by name"),
        ("10.1.0.3:80", "waypoint wp at 10.0.0.4:15008", "the service's waypoint, by address"),
        ("10.0.0.8:80", UNKNOWN_WAYPOINT, "never round a waypoint that is not known"),
        ("192.0.2.1:80", "as dialled", "a node's address is not its pods'"),
        ("10.1.0.5:80", "host at 192.0.2.1:8080 of host.a", "an endpoint may have its node's address"),
        ("10.1.0.6:80", NO_HEALTHY, "the only endpoint is not healthy"),
        ("10.1.0.7:80", UNSUPPORTED, "an endpoint behind a gateway"),
        ("10.1.0.8:80", NO_ROUTE, "an endpoint of a network without gateway"),
        ("10.1.0.9:80", UNSUPPORTED, "an endpoint with a name only"),
        ("10.1.0.10:80", "as dialled", "a service without balancing"),
        ("10.1.0.11:80", "waypoint wp at 10.0.0.4:15008", "its waypoint counts all the same"),
        ("10.1.0.12:80", "as dialled", "a service that the client cannot see"),
    ];
    for (destination, expected, why) in cases {
        assert_eq!(hop(&mesh, &client(), destination), expected, "{why}");
    }
    let wp = mesh.workload("Kubernetes//Pod/a/wp").expect("the waypoint").clone();
    assert_eq!(hop(&mesh, &wp, "10.0.0.3:80"), "behind-waypoint at 10.0.0.3:80", "a waypoint is not sent to itself");
}

#[test]
fn an_address_of_the_dialled_family_is_preferred() {
    let dual = || endpoint(pod("a", "p", "10.0.0.1,fd00::1"), "a/s.a");
    let families = |families| having(service("a/s.a", "10.1.0.1,fd01::1", &[(80, 80)]), |service| service.ip_families = families);
    let cases = [
        (None, "10.1.0.1:80", "p at 10.0.0.1:80 of s.a"),
        (None, "[fd01::1]:80", "p at [fd00::1]:80 of s.a"),
        (Some(IpFamilies::Dual), "[fd01::1]:80", "p at [fd00::1]:80 of s.a"),
        (Some(IpFamilies::V4), "[fd01::1]:80", "p at 10.0.0.1:80 of s.a"),
        (Some(IpFamilies::V6), "10.1.0.1:80", "p at [fd00::1]:80 of s.a"),
    ];
    for (of, destination, expected) in cases {
        let mesh = mesh([dual()], [families(of)]);
        assert_eq!(hop(&mesh, &client(), destination), expected, "{of:?} {destination}");
    }
    let only_v6 = mesh([endpoint(pod("a", "p", "fd00::1"), "a/s.a")], [families(Some(IpFamilies::V4))]);
    assert_eq!(hop(&only_v6, &client(), "10.1.0.1:80"), NO_HEALTHY, "no address that the service allows");
}

/// Which endpoints can be chosen, by drawing often.
fn chosen(workloads: &[Workload], balancer: Option<LoadBalancer>, source: &Workload) -> BTreeMap<String, usize> {
    let balanced = having(service("a/s.a", "10.1.0.1", &[(80, 80)]), |service| service.load_balancer = balancer);
    let mesh = mesh(workloads.iter().map(|workload| endpoint(workload.clone(), "a/s.a")), [balanced]);
    let mut rng = rng();
    let mut counts = BTreeMap::new();
    for _ in 0..1000 {
        if let Ok(Resolution::Upstream(upstream)) = resolve_upstream(&mesh, source, addr("10.1.0.1:80"), &mut rng) {
            *counts.entry(upstream.workload.name.to_string()).or_default() += 1;
        }
    }
    counts
}

fn balancer(mode: LoadBalancerMode, routing_preferences: &[RoutingPreference]) -> Option<LoadBalancer> {
    Some(LoadBalancer { mode, routing_preferences: routing_preferences.to_vec(), health_policy: HealthPolicy::OnlyHealthy })
}

#[test]
fn preferences_choose_among_endpoints() {
    use LoadBalancerMode::{Failover, Standard, Strict};
    use RoutingPreference::{Network, Node, Region, Zone};
    let place = |name: &str, ip: &str, region: &str, zone: &str, node: &str| {
        with(pod("a", name, ip), |workload| {
            workload.locality.region = Str::from(region);
            workload.locality.zone = Str::from(zone);
            workload.node = Str::from(node);
        })
    };
    let near = place("near", "10.0.0.1", "eu", "a", "node1");
    let zone = place("zone", "10.0.0.2", "eu", "a", "node2");
    let region = place("region", "10.0.0.3", "eu", "b", "node3");
    let far = place("far", "10.0.0.4", "us", "a", "node1");
    let source = place("client", "10.0.0.100", "eu", "a", "node1");
    let all = [near.clone(), zone.clone(), region.clone(), far.clone()];
    let cases: [(&[Workload], _, &[&str], &str); 9] = [
        (&all, None, &["far", "near", "region", "zone"], "no preferences"),
        (&all, balancer(Standard, &[Node]), &["far", "near", "region", "zone"], "preferences without a mode mean nothing"),
        (&all, balancer(Failover, &[Region, Zone]), &["near", "zone"], "all with the most matches"),
        (&all, balancer(Failover, &[Region, Zone, Node]), &["near"], "one more preference"),
        (&[region.clone(), far.clone()], balancer(Failover, &[Region, Zone]), &["region"], "failover takes what is left"),
        (&[far.clone(), region.clone()], balancer(Failover, &[Zone, Region]), &["far"], "the first preference weighs most"),
        (&all, balancer(Strict, &[Node]), &["far", "near"], "strict"),
        (&[zone.clone(), region.clone()], balancer(Strict, &[Node]), &[], "strict with no match chooses none"),
        (&all, balancer(Failover, &[Network, Region, Zone]), &["near", "zone"], "all on one network"),
    ];
    for (workloads, balancer, expected, why) in cases {
        assert_eq!(chosen(workloads, balancer, &source).into_keys().collect::<Vec<_>>(), expected, "{why}");
    }
}

#[test]
fn network_as_first_preference_outweighs_locality() {
    use RoutingPreference::{Network, Region, Zone};
    let near_abroad = with(pod("a", "near-abroad", "10.0.0.1"), |workload| {
        workload.network = Str::from("net2");
        workload.network_gateway = gateway("/192.0.2.9");
    });
    let far_at_home = with(pod("a", "far-at-home", "10.0.0.2"), |workload| workload.locality.region = Str::from("us"));
    let failover = balancer(LoadBalancerMode::Failover, &[Network, Region, Zone]);
    let counts = chosen(&[near_abroad, far_at_home], failover, &client());
    assert_eq!(counts, BTreeMap::from([("far-at-home".to_owned(), 1000)]));
}

#[test]
fn capacity_is_the_weight_and_health_a_condition() {
    let weighted = |name: &str, ip: &str, capacity| with(pod("a", name, ip), |workload| workload.capacity = capacity);
    let sick = |workload| with(workload, |workload| workload.status = Health::Unhealthy);
    let counts =
        chosen(&[weighted("one", "10.0.0.1", 1), weighted("three", "10.0.0.2", 3), weighted("none", "10.0.0.3", 0)], None, &client());
    assert_eq!(counts.keys().collect::<Vec<_>>(), ["one", "three"]);
    assert!((200..300).contains(&counts["one"]), "about a quarter, not {}", counts["one"]);
    assert_eq!(chosen(&[weighted("none", "10.0.0.3", 0)], None, &client()), BTreeMap::new());

    let endpoints = [weighted("well", "10.0.0.1", 1), sick(weighted("sick", "10.0.0.2", 1))];
    assert_eq!(chosen(&endpoints, None, &client()).into_keys().collect::<Vec<_>>(), ["well"]);
    let all = Some(LoadBalancer { health_policy: HealthPolicy::AllowAll, ..LoadBalancer::default() });
    assert_eq!(chosen(&endpoints, all, &client()).into_keys().collect::<Vec<_>>(), ["sick", "well"]);
}

#[test]
fn a_service_that_turns_to_all_endpoints_finds_those_that_were_unhealthy_before() {
    let store = crate::mesh::MeshStore::new(None);
    let plain = service("a/s.a", "10.1.0.1", &[(80, 80)]);
    store.edit(|edit| {
        edit.upsert_service(plain.clone());
        edit.upsert_workload(with(endpoint(pod("a", "sick", "10.0.0.1"), "a/s.a"), |workload| workload.status = Health::Unhealthy));
    });
    assert_eq!(hop(&store.snapshot(), &client(), "10.1.0.1:80"), NO_HEALTHY);
    store.edit(|edit| {
        edit.upsert_service(having(plain, |service| {
            service.load_balancer = Some(LoadBalancer { health_policy: HealthPolicy::AllowAll, ..LoadBalancer::default() });
        }));
    });
    assert_eq!(hop(&store.snapshot(), &client(), "10.1.0.1:80"), "sick at 10.0.0.1:80 of s.a");
}

#[test]
fn weighted_waypoints_are_drawn_by_weight() {
    let waypoint = |destination: &str, weight| WeightedWaypoint { destination: gateway(destination).expect("a gateway"), weight };
    let weighted = having(service("a/s.a", "10.1.0.1", &[(80, 80)]), |service| {
        service.waypoint = gateway("/10.0.0.9");
        service.weighted_waypoints = vec![waypoint("/10.0.0.1", 1), waypoint("/10.0.0.2", 3), waypoint("/10.0.0.3", 0)];
    });
    let zero = having(service("a/z.a", "10.1.0.2", &[(80, 80)]), |service| {
        service.waypoint = gateway("/10.0.0.9");
        service.weighted_waypoints = vec![waypoint("/10.0.0.1", 0)];
    });
    let pods = [pod("a", "w1", "10.0.0.1"), pod("a", "w2", "10.0.0.2"), pod("a", "w3", "10.0.0.3"), pod("a", "w9", "10.0.0.9")];
    let mesh = mesh(pods, [weighted, zero]);
    let mut rng = rng();
    let mut counts = BTreeMap::<String, usize>::new();
    for _ in 0..1000 {
        let hop = route(&mesh, &client(), addr("10.1.0.1:80"), &mut rng).expect("a route");
        let Route::Waypoint { waypoint, .. } = hop else { panic!("{hop:?}") };
        *counts.entry(waypoint.workload.name.to_string()).or_default() += 1;
    }
    assert_eq!(counts.keys().collect::<Vec<_>>(), ["w1", "w2"]);
    assert!((200..300).contains(&counts["w1"]), "about a quarter, not {}", counts["w1"]);
    assert_eq!(hop(&mesh, &client(), "10.1.0.2:80"), "waypoint w9 at 10.0.0.9:15008", "without weights the single one");
}

#[test]
fn a_waypoint_that_takes_tunnels_itself_needs_no_port_in_its_service() {
    let tunnel = |port| Some(ApplicationTunnel { protocol: ApplicationProtocol::PROXY, port });
    let wp = |port| with(endpoint(pod("a", "wp", "10.0.0.1"), "a/wp.a"), |workload| workload.application_tunnel = tunnel(port));
    let guarded = having(service("a/s.a", "10.1.0.1", &[(80, 80)]), |service| service.waypoint = gateway("a/wp.a"));
    let services = [guarded, service("a/wp.a", "10.1.0.2", &[(80, 80)])];
    let mesh_with = |port| mesh([wp(port)], services.clone());
    assert_eq!(hop(&mesh_with(Some(15088)), &client(), "10.1.0.1:80"), "waypoint wp at 10.0.0.1:15008");
    assert_eq!(hop(&mesh_with(None), &client(), "10.1.0.1:80"), NO_HEALTHY);
}

#[test]
fn who_may_answer() {
    let named = having(service("a/s.a", "10.1.0.1", &[(80, 80)]), |service| {
        let names = ["spiffe://cluster.local/ns/b/sa/other", "spiffe://cluster.local/ns/a/sa/p", "other.example"];
        service.subject_alt_names = names.map(Str::from).to_vec();
    });
    let mesh = mesh([endpoint(pod("a", "p", "10.0.0.1"), "a/s.a")], [named]);
    let identities = |destination| match resolve_upstream(&mesh, &client(), addr(destination), &mut rng()) {
        Ok(Resolution::Upstream(upstream)) => {
            upstream.identities().expect("identities").iter().map(SpiffeId::principal).collect::<Vec<_>>()
        }
        other => panic!("{other:?}"),
    };
    assert_eq!(identities("10.1.0.1:80"), ["cluster.local/ns/a/sa/p", "cluster.local/ns/b/sa/other"]);
    assert_eq!(identities("10.0.0.1:80"), ["cluster.local/ns/a/sa/p"], "by its own address only itself");
}
