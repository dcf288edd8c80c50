//! Addresses that must not be mixed up, each its own type.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

/// The IPv4 form of an IPv4-mapped IPv6 address; any other address unchanged (RFC 4291 §2.5.5.2).
///
/// Sockets bound to `[::]` report IPv4 peers in the mapped form; policy and lookups know only one form.
pub fn canonical(addr: SocketAddr) -> SocketAddr {
    SocketAddr::new(addr.ip().to_canonical(), addr.port())
}

/// The bytes of an IP address as control planes send it: 4 or 16 of them, anything else is `None`.
pub fn ip_from_bytes(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from),
        16 => <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from),
        _ => None,
    }
}

/// The 4 or 16 bytes of an address, network order.
pub fn ip_to_bytes(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

macro_rules! address {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub struct $name(SocketAddr);

        impl $name {
            /// Takes any address, keeps its canonical form.
            pub fn new(addr: SocketAddr) -> Self {
                Self(canonical(addr))
            }

            /// The plain address.
            pub fn addr(self) -> SocketAddr {
                self.0
            }

            /// Its IP.
            pub fn ip(self) -> IpAddr {
                self.0.ip()
            }

            /// Its port.
            pub fn port(self) -> u16 {
                self.0.port()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

address! {
    /// Where the application wanted to go, before redirection.
    OrigDst
}
address! {
    /// The peer of an accepted socket.
    ClientAddr
}
address! {
    /// Where a socket is really connected to: a pod, a tunnel's far end, a gateway.
    NextHop
}
