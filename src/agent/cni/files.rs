//! Files on the node that others read at any moment, and some write: they change from one whole state to the next.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};

/// Beginning and end of the names of files that are being written. Runtimes go by the end and do not look at them.
const UNFINISHED: (&str, &str) = (".warren-", ".tmp");

/// What tells one content of a file from another without reading it: device, inode, size, time of change.
pub(super) type Fingerprint = (u64, u64, u64, i64, i64);

/// The file's fingerprint; `None` when there is no file.
pub(super) fn fingerprint(path: &Path) -> Option<Fingerprint> {
    let meta = fs::metadata(path).ok()?;
    Some((meta.dev(), meta.ino(), meta.size(), meta.mtime(), meta.mtime_nsec()))
}

/// Puts `content` at `path`, whatever is there.
///
/// # Errors
/// As the kernel says; nothing has changed.
pub(super) fn put(path: &Path, content: &mut dyn Read, mode: u32) -> io::Result<()> {
    let fresh = Unfinished::write(path, content, mode)?;
    fs::rename(&fresh.0, path)?;
    sync_directory(path)
}

/// Replaces the text `before` at `path` by `after`; owner and mode stay. Returns false, and changes nothing, when the file
/// does not hold `before` any more.
///
/// # Errors
/// As the kernel says.
pub(super) fn replace(path: &Path, before: &str, after: &str) -> io::Result<bool> {
    // A link stays a link: what it leads to is replaced.
    let path = &fs::canonicalize(path)?;
    let meta = fs::metadata(path)?;
    let fresh = Unfinished::write(path, &mut after.as_bytes(), meta.permissions().mode())?;
    let own = fs::metadata(&fresh.0)?;
    if (own.uid(), own.gid()) != (meta.uid(), meta.gid()) {
        // Without CAP_CHOWN it becomes this process's file; runtimes read it as root.
        match std::os::unix::fs::chown(&fresh.0, Some(meta.uid()), Some(meta.gid())) {
            Err(error) if error.kind() != io::ErrorKind::PermissionDenied => return Err(error),
            _ => {}
        }
    }
    let exchange = || renameat2(AT_FDCWD, &fresh.0, AT_FDCWD, path, RenameFlags::RENAME_EXCHANGE);
    match exchange() {
        Ok(()) => {
            // What was there at that very moment is now under the other name. If it is not what was read, somebody has
            // written meanwhile, and that must not be lost.
            if fs::read(&fresh.0)? != before.as_bytes() {
                exchange()?;
                return Ok(false);
            }
        }
        Err(Errno::ENOENT) => return Ok(false),
        // Not every file system can exchange.
        Err(Errno::EINVAL | Errno::ENOSYS) => {
            if fs::read(path)? != before.as_bytes() {
                return Ok(false);
            }
            fs::rename(&fresh.0, path)?;
        }
        Err(errno) => return Err(errno.into()),
    }
    sync_directory(path)?;
    Ok(true)
}

/// Removes the file; that there is none is no error.
///
/// # Errors
/// As the kernel says.
pub(super) fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Removes what an agent that was killed did not finish.
///
/// # Errors
/// As the kernel says. That the directory does not exist is no error.
pub(super) fn remove_unfinished(directory: &Path) -> io::Result<()> {
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.starts_with(UNFINISHED.0) && name.ends_with(UNFINISHED.1) {
            remove(&entry.path())?;
        }
    }
    Ok(())
}

/// Whether both files hold the same bytes. Reads as much as is needed to know.
///
/// # Errors
/// One of them cannot be read.
pub(super) fn same_content(one: &Path, other: &Path) -> io::Result<bool> {
    let (mut one, mut other) = (File::open(one)?, File::open(other)?);
    if one.metadata()?.len() != other.metadata()?.len() {
        return Ok(false);
    }
    let (mut left, mut right) = (vec![0; 64 << 10], vec![0; 64 << 10]);
    loop {
        let length = one.read(&mut left)?;
        let (Some(left), Some(right)) = (left.get(..length), right.get_mut(..length)) else { return Ok(false) };
        match other.read_exact(right) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(false),
            read => read?,
        }
        if left != right {
            return Ok(false);
        }
        if length == 0 {
            return Ok(true);
        }
    }
}

/// A file beside the one that it is to become. Removed when dropped, if it is still there.
struct Unfinished(PathBuf);

impl Unfinished {
    fn write(beside: &Path, content: &mut dyn Read, mode: u32) -> io::Result<Self> {
        let name = format!("{}{:016x}{}", UNFINISHED.0, rand::random::<u64>(), UNFINISHED.1);
        let path = beside.with_file_name(name);
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
        let fresh = Self(path);
        io::copy(content, &mut file)?;
        file.flush()?;
        file.set_permissions(fs::Permissions::from_mode(mode))?;
        file.sync_all()?;
        Ok(fresh)
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        // After a rename it is gone, and its name was used once.
        let _ = fs::remove_file(&self.0);
    }
}

/// Makes a rename outlast a loss of power.
fn sync_directory(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(directory) => File::open(directory)?.sync_all(),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_only_if_nobody_else_was_faster() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let path = directory.path().join("a.conflist");
        fs::write(&path, "one").expect("write");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).expect("mode");
        assert!(replace(&path, "one", "two").expect("replace"));
        assert_eq!(fs::read_to_string(&path).expect("read"), "two");
        assert_eq!(fs::metadata(&path).expect("there").permissions().mode() & 0o777, 0o640);
        assert!(!replace(&path, "one", "three").expect("look"), "it does not hold that any more");
        assert_eq!(fs::read_to_string(&path).expect("read"), "two");
        assert_eq!(fs::read_dir(directory.path()).expect("list").count(), 1, "nothing else is left");
    }

    #[test]
    fn a_link_stays_a_link() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let (real, link) = (directory.path().join("real"), directory.path().join("link"));
        fs::write(&real, "one").expect("write");
        std::os::unix::fs::symlink("real", &link).expect("link");
        assert!(replace(&link, "one", "two").expect("replace"));
        assert_eq!(fs::read_link(&link).expect("a link"), Path::new("real"));
        assert_eq!(fs::read_to_string(&real).expect("read"), "two");
    }

    #[test]
    fn contents_are_compared_to_the_end() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let (one, other) = (directory.path().join("one"), directory.path().join("other"));
        let mut content = vec![7; 200_000];
        put(&one, &mut &content[..], 0o755).expect("put");
        put(&other, &mut &content[..], 0o755).expect("put");
        assert!(same_content(&one, &other).expect("readable"));
        content[199_999] = 8;
        put(&other, &mut &content[..], 0o755).expect("put over it");
        assert!(!same_content(&one, &other).expect("readable"));
        assert!(same_content(&one, &directory.path().join("none")).is_err());
    }

    #[test]
    fn what_was_not_finished_is_cleared_away() {
        let directory = tempfile::tempdir().expect("temporary directory");
        for name in [".warren-1.tmp", "kept.tmp", ".warren-kept"] {
            fs::write(directory.path().join(name), "").expect("write");
        }
        remove_unfinished(directory.path()).expect("cleared");
        assert_eq!(fs::read_dir(directory.path()).expect("list").count(), 2);
        remove_unfinished(&directory.path().join("none")).expect("nothing to do");
    }
}
