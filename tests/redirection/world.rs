//! Two namespaces and a wire, and plain sockets in them.

use std::future::Future;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd};
use std::path::PathBuf;
use std::time::Duration;

use futures::TryStreamExt;
use nix::sched::{CloneFlags, unshare};
use rtnetlink::packet_route::address::{AddressAttribute, AddressFlags};
use rtnetlink::{Handle, LinkUnspec, LinkVeth, RouteMessageBuilder};
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use warren::agent::redirect::nft::Nft;
use warren::agent::redirect::{Options, Redirect, State};
use warren::net::NetNs;
use warren::net::socket::PROXY_MARK;

/// How long anything may take.
pub(crate) const LIMIT: Duration = Duration::from_secs(5);

pub(crate) struct World {
    pub(crate) pod: NetNs,
    pub(crate) host: NetNs,
    pub(crate) family: Addresses,
    runtime: tokio::runtime::Runtime,
}

/// Who has which address.
#[derive(Clone, Copy)]
pub(crate) struct Addresses {
    pub(crate) pod: IpAddr,
    pub(crate) host: IpAddr,
    pub(crate) probe: IpAddr,
    pub(crate) localhost: IpAddr,
    prefix: u8,
}

/// Plays the story once with IPv4 and once with IPv6.
pub(crate) fn both_families(story: impl Fn(&World)) {
    let ip = |text: &str| text.parse::<IpAddr>().expect("an address");
    let probe = Options::default();
    let v4 = Addresses { pod: ip("10.9.0.2"), host: ip("10.9.0.1"), probe: probe.probe_v4.into(), localhost: ip("127.0.0.1"), prefix: 24 };
    let v6 = Addresses { pod: ip("fd00:9::2"), host: ip("fd00:9::1"), probe: probe.probe_v6.into(), localhost: ip("::1"), prefix: 64 };
    for family in [v4, v6] {
        story(&World::new(family));
    }
}

impl World {
    pub(crate) fn new(family: Addresses) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("runtime");
        let (pod, host) = (new_netns(), new_netns());
        runtime.block_on(async {
            let in_pod = netlink(&pod);
            let in_host = netlink(&host);
            in_pod.link().add(LinkVeth::new("eth0", "wire").build()).execute().await.expect("veth");
            let wire = LinkUnspec::new_with_name("wire").setns_by_fd(host.as_fd().as_raw_fd()).build();
            in_pod.link().set(wire).execute().await.expect("move the wire's other end");
            set_up(&pod, &in_pod, "eth0", &[(family.pod, family.prefix)], family.host).await;
            let full = if family.pod.is_ipv4() { 32 } else { 128 };
            set_up(&host, &in_host, "wire", &[(family.host, family.prefix), (family.probe, full)], family.pod).await;
        });
        Self { pod, host, family, runtime }
    }

    pub(crate) fn redirect(&self) -> Nft {
        Nft::default()
    }

    pub(crate) fn wait<F: Future>(&self, future: F) -> F::Output {
        self.runtime.block_on(async { tokio::time::timeout(LIMIT * 2, future).await.expect("in time") })
    }

    pub(crate) fn spawn<F: Future<Output: Send> + Send + 'static>(&self, future: F) -> tokio::task::JoinHandle<F::Output> {
        self.runtime.spawn(future)
    }

    /// Waits until the pod's namespace is in that state.
    pub(crate) fn until(&self, state: State) {
        self.wait(async {
            let mut look = tokio::time::interval(Duration::from_millis(10));
            while self.redirect().state(&self.pod).await.expect("state") != state {
                look.tick().await;
            }
        });
    }

    /// Where this process finds the pod's namespace.
    pub(crate) fn pod_path(&self) -> PathBuf {
        format!("/proc/self/fd/{}", self.pod.as_fd().as_raw_fd()).into()
    }

    pub(crate) fn enrol(&self) {
        self.wait(self.redirect().apply(&self.pod)).expect("apply");
    }

    /// What `ip rule` would show beyond the rules of a new namespace.
    pub(crate) fn policy_rules(&self) -> usize {
        let version = if self.family.pod.is_ipv4() { rtnetlink::IpVersion::V4 } else { rtnetlink::IpVersion::V6 };
        self.wait(async {
            let rules: Vec<_> = netlink(&self.pod).rule().get(version).execute().try_collect().await.expect("rules");
            rules.iter().filter(|rule| rule.header.table == 100).count()
        })
    }
}

/// Listens in a namespace, as an application does.
pub(crate) fn listen(netns: &NetNs, port: u16) -> TcpListener {
    netns.run(|| TcpListener::bind(("::", port))).expect("enter").expect("listen")
}

/// How a connection is opened.
#[derive(Clone, Copy, Default)]
pub(crate) struct Dial {
    /// With the proxy's mark.
    pub(crate) marked: bool,
    /// From this address, which may be foreign.
    pub(crate) from: Option<IpAddr>,
}

/// Connects in a namespace.
pub(crate) fn connect(netns: &NetNs, to: IpAddr, port: u16, dial: Dial) -> TcpStream {
    let to = SocketAddr::new(to, port);
    let socket = netns
        .run(|| {
            let socket = Socket::new(Domain::for_address(to), Type::STREAM, None).expect("socket");
            if dial.marked {
                socket.set_mark(PROXY_MARK).expect("mark");
            }
            if let Some(from) = dial.from {
                if from.is_ipv4() {
                    socket.set_ip_transparent_v4(true).expect("transparent");
                } else {
                    socket.set_ip_transparent_v6(true).expect("transparent");
                }
                socket.bind(&SocketAddr::new(from, 0).into()).expect("bind");
            }
            socket
        })
        .expect("enter");
    socket.connect_timeout(&to.into(), LIMIT).unwrap_or_else(|error| panic!("connect to {to}: {error}"));
    let stream: TcpStream = socket.into();
    stream.set_read_timeout(Some(LIMIT)).expect("timeout");
    stream
}

