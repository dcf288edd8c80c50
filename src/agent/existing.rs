//! Connections that are older than a pod's enrolment: they pass by the proxy until they end. Found, and ended when that is
//! asked for, by the kernel's socket diagnosis.

use std::collections::HashSet;
use std::io;
use std::net::{IpAddr, SocketAddr};

use netlink_sys::{Socket, protocols::NETLINK_SOCK_DIAG};
use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::time::TimeVal;

use super::redirect::inside::inside;
use super::redirect::{Options, port};
use crate::base::{Error, Result, code};
use crate::net::NetNs;
use crate::net::socket::PROXY_MARK;

// Numbers of the kernel: linux/netlink.h, linux/sock_diag.h, linux/inet_diag.h, net/tcp_states.h.
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;
const REQUEST: u16 = 0x1;
const ACK: u16 = 0x4;
const DUMP: u16 = 0x300;
const INET_DIAG_MARK: u16 = 15;
const IPPROTO_TCP: u8 = 6;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
/// SYN-SENT, SYN-RECEIVED, ESTABLISHED, FIN-WAIT-1, FIN-WAIT-2, CLOSE-WAIT, LAST-ACK, CLOSING: data may still flow.
const STATES: u32 = 1 << 1 | 1 << 2 | 1 << 3 | 1 << 4 | 1 << 5 | 1 << 8 | 1 << 9 | 1 << 11;

/// Length of the kernel's `inet_diag_msg`; its socket id is the 48 bytes from the fifth on.
const ENTRY: usize = 72;

/// More sockets than this are not looked at; the count is a lower bound then.
const MAX_SOCKETS: usize = 200_000;

const LIMIT: TimeVal = TimeVal::new(2, 0);

/// A TCP socket that is part of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Tcp {
    local: SocketAddr,
    remote: SocketAddr,
    mark: u32,
    /// Family and `inet_diag_sockid`, by which the kernel finds it again.
    id: (u8, [u8; 48]),
}

/// How many connections of the namespace pass by the proxy, while redirection is in force.
///
/// # Errors
/// As the kernel says.
pub async fn count(netns: &NetNs, options: Options) -> Result<usize> {
    inside(netns, &code::REDIRECT_FAILED, move || {
        let sockets = dump().map_err(|error| Error::caused(&code::REDIRECT_FAILED, "list the pod's connections", error))?;
        Ok(left(&sockets, &options).count())
    })
    .await
}

/// Resets the connections of the namespace that pass by the proxy, and says how many.
///
/// # Errors
/// As the kernel says; one that is built without CONFIG_INET_DIAG_DESTROY cannot do it.
pub async fn reset(netns: &NetNs, options: Options) -> Result<usize> {
    inside(netns, &code::REDIRECT_FAILED, move || {
        let failed = |error| Error::caused(&code::REDIRECT_FAILED, "reset the pod's old connections", error);
        let sockets = dump().map_err(failed)?;
        let socket = open().map_err(failed)?;
        let mut ended = 0;
        for old in left(&sockets, &options) {
            ended += usize::from(destroy(&socket, old).map_err(failed)?);
        }
        Ok(ended)
    })
    .await
}

/// The connections that pass by the proxy. A connection that does not has its other end, the proxy's, in the same
/// namespace.
fn left<'a>(sockets: &'a [Tcp], options: &Options) -> impl Iterator<Item = &'a Tcp> {
    let probes: [IpAddr; 2] = [options.probe_v4.into(), options.probe_v6.into()];
    let ends: HashSet<_> = sockets.iter().map(|socket| (socket.local, socket.remote)).collect();
    let outbound: HashSet<_> = sockets.iter().filter(|socket| socket.local.port() == port::OUTBOUND).map(|socket| socket.remote).collect();
    sockets.iter().filter(move |socket| {
        let own = [port::OUTBOUND, port::INBOUND, port::TUNNEL].contains(&socket.local.port()) || socket.mark & 0xfff == PROXY_MARK;
        let outside = !socket.remote.ip().is_loopback() && !probes.contains(&socket.remote.ip());
        // Towards the application the proxy has a socket of its own with the client's address, from the application the
        // redirected connection ends at the proxy's port.
        let proxied = ends.contains(&(socket.remote, socket.local)) || outbound.contains(&socket.local);
        !own && outside && !proxied
    })
}

fn open() -> io::Result<Socket> {
    let mut socket = Socket::new(NETLINK_SOCK_DIAG)?;
    setsockopt(&socket, sockopt::ReceiveTimeout, &LIMIT)?;
    socket.bind_auto()?;
    socket.connect(&netlink_sys::SocketAddr::new(0, 0))?;
    Ok(socket)
}

/// The TCP sockets of the calling thread's namespace.
fn dump() -> io::Result<Vec<Tcp>> {
    let socket = open()?;
    let mut sockets = Vec::new();
    for family in [AF_INET, AF_INET6] {
        let request = request(SOCK_DIAG_BY_FAMILY, REQUEST | DUMP, family, STATES, &[0; 48]);
        socket.send(&request, 0)?;
        while receive(&socket, |entry| sockets.extend(parse(entry)))? && sockets.len() < MAX_SOCKETS {}
    }
    Ok(sockets)
}

