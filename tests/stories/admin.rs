//! What an operator can ask of a running proxy, and what a wrong start says.

use serde_json::Value;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use warren::demo::pod::{ECHO_PORT, Outcome};
use warren::demo::story::mesh::{LogMark, Mesh, Port, SERVICE, SERVICE_PORT, text};

use crate::common::{sandboxed, warren};
use crate::tools::{Held, body, dump, echo_at, enrolled, metric, metrics, page, soon, wait_for_tunnel};

const CLIENT: &str = "spiffe://cluster.local/ns/default/sa/client";
const SERVER: &str = "spiffe://cluster.local/ns/default/sa/server";

#[test]
fn the_dump_shows_mesh_certificates_and_open_connections() {
    sandboxed("admin::the_dump_shows_mesh_certificates_and_open_connections", |dir| {
        let mut mesh = enrolled(dir);
        mesh.edit(|file| {
            let only = warren::config::meshfile::Rule { ports: vec![ECHO_PORT], ..Default::default() };
            file.policies.push(warren::config::meshfile::Policy {
                name: "echo-only".to_owned(),
                namespace: "default".to_owned(),
                selector: [("app".to_owned(), "server".to_owned())].into(),
                global: false,
                action: warren::config::meshfile::Action::Allow,
                dry_run: false,
                rules: vec![only],
            });
        })
        .unwrap();
        let held = Held::open(&mesh, "client", "server");
        let shown =
            soon(&mut mesh, "the policy arrives", |mesh| Some(dump(mesh, 1)).filter(|dump| dump["policies"][0]["name"].is_string()));
        let names = |list: &str| shown[list].as_array().unwrap().iter().map(|item| item["name"].as_str().unwrap()).collect::<Vec<_>>();
        assert_eq!(names("workloads"), ["client", "local", "outside", "server"]);
        assert_eq!(names("services"), ["server"]);
        assert_eq!(names("policies"), ["echo-only"]);
        let service = &shown["services"][0];
        assert_eq!(service["endpoints"].as_object().map(serde_json::Map::len), Some(1), "{service}");
        assert_eq!(shown["policies"][0]["action"], "Allow");
        let client = &shown["workloads"][0];
        assert_eq!((&client["protocol"], &client["node"], &client["status"]), (&"HBONE".into(), &"node1".into(), &"Healthy".into()));

        let certificates = shown["certificates"].as_array().unwrap();
        let listed = certificates.iter().find(|listed| listed["identity"] == CLIENT).unwrap();
        assert_eq!(listed["state"], "Available");
        let leaf = &listed["certChain"][0];
        assert!(leaf["serialNumber"].as_str().unwrap().bytes().all(|byte| byte.is_ascii_digit()), "decimal: {leaf}");
        let time = |field: &str| OffsetDateTime::parse(leaf[field].as_str().unwrap(), &Rfc3339).unwrap();
        let now = OffsetDateTime::now_utc();
        assert!(time("validFrom") <= now && now < time("expirationTime"), "{leaf}");
        assert!(!listed["rootCerts"].as_array().unwrap().is_empty());
        assert!(!shown.to_string().contains("PRIVATE"), "keys are nobody's business");

        let (from, to) = (open_connection(&shown, "client", "outbound"), dump(&mesh, 2));
        let to = open_connection(&to, "server", "inbound");
        let address = echo_at(&mesh, "server").to_string();
        assert_eq!((from["originalDst"].as_str(), from["protocol"].as_str()), (Some(&*address), Some("HBONE")), "{from}");
        assert_eq!(from["actualDst"].as_str(), Some(&*address.replace("8080", "15008")), "{from}");
        assert_eq!((to["actualDst"].as_str(), to["protocol"].as_str()), (Some(&*address), Some("HBONE")), "{to}");
        assert!(to["src"].as_str().unwrap().starts_with("10.77.1.10:"), "{to}");
        drop(held);
        soon(&mut mesh, "a closed connection is no longer listed", |mesh| {
            let state = dump(mesh, 1)["workloadState"]["default.client"].clone();
            (state["state"] == "Up" && state["connections"]["outbound"] == Value::Array(vec![])).then_some(())
        });
    });
}

