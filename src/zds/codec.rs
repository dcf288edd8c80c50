//! ZDS messages as values: bytes in, checked values out, and back. Knows no sockets.

use prost::Message as _;

use crate::net::seqpacket::MAX_MESSAGE;
use crate::wire::zds as wire;

/// The longest refusal text that is sent, in bytes: with its framing it must fit the peer's 1024-byte buffer.
pub const MAX_REFUSAL: usize = 896;

/// The longest pod UID that is taken. Kubernetes uses 36 bytes.
const MAX_UID: usize = 253;

/// What a pod is called. The proxy finds its workload by these three.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct WorkloadInfo {
    /// Pod name.
    pub name: String,
    /// Its namespace.
    pub namespace: String,
    /// Its service account: with the namespace, its identity.
    pub service_account: String,
}

/// Agent to proxy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// Serve this pod. Comes with the pod's network namespace.
    Add {
        /// Pod UID.
        uid: String,
        /// What it is called.
        info: WorkloadInfo,
    },
    /// In a snapshot: the pod still exists, its network namespace is not at hand now.
    Keep {
        /// Pod UID.
        uid: String,
    },
    /// Stop serving this pod.
    Del {
        /// Pod UID.
        uid: String,
    },
    /// The snapshot is complete; pods that it did not name are gone.
    SnapshotSent,
}

/// Proxy to agent: the answer to each request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Done.
    Done,
    /// Not done, and why.
    Refused(String),
}

/// Why a message is not accepted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// Not protobuf, or a field of the wrong type.
    #[error("not a ZDS message: {0}")]
    Undecodable(String),
    /// No payload, or one that this version does not know.
    #[error("a message of unknown kind")]
    UnknownKind,
    /// A field that must be there.
    #[error("{0} is missing")]
    Missing(&'static str),
    /// A field with an unusable value.
    #[error("{0} is unusable")]
    Unusable(&'static str),
    /// A descriptor is missing, or there is one where none belongs.
    #[error("{0}")]
    Descriptor(&'static str),
    /// The peer speaks another version.
    #[error("protocol version {0} is not supported")]
    Version(i32),
    /// Longer than one packet.
    #[error("{0} bytes do not fit one message")]
    TooLong(usize),
}

/// Reads a request; `has_fd` tells whether a descriptor came with it.
///
/// # Errors
/// When any part of it is not as it must be.
pub fn decode_request(data: &[u8], has_fd: bool) -> Result<Request, Malformed> {
    use wire::workload_request::Payload;
    let message = wire::WorkloadRequest::decode(data).map_err(|error| Malformed::Undecodable(error.to_string()))?;
    let request = match message.payload.ok_or(Malformed::UnknownKind)? {
        Payload::Add(add) => Request::Add { uid: uid(add.uid)?, info: info(add.workload_info)? },
        Payload::Keep(keep) => Request::Keep { uid: uid(keep.uid)? },
        Payload::Del(del) => Request::Del { uid: uid(del.uid)? },
        Payload::SnapshotSent(_) => Request::SnapshotSent,
    };
    match (&request, has_fd) {
        (Request::Add { .. }, false) => Err(Malformed::Descriptor("an added pod without its network namespace")),
        (Request::Add { .. }, true) | (_, false) => Ok(request),
        (_, true) => Err(Malformed::Descriptor("a descriptor with a message that carries none")),
    }
}

/// Writes a request.
///
/// # Errors
/// [`Malformed::TooLong`] when its names do not fit one packet.
pub fn encode_request(request: &Request) -> Result<Vec<u8>, Malformed> {
    use wire::workload_request::Payload;
    let payload = match request.clone() {
        Request::Add { uid, info } => {
            let WorkloadInfo { name, namespace, service_account } = info;
            Payload::Add(wire::AddWorkload { uid, workload_info: Some(wire::WorkloadInfo { name, namespace, service_account }) })
        }
        Request::Keep { uid } => Payload::Keep(wire::KeepWorkload { uid }),
        Request::Del { uid } => Payload::Del(wire::DelWorkload { uid }),
        Request::SnapshotSent => Payload::SnapshotSent(wire::SnapshotSent {}),
    };
    let data = wire::WorkloadRequest { payload: Some(payload) }.encode_to_vec();
    if data.len() > MAX_MESSAGE { Err(Malformed::TooLong(data.len())) } else { Ok(data) }
}

/// Reads an answer.
///
/// # Errors
/// When it is none.
pub fn decode_answer(data: &[u8]) -> Result<Answer, Malformed> {
    let message = wire::WorkloadResponse::decode(data).map_err(|error| Malformed::Undecodable(error.to_string()))?;
    let Some(wire::workload_response::Payload::Ack(ack)) = message.payload else { return Err(Malformed::UnknownKind) };
    Ok(if ack.error.is_empty() { Answer::Done } else { Answer::Refused(ack.error) })
}

/// Writes an answer; a long refusal is cut to [`MAX_REFUSAL`] bytes.
pub fn encode_answer(answer: &Answer) -> Vec<u8> {
    let error = match answer {
        Answer::Done => String::new(),
        // An empty text would read as done.
        Answer::Refused(text) if text.is_empty() => "refused".to_owned(),
        Answer::Refused(text) => {
            let end = (0..=MAX_REFUSAL.min(text.len())).rev().find(|at| text.is_char_boundary(*at));
            text[..end.unwrap_or(0)].to_owned()
        }
    };
    wire::WorkloadResponse { payload: Some(wire::workload_response::Payload::Ack(wire::Ack { error })) }.encode_to_vec()
}

/// The proxy's first message.
pub fn encode_hello() -> Vec<u8> {
    wire::ZdsHello { version: wire::Version::V1.into() }.encode_to_vec()
}

/// Reads the proxy's first message.
///
/// # Errors
/// When it is none, or of a version that is not spoken here.
pub fn decode_hello(data: &[u8]) -> Result<(), Malformed> {
    let hello = wire::ZdsHello::decode(data).map_err(|error| Malformed::Undecodable(error.to_string()))?;
    if hello.version == i32::from(wire::Version::V1) { Ok(()) } else { Err(Malformed::Version(hello.version)) }
}

fn uid(uid: String) -> Result<String, Malformed> {
    match uid.len() {
        0 => Err(Malformed::Missing("the pod UID")),
        1..=MAX_UID => Ok(uid),
        _ => Err(Malformed::Unusable("the pod UID")),
    }
}

fn info(info: Option<wire::WorkloadInfo>) -> Result<WorkloadInfo, Malformed> {
    let wire::WorkloadInfo { name, namespace, service_account } = info.ok_or(Malformed::Missing("the workload information"))?;
    if name.is_empty() {
        return Err(Malformed::Missing("the pod name"));
    }
    // Namespace and service account become the pod's SPIFFE identity: they may not hold its separator.
    if namespace.is_empty() || namespace.contains('/') {
        return Err(Malformed::Unusable("the namespace"));
    }
    if service_account.is_empty() || service_account.contains('/') {
        return Err(Malformed::Unusable("the service account"));
    }
    Ok(WorkloadInfo { name, namespace, service_account })
}

#[cfg(test)]
mod tests;
