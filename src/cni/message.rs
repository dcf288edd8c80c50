//! What plugin and agent say to each other: one JSON message each way on a SEQPACKET socket. The message of an addition
//! carries the pod's network namespace as a descriptor. Unknown fields are ignored, so that versions may differ.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::base::{Error, Result, code};
use crate::net::seqpacket::MAX_MESSAGE;

/// Room for the longest reason; the rest of the message is small.
const MAX_TEXT: usize = 700;

/// What the plugin asks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "call", rename_all = "snake_case")]
pub enum Call {
    /// A pod is about to start.
    Add {
        /// The pod.
        #[serde(flatten)]
        pod: PodRef,
        /// Its addresses.
        ips: Vec<IpAddr>,
        /// How long the plugin waits for the answer, milliseconds.
        limit_ms: u64,
    },
    /// A pod's sandbox is being taken down.
    Del {
        /// The pod.
        #[serde(flatten)]
        pod: PodRef,
    },
}

/// A pod's sandbox.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodRef {
    /// The pod's UID.
    pub uid: String,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// The sandbox's container id.
    pub container: String,
}

/// What the agent answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "snake_case")]
pub enum Answer {
    /// The proxy serves the pod and its traffic is redirected.
    Enrolled,
    /// It is not to be in the mesh.
    NotInMesh {
        /// Why not.
        why: String,
    },
    /// The sandbox is forgotten.
    Forgotten,
    /// It is to be in the mesh and is not.
    Failed {
        /// Code of the error.
        code: String,
        /// The error.
        text: String,
        /// Whether the same call may succeed later.
        retry: bool,
    },
}

impl Call {
    /// The message.
    ///
    /// # Errors
    /// CNI_CALL: it is longer than a message may be.
    pub fn encode(&self) -> Result<Vec<u8>> {
        encode(self)
    }

    /// The reverse of [`Call::encode`].
    ///
    /// # Errors
    /// CNI_CALL: it is no such message.
    pub fn decode(message: &[u8]) -> Result<Self> {
        decode(message)
    }
}

impl Answer {
    /// An answer that tells of `error`, cut where it is too long for a message.
    pub fn failed(error: &Error) -> Self {
        let mut text = error.to_string();
        let end = (0..=MAX_TEXT.min(text.len())).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
        text.truncate(end);
        Self::Failed { code: error.code().id.to_owned(), text, retry: error.code().retry }
    }

    /// The message.
    ///
    /// # Errors
    /// CNI_CALL: it is longer than a message may be.
    pub fn encode(&self) -> Result<Vec<u8>> {
        encode(self)
    }

    /// The reverse of [`Answer::encode`].
    ///
    /// # Errors
    /// CNI_CALL: it is no such message.
    pub fn decode(message: &[u8]) -> Result<Self> {
        decode(message)
    }
}

fn encode(message: &impl Serialize) -> Result<Vec<u8>> {
    let bytes = serde_json::to_vec(message).map_err(|error| Error::caused(&code::CNI_CALL, "a message", error))?;
    if bytes.len() > MAX_MESSAGE {
        return Err(Error::new(&code::CNI_CALL, format!("a message of {} bytes, more than {MAX_MESSAGE}", bytes.len())));
    }
    Ok(bytes)
}

fn decode<'a, T: Deserialize<'a>>(message: &'a [u8]) -> Result<T> {
    serde_json::from_slice(message).map_err(|error| Error::caused(&code::CNI_CALL, "a message between plugin and agent", error))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod() -> PodRef {
        PodRef { uid: "u".repeat(36), namespace: "n".repeat(63), name: "p".repeat(253), container: "c".repeat(64) }
    }

    #[test]
    fn messages_come_back_as_they_were() {
        let ips = vec!["fd00:1111:2222:3333:4444:5555:6666:7777".parse().expect("an address"); 8];
        let calls = [Call::Add { pod: pod(), ips, limit_ms: 10_000 }, Call::Del { pod: pod() }];
        for call in calls {
            assert_eq!(Call::decode(&call.encode().expect("fits")).expect("understood"), call);
        }
        for answer in [Answer::Enrolled, Answer::Forgotten, Answer::NotInMesh { why: "the label is none".into() }] {
            assert_eq!(Answer::decode(&answer.encode().expect("fits")).expect("understood"), answer);
        }
        assert!(Call::decode(b"\x01\x02").is_err());
    }

    #[test]
    fn a_long_reason_is_cut_to_fit() {
        let error = Error::new(&code::REDIRECT_FAILED, "ä".repeat(2000));
        let answer = Answer::failed(&error);
        let Answer::Failed { code, text, retry } = &answer else { panic!("{answer:?}") };
        assert_eq!((code.as_str(), *retry, text.len()), ("W6002", true, MAX_TEXT));
        assert!(answer.encode().is_ok());
    }

    #[test]
    fn later_versions_may_say_more() {
        let call = Call::decode(br#"{"call":"del","uid":"u","namespace":"n","name":"p","container":"c","why":"new"}"#);
        assert!(call.is_ok(), "{call:?}");
    }
}
