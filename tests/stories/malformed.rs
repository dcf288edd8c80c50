//! Broken input from every side: files, the agent, the control plane.

mod discovery;
mod zds;

use std::path::Path;
use std::time::{Duration, Instant};

use warren::config::meshfile::MeshFile;
use warren::demo::story::mesh::Mesh;

use crate::common::{sandboxed, warren};
use crate::tools::{Held, LIMIT, assert_echoed, dump, enrolled, prepared, soon, wait_for_tunnel};

#[test]
fn a_broken_mesh_file_changes_nothing_until_it_is_mended() {
    sandboxed("malformed::a_broken_mesh_file_changes_nothing_until_it_is_mended", |dir| {
        let mut mesh = enrolled(dir);
        let mut held = Held::open(&mesh, "client", "server");
        let good = std::fs::read_to_string(mesh.mesh_file()).unwrap();
        let lines = good.lines().count();
        for broken in [format!("{good}\npods: ]\n"), "pods:\n  - {name: a\n".to_owned(), String::new(), format!("{good}\nnonsense: 1\n")] {
            for child in ["control", "agent-node1", "agent-node2"] {
                assert!(mesh.child(child).unwrap().ended().is_none());
            }
            let before = mesh.child("control").unwrap().output().len();
            write(&mesh, &broken);
            let said = soon(&mut mesh, "the log says what is broken", |mesh| {
                let output = mesh.child("control").unwrap().output();
                output[before..].lines().find(|line| line.contains("W7001")).map(ToOwned::to_owned)
            });
            let (line, column) = place(&said);
            assert!((1..=lines + 3).contains(&line) && column > 0, "{said}");
            assert!(said.contains("last good state stays"), "{said}");
        }
        mesh.child("agent-node1").unwrap().wait_for_output("W7001", LIMIT).unwrap();
        held.assert_alive("with a broken file");
        wait_for_tunnel(&mut mesh, "client", "server", 1);

        let mended = good.replace("- name: server\n  namespace: default\n  vips", "- name: mended\n  namespace: default\n  vips");
        assert_ne!(mended, good, "{good}");
        let begun = Instant::now();
        write(&mesh, &mended);
        soon(&mut mesh, "the mended file is in force", |mesh| (service(mesh, 1) == "mended").then_some(()));
        assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
    });
}

#[test]
fn one_bad_pod_is_named_and_the_rest_applies() {
    sandboxed("malformed::one_bad_pod_is_named_and_the_rest_applies", |dir| {
        let mut mesh = enrolled(dir);
        let mut held = Held::open(&mesh, "local", "server");
        let mut file = MeshFile::default();
        mesh.edit(|now| file = now.clone()).unwrap();
        file.services[0].name = "renamed".to_owned();
        let text = file.to_yaml().unwrap().replace("10.77.1.20", "10.77.1.999");
        let at = text.lines().position(|line| line.contains("10.77.1.999")).unwrap() + 1;
        write(&mesh, &text);
        for child in ["control", "agent-node1"] {
            let said = soon(&mut mesh, "the log names the pod", |mesh| {
                mesh.child(child).unwrap().output().lines().find(|line| line.contains("W7006")).map(ToOwned::to_owned)
            });
            assert!(said.contains("pod default/local"), "{said}");
            assert_eq!(place(&said).0, at, "{said}");
        }
        soon(&mut mesh, "the rest applies", |mesh| (service(mesh, 1) == "renamed" && service(mesh, 2) == "renamed").then_some(()));
        held.assert_alive("although its pod is broken in the file");
        wait_for_tunnel(&mut mesh, "local", "server", 1);
    });
}

