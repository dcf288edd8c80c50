//! Network namespaces as values: opened once, compared by identity, entered for the length of a closure.

use std::cell::RefCell;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

use nix::sched::{CloneFlags, setns};

/// Which namespace it is: device and inode of its nsfs file. Equal for every handle of one namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NetNsId {
    device: u64,
    inode: u64,
}

impl NetNsId {
    /// The namespace behind a path, without opening it.
    ///
    /// # Errors
    /// There is no such file.
    pub fn of(path: impl AsRef<Path>) -> io::Result<Self> {
        let meta = std::fs::metadata(path)?;
        Ok(Self { device: meta.dev(), inode: meta.ino() })
    }
}

impl std::fmt::Display for NetNsId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "net:[{}]", self.inode)
    }
}

/// An open network namespace. The handle keeps it alive.
#[derive(Clone, Debug)]
pub struct NetNs {
    fd: Arc<OwnedFd>,
    id: NetNsId,
}

impl NetNs {
    /// The namespace of the calling thread.
    ///
    /// # Errors
    /// When `/proc` is not mounted.
    pub fn current() -> io::Result<Self> {
        Self::open("/proc/thread-self/ns/net")
    }

    /// Opens a namespace by path: `/proc/PID/ns/net` or a bind mount of it.
    ///
    /// # Errors
    /// The file cannot be opened, or it is not a network namespace.
    pub fn open(path: impl AsRef<Path>) -> io::Result<Self> {
        Self::from_fd(File::open(path)?.into())
    }

    /// Takes a descriptor that was received from another process.
    ///
    /// # Errors
    /// `InvalidInput` when it is not a network namespace.
    pub fn from_fd(fd: OwnedFd) -> io::Result<Self> {
        let meta = File::from(fd.try_clone()?).metadata()?;
        // nsfs is the only file system whose files setns() takes; a regular file would fail much later, at first use.
        let fs = nix::sys::statfs::fstatfs(&fd)?;
        if fs.filesystem_type() != nix::sys::statfs::NSFS_MAGIC {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a namespace"));
        }
        Ok(Self { fd: Arc::new(fd), id: NetNsId { device: meta.dev(), inode: meta.ino() } })
    }

    /// Its identity.
    pub fn id(&self) -> NetNsId {
        self.id
    }

    /// Runs `work` inside the namespace, on this thread, and comes back to where the thread was: calls may be nested.
    ///
    /// `work` must not await and must start no thread, which would stay there. Sockets that it makes do.
    ///
    /// # Errors
    /// The namespace cannot be entered. When the thread cannot come back, the process is aborted: it would go on in
    /// somebody else's network.
    pub fn run<R>(&self, work: impl FnOnce() -> R) -> io::Result<R> {
        let before = match HERE.with_borrow(Clone::clone) {
            Some(here) => here,
            None => Self::current()?,
        };
        if before.id == self.id {
            return Ok(work());
        }
        self.enter()?;
        let back = Return(before);
        let result = work();
        drop(back);
        Ok(result)
    }

    /// Moves the calling thread into the namespace for good. For threads that live there.
    ///
    /// # Errors
    /// As the kernel says.
    pub fn enter(&self) -> io::Result<()> {
        setns(self.fd.as_fd(), CloneFlags::CLONE_NEWNET)?;
        HERE.set(Some(self.clone()));
        Ok(())
    }
}

thread_local! {
    /// Where this thread is, once it has moved.
    static HERE: RefCell<Option<NetNs>> = const { RefCell::new(None) };
}

impl AsFd for NetNs {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Leads the thread back, also when the work panics.
struct Return(NetNs);

impl Drop for Return {
    fn drop(&mut self) {
        if let Err(error) = self.0.enter() {
            // Past the log, which is written by a thread that ends here too.
            eprintln!("warren: cannot return to the network namespace that the thread came from: {error}");
            std::process::abort();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_handles_of_one_namespace_are_equal() {
        let one = NetNs::current().expect("own namespace");
        let two = NetNs::open("/proc/self/ns/net").expect("own namespace");
        assert_eq!(one.id(), two.id());
        assert_eq!(one.run(|| 7).expect("own namespace needs no privilege"), 7);
    }

    #[test]
    fn a_plain_file_is_refused() {
        let error = NetNs::open("/proc/self/status").expect_err("not a namespace");
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    }
}
