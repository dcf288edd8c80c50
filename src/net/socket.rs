//! The one place that makes TCP sockets and sets their options.

use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd};
use std::time::Duration;

use nix::sys::socket::{setsockopt, sockopt};
use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use tokio::io::Interest;
use tokio::net::{TcpListener, TcpSocket, TcpStream};

use super::NetNs;
use super::congestion::Congestion;
use crate::base::addr::{ClientAddr, NextHop, OrigDst};

/// The mark of every socket that the proxy opens in a pod; redirection leaves packets with it alone.
pub const PROXY_MARK: u32 = 1337;

/// What the kernel queues for a listener that is busy. The reference proxy's 128 loses bursts.
const BACKLOG: i32 = 1024;

/// Bytes of a tunnel that wait to be sent: half a batch.
const NOT_SENT: u32 = 128 * 1024;

/// TCP keepalive of proxied connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keepalive {
    /// Silence before the first probe.
    pub idle: Duration,
    /// Between probes.
    pub interval: Duration,
    /// Probes without answer before the connection is given up.
    pub retries: u32,
    /// Whether data without acknowledgement for `idle + retries * interval` ends the connection (TCP_USER_TIMEOUT).
    pub user_timeout: bool,
}

/// How sockets of one pod are made. By default: in the process's own network namespace, nothing special.
#[derive(Clone, Debug, Default)]
pub struct SocketFactory {
    /// The pod's namespace; `None` is the process's own.
    pub netns: Option<NetNs>,
    /// SO_MARK of every socket.
    pub mark: Option<u32>,
    /// SO_REUSEPORT on listeners: an old and a new proxy can overlap.
    pub reuse_port: bool,
    /// Keepalive of connections; `None` is the kernel's default (off).
    pub keepalive: Option<Keepalive>,
    /// Congestion control, where it is not the node's choice.
    pub congestion: Option<Congestion>,
}

impl SocketFactory {
    /// Listens on `addr`; with `transparent`, IP_TRANSPARENT is tried and the result returned.
    ///
    /// # Errors
    /// The namespace cannot be entered, or the address is taken.
    pub fn listen(&self, addr: SocketAddr, transparent: bool) -> io::Result<(TcpListener, bool)> {
        let (socket, transparent) = self.inside(|| {
            let socket = Socket::new(Domain::for_address(addr), Type::STREAM.nonblocking().cloexec(), Some(Protocol::TCP))?;
            self.mark(&socket)?;
            if addr.is_ipv6() {
                socket.set_only_v6(false)?;
            }
            socket.set_reuse_address(true)?;
            if self.reuse_port {
                socket.set_reuse_port(true)?;
            }
            let transparent = transparent && set_transparent(&socket, addr.ip()).is_ok();
            // What it accepts inherits all of this.
            self.prepare(&socket);
            socket.bind(&addr.into())?;
            socket.listen(BACKLOG)?;
            Ok((socket, transparent))
        })?;
        Ok((TcpListener::from_std(socket.into())?, transparent))
    }

    /// Connects to `to`, from `source` if one is given (which may be another host's address: needs CAP_NET_ADMIN).
    ///
    /// The caller sets the deadline.
    ///
    /// # Errors
    /// As the kernel says.
    pub async fn connect(&self, to: NextHop, source: Option<IpAddr>) -> io::Result<TcpStream> {
        let to = to.addr();
        let socket = self.inside(|| {
            let socket = Socket::new(Domain::for_address(to), Type::STREAM.nonblocking().cloexec(), Some(Protocol::TCP))?;
            self.mark(&socket)?;
            if let Some(source) = source
                && source.is_ipv4() == to.is_ipv4()
            {
                spoof(&socket, source)?;
            }
            self.prepare(&socket);
            Ok(socket)
        })?;
        let stream = TcpSocket::from_std_stream(socket.into()).connect(to).await?;
        self.settle(&stream);
        Ok(stream)
    }

    /// Sets what is only known of a connection that stands. For those that a listener has accepted; `connect` does it itself.
    pub fn settle(&self, stream: &TcpStream) {
        note(self.congestion.as_ref().map_or(Ok(()), |congestion| congestion.settle(stream)));
    }

    /// Sets what a connection gets: no delay, keepalive, congestion control.
    fn prepare(&self, socket: &Socket) {
        note(self.try_prepare(socket));
    }

    fn try_prepare(&self, socket: &Socket) -> io::Result<()> {
        socket.set_tcp_nodelay(true)?;
        if let Some(keepalive) = self.keepalive {
            let parameters =
                TcpKeepalive::new().with_time(keepalive.idle).with_interval(keepalive.interval).with_retries(keepalive.retries);
            socket.set_tcp_keepalive(&parameters)?;
            if keepalive.user_timeout {
                socket.set_tcp_user_timeout(Some(keepalive.idle + keepalive.interval * keepalive.retries))?;
            }
        }
        match &self.congestion {
            Some(congestion) => congestion.for_short_way(socket),
            None => Ok(()),
        }
    }

    fn inside<R>(&self, work: impl FnOnce() -> io::Result<R>) -> io::Result<R> {
        match &self.netns {
            Some(netns) => netns.run(work)?,
            None => work(),
        }
    }

    fn mark(&self, socket: &Socket) -> io::Result<()> {
        match self.mark {
            Some(mark) => socket.set_mark(mark),
            None => Ok(()),
        }
    }
}

/// A connection without an option is slower, but works.
fn note(set: io::Result<()>) {
    if let Err(error) = set {
        tracing::debug!(%error, "socket options not set");
    }
}

