//! What the mesh refuses: a client that policy denies, and a server that is not who it should be.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::Progress;
use super::claims::{milliseconds, say};
use super::mesh::{LogMark, Mesh, STOLEN, pod, text};
use super::report::{self, Report};
use crate::base::{Result, code};
use crate::config::meshfile::{Action, Policy, Rule};
use crate::demo::pod::{ECHO_PORT, Outcome};

const PATIENCE: Duration = Duration::from_secs(10);
/// What the claim says.
const SOON: u64 = 1000;
const POLICY: &str = "deny-client";

/// One client is denied, the other goes on; without the policy it is as before.
pub(super) fn denied(mesh: &mut Mesh, marker: &str, progress: &Progress, report: &mut Report) -> Result<()> {
    let server = SocketAddr::from((mesh.lab().pod("server")?.ip(), ECHO_PORT));
    let (start, mark) = (Instant::now(), mesh.log_mark());
    mesh.edit(|file| file.policies.push(policy()))?;
    mesh.until(PATIENCE, "the denied client is refused", |mesh| {
        (mesh.say("client", server, "am I denied?").ok()?.outcome == Outcome::Refused).then_some(())
    })?;
    let effective = milliseconds(start);
    report.claim("a policy that denies the client has effect within a second", effective <= SOON, format!("{effective} ms"));

    // The first refusal may have been a connection that was open when the policy came, and was cut: that is another code.
    let line = mesh.until(PATIENCE, "the access log of the server's proxy says who is denied", |mesh| {
        let _ = mesh.say("client", server, "am I still denied?");
        logged(mesh, 2, &mark, code::POLICY_DENIED.id)
    })?;
    let reason = text(&line, "error").to_owned();
    let named = reason.contains(POLICY);
    progress.say(&format!("denied after {effective} ms: {reason}"));
    report.claim(
        "the access log of the server's proxy says which policy denied whom",
        named,
        format!("{reason}; {}", text(&line, "src.identity")),
    );
    report.policy = Some(report::Policy { code: text(&line, "code").to_owned(), reason, effective_ms: effective });

    let other = say(mesh, "local", server, marker)?;
    report.claim("another client is not denied", other > 0, format!("{other} texts came back"));

    mesh.edit(|file| file.policies.clear())?;
    let again = mesh.until(PATIENCE, "the client is no longer denied", |mesh| {
        Some(mesh.say("client", server, "am I still denied?").ok()?).filter(|said| said.outcome == Outcome::Echoed)
    })?;
    report.claim("without the policy the client reaches the server again", true, again.detail);
    Ok(())
}

/// The pod `outside` listens on the tunnel port with a genuine certificate of its own, at an address that the mesh says
/// is the workload `vault`'s.
pub(super) fn impostor(mesh: &mut Mesh, progress: &Progress, report: &mut Report) -> Result<()> {
    let vault = SocketAddr::from((STOLEN, ECHO_PORT));
    let (address, state) = (mesh.control_address()?, mesh.state_dir());
    let (root, token) = (state.join("ca/root-cert.pem").display().to_string(), state.join("tokens/node2").display().to_string());
    let ip = STOLEN.to_string();
    let arguments = ["impostor", "--ip", &ip, "--ca", &address, "--root", &root, "--token", &token, "--account", "outside"];
    let mut listener = mesh.start_application("outside", "impostor", &arguments)?;
    listener.wait_for_output("listening", PATIENCE)?;

    let mark = mesh.log_mark();
    let place = mesh.lab().pod("outside")?.clone();
    mesh.edit(|file| {
        let mut stolen = pod(&place, "vault");
        stolen.ips = vec![STOLEN.into()];
        // No agent serves that node: nothing captures the real `vault`, and the impostor gets its traffic.
        stolen.node = "node3".to_owned();
        stolen.ambient = true;
        file.pods.push(stolen);
    })?;
    // Until the client's proxy knows the workload, the address is nobody's and reached in plaintext.
    let said = mesh.until(PATIENCE, "the client's proxy refuses the impostor", |mesh| {
        Some(mesh.say("client", vault, "are you the vault?").ok()?).filter(|said| said.outcome == Outcome::Refused)
    })?;
    let line = refusal(mesh, 1, &mark, code::IDENTITY_MISMATCH.id)?;
    let reason = text(&line, "error").to_owned();
    progress.say(&format!("impostor: {reason}"));
    report.claim("a server with somebody else's identity is refused", true, format!("the client's connection: {}", said.detail));
    let named = reason.contains("sa/vault") && reason.contains("sa/outside");
    report.claim("the access log of the client's proxy says whom it wanted and whom it got", named, reason.clone());
    let fooled = listener.output().contains("accepted");
    report.claim("the impostor got no tunnel", !fooled, listener.output().lines().last().unwrap_or_default());
    report.impostor = Some(report::Impostor { code: text(&line, "code").to_owned(), reason });
    drop(listener);
    mesh.edit(|file| file.pods.retain(|pod| pod.name != "vault"))
}

fn refusal(mesh: &mut Mesh, node: u8, mark: &LogMark, code: &str) -> Result<Value> {
    mesh.until(PATIENCE, &format!("the access log of node{node} says {code}"), |mesh| logged(mesh, node, mark, code))
}

fn logged(mesh: &Mesh, node: u8, mark: &LogMark, code: &str) -> Option<Value> {
    mesh.access_log(node, mark).into_iter().find(|line| text(line, "code") == code)
}

fn policy() -> Policy {
    Policy {
        name: POLICY.to_owned(),
        namespace: "default".to_owned(),
        selector: [("app".to_owned(), "server".to_owned())].into(),
        global: false,
        action: Action::Deny,
        dry_run: false,
        rules: vec![Rule { principals: vec!["cluster.local/ns/default/sa/client".to_owned()], ..Rule::default() }],
    }
}
