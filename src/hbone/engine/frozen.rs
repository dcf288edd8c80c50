//! A tunnel as a value: bytes and sockets.
//!
//! The bytes begin with [`MAGIC`] and [`VERSION`] and end with a SHA-256 of all before. In between stand the length of the
//! [`Tunnel`] (8 bytes, big-endian), the state as JSON, and the contents of all buffers, one behind the other.

use std::io::{self, IoSlice, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::Duration;

use aws_lc_rs::digest::{SHA256, SHA256_OUTPUT_LEN, digest};
use http::{HeaderMap, HeaderName, HeaderValue};
use serde::{Deserialize, Serialize};

use super::super::Request;
use super::super::core::{Connection, Head};
use super::super::dial::{Key, Wanted};
use super::Side;
use super::place::Reading;
use crate::base::{Error, Result, code};
use crate::identity::SpiffeId;
use crate::net::socket;
use crate::tls::record::{Exported, Secret};

const MAGIC: &[u8] = b"warren tunnel";

/// Of [`Tunnel`] and all that it is made of.
const VERSION: u8 = 1;

/// A tunnel that nobody runs. The bytes hold the keys of its connection. Dropped, its applications see a reset.
pub(in crate::hbone) struct Frozen {
    state: Secret,
    /// The tunnel's own comes first, then that of each stream that has one, by slot.
    sockets: Vec<TcpStream>,
}

impl Frozen {
    pub(super) fn new(sockets: Vec<TcpStream>) -> Self {
        Self { state: Secret::from(Vec::new()), sockets }
    }

    /// What [`into_parts`](Frozen::into_parts) gave.
    #[allow(dead_code, reason = "the hand-over between processes is to use it")]
    pub(in crate::hbone) fn from_parts(state: Secret, sockets: Vec<TcpStream>) -> Self {
        Self { state, sockets }
    }

    /// Bytes and sockets, to be sent to whoever goes on with the tunnel.
    pub(in crate::hbone) fn into_parts(mut self) -> (Secret, Vec<TcpStream>) {
        (std::mem::replace(&mut self.state, Secret::from(Vec::new())), std::mem::take(&mut self.sockets))
    }

    /// Notes the state and the contents of its buffers, in the order in which they are asked for again.
    pub(super) fn note(&mut self, state: &Tunnel<impl Serialize>, buffers: &[IoSlice<'_>]) -> Result<()> {
        let failed = |_| Error::internal("a tunnel could not be written down");
        let mut json = Counted(0);
        serde_json::to_writer(&mut json, state).map_err(failed)?;
        let contents: usize = buffers.iter().map(|buffer| buffer.len()).sum();
        // All at once: memory that is outgrown would keep a copy of the keys.
        let mut bytes = Vec::with_capacity(MAGIC.len() + 1 + 8 + json.0 + contents + SHA256_OUTPUT_LEN);
        bytes.extend_from_slice(MAGIC);
        bytes.push(VERSION);
        bytes.extend_from_slice(&(json.0 as u64).to_be_bytes());
        serde_json::to_writer(&mut bytes, state).map_err(failed)?;
        buffers.iter().for_each(|buffer| bytes.extend_from_slice(buffer));
        let sum = digest(&SHA256, &bytes);
        bytes.extend_from_slice(sum.as_ref());
        self.state = Secret::from(bytes);
        Ok(())
    }

    /// The state, and its buffers.
    ///
    /// # Errors
    /// It was written by another version, or is not whole.
    pub(super) fn read(&self) -> Result<(Tunnel, Buffers<'_>)> {
        let bytes = self.state.bytes();
        let (version, _) = bytes.strip_prefix(MAGIC).and_then(<[u8]>::split_first).ok_or_else(|| unreadable("it is none"))?;
        if *version != VERSION {
            return Err(unreadable(&format!("it is of version {version}, not {VERSION}")));
        }
        let (bytes, sum) = bytes.split_last_chunk::<SHA256_OUTPUT_LEN>().ok_or_else(|| unreadable("it is not whole"))?;
        if digest(&SHA256, bytes).as_ref() != sum {
            return Err(unreadable("it is not whole"));
        }
        let mut rest = Buffers(bytes.get(MAGIC.len() + 1..).unwrap_or_default());
        let length = u64::from_be_bytes(rest.next(8)?.try_into().unwrap_or_default());
        let json = rest.next(usize::try_from(length).unwrap_or(usize::MAX))?;
        // What serde says about it may hold a piece of it.
        let state = serde_json::from_slice(json).map_err(|_| unreadable("its state cannot be read"))?;
        Ok((state, rest))
    }

    pub(super) fn sockets(&self) -> &[TcpStream] {
        &self.sockets
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        self.sockets.iter().skip(1).for_each(socket::reset);
    }
}

/// All of a tunnel but its sockets and the contents of its buffers, of which it has the lengths.
#[derive(Serialize, Deserialize)]
pub(super) struct Tunnel<C = Connection> {
    pub(super) connection: C,
    pub(super) session: Exported,
    pub(super) input: usize,
    pub(super) output: usize,
    /// By slot.
    pub(super) streams: Vec<Option<Stream>>,
    /// Slots and numbers of requests without an answer, and how long they may still wait.
    pub(super) waiting: Vec<(u32, u64, Duration)>,
    pub(super) numbers: u64,
    pub(super) answer_limit: Duration,
    /// How long the peer may still take for its first SETTINGS, until they have come.
    pub(super) silence: Option<Duration>,
    /// The time that the connection knows.
    pub(super) age: Duration,
}

#[derive(Serialize, Deserialize)]
pub(super) struct Stream {
    pub(super) number: u64,
    pub(super) ended: bool,
    pub(super) queue: usize,
    pub(super) kind: Kind,
}

#[derive(Serialize, Deserialize)]
pub(super) enum Kind {
    /// A request that waits for its answer.
    Asked(Written),
    /// It has a socket.
    Carried { side: Side, reading: Reading, records: usize, asked: Option<Sought>, early: usize, resend: usize, shut: bool },
}

/// A [`Head`] as it is written down.
#[derive(Serialize, Deserialize)]
pub(super) struct Written {
    method: String,
    authority: String,
    headers: Vec<(String, Vec<u8>)>,
}

/// A [`Wanted`] as it is written down.
#[derive(Serialize, Deserialize)]
pub(super) struct Sought {
    source: String,
    destinations: Vec<String>,
    addr: SocketAddr,
    source_ip: Option<IpAddr>,
    gateway: bool,
    request: Written,
}

impl From<&Wanted> for Sought {
    fn from(Wanted { key, request }: &Wanted) -> Self {
        let head = Head { method: String::new(), authority: request.authority.clone(), headers: request.headers.clone() };
        Self {
            source: key.source.to_string(),
            destinations: key.destinations.iter().map(SpiffeId::to_string).collect(),
            addr: key.addr,
            source_ip: key.source_ip,
            gateway: key.gateway,
            request: (&head).into(),
        }
    }
}

impl Sought {
    pub(super) fn wanted(self) -> Result<Wanted> {
        let id = |text: &String| text.parse::<SpiffeId>().map_err(|_| unreadable("an identity that is none"));
        let destinations = self.destinations.iter().map(id).collect::<Result<_>>()?;
        let key = Key { source: id(&self.source)?, destinations, addr: self.addr, source_ip: self.source_ip, gateway: self.gateway };
        let Head { authority, headers, .. } = self.request.head()?;
        Ok(Wanted { key, request: Request { authority, headers } })
    }
}

impl From<&Head> for Written {
    fn from(head: &Head) -> Self {
        let headers = head.headers.iter().map(|(name, value)| (name.as_str().to_owned(), value.as_bytes().to_vec()));
        Self { method: head.method.clone(), authority: head.authority.clone(), headers: headers.collect() }
    }
}

impl Written {
    pub(super) fn head(self) -> Result<Head> {
        let bad = || unreadable("a request with a header that is none");
        let mut headers = HeaderMap::new();
        for (name, value) in self.headers {
            let (name, value) = (HeaderName::from_bytes(name.as_bytes()).ok(), HeaderValue::from_bytes(&value).ok());
            headers.try_append(name.ok_or_else(bad)?, value.ok_or_else(bad)?).map_err(|_| bad())?;
        }
        Ok(Head { method: self.method, authority: self.authority, headers })
    }
}

/// The contents of the buffers that are still to come.
pub(super) struct Buffers<'a>(&'a [u8]);

impl<'a> Buffers<'a> {
    pub(super) fn next(&mut self, length: usize) -> Result<&'a [u8]> {
        let (bytes, rest) = self.0.split_at_checked(length).ok_or_else(|| unreadable("it is not whole"))?;
        self.0 = rest;
        Ok(bytes)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

pub(super) fn unreadable(why: &str) -> Error {
    Error::new(&code::DRAINED, format!("a tunnel that was handed over cannot go on here: {why}"))
}

/// How many bytes were written.
struct Counted(usize);

impl Write for Counted {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 += bytes.len();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
