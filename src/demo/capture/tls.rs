//! Just enough TLS to prove what was negotiated: record boundaries, and the version in ClientHello and ServerHello.

/// RFC 8446 §5.1: a record header is type, legacy version, length.
const HEADER: usize = 5;
/// RFC 8446 §5.2: the longest record payload.
const MAX_RECORD: usize = 16 * 1024 + 256;
const HANDSHAKE: u8 = 22;
const APPLICATION_DATA: u8 = 23;
const CLIENT_HELLO: u8 = 1;
const SERVER_HELLO: u8 = 2;
/// RFC 8446 §4.2.1.
const SUPPORTED_VERSIONS: [u8; 2] = [0, 43];
const TLS13: [u8; 2] = [3, 4];

/// One connection, both ways.
#[derive(Debug, Default)]
pub(super) struct Session {
    client: Half,
    server: Half,
    offered: bool,
    negotiated: bool,
}

/// What a segment brought.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Seen {
    /// Version 1.3 was chosen.
    pub(super) negotiated: bool,
    /// Encrypted records that are complete now.
    pub(super) records: u64,
    /// Their payload.
    pub(super) bytes: u64,
}

impl Session {
    /// Takes a TCP segment: `sequence` is that of its first payload byte.
    pub(super) fn segment(&mut self, from_client: bool, start: bool, sequence: u32, payload: &[u8]) -> Seen {
        let mut seen = Seen::default();
        let (offered, negotiated) = (&mut self.offered, &mut self.negotiated);
        let half = if from_client { &mut self.client } else { &mut self.server };
        if start {
            *half = Half { next: Some(sequence), ..Half::default() };
        }
        half.take(sequence, payload, |kind, record| match kind {
            HANDSHAKE if from_client => *offered |= offers_13(record),
            HANDSHAKE if !*negotiated && *offered && chooses_13(record) => {
                *negotiated = true;
                seen.negotiated = true;
            }
            APPLICATION_DATA if *negotiated => {
                seen.records += 1;
                seen.bytes += record.len() as u64;
            }
            _ => {}
        });
        seen
    }
}

/// One direction: bytes in order, cut into records.
#[derive(Debug, Default)]
struct Half {
    /// Sequence number of the next byte; `None` before the start was seen, or after a gap.
    next: Option<u32>,
    /// The record that is not complete yet: bounded by [`MAX_RECORD`].
    partial: Vec<u8>,
}

impl Half {
    fn take(&mut self, sequence: u32, payload: &[u8], mut record: impl FnMut(u8, &[u8])) {
        let Some(next) = self.next else { return };
        let ahead = sequence.wrapping_sub(next);
        let known = next.wrapping_sub(sequence) as usize;
        let new = match ahead {
            0 => payload,
            // Sent again: the part that is known already is left out.
            _ if ahead > u32::MAX / 2 => payload.get(known..).unwrap_or_default(),
            // A gap: record boundaries are lost for good.
            _ => {
                *self = Self::default();
                return;
            }
        };
        self.next = Some(next.wrapping_add(new.len() as u32));
        self.partial.extend_from_slice(new);
        let mut done = 0;
        while let Some((kind, length)) =
            self.partial.get(done..done + HEADER).map(|header| (header[0], usize::from(u16::from_be_bytes([header[3], header[4]]))))
        {
            if !(20..=23).contains(&kind) || length > MAX_RECORD {
                // Not TLS: nothing more is read of it.
                *self = Self::default();
                return;
            }
            let Some(body) = self.partial.get(done + HEADER..done + HEADER + length) else { break };
            record(kind, body);
            done += HEADER + length;
        }
        self.partial.drain(..done);
    }
}

/// A ClientHello whose supported_versions hold 1.3.
fn offers_13(record: &[u8]) -> bool {
    // RFC 8446 §4.1.2: type, length(3), version(2), random(32), session id<1>, cipher suites<2>, compression<1>, extensions<2>.
    let mut rest = Reader(record);
    (|| {
        (rest.bytes(1)? == [CLIENT_HELLO]).then_some(())?;
        rest.bytes(3 + 2 + 32)?;
        rest.vector8()?;
        rest.vector16()?;
        rest.vector8()?;
        let versions = extension(rest.vector16()?, SUPPORTED_VERSIONS)?;
        Some(Reader(versions).vector8()?.chunks_exact(2).any(|version| version == TLS13))
    })()
    .unwrap_or(false)
}

/// A ServerHello whose supported_versions is 1.3.
fn chooses_13(record: &[u8]) -> bool {
    // RFC 8446 §4.1.3: as above, with one cipher suite and one compression method.
    let mut rest = Reader(record);
    (|| {
        (rest.bytes(1)? == [SERVER_HELLO]).then_some(())?;
        rest.bytes(3 + 2 + 32)?;
        rest.vector8()?;
        rest.bytes(2 + 1)?;
        Some(extension(rest.vector16()?, SUPPORTED_VERSIONS)? == TLS13)
    })()
    .unwrap_or(false)
}

fn extension(list: &[u8], wanted: [u8; 2]) -> Option<&[u8]> {
    let mut rest = Reader(list);
    loop {
        let kind = rest.bytes(2)?;
        let body = rest.vector16()?;
        if kind == wanted {
            return Some(body);
        }
    }
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn bytes(&mut self, count: usize) -> Option<&'a [u8]> {
        let (head, tail) = self.0.split_at_checked(count)?;
        self.0 = tail;
        Some(head)
    }

    fn vector8(&mut self) -> Option<&'a [u8]> {
        let length = self.bytes(1)?;
        self.bytes(usize::from(length[0]))
    }

    fn vector16(&mut self) -> Option<&'a [u8]> {
        let length = self.bytes(2)?;
        self.bytes(usize::from(u16::from_be_bytes([length[0], length[1]])))
    }
}
