//! Network namespaces that a mount keeps, also when no process is in them.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

/// Where network namespaces are mounted, by the text of a `/proc/PID/mountinfo`; relative to that process's root.
pub(super) fn pinned(mountinfo: &str) -> impl Iterator<Item = PathBuf> + '_ {
    mountinfo.lines().filter_map(|line| {
        // `id parent device root mount-point options [tags] - type source options`
        let (left, right) = line.split_once(" - ")?;
        let mut fields = left.split(' ').skip(3);
        let (root, point) = (fields.next()?, fields.next()?);
        (right.split(' ').next()? == "nsfs" && root.starts_with("net:[")).then(|| relative(point))
    })
}

/// Spaces, line ends and backslashes are written as `\` and three octal digits.
fn relative(point: &str) -> PathBuf {
    let mut bytes = Vec::with_capacity(point.len());
    let mut rest = point.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        let digits = after.get(..3).and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok());
        let (byte, after) = match digits.filter(|_| first == b'\\') {
            Some(byte) => (byte, after.get(3..).unwrap_or_default()),
            None => (first, after),
        };
        bytes.push(byte);
        rest = after;
    }
    let path = PathBuf::from(OsString::from_vec(bytes));
    path.strip_prefix("/").map(Path::to_owned).unwrap_or(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_mounts_of_network_namespaces_count() {
        let text = "31 23 0:27 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate
514 26 0:4 net:[4026532345] /run/netns/cni-1 rw shared:7 - nsfs nsfs rw
515 26 0:4 mnt:[4026532346] /run/docker/mnt rw - nsfs nsfs rw
516 26 0:4 net:[4026532347] /run/a\\040b\\134c rw - nsfs nsfs rw
517 26 0:30 net:[4026532348] /home/x rw - tmpfs tmpfs rw
518 26
";
        let found: Vec<_> = pinned(text).collect();
        assert_eq!(found, [Path::new("run/netns/cni-1"), Path::new("run/a b\\c")]);
    }
}
