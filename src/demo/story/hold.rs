//! A live mesh to look around in.

use std::path::Path;
use std::time::Duration;

use super::mesh::Mesh;
use crate::base::Result;
use crate::demo::sandbox::Sandbox;
use crate::demo::wait;

/// Enrols the pods again, prints what can be looked at, and waits for a signal.
///
/// # Errors
/// The pods cannot be enrolled, or a process of the mesh ended.
pub fn hold(mesh: &mut Mesh, sandbox: &Sandbox) -> Result<()> {
    mesh.enrol(true)?;
    mesh.wait_until_enrolled()?;
    eprintln!("the pods are enrolled again; the mesh stays up until Ctrl-C\n{}", guide(mesh, sandbox)?);
    while wait::interrupted().is_none() {
        mesh.check()?;
        wait::pause(LOOK);
    }
    Ok(())
}

/// How often the processes are looked at.
const LOOK: Duration = Duration::from_secs(1);

fn guide(mesh: &Mesh, sandbox: &Sandbox) -> Result<String> {
    let pid = std::process::id();
    // Files and namespaces of the demo are seen from inside its mount namespace only.
    let user = if sandbox.user_namespace() { " --user --preserve-credentials" } else { "" };
    let inside = |place: &Path| format!("nsenter --target {pid}{user} --mount nsenter --net={}", place.display());
    let (client, server) = (mesh.lab().pod("client")?, mesh.lab().pod("server")?);
    let (one, two) = (mesh.lab().node(1)?, mesh.lab().node(2)?);
    let visible = |path: &Path| format!("/proc/{pid}/root{}", path.display());
    let mut lines = vec![
        String::new(),
        "enter a pod (client, local, server, outside) or a node (node1, node2):".to_owned(),
        format!("  {} bash", inside(&client.path)),
        "talk from the client to the server:".to_owned(),
        format!(
            "  {} {} demo-pod say {}:8080 hello",
            inside(&client.path),
            std::env::current_exe().unwrap_or_default().display(),
            server.ip()
        ),
        "ask the proxies (admin 15000, metrics 15020, readiness 15021):".to_owned(),
        format!("  {} curl -s http://127.0.0.1:15000/config_dump", inside(&one.path)),
        format!("  {} curl -s http://127.0.0.1:15020/metrics", inside(&two.path)),
        "watch the wire:".to_owned(),
        // It gives up root by itself, which is nobody's to give in a user namespace.
        format!("  {} tcpdump -ni wire0{}", inside(&one.path), if sandbox.user_namespace() { "   (as root, without --user)" } else { "" }),
        "label pods, add policies; a change is in force when the file is saved:".to_owned(),
        format!("  {}", visible(&mesh.mesh_file())),
        "log files:".to_owned(),
    ];
    lines.extend(mesh.children().iter().map(|child| format!("  {}  process {}", visible(child.log()), child.pid())));
    Ok(lines.join("\n"))
}
