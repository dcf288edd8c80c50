//! Unix sockets that carry whole messages and, beside them, one file descriptor: the transport of ZDS and of the CNI plugin.

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, Backlog, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, UnixAddr, accept4, bind, getsockopt, listen,
    recvmsg, sendmsg, socket, sockopt,
};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// The longest message in either direction; both ends read into a buffer of this size.
pub const MAX_MESSAGE: usize = 1024;

/// Room for as many descriptors as the kernel lets one message carry (SCM_MAX_FD). With less, the kernel could cut the
/// list and the descriptors that it had already installed would be unreachable, never closed.
const CONTROL_SPACE: usize = nix::sys::socket::cmsg_space::<[i32; 253]>();

/// Connections that wait to be accepted.
const BACKLOG: i32 = 128;

/// Whoever listens lets others connect at once; the kernel makes them wait only when very many do.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);

/// Between two looks whether the own file is still there. A CNI call waits longer for its agent.
const LOOK: Duration = Duration::from_secs(5);

/// A connected socket.
#[derive(Debug)]
pub struct Connection {
    fd: AsyncFd<OwnedFd>,
}

/// A message as received.
#[derive(Debug)]
pub struct Packet {
    /// At most [`MAX_MESSAGE`] bytes, never empty.
    pub data: Vec<u8>,
    /// The descriptor that came with it.
    pub fd: Option<OwnedFd>,
}

/// A socket that accepts connections.
#[derive(Debug)]
pub struct Listener {
    fd: AsyncFd<OwnedFd>,
    file: Identity,
}

/// Tells a file from another that has its name later: device, inode, time at which it was made.
type Identity = (u64, u64, i64, i64);

/// Whether somebody listens on the socket file `path`.
pub async fn is_alive(path: &Path) -> bool {
    match tokio::time::timeout(CONNECT_LIMIT, Connection::connect(path)).await {
        // Its queue is full.
        Ok(Err(error)) => error.kind() == io::ErrorKind::WouldBlock,
        Ok(Ok(_)) | Err(_) => true,
    }
}

/// Ticks when one who listens should look by [`Listener::is_at`]: others who clean up may remove the file.
pub fn look() -> tokio::time::Interval {
    let mut look = tokio::time::interval(LOOK);
    look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    look
}

impl Connection {
    /// Connects to the socket file `path`. The caller sets the deadline.
    ///
    /// # Errors
    /// As the kernel says; `WouldBlock` when the listener's queue is full, which on Unix sockets is not a connect in
    /// progress: nothing comes of waiting on this socket.
    pub async fn connect(path: &Path) -> io::Result<Self> {
        let fd = new_socket()?;
        let address = UnixAddr::new(path)?;
        let started = nix::sys::socket::connect(fd.as_raw_fd(), &address);
        let connection = Self { fd: watched(fd)? };
        match started {
            Ok(()) => Ok(connection),
            Err(Errno::EINPROGRESS) => {
                connection.fd.writable().await?.retain_ready();
                match getsockopt(&connection.fd, sockopt::SocketError)? {
                    0 => Ok(connection),
                    error => Err(io::Error::from_raw_os_error(error)),
                }
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Sends one message, with a descriptor if one is given (the caller keeps its own).
    ///
    /// # Errors
    /// `InvalidInput` when it is empty or longer than [`MAX_MESSAGE`]; else as the kernel says.
    pub async fn send(&self, data: &[u8], fd: Option<BorrowedFd<'_>>) -> io::Result<()> {
        if data.is_empty() || data.len() > MAX_MESSAGE {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("a message of {} bytes", data.len())));
        }
        let raw = fd.map(|fd| [fd.as_raw_fd()]);
        self.fd
            .async_io(Interest::WRITABLE, |inner| {
                let rights = raw.as_ref().map(|raw| [ControlMessage::ScmRights(raw)]);
                let control = rights.as_ref().map_or(&[][..], |rights| &rights[..]);
                let sent = sendmsg::<()>(inner.as_raw_fd(), &[IoSlice::new(data)], control, MsgFlags::MSG_NOSIGNAL, None)?;
                if sent == data.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
            })
            .await
    }

    /// The user that the process at the other end ran as when it connected (or listened).
    ///
    /// # Errors
    /// As the kernel says.
    pub fn peer_uid(&self) -> io::Result<u32> {
        Ok(getsockopt(&self.fd, sockopt::PeerCredentials)?.uid())
    }

    /// Receives one message; `None` when the peer has closed. Safe to cancel: no message is lost.
    ///
    /// # Errors
    /// `InvalidData` when the message does not fit [`MAX_MESSAGE`] or carries more than one descriptor (all are closed);
    /// the connection can still be used. Else as the kernel says.
    pub async fn receive(&self) -> io::Result<Option<Packet>> {
        self.fd.async_io(Interest::READABLE, receive_now).await
    }
}

impl Listener {
    /// Makes the socket file `path`, usable by this user only, and listens.
    ///
    /// # Errors
    /// As the kernel says, `AddrInUse` when the file exists.
    pub fn bind(path: &Path) -> io::Result<Self> {
        let fd = new_socket()?;
        bind(fd.as_raw_fd(), &UnixAddr::new(path)?)?;
        // Nobody can connect before listen(), so there is no moment at which the file is open to others.
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
        listen(&fd, Backlog::new(BACKLOG)?)?;
        Ok(Self { fd: watched(fd)?, file: identity(path)? })
    }

