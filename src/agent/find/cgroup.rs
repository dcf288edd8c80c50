//! Which pod a process belongs to, by the names of its control groups.

/// The UID, in the API's form, of the pod that the text of `/proc/PID/cgroup` names; `node` is that text for the node's
/// process 1, read from the same place.
///
/// Runtimes and drivers differ in everything but one thing: a directory is named after the pod.
/// `pod<uid>` with the cgroupfs driver, `kubepods-besteffort-pod<uid with _>.slice` with systemd's; in any hierarchy. The
/// first such directory counts, since a pod may name groups below its own as it likes; not those that the node itself is
/// in, which may run in a pod of another cluster. Hierarchies that name different pods name none.
pub(super) fn pod(text: &str, node: &str) -> Option<String> {
    let mut pods = text.lines().filter_map(|line| {
        let (hierarchy, path) = split(line)?;
        let own = node.lines().filter_map(split).find_map(|(other, path)| (other == hierarchy).then_some(path));
        below(path, own.unwrap_or_default()).find_map(uid)
    });
    let first = pods.next()?;
    pods.all(|pod| pod == first).then_some(first)
}

/// `hierarchy:controllers:path`: what is before the path, and the path.
fn split(line: &str) -> Option<(&str, &str)> {
    let (id, rest) = line.split_once(':')?;
    let (controllers, path) = rest.split_once(':')?;
    Some((line.get(..id.len() + 1 + controllers.len())?, path))
}

/// The directories of `path` after those that it has in common with `own`.
fn below<'a>(path: &'a str, own: &'a str) -> impl Iterator<Item = &'a str> {
    let common = path.split('/').zip(own.split('/')).take_while(|(one, other)| one == other).count();
    path.split('/').skip(common)
}

fn uid(directory: &str) -> Option<String> {
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
        let other = "c".repeat(32);
        let container = "8f".repeat(32);
        let cases = [
            ("cgroupfs, v1, containerd", format!("12:memory:/kubepods/besteffort/pod{one}/{container}\n"), Some(one)),
            ("cgroupfs, v2", format!("0::/kubepods/pod{one}/{container}\n"), Some(one)),
            (
                "systemd, v2, containerd",
                format!(
                    "0::/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{slice}.slice/cri-containerd-{container}.scope\n"
                ),
                Some(one),
            ),
            (
                "systemd, guaranteed, CRI-O",
                format!("0::/kubepods.slice/kubepods-pod{slice}.slice/crio-{container}.scope/container\n"),
                Some(one),
            ),
            (
                "systemd, v1, docker",
                format!("1:name=systemd:/kubepods.slice/kubepods-pod{slice}.slice/docker-{container}.scope\n"),
                Some(one),
            ),
            (
                "kind",
                format!(
                    "0::/docker/{container}/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-besteffort.slice/kubelet-kubepods-besteffort-pod{slice}.slice/x\n"
                ),
                Some(one),
            ),
            ("seen from inside another group", format!("0::/../../besteffort/pod{one}/{container}\n"), Some(one)),
            ("a static pod", format!("0::/kubepods/burstable/pod{other}/x\n"), Some(&*other)),
            ("a group that the pod made", format!("0::/kubepods/pod{one}/{container}/kubepods/pod{other}\n"), Some(one)),
            ("the same from inside another group", format!("0::/../../besteffort/pod{one}/x/pod{other}\n"), Some(one)),
            ("in several hierarchies", format!("2:cpu:/kubepods/pod{one}/x\n1:name=systemd:/kubepods/pod{one}/x\n0::/\n"), Some(one)),
            ("another one in each", format!("2:cpu:/kubepods/pod{one}/x\n1:name=systemd:/kubepods/pod{other}/x\n"), None),
            ("the container runtime", "0::/system.slice/containerd.service\n".to_owned(), None),
            ("too short", "0::/kubepods/pod1234/x\n".to_owned(), None),
            ("a word that ends in pod", format!("0::/user.slice/tripod{one}/x\n"), None),
            ("dashes in other places", "0::/kubepods/pod2ba3f1c09d4e-4c57-a1b2-0123456789-a-b/x\n".to_owned(), None),
            ("nothing", String::new(), None),
            ("not a group", "garbage\n\n0:\n".to_owned(), None),
        ];
        for (name, text, expected) in cases {
            for node in ["0::/init.scope\n", "12:memory:/\n0::/../../../init.scope\n", ""] {
                assert_eq!(pod(&text, node).as_deref(), expected, "{name}, process 1 in {node:?}");
            }
        }
    }

    #[test]
    fn a_node_may_itself_be_in_a_pod() {
        let (outer, inner, made) = ("a".repeat(32), "b".repeat(32), "c".repeat(32));
        let node = format!("1:cpu:/kubepods/pod{outer}/x\n0::/kubepods/pod{outer}/x/init.scope\n");
        let cases = [
            ("a pod", format!("0::/kubepods/pod{outer}/x/kubelet/kubepods/pod{inner}/y\n"), Some(&inner)),
            ("in another hierarchy", format!("1:cpu:/kubepods/pod{outer}/x/kubelet/kubepods/pod{inner}/y\n0::/\n"), Some(&inner)),
            ("a group that the pod made", format!("0::/kubepods/pod{outer}/x/kubelet/kubepods/pod{inner}/y/pod{made}\n"), Some(&inner)),
            ("the node's kubelet", format!("0::/kubepods/pod{outer}/x/system.slice/kubelet.service\n"), None),
            ("what process 1 is in", node.clone(), None),
            ("beside the node", format!("0::/kubepods/pod{made}/x\n"), Some(&made)),
        ];
        for (name, text, expected) in cases {
            assert_eq!(pod(&text, &node).as_ref(), expected, "{name}");
        }
    }
}
