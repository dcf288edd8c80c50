//! The rooms of `src/` depend on each other in one direction only.

#![allow(clippy::expect_used, clippy::panic, reason = "helpers of tests are test code")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Tiers, lowest first. A room may use its own tier and those below; siblings must not form a cycle.
const TIERS: &[&[&str]] = &[
    &["base", "wire"],
    &["telemetry"],
    &["net"],
    &["config", "tls", "identity", "zds", "cni"],
    &["hbone", "mesh"],
    &["policy", "xds"],
    &["proxy", "agent", "control"],
    &["admin"],
    &["demo"],
    &["cli"],
];

#[test]
fn dependencies_point_down() {
    let uses = uses();
    let mut wrong = Vec::new();
    for (room, used) in &uses {
        let tier = tier(room);
        for (other, file) in used {
            if self::tier(other) > tier {
                wrong.push(format!("{room} uses {other} ({})", file.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "rooms that reach up:\n{}", wrong.join("\n"));
}

#[test]
fn siblings_form_no_cycle() {
    let uses = uses();
    for (room, used) in &uses {
        for (other, file) in used {
            let back = uses.get(other).is_some_and(|back| back.contains_key(room));
            // Certificates are what TLS is made of, and the authority is reached over TLS: the two know each other.
            let known = ["identity", "tls"].contains(&room.as_str()) && ["identity", "tls"].contains(&other.as_str());
            assert!(!back || known, "{room} and {other} use each other ({})", file.display());
        }
    }
}

#[test]
fn every_room_says_what_belongs_in_it() {
    for room in TIERS.iter().copied().flatten() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("src").join(room).join("mod.rs");
        let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        assert!(text.starts_with("//! "), "{} opens with its sentence", path.display());
    }
}

#[test]
fn unsafe_code_is_in_net_only() {
    for (room, file) in files() {
        let text = std::fs::read_to_string(&file).expect("source");
        assert!(room == "net" || !text.contains("allow(unsafe_code"), "{} allows unsafe code", file.display());
    }
}

fn tier(room: &str) -> usize {
    TIERS.iter().position(|tier| tier.contains(&room)).unwrap_or_else(|| panic!("room {room} has no tier"))
}

/// Room → rooms it uses, each with one file that does.
fn uses() -> BTreeMap<String, BTreeMap<String, PathBuf>> {
    let mut uses: BTreeMap<String, BTreeMap<String, PathBuf>> = BTreeMap::new();
    for (room, file) in files() {
        let text = std::fs::read_to_string(&file).expect("source");
        // Tests may look at anything: they are not part of the house.
        let code = text.split("#[cfg(test)]\nmod ").next().unwrap_or_default();
        if file.file_name().is_some_and(|name| name.to_string_lossy().ends_with("tests.rs"))
            || file.components().any(|part| part.as_os_str() == "tests")
        {
            continue;
        }
        for other in code.split("crate::").skip(1) {
            let name: String = other.chars().take_while(|letter| letter.is_ascii_alphanumeric() || *letter == '_').collect();
            let names = if name.is_empty() { braced(other) } else { vec![name] };
            for name in names.into_iter().filter(|name| *name != room && TIERS.iter().copied().flatten().any(|room| room == name)) {
                uses.entry(room.clone()).or_default().entry(name).or_insert_with(|| file.clone());
            }
        }
    }
    uses
}

/// `{a::b, c}` → `a`, `c`
fn braced(text: &str) -> Vec<String> {
    let Some(inner) = text.strip_prefix('{').and_then(|rest| rest.split_once("};")).map(|(inner, _)| inner) else { return Vec::new() };
    let first = |part: &str| part.trim().split("::").next().unwrap_or_default().to_owned();
    inner.split(',').map(first).collect()
}

fn files() -> Vec<(String, PathBuf)> {
    let mut files = Vec::new();
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    for entry in std::fs::read_dir(root).expect("src").flatten().filter(|entry| entry.path().is_dir()) {
        let room = entry.file_name().to_string_lossy().into_owned();
        let mut open = vec![entry.path()];
        while let Some(directory) = open.pop() {
            for entry in std::fs::read_dir(directory).expect("room").flatten() {
                match entry.path() {
                    path if path.is_dir() => open.push(path),
                    path if path.extension().is_some_and(|extension| extension == "rs") => files.push((room.clone(), path)),
                    _ => {}
                }
            }
        }
    }
    files
}
