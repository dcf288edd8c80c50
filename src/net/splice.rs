//! Bytes from one socket to another through a pipe: their pages change hands in the kernel, nothing is copied.

use std::cell::RefCell;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicUsize, Ordering};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, SpliceFFlags, fcntl, splice};
use nix::unistd::pipe2;
use tokio::io::Interest;
use tokio::net::TcpStream;

/// Bytes that a pipe can hold, where `/proc/sys/fs/pipe-max-size` allows as much.
pub(crate) const CAPACITY: usize = 256 * 1024;
/// Below this a pipe moves no more at once than a copy does. The kernel gives two pages to a user who has too many.
const USEFUL: usize = 64 * 1024;
/// Pipes of this process: 64 MiB when all are full, which is what the kernel's default lets an ordinary user have.
const PIPES: usize = 256;
/// Empty pipes that a thread keeps for who comes next.
const KEPT: usize = 8;

/// A pipe between two sockets.
///
/// There are few of them, so it is for the time in which there are bytes to move. Dropped empty it serves somebody else;
/// bytes that are left in it are lost.
#[derive(Debug)]
pub struct Pipe {
    /// `None` only within `drop`.
    ends: Option<Ends>,
    held: usize,
}

impl Pipe {
    /// An empty one; `None` if this process has too many, or too many descriptors, or the kernel gives small ones only.
    pub fn take() -> Option<Self> {
        let kept = IDLE.try_with(|idle| idle.borrow_mut().pop()).ok().flatten();
        Some(Self { ends: Some(kept.or_else(Ends::open)?), held: 0 })
    }

    /// Bytes that came in and are not out yet.
    pub fn held(&self) -> usize {
        self.held
    }

    /// Takes in what a socket has; 0 is its end. Only for a pipe that holds nothing: the kernel would not tell a full
    /// pipe from an empty socket.
    ///
    /// # Errors
    /// As of a read; `WouldBlock` when the socket has nothing now.
    pub fn fill(&mut self, from: &TcpStream) -> io::Result<usize> {
        let Some(ends) = &self.ends else { return Ok(0) };
        if self.held > 0 {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let length = from.try_io(Interest::READABLE, || Ok(splice(from, None, &ends.write, None, ends.capacity, NOW)?))?;
        self.held = length;
        Ok(length)
    }

    /// Gives a socket what it takes of the bytes held.
    ///
    /// # Errors
    /// As of a write; `WouldBlock` when the socket takes nothing now.
    pub fn drain(&mut self, to: &TcpStream) -> io::Result<usize> {
        let Some(ends) = &self.ends else { return Ok(0) };
        let length = to.try_io(Interest::WRITABLE, || Ok(splice(&ends.read, None, to, None, self.held, NOW)?))?;
        if length == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        self.held = self.held.saturating_sub(length);
        Ok(length)
    }
}

impl Drop for Pipe {
    fn drop(&mut self) {
        let Some(ends) = self.ends.take().filter(|_| self.held == 0) else { return };
        let _ = IDLE.try_with(|idle| {
            let mut idle = idle.borrow_mut();
            if idle.len() < KEPT {
                idle.push(ends);
            }
        });
    }
}

/// A pipe's end that has nothing must not stop the thread.
const NOW: SpliceFFlags = SpliceFFlags::SPLICE_F_NONBLOCK;

static OPEN: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    static IDLE: RefCell<Vec<Ends>> = const { RefCell::new(Vec::new()) };
}

/// The descriptors of a pipe.
#[derive(Debug)]
struct Ends {
    read: OwnedFd,
    write: OwnedFd,
    /// Bytes.
    capacity: usize,
    _counted: Counted,
}

impl Ends {
    fn open() -> Option<Self> {
        let counted = Counted::new()?;
        let (read, write) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK).ok()?;
        let capacity = enlarge(&write).ok().and_then(|capacity| usize::try_from(capacity).ok())?;
        (capacity >= USEFUL).then_some(Self { read, write, capacity, _counted: counted })
    }
}

/// The capacity that a pipe has in the end.
fn enlarge(pipe: &OwnedFd) -> nix::Result<i32> {
    let wanted = i32::try_from(CAPACITY).map_err(|_| Errno::EINVAL)?;
    fcntl(pipe, FcntlArg::F_SETPIPE_SZ(wanted)).or_else(|_| fcntl(pipe, FcntlArg::F_GETPIPE_SZ))
}

/// One of [`PIPES`].
#[derive(Debug)]
struct Counted;

impl Counted {
    fn new() -> Option<Self> {
        let more = |open| (open < PIPES).then_some(open + 1);
        OPEN.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).ok().map(|_| Self)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        OPEN.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Empty pipes that this thread keeps.
#[cfg(test)]
pub(crate) fn kept() -> usize {
    IDLE.with_borrow(Vec::len)
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{Ipv4Addr, TcpListener, TcpStream as Blocking};

    use super::*;

    /// An application's end of a connection, and this process's.
    fn pair() -> (Blocking, TcpStream) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let far = Blocking::connect(listener.local_addr().unwrap()).unwrap();
        let near = listener.accept().unwrap().0;
        near.set_nonblocking(true).unwrap();
        (far, TcpStream::from_std(near).unwrap())
    }

    #[tokio::test]
    async fn bytes_go_from_one_socket_to_another() {
        let ((mut client, source), (mut server, destination)) = (pair(), pair());
        let mut pipe = Pipe::take().unwrap();
        assert_eq!(pipe.fill(&source).unwrap_err().kind(), io::ErrorKind::WouldBlock, "nothing was sent");
        client.write_all(b"question").unwrap();
        source.readable().await.unwrap();
        assert_eq!((pipe.fill(&source).unwrap(), pipe.held()), (8, 8));
        assert_eq!(pipe.fill(&source).unwrap_err().kind(), io::ErrorKind::InvalidInput, "it is not empty");
        destination.writable().await.unwrap();
        assert_eq!((pipe.drain(&destination).unwrap(), pipe.held()), (8, 0));
        let mut data = [0; 8];
        server.read_exact(&mut data).unwrap();
        assert_eq!(&data, b"question");
        drop(client);
        while now(pipe.fill(&source)) != Some(0) {
            source.readable().await.unwrap();
        }
    }

    #[tokio::test]
    async fn an_empty_pipe_is_kept_and_one_with_bytes_is_not() {
        let (mut client, source) = pair();
        client.write_all(b"question").unwrap();
        source.readable().await.unwrap();
        let mut pipe = Pipe::take().unwrap();
        pipe.fill(&source).unwrap();
        drop((pipe, Pipe::take().unwrap()));
        assert_eq!(kept(), 1);
        let many: Vec<_> = (0..2 * KEPT).filter_map(|_| Pipe::take()).collect();
        assert_eq!(kept(), 0);
        drop(many);
        assert_eq!(kept(), KEPT);
    }

    fn now(result: io::Result<usize>) -> Option<usize> {
        match result {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => None,
            result => Some(result.unwrap()),
        }
    }
}
