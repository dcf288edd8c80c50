//! Tunnels that other proxies open to a pod, and the connections in them.

use std::future::{Future, poll_fn};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use futures::FutureExt;
use futures::future::Either;
use http::StatusCode;
use tokio::net::TcpStream;
use tokio::sync::OwnedSemaphorePermit;
use tokio::task::JoinSet;

use super::dial::{To, dial};
use super::parties::{party, service_name};
use super::pod::{Pod, server_settings};
use super::relay;
use super::track::{InboundGuard, Subject};
use super::{LOCAL_LIMIT, TLS_LIMIT, headers, is_own_port};
use crate::base::addr::{ClientAddr, NextHop};
use crate::base::drain::Watch;
use crate::base::{Error, Result, Str, code};
use crate::hbone::{Accepted, Answered, App, Asked, Side};
use crate::identity::SpiffeId;
use crate::mesh::{ApplicationProtocol, Mesh, NetworkAddress, Service, Workload};
use crate::net::socket;
use crate::telemetry::tcp::{Connection, Direction, Ends, Parties, refuse};

/// Serves one tunnel from accept to end.
pub(super) async fn serve(pod: Arc<Pod>, socket: TcpStream, drain: Watch) {
    let _held = pod.shared.metrics.socket("destination");
    let (Ok(peer), Ok(local)) = (socket::client(&socket), socket.local_addr()) else { return };
    let local = NextHop::new(local);
    pod.sockets.settle(&socket);
    if let Err(error) = tunnel(&pod, socket, peer, local, drain).await {
        refuse(&pod.shared.metrics, Direction::Inbound, peer.addr(), local.addr(), &error);
    }
}

async fn tunnel(pod: &Arc<Pod>, socket: TcpStream, peer: ClientAddr, local: NextHop, mut drain: Watch) -> Result<()> {
    let place = pod.stranger()?;
    let certificate = pod.shared.certificates.certificate(&pod.who().identity()?).await?;
    let (mut server, identity) = Accepted::accept(socket, &certificate, TLS_LIMIT, &server_settings(&pod.shared.settings)).await?;
    drop(place);
    let tunnel = Arc::new(Tunnel { peer, local, identity: Arc::new(identity) });
    // Dropped with the tunnel: no stream outlives it.
    let mut streams = JoinSet::new();
    let (mut draining, mut served) = (false, false);
    loop {
        tokio::select! {
            incoming = server.next() => match incoming {
                Some(incoming) => {
                    served = true;
                    streams.spawn(stream_task(pod.clone(), tunnel.clone(), Box::new(incoming)));
                }
                None => {
                    // The streams that were open have ended with it: each says itself how.
                    let _ = tokio::time::timeout(FAREWELL, async { while streams.join_next().await.is_some() {} }).await;
                    return ended(&server, served, peer);
                }
            },
            Some(_) = streams.join_next(), if !streams.is_empty() => {}
            _ = drain.started(), if !draining => {
                draining = true;
                server.graceful_shutdown();
            }
        }
    }
}

/// A tunnel that ended badly before it carried anything is told as a refusal: a stranger knocked. So is one whose peer
/// was shown the door.
fn ended(server: &Accepted, served: bool, peer: ClientAddr) -> Result<()> {
    match server.reason() {
        Some(error) if !served || server.is_abused() => Err(error),
        Some(error) => {
            tracing::debug!(%peer, %error, "tunnel ended");
            Ok(())
        }
        None => Ok(()),
    }
}

/// For the connections of a tunnel that has ended: their applications have a minute to take what came before.
const FAREWELL: Duration = Duration::from_secs(65);

/// What is common to all connections of a tunnel.
#[derive(Clone, Debug)]
pub(super) struct Tunnel {
    peer: ClientAddr,
    local: NextHop,
    identity: Arc<SpiffeId>,
}

/// There are many of these, and most are idle: what it takes to begin is on the heap and gone while the connection lasts.
pub(super) fn stream_task(pod: Arc<Pod>, tunnel: Arc<Tunnel>, incoming: Box<Asked>) -> impl Future<Output = ()> {
    let begin = Box::pin(async move { begin(&pod, &tunnel, incoming).await });
    async move {
        let Some(begun) = begin.await else { return };
        let mut over = match begun.answered {
            Answered::Carried(carrying) => Either::Left(carrying),
            Answered::Open(app, stream) => {
                let connection = begun.connection.clone();
                Either::Right(Box::pin(async move { relay::tcp_to_tunnel(&app.socket, *stream, Side::Server, &*connection).await }))
            }
        };
        let result = poll_fn(|cx| match over.poll_unpin(cx) {
            Poll::Pending => begun.guard.poll_cut(cx).map(Err),
            ready => ready,
        });
        begun.connection.finish(result.await);
    }
}