/// Ends one; `false` when it has ended by itself.
fn destroy(socket: &Socket, old: &Tcp) -> io::Result<bool> {
    let (family, id) = &old.id;
    socket.send(&request(SOCK_DESTROY, REQUEST | ACK, *family, STATES, id), 0)?;
    match receive(socket, |_| ()) {
        Ok(_) => Ok(true),
        Err(error) if error.raw_os_error() == Some(nix::errno::Errno::ENOENT as i32) => Ok(false),
        Err(error) => Err(error),
    }
}

/// `struct inet_diag_req_v2` as a message; the kernel's numbers are in the host's order.
fn request(kind: u16, flags: u16, family: u8, states: u32, id: &[u8; 48]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(72);
    bytes.extend(72_u32.to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(flags.to_ne_bytes());
    bytes.extend([0; 8]);
    bytes.extend([family, IPPROTO_TCP, 0, 0]);
    bytes.extend(states.to_ne_bytes());
    bytes.extend(id);
    bytes
}

/// One datagram of the kernel; whether more follow.
fn receive(socket: &Socket, mut entry: impl FnMut(&[u8])) -> io::Result<bool> {
    let (datagram, _) = socket.recv_from_full()?;
    let mut rest = datagram.as_slice();
    while let (Some(length), Some(kind)) = (number(rest, 0), rest.get(4..6)) {
        let Some(body) = rest.get(16..length as usize) else { break };
        match u16::from_ne_bytes([kind[0], kind[1]]) {
            NLMSG_DONE => return Ok(false),
            NLMSG_ERROR => {
                let errno = number(body, 0).unwrap_or_default().cast_signed().unsigned_abs().cast_signed();
                return if errno == 0 { Ok(false) } else { Err(io::Error::from_raw_os_error(errno)) };
            }
            _ => entry(body),
        }
        rest = rest.get((length as usize).next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(true)
}

/// `struct inet_diag_msg` and its attributes.
fn parse(entry: &[u8]) -> Option<Tcp> {
    let family = *entry.first()?;
    let id: [u8; 48] = entry.get(4..52)?.try_into().ok()?;
    let port = |at: usize| u16::from_be_bytes([id[at], id[at + 1]]);
    let ip = |at: usize| -> Option<IpAddr> {
        Some(match family {
            AF_INET => IpAddr::from(<[u8; 4]>::try_from(&id[at..at + 4]).ok()?),
            _ => IpAddr::from(<[u8; 16]>::try_from(&id[at..at + 16]).ok()?).to_canonical(),
        })
    };
    let mut mark = 0;
    let mut attributes = entry.get(ENTRY..).unwrap_or_default();
    while let (Some(length), Some(kind)) = (attributes.get(..2), attributes.get(2..4)) {
        let length = usize::from(u16::from_ne_bytes([length[0], length[1]]));
        let Some(value) = attributes.get(4..length) else { break };
        if u16::from_ne_bytes([kind[0], kind[1]]) == INET_DIAG_MARK {
            mark = number(value, 0).unwrap_or_default();
        }
        attributes = attributes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    let (local, remote) = (SocketAddr::new(ip(4)?, port(0)), SocketAddr::new(ip(20)?, port(2)));
    Some(Tcp { local, remote, mark, id: (family, id) })
}

fn number(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tcp(local: &str, remote: &str, mark: u32) -> Tcp {
        Tcp { local: local.parse().expect("local"), remote: remote.parse().expect("remote"), mark, id: (AF_INET, [0; 48]) }
    }

    #[test]
    fn connections_without_an_end_at_the_proxy_are_left() {
        let sockets = [
            // Old ones, out and in.
            tcp("10.0.0.2:40000", "10.0.0.9:80", 0),
            tcp("10.0.0.2:80", "10.0.0.8:50000", 0),
            // Redirected outbound: the application's end, the proxy's, the tunnel.
            tcp("10.0.0.2:40001", "10.0.0.9:80", 0),
            tcp("10.0.0.2:15001", "10.0.0.2:40001", 0),
            tcp("10.0.0.2:41000", "10.0.0.9:15008", PROXY_MARK),
            // A tunnel that came in, the proxy's call in the client's name, the application's end of it.
            tcp("10.0.0.2:15008", "10.0.0.9:42000", 0),
            tcp("10.0.0.9:43000", "10.0.0.2:80", PROXY_MARK | 0x1000),
            tcp("10.0.0.2:80", "10.0.0.9:43000", 0),
            // A probe, and what stays inside.
            tcp("10.0.0.2:80", "169.254.7.127:44000", 0),
            tcp("127.0.0.1:9", "127.0.0.1:45000", 0),
            tcp("10.0.0.2:46000", "10.0.0.2:80", 0),
            tcp("10.0.0.2:80", "10.0.0.2:46000", 0),
        ];
        let options = Options::default();
        let found: Vec<_> = left(&sockets, &options).cloned().collect();
        assert_eq!(found, sockets[..2]);
    }
}
