//! Frames on the wire (RFC 9113 §4, §6).

use serde::{Deserialize, Serialize};

/// Bytes of a frame header (§4.1).
pub(in crate::hbone) const HEADER: usize = 9;

/// What a client sends first (§3.4).
pub(super) const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Largest window (§6.9.1).
pub(super) const MAX_WINDOW: i64 = (1 << 31) - 1;

/// Window of a stream and of a connection before anything is said about it (§6.9.2).
pub(super) const DEFAULT_WINDOW: u32 = 65_535;

/// Frame size that everybody accepts, and the largest that may be announced (§4.2).
pub(super) const MIN_FRAME: u32 = 16_384;
pub(super) const MAX_FRAME: u32 = (1 << 24) - 1;

/// Frame types (§6).
pub(super) mod kind {
    pub(in crate::hbone::core) const DATA: u8 = 0;
    pub(in crate::hbone::core) const HEADERS: u8 = 1;
    pub(in crate::hbone::core) const PRIORITY: u8 = 2;
    pub(in crate::hbone::core) const RST_STREAM: u8 = 3;
    pub(in crate::hbone::core) const SETTINGS: u8 = 4;
    pub(in crate::hbone::core) const PUSH_PROMISE: u8 = 5;
    pub(in crate::hbone::core) const PING: u8 = 6;
    pub(in crate::hbone::core) const GOAWAY: u8 = 7;
    pub(in crate::hbone::core) const WINDOW_UPDATE: u8 = 8;
    pub(in crate::hbone::core) const CONTINUATION: u8 = 9;
}

/// Flags; ACK has the bit of END_STREAM.
pub(super) mod flag {
    pub(in crate::hbone::core) const END_STREAM: u8 = 1;
    pub(in crate::hbone::core) const ACK: u8 = 1;
    pub(in crate::hbone::core) const END_HEADERS: u8 = 4;
    pub(in crate::hbone::core) const PADDED: u8 = 8;
    pub(in crate::hbone::core) const PRIORITY: u8 = 32;
}

/// Settings (§6.5.2).
pub(super) mod setting {
    pub(in crate::hbone::core) const HEADER_TABLE_SIZE: u16 = 1;
    pub(in crate::hbone::core) const ENABLE_PUSH: u16 = 2;
    pub(in crate::hbone::core) const MAX_CONCURRENT_STREAMS: u16 = 3;
    pub(in crate::hbone::core) const INITIAL_WINDOW_SIZE: u16 = 4;
    pub(in crate::hbone::core) const MAX_FRAME_SIZE: u16 = 5;
    pub(in crate::hbone::core) const MAX_HEADER_LIST_SIZE: u16 = 6;
}

/// Why a stream or a connection ends (§7).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(in crate::hbone) struct Reason(pub(in crate::hbone) u32);

impl Reason {
    pub(in crate::hbone) const NO_ERROR: Self = Self(0);
    pub(in crate::hbone) const PROTOCOL_ERROR: Self = Self(1);
    pub(in crate::hbone) const FLOW_CONTROL_ERROR: Self = Self(3);
    pub(in crate::hbone) const STREAM_CLOSED: Self = Self(5);
    pub(in crate::hbone) const FRAME_SIZE_ERROR: Self = Self(6);
    pub(in crate::hbone) const REFUSED_STREAM: Self = Self(7);
    pub(in crate::hbone) const CANCEL: Self = Self(8);
    pub(in crate::hbone) const COMPRESSION_ERROR: Self = Self(9);
    pub(in crate::hbone) const CONNECT_ERROR: Self = Self(10);
    pub(in crate::hbone) const ENHANCE_YOUR_CALM: Self = Self(11);
}

impl std::fmt::Display for Reason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self.0 {
            0 => "NO_ERROR",
            1 => "PROTOCOL_ERROR",
            2 => "INTERNAL_ERROR",
            3 => "FLOW_CONTROL_ERROR",
            4 => "SETTINGS_TIMEOUT",
            5 => "STREAM_CLOSED",
            6 => "FRAME_SIZE_ERROR",
            7 => "REFUSED_STREAM",
            8 => "CANCEL",
            9 => "COMPRESSION_ERROR",
            10 => "CONNECT_ERROR",
            11 => "ENHANCE_YOUR_CALM",
            12 => "INADEQUATE_SECURITY",
            13 => "HTTP_1_1_REQUIRED",
            other => return write!(f, "error code {other}"),
        })
    }
}

impl Reason {
    /// Whether a proxy passes on its application's own reset: as an error of the TCP connection (RFC 9113 §8.5), or as "no
    /// longer needed" (§7).
    pub(in crate::hbone) fn is_of_application(self) -> bool {
        matches!(self, Self::CANCEL | Self::CONNECT_ERROR)
    }
}

/// What every frame begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Header {
    pub(super) length: u32,
    pub(super) kind: u8,
    pub(super) flags: u8,
    pub(super) stream: u32,
}

impl Header {
    pub(super) fn new(length: usize, kind: u8, flags: u8, stream: u32) -> Self {
        // Callers stay below the peer's limit, which is below 2^24.
        Self { length: u32::try_from(length).unwrap_or(MAX_FRAME), kind, flags, stream }
    }

    pub(super) fn encode(&self) -> [u8; HEADER] {
        let [_, a, b, c] = self.length.to_be_bytes();
        let [s, t, u, v] = self.stream.to_be_bytes();
        [a, b, c, self.kind, self.flags, s, t, u, v]
    }

    pub(super) fn decode(bytes: [u8; HEADER]) -> Self {
        let [a, b, c, kind, flags, s, t, u, v] = bytes;
        // The reserved bit is ignored (§4.1).
        Self { length: u32::from_be_bytes([0, a, b, c]), kind, flags, stream: u32::from_be_bytes([s & 0x7f, t, u, v]) }
    }

    pub(super) fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }
}

/// Appends a whole frame.
pub(super) fn put(out: &mut Vec<u8>, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
    out.extend_from_slice(&Header::new(payload.len(), kind, flags, stream).encode());
    out.extend_from_slice(payload);
}

/// The first four bytes as a number; the reserved bit is kept.
pub(super) fn number(bytes: &[u8]) -> u32 {
    bytes.first_chunk().copied().map(u32::from_be_bytes).unwrap_or_default()
}
