//! One connected proxy, from its first message to its end.

use std::os::fd::AsFd;
use std::sync::Arc;

use super::table::{Change, Table};
use super::{LIMIT, Pod};
use crate::base::{Error, Result, Str, code, deadline};
use crate::net::seqpacket::{Connection, Packet};
use crate::zds::codec::{self, Answer, Request};

/// Serves the proxy until it goes away or does something that is not understood.
pub(super) async fn run(connection: Connection, table: Arc<Table>) {
    if let Err(error) = hello(&connection).await {
        tracing::warn!(%error, "a proxy connected but did not introduce itself");
        return;
    }
    let (id, pods, changes) = table.open();
    let registered = Registered { table: &table, id };
    tracing::info!(proxy = id, pods = pods.len(), "a proxy connected");
    match follow(&connection, &registered, pods, changes).await {
        Ok(()) => tracing::info!(proxy = id, "the proxy disconnected"),
        Err(error) => tracing::warn!(proxy = id, %error, "the proxy is disconnected"),
    }
}

/// Takes the session out of the table also when the task is cancelled.
struct Registered<'a> {
    table: &'a Table,
    id: u64,
}

impl Drop for Registered<'_> {
    fn drop(&mut self) {
        self.table.close(self.id);
    }
}

async fn hello(connection: &Connection) -> Result<()> {
    let packet = deadline(LIMIT, &code::ZDS_PROTOCOL, "the proxy's first message", connection.receive()).await?;
    let packet = packet.map_err(|error| Error::caused(&code::ZDS_PROTOCOL, "the proxy's first message", error))?;
    let Some(packet) = packet else { return Err(Error::new(&code::ZDS_PROTOCOL, "it closed at once")) };
    codec::decode_hello(&packet.data).map_err(|error| Error::caused(&code::ZDS_PROTOCOL, "the proxy's first message", error))
}

async fn follow(
    connection: &Connection,
    session: &Registered<'_>,
    pods: Vec<Pod>,
    mut changes: tokio::sync::mpsc::Receiver<Change>,
) -> Result<()> {
    for pod in pods {
        if let Answer::Refused(reason) = add(connection, session, &pod).await? {
            tracing::warn!(proxy = session.id, uid = %pod.uid, %reason, "the proxy cannot serve a pod");
        }
    }
    if let Answer::Refused(reason) = exchange(connection, &Request::SnapshotSent, None).await? {
        return Err(Error::new(&code::ZDS_REFUSED, format!("the end of the snapshot: {reason}")));
    }
    tracing::info!(proxy = session.id, "the proxy has all pods");
    loop {
        let change = tokio::select! {
            change = changes.recv() => change,
            // Nothing may come unasked: what comes is the end, or a proxy that is out of step.
            packet = connection.receive() => return unasked(packet),
        };
        match change {
            None => return Err(Error::new(&code::ZDS_REFUSED, "it is too far behind")),
            Some(Change::Add(pod, reply)) => {
                let answer = add(connection, session, &pod).await?;
                // Nobody waits any more: the answer is in the table.
                let _ = reply.send(outcome(answer, &pod.uid));
            }
            Some(Change::Remove(uid, reply)) => {
                let answer = exchange(connection, &Request::Del { uid: uid.to_string() }, None).await?;
                let _ = reply.send(outcome(answer, &uid));
            }
        }
    }
}

async fn add(connection: &Connection, session: &Registered<'_>, pod: &Pod) -> Result<Answer> {
    let Some(netns) = &pod.netns else {
        return exchange(connection, &Request::Keep { uid: pod.uid.to_string() }, None).await;
    };
    let request = Request::Add { uid: pod.uid.to_string(), info: pod.info.clone() };
    let answer = exchange(connection, &request, Some(netns.as_fd())).await?;
    session.table.answered(session.id, pod, netns.id(), answer.clone());
    Ok(answer)
}

/// One message and its answer. An answer that is late cannot be told from the next one: the session ends.
async fn exchange(connection: &Connection, request: &Request, fd: Option<std::os::fd::BorrowedFd<'_>>) -> Result<Answer> {
    let data = match codec::encode_request(request) {
        Ok(data) => data,
        Err(error) => return Ok(Answer::Refused(error.to_string())),
    };
    let sent = deadline(LIMIT, &code::ZDS_REFUSED, "send to the proxy", connection.send(&data, fd)).await?;
    sent.map_err(|error| Error::caused(&code::ZDS_REFUSED, "send to the proxy", error))?;
    let packet = deadline(LIMIT, &code::ZDS_REFUSED, "the proxy's answer", connection.receive()).await?;
    match packet.map_err(|error| Error::caused(&code::ZDS_REFUSED, "the proxy's answer", error))? {
        None => Err(super::session_ended()),
        Some(packet) => codec::decode_answer(&packet.data).map_err(|error| Error::caused(&code::ZDS_REFUSED, "the proxy's answer", error)),
    }
}

fn unasked(packet: std::io::Result<Option<Packet>>) -> Result<()> {
    match packet {
        Ok(None) => Ok(()),
        Ok(Some(_)) => Err(Error::new(&code::ZDS_REFUSED, "it sent a message that nobody asked for")),
        Err(error) => Err(Error::caused(&code::ZDS_REFUSED, "receive from the proxy", error)),
    }
}

fn outcome(answer: Answer, uid: &Str) -> Result<()> {
    match answer {
        Answer::Done => Ok(()),
        Answer::Refused(reason) => Err(Error::new(&code::ZDS_REFUSED, format!("pod {uid}: {reason}"))),
    }
}