/// Sends one TCP segment with only ACK set, outside of any connection, and sees it arrive. It is signed (RFC 2385), which
/// nobody asked for: the receiver drops it without an answer.
pub(crate) fn send_ack(world: &World, from: (IpAddr, u16), to: (IpAddr, u16)) {
    let mut segment = Vec::new();
    segment.extend(from.1.to_be_bytes());
    segment.extend(to.1.to_be_bytes());
    segment.extend([0, 0, 0, 1, 0, 0, 0, 1]);
    // A header of ten words, ACK, a window; the option, filled up.
    segment.extend([0xa0, 0x10, 0xff, 0xff, 0, 0, 0, 0, 19, 18]);
    segment.resize(38, 7);
    segment.extend([1, 1]);
    let sum = checksum(from.0, to.0, &segment);
    segment[16..18].copy_from_slice(&sum.to_be_bytes());
    let raw = |netns: &NetNs, ip: IpAddr| {
        let domain = Domain::for_address(SocketAddr::new(ip, 0));
        let socket = netns.run(|| Socket::new(domain, Type::RAW, Some(Protocol::TCP))).expect("enter").expect("raw socket");
        socket.bind(&SocketAddr::new(ip, 0).into()).expect("bind");
        socket.set_read_timeout(Some(LIMIT)).expect("timeout");
        socket
    };
    let (sender, mut receiver) = (raw(&world.host, from.0), raw(&world.pod, to.0));
    sender.send_to(&segment, &SocketAddr::new(to.0, 0).into()).expect("send");
    let mut buffer = [0; 128];
    let length = receiver.read(&mut buffer).expect("the segment arrives");
    // IPv4 raw sockets read the IP header too.
    assert!(buffer[..length].ends_with(&segment), "the segment arrives");
}

/// RFC 9293 §3.1: over the pseudo header and the segment.
fn checksum(from: IpAddr, to: IpAddr, segment: &[u8]) -> u16 {
    let mut bytes = Vec::new();
    for ip in [from, to] {
        match ip {
            IpAddr::V4(ip) => bytes.extend(ip.octets()),
            IpAddr::V6(ip) => bytes.extend(ip.octets()),
        }
    }
    bytes.extend([0, 6, 0, u8::try_from(segment.len()).expect("short")]);
    bytes.extend(segment);
    let mut sum: u32 = bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// The next connection of a listener.
pub(crate) fn accept(listener: &TcpListener) -> Accepted {
    SockRef::from(listener).set_read_timeout(Some(LIMIT)).expect("timeout");
    let (stream, peer) = listener.accept().expect("a connection arrives");
    stream.set_read_timeout(Some(LIMIT)).expect("timeout");
    let socket = SockRef::from(&stream);
    let original = if peer.ip().to_canonical().is_ipv4() { socket.original_dst_v4() } else { socket.original_dst_v6() };
    let original = original.ok().and_then(|address| address.as_socket());
    Accepted { peer: peer.ip().to_canonical(), original: original.map(|to| (to.ip().to_canonical(), to.port())), stream }
}

pub(crate) struct Accepted {
    pub(crate) stream: TcpStream,
    pub(crate) peer: IpAddr,
    /// Where the client wanted to go, when the connection is translated (and, as conntrack knows it, also when not).
    pub(crate) original: Option<(IpAddr, u16)>,
}

/// Sends something each way and sees it arrive.
pub(crate) fn talk(one: &mut TcpStream, other: &mut TcpStream) {
    let mut buffer = [0; 4];
    one.write_all(b"ping").expect("send");
    other.read_exact(&mut buffer).expect("ping arrives");
    assert_eq!(&buffer, b"ping");
    other.write_all(b"pong").expect("answer");
    one.read_exact(&mut buffer).expect("pong arrives");
    assert_eq!(&buffer, b"pong");
}

fn new_netns() -> NetNs {
    let made = std::thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).expect("a new network namespace: run as root or in a user namespace of your own");
        NetNs::current().expect("own namespace")
    });
    made.join().expect("the thread made a namespace")
}

fn netlink(netns: &NetNs) -> Handle {
    let (connection, handle, _) = netns.run(rtnetlink::new_connection).expect("enter").expect("netlink");
    tokio::spawn(connection);
    handle
}

async fn set_up(netns: &NetNs, handle: &Handle, link: &str, addresses: &[(IpAddr, u8)], gateway: IpAddr) {
    let index = netns.run(|| nix::net::if_::if_nametoindex(link)).expect("enter").expect("the link is there");
    for index in [1, index] {
        handle.link().set(LinkUnspec::new_with_index(index).up().build()).execute().await.expect("link up");
    }
    for (ip, prefix) in addresses {
        let mut request = handle.address().add(index, *ip, *prefix);
        // Nobody else is on the wire: the address is usable at once.
        request.message_mut().attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
        request.execute().await.expect("address");
    }
    let route = match gateway {
        IpAddr::V4(gateway) => RouteMessageBuilder::<Ipv4Addr>::new().gateway(gateway).output_interface(index).build(),
        IpAddr::V6(gateway) => RouteMessageBuilder::<Ipv6Addr>::new().gateway(gateway).output_interface(index).build(),
    };
    handle.route().add(route).execute().await.expect("default route");
}