/// Where a redirected connection was going; its local address when nothing was redirected.
///
/// # Errors
/// The socket is no longer connected.
pub fn original_destination(stream: &TcpStream) -> io::Result<OrigDst> {
    let local = stream.local_addr()?;
    let socket = SockRef::from(stream);
    // A socket bound to [::] carries IPv4 connections too; SO_ORIGINAL_DST is asked at the level of the real packets.
    let original = match local.ip().to_canonical() {
        IpAddr::V4(_) => socket.original_dst_v4(),
        IpAddr::V6(_) => socket.original_dst_v6(),
    };
    Ok(OrigDst::new(original.ok().and_then(|address| address.as_socket()).unwrap_or(local)))
}

/// The peer of an accepted connection.
///
/// # Errors
/// The socket is no longer connected.
pub fn client(stream: &TcpStream) -> io::Result<ClientAddr> {
    Ok(ClientAddr::new(stream.peer_addr()?))
}

/// Makes a connection the carrier of a tunnel: what waits in the kernel to be sent is kept short, so that what is urgent
/// does not wait behind it. The kernel keeps as much on its way as the network takes, whatever this says.
pub fn carrier(stream: &TcpStream) {
    if let Err(error) = SockRef::from(stream).set_tcp_notsent_lowat(NOT_SENT) {
        tracing::debug!(%error, "TCP_NOTSENT_LOWAT not set");
    }
}

/// Reads what there is into one buffer; 0 at the end.
///
/// A short read has emptied the socket: that is noted, so that it is not asked again before something comes.
///
/// # Errors
/// As the kernel says; WouldBlock when there is nothing.
pub fn read(stream: &TcpStream, buffer: &mut [u8]) -> io::Result<usize> {
    let want = buffer.len();
    all_or_note(stream, Interest::READABLE, want, || (&*SockRef::from(stream)).read(buffer))
}

/// The same into several buffers, `want` bytes in all.
///
/// # Errors
/// As the kernel says; WouldBlock when there is nothing.
pub fn read_vectored(stream: &TcpStream, buffers: &mut [IoSliceMut<'_>], want: usize) -> io::Result<usize> {
    all_or_note(stream, Interest::READABLE, want, || (&*SockRef::from(stream)).read_vectored(buffers))
}

/// Writes what the socket takes.
///
/// # Errors
/// As the kernel says; WouldBlock when it takes nothing.
pub fn write(stream: &TcpStream, buffers: &[IoSlice<'_>]) -> io::Result<usize> {
    let want = buffers.iter().map(|buffer| buffer.len()).sum();
    all_or_note(stream, Interest::WRITABLE, want, || (&*SockRef::from(stream)).write_vectored(buffers))
}

/// A result short of `want` says what WouldBlock would say next: one call of the kernel less.
fn all_or_note(stream: &TcpStream, interest: Interest, want: usize, mut io: impl FnMut() -> io::Result<usize>) -> io::Result<usize> {
    let mut done = 0;
    let result = stream.try_io(interest, || {
        done = io()?;
        if done > 0 && done < want { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(()) }
    });
    match result {
        Err(error) if done == 0 => Err(error),
        _ => Ok(done),
    }
}

/// No more to come. A peer that is gone already needs no telling.
pub fn finish(stream: &TcpStream) {
    let _ = SockRef::from(stream).shutdown(std::net::Shutdown::Write);
}

/// Waits until the other side's kernel has all that was written, or the connection is broken: closing a socket with unread
/// bytes makes the kernel send RST and drop the rest.
pub async fn delivered(stream: &TcpStream) {
    // There is no event for it.
    let mut pause = Duration::from_millis(1);
    while outstanding(stream).is_ok_and(|bytes| bytes > 0) {
        let broken = tokio::time::timeout(pause, stream.ready(Interest::ERROR)).await;
        if broken.is_ok() {
            return;
        }
        pause = (pause * 2).min(Duration::from_millis(250));
    }
}

/// Bytes that were written and are not acknowledged.
#[expect(unsafe_code, reason = "the kernel puts a number where it is told")]
fn outstanding(stream: &TcpStream) -> io::Result<nix::libc::c_int> {
    let mut bytes = 0;
    // SAFETY: TIOCOUTQ of a socket writes one int.
    let result = unsafe { nix::libc::ioctl(stream.as_raw_fd(), nix::libc::TIOCOUTQ, &mut bytes) };
    nix::errno::Errno::result(result)?;
    Ok(bytes)
}

/// Closing the socket will send RST instead of FIN.
pub fn reset(stream: &impl AsFd) {
    let _ = SockRef::from(stream).set_linger(Some(Duration::ZERO));
}

/// Every interface, or every IPv4 interface.
pub fn any(ipv6: bool, port: u16) -> SocketAddr {
    let ip = if ipv6 { IpAddr::V6(Ipv6Addr::UNSPECIFIED) } else { IpAddr::V4(Ipv4Addr::UNSPECIFIED) };
    SocketAddr::new(ip, port)
}

/// Binds to an address that may not be this host's, leaving the choice of port to connect(), which knows the whole
/// 4-tuple: many clients share one destination.
fn spoof(socket: &Socket, source: IpAddr) -> io::Result<()> {
    set_transparent(socket, source)?;
    setsockopt(socket, sockopt::IpBindAddressNoPort, &true)?;
    socket.bind(&SocketAddr::new(source, 0).into())
}

fn set_transparent(socket: &Socket, ip: IpAddr) -> io::Result<()> {
    match ip {
        IpAddr::V4(_) => socket.set_ip_transparent_v4(true),
        IpAddr::V6(_) => socket.set_ip_transparent_v6(true),
    }
}
