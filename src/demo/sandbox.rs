//! Namespaces of our own: what happens in them stays in them, and vanishes with the last process.
//!
//! [`enter`] must run while the process has one thread. [`die_with_parent`] is called first thing in `main`, by every
//! role: children of the demo and of tests die with it however it ends.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use nix::unistd::{Uid, getgid, getppid, getuid};

use super::lab::link;
use crate::base::{Error, Result, code};
use crate::net::NetNs;

/// Environment variable that holds the process id of the parent a child must not outlive.
pub const PARENT: &str = "WARREN_PARENT";

/// Environment variable that tells a command run by `warren sandbox` where its scratch directory is.
pub const DIRECTORY: &str = "WARREN_SANDBOX";

/// Directories that exist on every Linux and that nothing in the sandbox needs; the first one is covered by a tmpfs.
const MOUNT_POINTS: &[&str] = &["/run", "/mnt"];

/// A process's own network, mounts and scratch directory.
#[derive(Debug)]
pub struct Sandbox {
    dir: PathBuf,
    user_namespace: bool,
}

impl Sandbox {
    /// Scratch directory on a tmpfs that only this sandbox sees.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Whether a user namespace was needed, because the caller is not privileged.
    pub fn user_namespace(&self) -> bool {
        self.user_namespace
    }
}

/// Moves this process, which must have only one thread, into new network and mount namespaces; where it is not
/// privileged, into a new user namespace first.
///
/// # Errors
/// `DEMO_UNSUPPORTED` with the step that the kernel refused.
pub fn enter() -> Result<Sandbox> {
    let user_namespace = isolate()?;
    let recursive = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(None::<&str>, "/", None::<&str>, recursive, None::<&str>).map_err(|errno| refused("keep mounts private", errno))?;
    let base = MOUNT_POINTS
        .iter()
        .map(Path::new)
        .find(|path| path.is_dir())
        .ok_or_else(|| Error::new(&code::DEMO_UNSUPPORTED, format!("none of the directories {MOUNT_POINTS:?} exists")))?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount(Some("warren"), base, Some("tmpfs"), flags, Some("mode=0755")).map_err(|errno| refused("mount a tmpfs", errno))?;
    let dir = base.join("warren");
    fs::create_dir(&dir).map_err(|error| Error::caused(&code::DEMO_UNSUPPORTED, format!("create {}", dir.display()), error))?;
    let own = NetNs::current().map_err(|error| Error::caused(&code::DEMO_UNSUPPORTED, "/proc is needed", error))?;
    link::loopback_up(&own)?;
    // Taking on the credentials of a new user namespace may have cleared it.
    die_with_parent()?;
    Ok(Sandbox { dir, user_namespace })
}

impl Sandbox {
    /// Replaces this process by `program`; returns only when that cannot be run.
    pub fn exec(&self, program: &OsStr, args: &[OsString]) -> Error {
        // The variable names this process's parent: the program's own children have another.
        let error = Command::new(program).args(args).env_remove(PARENT).env(DIRECTORY, &self.dir).exec();
        Error::caused(&code::BAD_SETTING, format!("run {}", program.display()), error)
    }
}

/// Makes the kernel kill this process when the parent named by [`PARENT`] ends; does nothing when the variable is not set.
///
/// The signal follows the parent's *thread* that started this process: see [`super::lab::Spawner`].
///
/// # Errors
/// The parent has ended already.
pub fn die_with_parent() -> Result<()> {
    let Some(parent) = std::env::var(PARENT).ok().and_then(|text| text.parse::<i32>().ok()) else {
        return Ok(());
    };
    set_pdeathsig(Signal::SIGKILL).map_err(|errno| Error::caused(&code::NO_PERMISSION, "prctl(PR_SET_PDEATHSIG)", errno))?;
    // Between fork and prctl the parent may have ended: no signal would come any more.
    if getppid().as_raw() == parent {
        Ok(())
    } else {
        Err(Error::new(&code::DEMO_CHILD, format!("the parent, process {parent}, has ended")))
    }
}

/// Returns whether a user namespace was made.
fn isolate() -> Result<bool> {
    let own = CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS;
    if Uid::effective().is_root() {
        match unshare(own) {
            Ok(()) => return Ok(false),
            // Root without CAP_SYS_ADMIN, as in most containers: as good as any user.
            Err(Errno::EPERM) => {}
            Err(errno) => return Err(refused("unshare network and mounts", errno)),
        }
    }
    let (uid, gid) = (getuid(), getgid());
    unshare(CloneFlags::CLONE_NEWUSER | own).map_err(|errno| refused("unshare user, network and mounts", errno))?;
    // The kernel lets an unprivileged process map groups only after it gave up changing them.
    for (file, text) in [("setgroups", "deny".to_owned()), ("uid_map", format!("0 {uid} 1")), ("gid_map", format!("0 {gid} 1"))] {
        fs::write(Path::new("/proc/self").join(file), text)
            .map_err(|error| Error::caused(&code::DEMO_UNSUPPORTED, format!("write /proc/self/{file}"), error))?;
    }
    Ok(true)
}

fn refused(step: &str, errno: Errno) -> Error {
    Error::caused(&code::DEMO_UNSUPPORTED, format!("the kernel does not let this process {step}"), errno)
}
