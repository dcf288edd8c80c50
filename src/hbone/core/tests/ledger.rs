//! What one end may send, counted by what is on the wire and by nothing else.

use std::collections::HashMap;

use super::super::frame::{HEADER, Header, PREFACE, kind, number, setting};

/// The windows of the frames that one end says, by the frames that it hears (RFC 9113 §6.9).
#[derive(Debug)]
pub(super) struct Ledger {
    pub(super) connection: i64,
    initial: i64,
    streams: HashMap<u32, i64>,
    /// The beginning of a frame that is heard.
    heard: Vec<u8>,
}

impl Ledger {
    pub(super) fn new() -> Self {
        Self { connection: 65_535, initial: 65_535, streams: HashMap::new(), heard: Vec::new() }
    }

    /// Whole frames.
    ///
    /// # Panics
    /// If they are more than a window allows.
    pub(super) fn says(&mut self, bytes: &[u8]) {
        let mut rest = bytes.strip_prefix(PREFACE.as_slice()).unwrap_or(bytes);
        while let Some((header, behind)) = next(rest) {
            rest = behind;
            match header.kind {
                kind::HEADERS => {
                    self.streams.entry(header.stream).or_insert(self.initial);
                }
                kind::DATA if header.length > 0 => {
                    let stream = self.streams.get_mut(&header.stream).expect("DATA on a stream that was not opened");
                    *stream -= i64::from(header.length);
                    self.connection -= i64::from(header.length);
                    assert!(*stream >= 0 && self.connection >= 0, "DATA beyond a window: {stream}, {}", self.connection);
                }
                _ => {}
            }
        }
        assert!(rest.is_empty(), "what is said is whole frames");
    }

    /// Bytes cut anywhere.
    pub(super) fn hears(&mut self, bytes: &[u8]) {
        self.heard.extend_from_slice(bytes);
        let mut heard = std::mem::take(&mut self.heard);
        if PREFACE.starts_with(&heard[..heard.len().min(PREFACE.len())]) {
            if heard.len() >= PREFACE.len() {
                heard.drain(..PREFACE.len());
            } else {
                self.heard = heard;
                return;
            }
        }
        let mut rest = &heard[..];
        while let Some((header, behind)) = next(rest) {
            let payload = &rest[HEADER..HEADER + header.length as usize];
            rest = behind;
            match (header.kind, header.stream) {
                (kind::HEADERS, id) => {
                    self.streams.entry(id).or_insert(self.initial);
                }
                (kind::WINDOW_UPDATE, 0) => self.connection += i64::from(number(payload)),
                (kind::WINDOW_UPDATE, id) => {
                    if let Some(stream) = self.streams.get_mut(&id) {
                        *stream += i64::from(number(payload));
                    }
                }
                (kind::SETTINGS, _) => {
                    for entry in payload.chunks_exact(6).filter(|entry| entry[..2] == setting::INITIAL_WINDOW_SIZE.to_be_bytes()) {
                        let change = i64::from(number(&entry[2..])) - self.initial;
                        self.initial += change;
                        self.streams.values_mut().for_each(|stream| *stream += change);
                    }
                }
                _ => {}
            }
        }
        self.heard = rest.to_vec();
    }
}

/// A whole frame's header, and what is behind the frame.
fn next(bytes: &[u8]) -> Option<(Header, &[u8])> {
    let (header, behind) = bytes.split_first_chunk()?;
    let header = Header::decode(*header);
    Some((header, behind.get(header.length as usize..)?))
}