/// A connection that has begun.
struct Begun {
    answered: Answered,
    connection: Arc<Connection>,
    guard: InboundGuard,
    _place: OwnedSemaphorePermit,
}

/// From the request to the answer.
async fn begin(pod: &Arc<Pod>, tunnel: &Tunnel, incoming: Box<Asked>) -> Option<Begun> {
    let incoming = *incoming;
    match admit(pod, tunnel, &incoming).await {
        Ok(admitted) => connect(pod, tunnel, incoming, admitted).await,
        Err(error) => {
            incoming.refuse(status_of(&error));
            refuse(&pod.shared.metrics, Direction::Inbound, tunnel.peer.addr(), tunnel.local.addr(), &error);
            None
        }
    }
}

/// A request that makes sense.
struct Admitted {
    workload: Arc<Workload>,
    service: Option<Arc<Service>>,
    application: NextHop,
    forwarded: Option<Str>,
    place: OwnedSemaphorePermit,
}

async fn admit(pod: &Pod, tunnel: &Tunnel, incoming: &Asked) -> Result<Admitted> {
    if incoming.method != http::Method::CONNECT {
        return Err(Error::new(&code::BAD_METHOD, format!("expected method CONNECT, got {}", shorten(incoming.method.as_str()))));
    }
    // Only the control plane knows which policies are attached to the pod: nothing is let in before it has told.
    let workload = pod.shared.mesh.wait_local(&pod.local, LOCAL_LIMIT).await?;
    let target = Target::parse(incoming.authority())?;
    let mesh = pod.shared.mesh.snapshot();
    let forwarded = headers::forwarded_host(incoming.headers());
    let (port, service) = find(&mesh, &workload, &target, tunnel.local.ip(), forwarded.as_deref())?;
    if is_own_port(port) {
        return Err(Error::new(&code::RECURSIVE_CALL, format!("attempted recursive call to {}", incoming.authority())));
    }
    if workload.application_tunnel.as_ref().is_some_and(|tunnel| tunnel.protocol == ApplicationProtocol::PROXY) {
        return Err(Error::new(&code::UNSUPPORTED, "the workload asks for the PROXY protocol".to_owned()));
    }
    let application = NextHop::new(SocketAddr::new(tunnel.local.ip(), port));
    let place = pod.streams.clone().try_acquire_owned();
    let place = place.map_err(|_| Error::new(&code::CAPACITY, "too many connections in tunnels to one pod"))?;
    Ok(Admitted { workload, service, application, forwarded, place })
}

/// What the peer asks for.
#[derive(Debug, PartialEq, Eq)]
enum Target {
    Address(SocketAddr),
    Name(String, u16),
}

impl Target {
    /// RFC 9113 §8.5: `:authority` holds host and port.
    fn parse(authority: &str) -> Result<Self> {
        if let Ok(addr) = authority.parse::<SocketAddr>() {
            return Ok(Self::Address(crate::base::addr::canonical(addr)));
        }
        let bad = || Error::new(&code::BAD_AUTHORITY, format!("no valid authority pseudo header: {:?}", shorten(authority)));
        let (host, port) = authority.rsplit_once(':').ok_or_else(bad)?;
        let port = port.parse().map_err(|_| bad())?;
        if host.is_empty() || host.contains([':', '[', '@']) {
            return Err(bad());
        }
        Ok(Self::Name(host.to_ascii_lowercase(), port))
    }
}

/// The port of the application, and the service if there is one.
fn find(mesh: &Mesh, workload: &Workload, target: &Target, own: IpAddr, forwarded: Option<&str>) -> Result<(u16, Option<Arc<Service>>)> {
    match target {
        Target::Address(addr) if addr.ip() == own => Ok((addr.port(), guess_service(mesh, workload, addr.port(), forwarded))),
        Target::Address(addr) => Err(Error::new(&code::ADDRESS_MISMATCH, format!("ip mismatch: {own} != {}", addr.ip()))),
        Target::Name(host, port) => {
            let unknown = |what: &str| Error::new(&code::UNKNOWN_SERVICE, format!("{what}: {}:{port}", shorten(host)));
            let service =
                mesh.service_named(host, Some(&workload.namespace)).ok_or_else(|| unknown("no service or workload for hostname"))?;
            let endpoint = mesh
                .endpoints(&service.key())
                .find(|endpoint| endpoint.workload.uid == workload.uid)
                .ok_or_else(|| unknown("this pod is no endpoint of"))?;
            let own_port = endpoint.port(*port).or_else(|| service.ports.get(port).copied().filter(|port| *port != 0));
            let port = own_port.ok_or_else(|| unknown("requested service found, but cannot resolve port"))?;
            Ok((port, Some(service.clone())))
        }
    }
}