#[test]
fn a_broken_local_file_ends_the_start_with_its_place() {
    sandboxed("malformed::a_broken_local_file_ends_the_start_with_its_place", |dir| {
        let mesh = prepared(dir);
        let path = dir.join("local.yaml");
        std::fs::write(&path, "workloads:\n- uid: a\n  workloadIps: [127.0.0.1\n").unwrap();
        let (code, said) = proxy_with_local(&mesh, &path);
        assert_eq!(code, Some(1), "{said}");
        assert!(said.contains("local.yaml") && said.contains("W0005"), "{said}");
        assert!(said.contains("line 3") || said.contains(":3:") || said.contains("line 4") || said.contains(":4:"), "{said}");
        let (code, said) = proxy_with_local(&mesh, &dir.join("absent.yaml"));
        assert_eq!(code, Some(1), "{said}");
        assert!(said.contains("absent.yaml") && said.contains("No such file") && said.contains("W0005"), "{said}");
    });
}

#[test]
fn one_bad_resource_of_a_local_file_is_named_and_the_rest_applies() {
    sandboxed("malformed::one_bad_resource_of_a_local_file_is_named_and_the_rest_applies", |dir| {
        let mut mesh = prepared(dir);
        let path = dir.join("local.yaml");
        let ok = "- {uid: ok, name: ok, namespace: default, serviceAccount: ok, workloadIps: [10.77.9.9], protocol: HBONE, node: node1, services: {}}";
        let bad = "- {uid: bad, name: bad, namespace: default, workloadIps: [10.77.9.999], services: {}}";
        std::fs::write(&path, format!("workloads:\n{bad}\n{ok}\n")).unwrap();
        mesh.start_agent(1, &[]).unwrap();
        // The local file is all there is; certificates are not needed for this.
        let path = path.display().to_string();
        mesh.start_proxy(1, &[("XDS_ADDRESS", ""), ("LOCAL_XDS_PATH", &path)]).unwrap();
        mesh.wait_until_ready(1).unwrap();
        let workloads = dump(&mesh, 1)["workloads"].clone();
        let uids: Vec<&str> = workloads.as_array().unwrap().iter().filter_map(|workload| workload["uid"].as_str()).collect();
        assert_eq!(uids, ["ok"], "{workloads}");
        let said = soon(&mut mesh, "the log names it", |mesh| {
            let output = mesh.child("proxy-node1").unwrap().output();
            output.lines().find(|line| line.contains("W4003")).map(ToOwned::to_owned)
        });
        assert!(said.contains("bad") && said.contains("local.yaml"), "{said}");
        assert_echoed(&mut mesh, "client", "server");
    });
}

fn proxy_with_local(mesh: &Mesh, path: &Path) -> (Option<i32>, String) {
    let mut command = warren(&["proxy"]);
    command.env_clear().envs([("XDS_ADDRESS", ""), ("FAKE_CA", "true")]).env("LOCAL_XDS_PATH", path);
    let mut child = mesh.lab().start(mesh.lab().node(1).unwrap(), "broken-proxy", command).unwrap();
    let status = warren::demo::wait::wait_for(LIMIT, "it ends", || child.ended()).unwrap_or_else(|error| panic!("{error}"));
    (status.code(), child.output())
}

/// Renamed into place, past what the mesh thinks is in the file.
fn write(mesh: &Mesh, text: &str) {
    let new = mesh.mesh_file().with_extension("new");
    std::fs::write(&new, text).unwrap();
    std::fs::rename(&new, mesh.mesh_file()).unwrap();
}

/// Line and column behind the file's name.
fn place(said: &str) -> (usize, usize) {
    let rest = said.split("mesh.yaml:").nth(1).unwrap_or_else(|| panic!("no place in {said}"));
    let mut numbers = rest.split(|char: char| !char.is_ascii_digit()).filter_map(|number| number.parse().ok());
    numbers.next().zip(numbers.next()).unwrap_or_else(|| panic!("no line and column in {said}"))
}

fn service(mesh: &Mesh, node: u8) -> String {
    dump(mesh, node)["services"][0]["name"].as_str().unwrap_or_default().to_owned()
}