    /// Whether `path` leads to this socket: nobody has removed its file or put another in its place. It may have been
    /// renamed.
    pub fn is_at(&self, path: &Path) -> bool {
        identity(path).is_ok_and(|file| file == self.file)
    }

    /// The next connection. Safe to cancel.
    ///
    /// # Errors
    /// As the kernel says; the listener can still be used.
    pub async fn accept(&self) -> io::Result<Connection> {
        let fd = self
            .fd
            .async_io(Interest::READABLE, |inner| Ok(owned(accept4(inner.as_raw_fd(), SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK)?)))
            .await?;
        Ok(Connection { fd: watched(fd)? })
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.get_ref().as_fd()
    }
}

fn identity(path: &Path) -> io::Result<Identity> {
    let meta = std::fs::symlink_metadata(path)?;
    Ok((meta.dev(), meta.ino(), meta.mtime(), meta.mtime_nsec()))
}

fn new_socket() -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    Ok(socket(AddressFamily::Unix, SockType::SeqPacket, flags, None)?)
}

fn receive_now(fd: &OwnedFd) -> io::Result<Option<Packet>> {
    let mut data = vec![0; MAX_MESSAGE];
    let mut control = vec![0; CONTROL_SPACE];
    let (length, flags, mut fds) = {
        let mut slices = [IoSliceMut::new(&mut data)];
        let message = recvmsg::<()>(fd.as_raw_fd(), &mut slices, Some(&mut control), MsgFlags::MSG_CMSG_CLOEXEC)?;
        let mut fds = Vec::new();
        // The only failure of cmsgs() is a cut list, which CONTROL_SPACE rules out; `flags` is looked at all the same.
        for message in message.cmsgs().into_iter().flatten() {
            if let ControlMessageOwned::ScmRights(raw) = message {
                fds.extend(raw.into_iter().map(owned));
            }
        }
        (message.bytes, message.flags, fds)
    };
    if flags.intersects(MsgFlags::MSG_TRUNC | MsgFlags::MSG_CTRUNC) {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("a message longer than {MAX_MESSAGE} bytes")));
    }
    if fds.len() > 1 {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("{} descriptors with one message", fds.len())));
    }
    if length == 0 {
        return Ok(None);
    }
    data.truncate(length);
    Ok(Some(Packet { data, fd: fds.pop() }))
}

#[expect(unsafe_code, reason = "the runtime cannot see by the type that an OwnedFd stays open")]
fn watched(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd is one open descriptor for all its life, and the AsyncFd owns it.
    Ok(unsafe { AsyncFd::register(fd) }?)
}