#[test]
fn metrics_are_openmetrics_and_count_what_happened() {
    sandboxed("admin::metrics_are_openmetrics_and_count_what_happened", |dir| {
        let mut mesh = enrolled(dir);
        let by_service = (SERVICE, SERVICE_PORT).into();
        let text = "seventeen letters";
        let before = [metrics(&mesh, 1), metrics(&mesh, 2)];
        let said = mesh.say("client", by_service, text).unwrap();
        assert_eq!(said.outcome, Outcome::Echoed, "{said:?}");
        for (node, reporter) in [(1, "source"), (2, "destination")] {
            let labels = [
                ("reporter", reporter),
                ("source_workload", "client"),
                ("source_canonical_service", "client"),
                ("source_canonical_revision", "latest"),
                ("source_workload_namespace", "default"),
                ("source_principal", CLIENT),
                ("source_app", "client"),
                ("source_version", "latest"),
                ("source_cluster", "Kubernetes"),
                ("destination_service", "server.default.svc.cluster.local"),
                ("destination_service_namespace", "default"),
                ("destination_service_name", "server"),
                ("destination_workload", "server"),
                ("destination_canonical_service", "server"),
                ("destination_canonical_revision", "latest"),
                ("destination_workload_namespace", "default"),
                ("destination_principal", SERVER),
                ("destination_app", "server"),
                ("destination_version", "latest"),
                ("destination_cluster", "Kubernetes"),
                ("request_protocol", "tcp"),
                ("response_flags", "-"),
                ("connection_security_policy", "mutual_tls"),
            ];
            let sum = |page: &str, name: &str| {
                page::samples(page, name).iter().filter(|sample| sample.has(&labels)).map(|s| s.value).sum::<f64>()
            };
            let old = &before[usize::from(node) - 1];
            let growth = |page: &str, name: &str| sum(page, name) - sum(old, name);
            let page = soon(&mut mesh, "the connection is counted", |mesh| {
                Some(metrics(mesh, node)).filter(|page| growth(page, "istio_tcp_connections_closed_total") >= 1.0)
            });
            page::assert_openmetrics(&page);
            let length = text.len() as f64;
            assert_eq!(growth(&page, "istio_tcp_connections_opened_total"), 1.0, "{page}");
            assert_eq!(growth(&page, "istio_tcp_connections_closed_total"), 1.0, "{page}");
            assert_eq!(growth(&page, "istio_tcp_received_bytes_total"), length, "{page}");
            assert_eq!(growth(&page, "istio_tcp_sent_bytes_total"), length, "{page}");
            assert!(metric(&page, "process_resident_memory_bytes", &[]) > 1e6, "{page}");
            assert!(metric(&page, "process_open_fds", &[]) > 1.0 && metric(&page, "istio_build", &[]) == 1.0, "{page}");
            let sample = page::samples(&page, "istio_tcp_connections_opened_total");
            let names: Vec<&str> = sample[0].labels.iter().map(|(name, _)| name.as_str()).collect();
            assert_eq!(names[..labels.len()], labels.map(|(name, _)| name), "in this order");
        }
        let head = mesh.http(1, Port::Stats, "GET", "/stats/prometheus").unwrap();
        assert!(body(&head).ends_with("# EOF\n"));
    });
}

#[test]
fn the_series_of_a_pod_vanish_with_it() {
    sandboxed("admin::the_series_of_a_pod_vanish_with_it", |dir| {
        let mut mesh = enrolled(dir);
        wait_for_tunnel(&mut mesh, "local", "server", 1);
        let count = |page: &str, pod: &str| page.matches(&format!("source_workload=\"{pod}\"")).count();
        let page = metrics(&mesh, 1);
        assert!(count(&page, "local") > 0 && count(&page, "client") > 0, "{page}");
        mesh.edit(|file| file.pods.retain(|pod| pod.name != "local")).unwrap();
        let page = soon(&mut mesh, "its series are gone", |mesh| Some(metrics(mesh, 1)).filter(|page| count(page, "local") == 0));
        assert!(count(&page, "client") > 0, "others stay: {page}");
        page::assert_openmetrics(&page);
    });
}

