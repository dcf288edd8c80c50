//! Connections that a pod's application opens: where to, and through what.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;

use futures::future::BoxFuture;

use tokio::net::TcpStream;

use super::dial::{To, dial};
use super::parties::{party, service_name};
use super::pod::Pod;
use super::relay;
use super::track::OutboundGuard;
use super::{HBONE_PORT, headers, is_own_port};
use crate::base::addr::{ClientAddr, NextHop, OrigDst};
use crate::base::{Error, Result, code};
use crate::config::settings::Engine;
use crate::hbone::{self, App, Side};
use crate::identity::SpiffeId;
use crate::mesh::resolve::{self, Route};
use crate::mesh::{Owner, Protocol, Service, Workload};
use crate::net::socket;
use crate::telemetry::tcp::{Connection, Direction, Ends, Parties, refuse};

/// Serves one captured connection from accept to end.
pub(super) fn serve(pod: Arc<Pod>, app: TcpStream, worker: usize) -> BoxFuture<'static, ()> {
    let held = pod.shared.metrics.socket("source");
    let Some(Begun { way, connection, listed }) = accept(&pod, &app) else { return Box::pin(std::future::ready(())) };
    let keeps = (held, listed);
    match way {
        Way::Tunnel(wanted) if pod.shared.settings.http2.engine == Engine::Warren => {
            Box::pin(carry(pod, worker, wanted, app, connection, keeps))
        }
        way => Box::pin(async move {
            let _keeps = keeps;
            let result = match way {
                Way::Plain(hop) => plain(&pod, app, hop, &connection).await,
                Way::Tunnel(wanted) => tunnel(&pod, app, worker, *wanted, &connection).await,
            };
            connection.finish(result);
        }),
    }
}

/// What lasts as long as a connection in a tunnel is kept small: there are many of them, and most are idle.
pub(super) fn carry(
    pod: Arc<Pod>,
    worker: usize,
    wanted: Box<hbone::Wanted>,
    app: TcpStream,
    connection: Arc<Connection>,
    keeps: impl Send,
) -> impl Future<Output = ()> {
    let app = Box::new(App::new(app, Side::Client, connection.clone()));
    async move {
        let _ = &keeps;
        let result = pod.pool(worker).carry(wanted, app).await;
        connection.finish(result);
    }
}

fn accept(pod: &Pod, app: &TcpStream) -> Option<Begun> {
    let (Ok(client), Ok(original)) = (socket::client(app), socket::original_destination(app)) else {
        // It was closed before it was looked at.
        return None;
    };
    pod.sockets.settle(app);
    match plan(pod, client, original, app.local_addr().ok()) {
        Ok(plan) => Some(begin(pod, client, original, plan)),
        Err(error) => {
            relay::reset(app);
            refuse(&pod.shared.metrics, Direction::Outbound, client.addr(), original.addr(), &error);
            None
        }
    }
}

/// Everything that is decided before the first packet is sent.
struct Plan {
    hop: NextHop,
    via: Via,
    source: Arc<Workload>,
    identity: SpiffeId,
    destination: Option<Arc<Workload>>,
    service: Option<Arc<Service>>,
}

enum Via {
    /// As it is.
    Plain,
    /// In a tunnel, to this target, whose proxy has one of these identities.
    Tunnel { authority: String, destinations: Vec<SpiffeId>, gateway: bool },
}

