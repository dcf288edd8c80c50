//! Congestion control of the connections that the proxy makes: the node's choice, but on short ways not one that paces.
//!
//! `bbr` sends each burst by a timer. Between two sockets of one node, or of two nodes side by side, that costs half of the
//! throughput and as much processor time again, and there is no queue that it could keep short.

use std::io;
use std::mem::size_of;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::Duration;

use nix::libc;
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::net::TcpStream;

/// A round trip up to this is a short way: nodes of one region.
const SHORT: Duration = Duration::from_millis(2);

/// In the order of preference; the last is in every kernel.
const WITHOUT_PACING: [&str; 2] = ["cubic", "reno"];

/// What connections get on short ways, where the node's choice is one that paces.
#[derive(Clone, Debug)]
pub struct Congestion {
    node: Arc<str>,
    short: &'static str,
}

impl Congestion {
    /// For sockets of the network namespace that this runs in. `None`: the node's choice is right everywhere.
    pub fn replaced() -> Option<Self> {
        let socket = Socket::new(Domain::IPV4, Type::STREAM.cloexec(), Some(Protocol::TCP)).ok()?;
        let node = SockRef::from(&socket).tcp_congestion().ok()?;
        let node: Arc<str> = std::str::from_utf8(&node).ok()?.trim_end_matches('\0').into();
        let short = WITHOUT_PACING.into_iter().find(|name| is_pacing(&node) && socket.set_tcp_congestion(name.as_bytes()).is_ok())?;
        Some(Self { node, short })
    }

    /// For a socket that is not connected yet: afterwards the pacing would stay. What a listener accepts inherits it.
    pub(super) fn for_short_way(&self, socket: &Socket) -> io::Result<()> {
        socket.set_tcp_congestion(self.short.as_bytes())
    }

    /// For a connection that turns out to go a long way.
    pub(super) fn settle(&self, stream: &TcpStream) -> io::Result<()> {
        self.choose(stream, round_trip(stream)?)
    }

    fn choose(&self, stream: &TcpStream, round_trip: Duration) -> io::Result<()> {
        match round_trip <= SHORT {
            true => Ok(()),
            false => SockRef::from(stream).set_tcp_congestion(self.node.as_bytes()),
        }
    }
}

/// All versions of it.
fn is_pacing(name: &str) -> bool {
    name.starts_with("bbr")
}

/// As the handshake has measured it: the kernels of both ends, no program.
#[expect(unsafe_code, reason = "an option without a safe wrapper")]
fn round_trip(stream: &TcpStream) -> io::Result<Duration> {
    let mut info = std::mem::MaybeUninit::<libc::tcp_info>::zeroed();
    let mut length = size_of::<libc::tcp_info>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes to `info`, which is of that size; all its fields are plain numbers,
    // for which zeros are valid.
    let info = unsafe {
        let done = libc::getsockopt(stream.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_INFO, info.as_mut_ptr().cast(), &raw mut length);
        if done != 0 {
            return Err(io::Error::last_os_error());
        }
        info.assume_init()
    };
    Ok(Duration::from_micros(info.tcpi_rtt.into()))
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::super::socket::SocketFactory;
    use super::*;
    use crate::base::addr::NextHop;

    fn of(stream: &TcpStream) -> String {
        let name = SockRef::from(stream).tcp_congestion().expect("name");
        String::from_utf8(name).expect("text").trim_end_matches('\0').to_owned()
    }

    #[test]
    fn only_what_paces_is_replaced() {
        for (name, paces) in [("bbr", true), ("bbr3", true), ("cubic", false), ("reno", false), ("dctcp", false)] {
            assert_eq!(is_pacing(name), paces, "{name}");
        }
        let node = std::fs::read_to_string("/proc/sys/net/ipv4/tcp_congestion_control").expect("sysctl");
        assert_eq!(Congestion::replaced().is_some(), is_pacing(&node));
    }

    #[tokio::test]
    async fn both_ends_of_a_short_way_have_it_from_the_start() {
        let congestion = Some(Congestion { node: "none that the kernel knows".into(), short: "reno" });
        let sockets = SocketFactory { congestion, ..SocketFactory::default() };
        let (listener, _) = sockets.listen((Ipv4Addr::LOCALHOST, 0).into(), false).expect("listener");
        let hop = NextHop::new(listener.local_addr().expect("address"));
        let (client, server) = tokio::join!(sockets.connect(hop, None), listener.accept());
        let (client, (server, _)) = (client.expect("connected"), server.expect("accepted"));
        sockets.settle(&server);
        for stream in [client, server] {
            assert_eq!(of(&stream), "reno");
            assert!(stream.nodelay().expect("option"), "inherited too");
            assert!(round_trip(&stream).expect("measured") <= SHORT);
        }
    }

    #[tokio::test]
    async fn a_long_way_gets_what_the_node_has() {
        let congestion = Congestion { node: "reno".into(), short: "reno" };
        let sockets = SocketFactory::default();
        let (listener, _) = sockets.listen((Ipv4Addr::LOCALHOST, 0).into(), false).expect("listener");
        let client = sockets.connect(NextHop::new(listener.local_addr().expect("address")), None).await.expect("connected");
        let before = of(&client);
        congestion.choose(&client, SHORT).expect("nothing to do");
        assert_eq!(of(&client), before);
        congestion.choose(&client, SHORT + Duration::from_micros(1)).expect("set");
        assert_eq!(of(&client), "reno");
    }
}
