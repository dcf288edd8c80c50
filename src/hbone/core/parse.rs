//! Cuts the bytes of a connection into frames, whatever pieces they come in. DATA is passed on as it comes; what has to
//! be seen whole is collected.

use serde::{Deserialize, Serialize};

use super::Violation;
use super::frame::{HEADER, Header, PREFACE, Reason, flag, kind};

/// Largest frame other than DATA that is looked at: more than any header list that is accepted.
const MAX_WHOLE: usize = 128 * 1024;

/// Where in the stream of bytes the reader is.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Parser {
    state: State,
    /// Largest frame that was announced to the peer.
    frame_size: u32,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
enum State {
    /// So many bytes of the client's preface have been seen.
    Preface(usize),
    /// Part of a frame's header.
    Header { bytes: [u8; HEADER], have: usize },
    /// The length of the padding comes next (§6.1).
    PadLength { header: Header },
    /// In the payload of DATA; then padding.
    Data { header: Header, left: u32, padding: u32, end: bool },
    /// In the payload of a frame that must be whole.
    Whole { header: Header, bytes: Vec<u8> },
    /// In what is ignored.
    Skip { left: u32 },
}

/// What was found.
pub(super) enum Piece {
    /// More bytes are needed.
    Nothing,
    /// DATA begins. All of it counts for flow control, padding too (§6.1).
    DataBegins { header: Header, padding: u32 },
    /// So many of the bytes that were just consumed, at their end, are a part of a DATA frame's payload. `last` says that
    /// the frame ends the stream here.
    Data { stream: u32, length: usize, last: bool },
    /// Another frame; its payload is in `whole` or, if that is empty, the last `header.length` bytes of those consumed.
    Frame { header: Header, whole: Vec<u8> },
}

impl Parser {
    pub(super) fn new(server: bool, frame_size: u32) -> Self {
        let state = if server { State::Preface(0) } else { State::start() };
        Self { state, frame_size }
    }

    /// Takes bytes from the front of `input`; says how many.
    pub(super) fn next(&mut self, input: &[u8]) -> Result<(usize, Piece), Violation> {
        let mut used = 0;
        loop {
            let rest = input.get(used..).unwrap_or_default();
            match &mut self.state {
                State::Preface(have) => {
                    let expected = PREFACE.get(*have..).unwrap_or_default();
                    let length = expected.len().min(rest.len());
                    // §3.4: a peer that speaks something else is told so.
                    if rest.get(..length) != expected.get(..length) {
                        return Err(Violation::new(Reason::PROTOCOL_ERROR, "no HTTP/2 preface"));
                    }
                    used += length;
                    *have += length;
                    if *have < PREFACE.len() {
                        return Ok((used, Piece::Nothing));
                    }
                    self.state = State::start();
                }
                State::Header { bytes, have } => {
                    let length = (HEADER - *have).min(rest.len());
                    bytes.iter_mut().skip(*have).zip(rest).for_each(|(to, from)| *to = *from);
                    used += length;
                    *have += length;
                    if *have < HEADER {
                        return Ok((used, Piece::Nothing));
                    }
                    let header = Header::decode(*bytes);
                    if let Some(piece) = self.begin(header)? {
                        return Ok((used, piece));
                    }
                }
                State::PadLength { header } => {
                    let Some(padding) = rest.first() else { return Ok((used, Piece::Nothing)) };
                    let (header, padding) = (*header, u32::from(*padding));
                    used += 1;
                    // §6.1: padding that fills the payload or more.
                    let left = header.length.checked_sub(1 + padding);
                    let left = left.ok_or_else(|| Violation::new(Reason::PROTOCOL_ERROR, "more padding than payload"))?;
                    self.state = State::Data { header, left, padding, end: header.has(flag::END_STREAM) };
                    return Ok((used, Piece::DataBegins { header, padding: padding + 1 }));
                }
                State::Data { header, left, padding, end } => {
                    let length = (*left as usize).min(rest.len());
                    if length == 0 && *left > 0 {
                        return Ok((used, Piece::Nothing));
                    }
                    used += length;
                    *left -= length as u32;
                    let piece = Piece::Data { stream: header.stream, length, last: *end && *left == 0 };
                    if *left == 0 {
                        self.state = if *padding > 0 { State::Skip { left: *padding } } else { State::start() };
                    }
                    return Ok((used, piece));
                }
                State::Whole { header, bytes } => {
                    let total = header.length as usize;
                    let length = total.saturating_sub(bytes.len()).min(rest.len());
                    used += length;
                    let header = *header;
                    if bytes.is_empty() && length == total {
                        self.state = State::start();
                        return Ok((used, Piece::Frame { header, whole: Vec::new() }));
                    }
                    bytes.extend_from_slice(rest.get(..length).unwrap_or_default());
                    if bytes.len() < total {
                        return Ok((used, Piece::Nothing));
                    }
                    let whole = std::mem::take(bytes);
                    self.state = State::start();
                    return Ok((used, Piece::Frame { header, whole }));
                }
                State::Skip { left } => {
                    let length = (*left as usize).min(rest.len());
                    used += length;
                    *left -= length as u32;
                    if *left > 0 {
                        return Ok((used, Piece::Nothing));
                    }
                    self.state = State::start();
                }
            }
        }
    }

    /// Decides by its header what is done with a frame.
    fn begin(&mut self, header: Header) -> Result<Option<Piece>, Violation> {
        if header.length > self.frame_size {
            return Err(Violation::new(Reason::FRAME_SIZE_ERROR, "a frame above the announced size"));
        }
        if header.kind != kind::DATA {
            let whole = header.length as usize <= MAX_WHOLE;
            self.state = match header.kind {
                // §4.1, §5.5: unknown types are ignored; but for CONTINUATION's sake they are seen.
                kind::HEADERS..=kind::CONTINUATION if !whole => {
                    return Err(Violation::new(Reason::ENHANCE_YOUR_CALM, "a control frame beyond all measure"));
                }
                kind::HEADERS..=kind::CONTINUATION => State::Whole { header, bytes: Vec::new() },
                _ => State::Skip { left: header.length },
            };
            return Ok(match self.state {
                State::Skip { .. } => Some(Piece::Frame { header: Header { length: 0, ..header }, whole: Vec::new() }),
                _ => None,
            });
        }
        if header.stream == 0 {
            return Err(Violation::new(Reason::PROTOCOL_ERROR, "DATA on stream 0"));
        }
        if header.has(flag::PADDED) {
            if header.length == 0 {
                return Err(Violation::new(Reason::FRAME_SIZE_ERROR, "padded DATA without a length of padding"));
            }
            self.state = State::PadLength { header };
            return Ok(None);
        }
        self.state = State::Data { header, left: header.length, padding: 0, end: header.has(flag::END_STREAM) };
        Ok(Some(Piece::DataBegins { header, padding: 0 }))
    }
}

impl State {
    fn start() -> Self {
        State::Header { bytes: [0; HEADER], have: 0 }
    }
}