fn plan(pod: &Pod, client: ClientAddr, original: OrigDst, local: Option<SocketAddr>) -> Result<Plan> {
    let own = original.ip().is_loopback() || original.ip() == client.ip() || local.is_some_and(|local| OrigDst::new(local) == original);
    if own && is_own_port(original.port()) {
        return Err(Error::new(&code::RECURSIVE_CALL, format!("attempted recursive call to {original}")));
    }
    let source = pod.who();
    let identity = source.identity()?;
    let route = resolve::route(&pod.shared.mesh.snapshot(), &source, original.addr(), &mut rand::rng())?;
    let plan = |hop, via, destination, service| Plan { hop, via, source: source.clone(), identity: identity.clone(), destination, service };
    Ok(match route {
        Route::Passthrough => plan(NextHop::new(original.addr()), Via::Plain, None, None),
        Route::Direct(upstream) => match upstream.workload.protocol {
            Protocol::TCP => plan(NextHop::new(upstream.addr), Via::Plain, Some(upstream.workload), upstream.service),
            Protocol::HBONE => {
                let hop = NextHop::new(SocketAddr::new(upstream.addr.ip(), HBONE_PORT));
                let gateway = upstream.workload.native_tunnel;
                let via = Via::Tunnel { authority: upstream.addr.to_string(), destinations: upstream.identities()?, gateway };
                plan(hop, via, Some(upstream.workload), upstream.service)
            }
        },
        Route::Waypoint { waypoint, owner } => {
            let service = match owner {
                Owner::Service(service) => Some(service),
                Owner::Workload(_) => None,
            };
            let via = Via::Tunnel { authority: original.to_string(), destinations: waypoint.identities()?, gateway: true };
            plan(NextHop::new(waypoint.addr), via, Some(waypoint.workload), service)
        }
    })
}

/// A connection that has begun. What it takes to begin is not kept while it lasts.
struct Begun {
    way: Way,
    connection: Arc<Connection>,
    listed: OutboundGuard,
}

/// The first steps of a connection that lasts.
enum Way {
    Plain(NextHop),
    Tunnel(Box<hbone::Wanted>),
}

fn begin(pod: &Pod, client: ClientAddr, original: OrigDst, plan: Plan) -> Begun {
    let (hbone_target, destination_id) = match &plan.via {
        Via::Plain => (None, None),
        Via::Tunnel { authority, destinations, .. } => (Some(authority.as_str().into()), destinations.first()),
    };
    let tunnelled = hbone_target.is_some();
    let parties = Parties {
        direction: Direction::Outbound,
        source: party(Some(&plan.source), tunnelled.then_some(&plan.identity)),
        destination: party(plan.destination.as_deref(), destination_id),
        service: plan.service.as_deref().map(service_name),
        mutual_tls: tunnelled,
    };
    let ends = Ends { source: client.addr(), destination: plan.hop.addr(), hbone_target };
    let connection = Arc::new(Connection::open(&pod.series, parties, ends));
    let listed = pod.connections.outbound(original, connection.clone());
    let way = match plan.via {
        Via::Plain => Way::Plain(plan.hop),
        Via::Tunnel { authority, destinations, gateway } => {
            let service_host = plan.service.as_ref().map(|service| &*service.hostname);
            let headers = headers::request(&plan.source, client.addr(), service_host, pod.shared.settings.baggage);
            let key = hbone::Key { source: plan.identity, destinations, addr: plan.hop.addr(), source_ip: Some(client.ip()), gateway };
            Way::Tunnel(Box::new(hbone::Wanted { key, request: hbone::Request { authority, headers } }))
        }
    };
    Begun { way, connection, listed }
}

async fn plain(pod: &Pod, app: TcpStream, hop: NextHop, connection: &Connection) -> Result<()> {
    let relayed = async {
        let upstream = dial(&pod.sockets, To::Destination, hop, None).await?;
        relay::tcp_to_tcp(&app, &upstream, connection).await
    };
    let result = relayed.await;
    reset_if_refused(&app, &result);
    result
}

async fn tunnel(
    pod: &Pod,
    app: TcpStream,
    worker: usize,
    hbone::Wanted { key, request }: hbone::Wanted,
    connection: &Connection,
) -> Result<()> {
    let carried = async {
        let opened = pod.pool(worker).open(&key, request).await?;
        tracing::trace!(peer = %opened.peer, tunnel = opened.tunnel.id, reused = opened.tunnel.reused, "stream open");
        relay::tcp_to_tunnel(&app, opened.stream, Side::Client, connection).await
    };
    let result = carried.await;
    reset_if_refused(&app, &result);
    result
}

/// The application must not take a refusal for an empty answer.
fn reset_if_refused(app: &TcpStream, result: &Result<()>) {
    if result.is_err() {
        relay::reset(app);
    }
}