#[test]
fn the_log_level_can_be_changed_and_wrong_questions_are_refused() {
    sandboxed("admin::the_log_level_can_be_changed_and_wrong_questions_are_refused", |dir| {
        let mut mesh = enrolled(dir);
        let ask = |mesh: &Mesh, port, method: &str, path: &str| mesh.http(1, port, method, path).unwrap();
        // The log is written a moment later: what it says of a connection is looked for by the connection's source.
        let logged = |mesh: &mut Mesh, mark: &LogMark, opened: bool| {
            let lines = mesh.access_log(1, mark);
            let sources = |message: &'static str| {
                lines.iter().filter(move |line| text(line, "message") == message).map(|line| text(line, "src.addr"))
            };
            sources("connection complete").any(|source| sources("connection opened").any(|other| other == source) == opened).then_some(())
        };
        let mark = mesh.log_mark();
        let said = ask(&mesh, Port::Admin, "POST", "/logging?level=access=debug");
        assert!(body(&said).contains("access=debug"), "{said}");
        wait_for_tunnel(&mut mesh, "client", "server", 1);
        soon(&mut mesh, "a connection is said to be opened", |mesh| logged(mesh, &mark, true));
        body(&ask(&mesh, Port::Admin, "POST", "/logging?reset"));
        let mark = mesh.log_mark();
        wait_for_tunnel(&mut mesh, "client", "server", 1);
        soon(&mut mesh, "a connection is only said to be complete", |mesh| logged(mesh, &mark, false));
        let refused = ask(&mesh, Port::Admin, "POST", "/logging?level=access=chatty");
        assert!(refused.starts_with("HTTP/1.1 400 ") && refused.contains("Invalid level"), "{refused}");

        for (port, method, path, status) in [
            (Port::Admin, "GET", "/nothing", 404),
            (Port::Admin, "GET", "/logging", 405),
            (Port::Stats, "GET", "/config_dump", 404),
            (Port::Ready, "GET", "/healthz", 404),
            (Port::Ready, "POST", "/healthz/ready", 405),
        ] {
            let said = ask(&mesh, port, method, path);
            assert!(said.starts_with(&format!("HTTP/1.1 {status} ")), "{method} {path}: {said}");
        }
        // The admin API is for the node alone.
        let node = mesh.lab().node(1).unwrap();
        let from_outside = mesh.lab().node(2).unwrap().netns.run(|| std::net::TcpStream::connect((node.ip(), 15000))).unwrap();
        assert!(from_outside.is_err());
    });
}

#[test]
fn wrong_usage_ends_with_2_and_says_how() {
    for (arguments, named) in [
        (&["dance"][..], "dance"),
        (&["agent", "--source", "file:x", "--node", "n", "--loud"], "--loud"),
        (&["agent", "--source", "kube", "--node", "n"], "only kubernetes and file:PATH are known"),
        (&["control"], "--source"),
        (&[], "Usage"),
    ] {
        let output = warren(arguments).env_remove("NODE_NAME").output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {said}");
        assert!(said.contains(named) && (said.contains("Usage") || said.contains("--help")), "{arguments:?}: {said}");
        assert!(output.stdout.is_empty());
    }
}

#[test]
fn a_wrong_setting_of_the_proxy_ends_with_1_and_is_named() {
    for (name, value) in [
        ("POOL_MAX_STREAMS_PER_CONNECTION", "many"),
        ("CONNECTION_TERMINATION_DEADLINE", "soon"),
        ("STATS_PORT", "70000"),
        ("LOG_FORMAT", "xml"),
        ("XDS_ADDRESS", "http://plain:15012"),
        ("CA_ADDRESS", ""),
    ] {
        let output = warren(&["proxy"]).env_clear().env(name, value).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{name}: {said}");
        assert!(said.contains("W0002") && said.contains(name), "{name}: {said}");
    }
}

fn open_connection(dump: &Value, pod: &str, direction: &str) -> Value {
    let state = &dump["workloadState"][format!("default.{pod}")];
    assert_eq!(state["info"]["name"], pod, "{state}");
    let open = state["connections"][direction].as_array().unwrap();
    assert_eq!(open.len(), 1, "{state}");
    open[0].clone()
}