#[expect(unsafe_code, reason = "the kernel hands descriptors over as numbers")]
fn owned(raw: i32) -> OwnedFd {
    // SAFETY: called once for each number that the kernel has just installed for this process; nobody else knows it.
    unsafe { OwnedFd::from_raw_fd(raw) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    async fn pair() -> (Connection, Connection, tempfile::TempDir) {
        let directory = tempfile::tempdir().expect("temporary directory");
        let path = directory.path().join("s");
        let listener = Listener::bind(&path).expect("bind");
        let (client, server) = tokio::join!(Connection::connect(&path), listener.accept());
        (client.expect("connect"), server.expect("accept"), directory)
    }

    async fn soon<F: Future>(future: F) -> F::Output {
        tokio::time::timeout(Duration::from_secs(5), future).await.expect("in time")
    }

    #[tokio::test]
    async fn messages_keep_their_borders_and_carry_one_descriptor() {
        let (client, server, _directory) = pair().await;
        let file = tempfile::tempfile().expect("file");
        client.send(b"one", Some(file.as_fd())).await.expect("send");
        client.send(b"two", None).await.expect("send");
        let one = soon(server.receive()).await.expect("receive").expect("open");
        assert_eq!(one.data, b"one");
        let fd = one.fd.expect("a descriptor");
        assert_ne!(fd.as_raw_fd(), file.as_raw_fd(), "it is the receiver's own");
        let two = soon(server.receive()).await.expect("receive").expect("open");
        assert_eq!((two.data.as_slice(), two.fd.is_none()), (&b"two"[..], true));
        drop(client);
        assert!(soon(server.receive()).await.expect("receive").is_none(), "closed");
    }

    #[tokio::test]
    async fn what_does_not_fit_is_an_error_and_the_next_message_is_read() {
        let (client, server, _directory) = pair().await;
        assert_eq!(client.send(&[0; MAX_MESSAGE + 1], None).await.expect_err("too long").kind(), io::ErrorKind::InvalidInput);
        let long = [1; MAX_MESSAGE + 1];
        sendmsg::<()>(client.as_fd().as_raw_fd(), &[IoSlice::new(&long)], &[], MsgFlags::empty(), None).expect("send past the limit");
        client.send(b"next", None).await.expect("send");
        assert_eq!(soon(server.receive()).await.expect_err("cut").kind(), io::ErrorKind::InvalidData);
        assert_eq!(soon(server.receive()).await.expect("receive").expect("open").data, b"next");
    }

    #[tokio::test]
    async fn several_descriptors_are_refused_and_closed() {
        let (client, server, _directory) = pair().await;
        let (reader, writer) = nix::unistd::pipe().expect("pipe");
        let fds = [writer.as_raw_fd(), writer.as_raw_fd()];
        let control = [ControlMessage::ScmRights(&fds)];
        sendmsg::<()>(client.as_fd().as_raw_fd(), &[IoSlice::new(b"x")], &control, MsgFlags::empty(), None).expect("send");
        assert_eq!(soon(server.receive()).await.expect_err("two").kind(), io::ErrorKind::InvalidData);
        drop(writer);
        // End of file only comes when the last copy of the writing end is closed.
        assert_eq!(nix::unistd::read(&reader, &mut [0; 1]).expect("read"), 0);
    }

    #[tokio::test]
    async fn the_socket_file_is_private() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let path = directory.path().join("s");
        let _listener = Listener::bind(&path).expect("bind");
        assert_eq!(std::fs::metadata(&path).expect("socket file").permissions().mode() & 0o777, 0o600);
        assert_eq!(Listener::bind(&path).expect_err("taken").kind(), io::ErrorKind::AddrInUse);
    }

    #[tokio::test]
    async fn a_listener_knows_its_file_and_others_whether_it_lives() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let (path, other) = (directory.path().join("s"), directory.path().join("t"));
        assert!(!is_alive(&path).await, "there is no file");
        let listener = Listener::bind(&path).expect("bind");
        assert!(listener.is_at(&path) && is_alive(&path).await);
        std::fs::rename(&path, &other).expect("rename");
        assert!(!listener.is_at(&path) && listener.is_at(&other));
        let successor = Listener::bind(&path).expect("bind");
        assert!(!listener.is_at(&path) && successor.is_at(&path));
        drop(successor);
        assert!(!is_alive(&path).await, "a file that was left");
    }
}