/// For telemetry: the service that the client says it asked for, if the pod is in it; else one that leads to that port.
fn guess_service(mesh: &Mesh, workload: &Workload, port: u16, forwarded: Option<&str>) -> Option<Arc<Service>> {
    let mut services = workload.services.iter().filter_map(|(key, ports)| Some((mesh.service(key)?, ports)));
    if let Some(host) = forwarded
        && let Some((service, _)) = services.clone().find(|(service, _)| &*service.hostname == host)
    {
        return Some(service.clone());
    }
    let leads = |service: &Service, ports: &crate::mesh::Ports| ports.values().chain(service.ports.values()).any(|target| *target == port);
    services.find(|(service, ports)| leads(service, ports)).map(|(service, _)| service.clone())
}

/// Asks policy and connects to the application.
async fn connect(pod: &Arc<Pod>, tunnel: &Tunnel, incoming: Asked, admitted: Admitted) -> Option<Begun> {
    let mesh = pod.shared.mesh.snapshot();
    let address = NetworkAddress::new(pod.shared.settings.network.clone(), tunnel.peer.ip());
    // The address may have another owner by now; who the client is, only TLS says.
    let source = mesh
        .workload_at(&address)
        .filter(|source| source.namespace == tunnel.identity.namespace && source.service_account == tunnel.identity.service_account);
    let own_id = admitted.workload.identity().ok();
    let mut source_party = party(source.map(Arc::as_ref), Some(&tunnel.identity));
    source_party.namespace.get_or_insert_with(|| tunnel.identity.namespace.clone());
    let parties = Parties {
        direction: Direction::Inbound,
        source: source_party,
        destination: party(Some(&admitted.workload), own_id.as_ref()),
        service: admitted.service.as_deref().map(service_name),
        mutual_tls: true,
    };
    let hbone_target = Some(incoming.authority().into());
    let ends = Ends { source: tunnel.peer.addr(), destination: tunnel.local.addr(), hbone_target };
    let connection = Arc::new(Connection::open(&pod.series, parties, ends));
    let subject = Subject { source: tunnel.peer.addr(), destination: admitted.application.addr(), identity: Some(tunnel.identity.clone()) };
    let guard = pod.connections.inbound(subject.clone(), admitted.forwarded.clone());
    let result = match pod.permit(&subject) {
        None => {
            tokio::select! {
                result = through(pod, tunnel, incoming, &admitted, &connection) => result,
                reason = guard.cut() => Err(reason),
            }
        }
        Some(denied) => {
            incoming.refuse(status_of(&denied));
            Err(denied)
        }
    };
    match result {
        Ok(answered) => Some(Begun { answered, connection, guard, _place: admitted.place }),
        Err(error) => {
            connection.finish(Err(error));
            None
        }
    }
}

async fn through(pod: &Pod, tunnel: &Tunnel, mut incoming: Asked, admitted: &Admitted, connection: &Arc<Connection>) -> Result<Answered> {
    let source = pod.shown_source(tunnel.peer.ip(), admitted.application.ip());
    let dialled = tokio::select! {
        dialled = dial(&pod.sockets, To::Application, admitted.application, source) => dialled,
        gone = incoming.abandoned() => return Err(gone),
    };
    let app = match dialled {
        Ok(app) => app,
        Err(error) => {
            incoming.refuse(status_of(&error));
            return Err(error);
        }
    };
    let headers = headers::response(&admitted.workload, pod.shared.settings.baggage);
    incoming.carry(headers, App::new(app, Side::Server, connection.clone()))
}

/// The answer to a request that is refused.
fn status_of(error: &Error) -> StatusCode {
    match error.code().id {
        id if id == code::BAD_METHOD.id || id == code::BAD_AUTHORITY.id || id == code::ADDRESS_MISMATCH.id => StatusCode::BAD_REQUEST,
        id if id == code::POLICY_DENIED.id => StatusCode::UNAUTHORIZED,
        _ => StatusCode::SERVICE_UNAVAILABLE,
    }
}

/// A peer's text as far as a log line needs it.
fn shorten(text: &str) -> String {
    text.chars().take(128).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_authority_is_an_address_or_a_name_with_a_port() {
        let address = |text: &str| Target::Address(text.parse().expect("address"));
        for (text, target) in [
            ("10.0.0.7:8080", address("10.0.0.7:8080")),
            ("[fd00::7]:8080", address("[fd00::7]:8080")),
            ("[::ffff:10.0.0.7]:8080", address("10.0.0.7:8080")),
            ("Web.shop.svc:80", Target::Name("web.shop.svc".into(), 80)),
        ] {
            assert_eq!(Target::parse(text).expect(text), target, "{text}");
        }
        for text in ["", "10.0.0.7", ":80", "web:", "web:99999", "user@web:80", "fd00::7:80:", "[fd00::7:80"] {
            assert_eq!(Target::parse(text).expect_err(text).code().id, code::BAD_AUTHORITY.id, "{text}");
        }
    }
}
