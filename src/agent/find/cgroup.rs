//! Which pod a process belongs to, by the names of its control groups.

/// The UIDs of pods that the text of `/proc/PID/cgroup` names, outermost first, in the API's form.
///
/// Runtimes and drivers differ in everything but one thing: a directory is named after the pod.
/// `pod<uid>` with the cgroupfs driver, `kubepods-besteffort-pod<uid with _>.slice` with systemd's; in any hierarchy,
/// below whatever prefix the node's own container adds.
pub(super) fn pods(text: &str) -> impl Iterator<Item = String> + '_ {
    let paths = text.lines().filter_map(|line| line.splitn(3, ':').nth(2));
    paths.flat_map(|path| path.split('/')).filter_map(pod)
}

fn pod(directory: &str) -> Option<String> {
    let name = directory.strip_suffix(".slice").unwrap_or(directory);
    let (before, uid) = name.rsplit_once("pod")?;
    if !before.is_empty() && !before.ends_with('-') {
        return None;
    }
    let uid = uid.replace('_', "-");
    // A UUID, or the 32 digits that the kubelet makes for a pod of its own (a static one).
    let digits = uid.bytes().filter(u8::is_ascii_hexdigit).count();
    let dashes: Vec<_> = uid.bytes().enumerate().filter(|(_, byte)| *byte == b'-').map(|(at, _)| at).collect();
    let is_uid = digits == 32 && (uid.len() == 32 || (uid.len() == 36 && dashes == [8, 13, 18, 23]));
    is_uid.then(|| uid.to_ascii_lowercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_are_known_by_the_names_of_their_groups() {
        let one = "2ba3f1c0-9d4e-4c57-a1b2-0123456789ab";
        let slice = one.replace('-', "_");
        let container = "8f".repeat(32);
        let cases = [
            ("cgroupfs, v1, containerd", format!("12:memory:/kubepods/besteffort/pod{one}/{container}\n"), vec![one]),
            ("cgroupfs, v2", format!("0::/kubepods/pod{one}/{container}\n"), vec![one]),
            (
                "systemd, v2, containerd",
                format!(
                    "0::/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{slice}.slice/cri-containerd-{container}.scope\n"
                ),
                vec![one],
            ),
            (
                "systemd, guaranteed, CRI-O",
                format!("0::/kubepods.slice/kubepods-pod{slice}.slice/crio-{container}.scope/container\n"),
                vec![one],
            ),
            (
                "systemd, v1, docker",
                format!("1:name=systemd:/kubepods.slice/kubepods-pod{slice}.slice/docker-{container}.scope\n"),
                vec![one],
            ),
            (
                "kind",
                format!(
                    "0::/docker/{container}/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-besteffort.slice/kubelet-kubepods-besteffort-pod{slice}.slice/x\n"
                ),
                vec![one],
            ),
            ("seen from inside another group", format!("0::/../../besteffort/pod{one}/{container}\n"), vec![one]),
            ("a node inside a pod", format!("0::/kubepods/pod{one}/x/kubelet/kubepods/pod{}/y\n", "a".repeat(32)), vec![one, "a"]),
            ("a static pod", format!("0::/kubepods/burstable/pod{}/x\n", "a".repeat(32)), vec!["a"]),
            ("the container runtime", "0::/system.slice/containerd.service\n".to_owned(), vec![]),
            ("too short", "0::/kubepods/pod1234/x\n".to_owned(), vec![]),
            ("a word that ends in pod", format!("0::/user.slice/tripod{one}/x\n"), vec![]),
            ("dashes in other places", "0::/kubepods/pod2ba3f1c09d4e-4c57-a1b2-0123456789-a-b/x\n".to_owned(), vec![]),
            ("nothing", String::new(), vec![]),
            ("not a group", "garbage\n\n0:\n".to_owned(), vec![]),
        ];
        for (name, text, expected) in cases {
            let expected: Vec<_> = expected.iter().map(|uid| if *uid == "a" { "a".repeat(32) } else { (*uid).to_owned() }).collect();
            let mut found: Vec<_> = pods(&text).collect();
            found.dedup();
            assert_eq!(found, expected, "{name}");
        }
    }
}
