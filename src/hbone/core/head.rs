//! Header blocks: what a request and an answer may hold (RFC 9113 §8.2, §8.3, §8.5).

use http::{HeaderMap, HeaderName, HeaderValue};
use serde::{Deserialize, Serialize};

use super::Violation;
use super::frame::Reason;
use crate::hbone::hpack::{Decoder, Encoder, encode};

/// HPACK's dynamic table of the peer: the default, so nothing has to be said (§6.5.2).
pub(super) const TABLE_SIZE: usize = 4096;

/// Longest authority that is of use: a host name of 255 bytes, a port, and room.
const MAX_AUTHORITY: usize = 512;

/// A request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::hbone) struct Head {
    /// Anything but CONNECT is to be refused by the caller.
    pub(in crate::hbone) method: String,
    /// As sent; empty if there was none.
    pub(in crate::hbone) authority: String,
    /// As sent.
    pub(in crate::hbone) headers: HeaderMap,
}

/// A header block on its way.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Block {
    pub(super) stream: u32,
    pub(super) end: bool,
    pub(super) bytes: Vec<u8>,
    pub(super) pieces: u32,
}

/// The fields of a block.
#[derive(Default)]
pub(super) struct Fields {
    method: Option<String>,
    authority: Option<String>,
    status: Option<u16>,
    scheme: bool,
    path: bool,
    /// Anything with a colon.
    pub(super) pseudo: bool,
    headers: HeaderMap,
    /// Why it is no message.
    bad: Option<&'static str>,
}

impl Fields {
    /// Decodes a block. A block that is no message gives fields that say so; the connection goes on.
    ///
    /// # Errors
    /// It cannot be decoded, so the table of this connection is lost (§4.3).
    pub(super) fn decode(decoder: &mut Decoder, block: &[u8]) -> Result<Self, Violation> {
        let mut fields = Self::default();
        let decoded = decoder
            .decode(block, |name, value| fields.add(name, value))
            .map_err(|_| Violation::new(Reason::COMPRESSION_ERROR, "a header block that cannot be decoded"))?;
        if decoded.oversized {
            fields.bad = Some("more headers than announced");
        }
        Ok(fields)
    }

    fn add(&mut self, name: &[u8], value: &[u8]) {
        if self.bad.is_none() {
            self.bad = self.try_add(name, value).err();
        }
    }

    fn try_add(&mut self, name: &[u8], value: &[u8]) -> Result<(), &'static str> {
        // §8.2.1; also of pseudo-headers.
        let is_blank = |byte: Option<&u8>| matches!(byte, Some(b' ' | b'\t'));
        let trimmed = !is_blank(value.first()) && !is_blank(value.last());
        let text = HeaderValue::from_bytes(value).ok().filter(|_| trimmed).ok_or("a header value that is none")?;
        if let Some(name) = name.strip_prefix(b":") {
            // §8.3: before all others, each once, none that is not defined.
            if !self.headers.is_empty() {
                return Err("a pseudo-header after a header");
            }
            self.pseudo = true;
            let text = || text.to_str().map(ToOwned::to_owned).map_err(|_| "a pseudo-header that is no text");
            let twice = match name {
                b"method" => self.method.replace(text()?).is_some(),
                b"authority" => self.authority.replace(text()?).is_some(),
                b"scheme" => std::mem::replace(&mut self.scheme, true),
                b"path" => std::mem::replace(&mut self.path, true) || value.is_empty(),
                b"status" => self.status.replace(status(value)?).is_some(),
                _ => return Err("an unknown pseudo-header"),
            };
            return if twice { Err("a pseudo-header twice or empty") } else { Ok(()) };
        }
        // §8.2.1: lower case only; §8.2.2: nothing that is about one connection.
        if name.iter().any(u8::is_ascii_uppercase) {
            return Err("a header name in upper case");
        }
        match name {
            b"connection" | b"proxy-connection" | b"keep-alive" | b"transfer-encoding" | b"upgrade" => {
                return Err("a header about the connection");
            }
            b"te" if value != b"trailers" => return Err("te other than trailers"),
            _ => {}
        }
        let name = HeaderName::from_lowercase(name).map_err(|_| "a header name that is none")?;
        self.headers.try_append(name, text).map_err(|_| "too many headers")?;
        Ok(())
    }

    /// §8.3.1, and for CONNECT §8.5: method and authority, both, and no more.
    pub(super) fn request(self) -> Result<Head, &'static str> {
        if let Some(bad) = self.bad {
            return Err(bad);
        }
        let method = self.method.filter(|method| !method.is_empty()).ok_or("a request without method")?;
        if self.status.is_some() {
            return Err("a request with a status");
        }
        if method == "CONNECT" && (self.scheme || self.path) {
            return Err("CONNECT with scheme or path");
        }
        if method == "CONNECT" && self.authority.as_ref().is_none_or(String::is_empty) {
            return Err("CONNECT without authority");
        }
        if method != "CONNECT" && !(self.scheme && self.path) {
            return Err("a request without scheme or path");
        }
        let authority = self.authority.unwrap_or_default();
        if authority.len() > MAX_AUTHORITY {
            return Err("an authority beyond all measure");
        }
        Ok(Head { method, authority, headers: self.headers })
    }

    /// §8.3.2.
    pub(super) fn response(self) -> Result<(u16, HeaderMap), &'static str> {
        match (self.bad, self.status) {
            (Some(bad), _) => Err(bad),
            (None, Some(status)) if self.method.is_none() && self.authority.is_none() && !self.scheme && !self.path => {
                Ok((status, self.headers))
            }
            (None, _) => Err("a response without a status, or with more"),
        }
    }

    /// §8.1: after the bytes, only headers.
    pub(super) fn trailers(self) -> Result<(), &'static str> {
        match self.bad {
            Some(bad) => Err(bad),
            None if self.pseudo => Err("a pseudo-header in trailers"),
            None => Ok(()),
        }
    }
}

fn status(value: &[u8]) -> Result<u16, &'static str> {
    let number = std::str::from_utf8(value).ok().filter(|text| text.len() == 3).and_then(|text| text.parse().ok());
    number.filter(|number| (100..1000).contains(number)).ok_or("a status that is none")
}

/// §8.5: only `:method` and `:authority`.
pub(super) fn request(encoder: &mut Encoder, authority: &str, headers: &HeaderMap) -> Vec<u8> {
    let mut block = Vec::with_capacity(128);
    encoder.start(&mut block);
    encode(&mut block, b":method", b"CONNECT");
    encode(&mut block, b":authority", authority.as_bytes());
    fields(&mut block, headers);
    block
}

pub(super) fn response(encoder: &mut Encoder, status: u16, headers: &HeaderMap) -> Vec<u8> {
    let mut block = Vec::with_capacity(64);
    encoder.start(&mut block);
    encode(&mut block, b":status", status.to_string().as_bytes());
    fields(&mut block, headers);
    block
}

fn fields(block: &mut Vec<u8>, headers: &HeaderMap) {
    for (name, value) in headers {
        encode(block, name.as_str().as_bytes(), value.as_bytes());
    }
}
