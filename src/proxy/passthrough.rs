//! Plaintext connections that arrive at a pod: policy decides without an identity.

use std::sync::Arc;

use tokio::net::TcpStream;
use tokio::sync::SemaphorePermit;

use super::dial::{To, dial};
use super::parties::party;
use super::pod::Pod;
use super::track::Subject;
use super::{LOCAL_LIMIT, is_own_port, relay};
use crate::base::addr::{ClientAddr, NextHop, OrigDst};
use crate::base::{Error, Result, code};
use crate::mesh::{NetworkAddress, Workload};
use crate::net::socket;
use crate::telemetry::tcp::{Connection, Direction, Ends, Parties, refuse};

/// Serves one captured connection from accept to end.
pub(super) async fn serve(pod: Arc<Pod>, client_side: TcpStream) {
    let _held = pod.shared.metrics.socket("destination");
    let (Ok(client), Ok(original)) = (socket::client(&client_side), socket::original_destination(&client_side)) else { return };
    pod.sockets.settle(&client_side);
    match admit(&pod, original).await {
        Ok((workload, _place)) => carry(&pod, client_side, client, original, &workload).await,
        Err(error) => {
            relay::reset(&client_side);
            refuse(&pod.shared.metrics, Direction::Inbound, client.addr(), original.addr(), &error);
        }
    }
}

async fn admit(pod: &Pod, original: OrigDst) -> Result<(Arc<Workload>, SemaphorePermit<'_>)> {
    if is_own_port(original.port()) {
        return Err(Error::new(&code::RECURSIVE_CALL, format!("attempted recursive call to {original}")));
    }
    let place = pod.stranger()?;
    Ok((pod.shared.mesh.wait_local(&pod.local, LOCAL_LIMIT).await?, place))
}

async fn carry(pod: &Arc<Pod>, client_side: TcpStream, client: ClientAddr, original: OrigDst, workload: &Workload) {
    let mesh = pod.shared.mesh.snapshot();
    let source = mesh.workload_at(&NetworkAddress::new(pod.shared.settings.network.clone(), client.ip()));
    let destination_id = workload.identity().ok();
    let parties = Parties {
        direction: Direction::Inbound,
        source: party(source.map(Arc::as_ref), None),
        destination: party(Some(workload), destination_id.as_ref()),
        service: None,
        mutual_tls: false,
    };
    let ends = Ends { source: client.addr(), destination: original.addr(), hbone_target: None };
    let connection = Connection::open(&pod.series, parties, ends);
    let subject = Subject { source: client.addr(), destination: original.addr(), identity: None };
    let guard = pod.connections.inbound(subject.clone(), None);
    let result = match pod.permit(&subject) {
        None => {
            tokio::select! {
                result = through(pod, &client_side, client, original, &connection) => result,
                reason = guard.cut() => Err(reason),
            }
        }
        Some(denied) => Err(denied),
    };
    if result.is_err() {
        relay::reset(&client_side);
    }
    connection.finish(result);
}

async fn through(pod: &Pod, client_side: &TcpStream, client: ClientAddr, original: OrigDst, connection: &Connection) -> Result<()> {
    let source = pod.shown_source(client.ip(), original.ip());
    let app = dial(&pod.sockets, To::Application, NextHop::new(original.addr()), source).await?;
    relay::tcp_to_tcp(client_side, &app, connection).await
}
