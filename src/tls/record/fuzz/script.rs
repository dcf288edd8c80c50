//! Records as a script says: what rustls writes, and what it would never write; then some are damaged.

use super::super::keys::{Keys, Secret};
use super::super::message::key_update;
use super::super::*;
use super::theirs::Theirs;

/// Beside rustls a script stays below what either bears: rustls 4 warnings in all, a session of ours 32 records and
/// messages in a row without data. A step makes 3 at most, a server has sent 2 tickets before.
const MOST_WARNINGS: usize = 4;
const MOST_STEPS: usize = 10;

/// Alone it ends in reasonable time.
const MOST_STEPS_ALONE: usize = 100;

/// Of application data.
const SIZES: [usize; 8] = [1, 2, 16, 100, 1000, MAX_PLAINTEXT - 1, MAX_PLAINTEXT, 40_000];

/// Content types, with 0 for none; 20 was change_cipher_spec, 24 is not of TLS 1.3.
const KINDS: [u8; 8] = [0, 20, ALERT, HANDSHAKE, APPLICATION_DATA, APPLICATION_DATA, 24, 255];

/// Up to more than a record may hold.
const PADDING: [usize; 8] = [0, 0, 1, 100, MAX_PLAINTEXT - 20, MAX_PLAINTEXT, MAX_PLAINTEXT + 1, 60_000];

/// RFC 8446 §4.6.1: lifetime, age_add, nonce, ticket, no extensions.
const TICKET: &[u8] = b"\x04\x00\x00\x13\x00\x00\x0e\x10\x01\x02\x03\x04\x01\x07\x00\x05 mine\x00\x00";

pub(super) struct Script<'a> {
    bytes: &'a [u8],
    keys: Keys,
    /// Writes as long as nothing is asked for that it would not write.
    rustls: Option<Theirs>,
    writes: bool,
    /// Records that rustls has written under its key.
    written: u64,
    warnings: usize,
    records: Vec<Vec<u8>>,
}

impl<'a> Script<'a> {
    /// `keys` are the peer's, as they were at the end of the handshake.
    pub(super) fn new(bytes: &'a [u8], keys: Keys, rustls: Option<Theirs>) -> Self {
        let writes = rustls.is_some();
        Self { bytes, keys, rustls, writes, written: 0, warnings: 0, records: Vec::new() }
    }

    /// The records, the keys of the next, and the peer.
    pub(super) fn run(mut self) -> (Vec<Vec<u8>>, Keys, Option<Theirs>) {
        // The tickets of a server.
        self.collect();
        let most = if self.rustls.is_some() { MOST_STEPS } else { MOST_STEPS_ALONE };
        for _ in 0..most {
            let Some(step) = self.byte() else { break };
            self.step(step);
        }
        self.take_over();
        (self.records, self.keys, self.rustls)
    }

    fn step(&mut self, step: u8) {
        match step % 16 {
            0..=3 => {
                let size = SIZES[usize::from(self.byte().unwrap_or_default() % 8)];
                self.data(&vec![step; size]);
            }
            4 => match step >> 4 {
                // RFC 8446 §5.1: in two records it is one; with another message behind it, it is none.
                13 => self.messages(&key_update(true), 2),
                14 => self.messages(&[&key_update(false), TICKET].concat(), 0),
                15 => self.messages(&[key_update(false), key_update(false)].concat(), 0),
                _ => self.update(),
            },
            5 => self.close(),
            6 => {
                // Whole, or in two records; alone, or twice.
                let (cut, messages) = (self.byte().unwrap_or_default(), TICKET.repeat(usize::from(step >> 4 & 1) + 1));
                self.messages(&messages, usize::from(cut) % messages.len());
            }
            7 => {
                let alert = self.byte().unwrap_or_default();
                self.seal_any(ALERT, vec![step >> 4, alert], 0);
            }
            8 => {
                let [kind, padding, length] = [self.byte(), self.byte(), self.byte()].map(Option::unwrap_or_default);
                let kind = KINDS[usize::from(kind) % KINDS.len()];
                let mut content = self.some(usize::from(length % 40)).to_vec();
                if kind == 0 {
                    // All of it is padding.
                    content.fill(0);
                }
                self.seal_any(kind, content, PADDING[usize::from(padding) % PADDING.len()]);
            }
            9 => {
                let length = self.byte().unwrap_or_default() % 12;
                let content = self.some(usize::from(length)).to_vec();
                self.seal_any(HANDSHAKE, content, usize::from(step >> 4));
            }
            _ => self.damage(step),
        }
    }

    /// Changes what has been written.
    fn damage(&mut self, step: u8) {
        let at = usize::from(self.byte().unwrap_or_default());
        let count = self.records.len();
        match step % 16 {
            10 => {
                if let Some(record) = self.records.last_mut().filter(|record| record.len() > HEADER) {
                    // Not type and version, which rustls does not authenticate as they stand, against RFC 8446 §5.2.
                    let place = (at * record.len() / 256).max(3);
                    record[place] ^= 1 << (step >> 4 & 7);
                }
            }
            11 => {
                if let Some(record) = self.records.last_mut() {
                    record.truncate(at * record.len() / 256);
                }
            }
            12 if count > 0 => self.records.push(self.records[at % count].clone()),
            13 if count > 0 => self.records.swap(at % count, count - 1),
            14 => drop(self.records.pop()),
            _ => {
                let mut bytes = self.some(at % 40).to_vec();
                // rustls takes an alert in clear as long as it has opened nothing under the newest key.
                if bytes.first() == Some(&ALERT) {
                    bytes[0] = APPLICATION_DATA;
                }
                self.records.push(bytes);
            }
        }
    }

    fn data(&mut self, content: &[u8]) {
        match &mut self.rustls {
            Some(rustls) if self.writes => {
                rustls.say(content);
                self.collect();
            }
            _ => content.chunks(MAX_PLAINTEXT).for_each(|content| self.seal(APPLICATION_DATA, content, 0)),
        }
    }

    fn update(&mut self) {
        match &mut self.rustls {
            Some(rustls) if self.writes => {
                rustls.update();
                self.collect();
                self.written = 0;
            }
            _ => self.seal(HANDSHAKE, &key_update(self.records.len().is_multiple_of(2)), 0),
        }
        self.keys.advance().expect("no defect of ours");
    }

    /// In two records if there is a `cut`. A KeyUpdate at their start changes the key.
    fn messages(&mut self, messages: &[u8], cut: usize) {
        let (first, second) = messages.split_at(cut);
        [first, second].into_iter().filter(|piece| !piece.is_empty()).for_each(|piece| self.seal(HANDSHAKE, piece, 0));
        if messages.starts_with(&key_update(true)[..4]) {
            self.keys.advance().expect("no defect of ours");
        }
    }

    fn close(&mut self) {
        match &mut self.rustls {
            Some(rustls) if self.writes => {
                rustls.close();
                self.collect();
            }
            _ => self.seal(ALERT, &[1, AlertDescription::CloseNotify.into()], 0),
        }
    }

    /// A record of any content but what both may judge differently.
    fn seal_any(&mut self, content_type: u8, mut content: Vec<u8>, padding: usize) {
        match (content_type, &mut content[..]) {
            // rustls takes an empty one, against RFC 8446 §5.1.
            (HANDSHAKE, []) => return,
            // Ours reads one ticket at most, of those that it knows where to keep.
            (HANDSHAKE, content) => content.iter_mut().filter(|byte| **byte == TICKET[0]).for_each(|byte| *byte = 0),
            (ALERT, [level, alert]) => {
                let canceled = *alert == u8::from(AlertDescription::UserCanceled);
                self.warnings += usize::from(canceled);
                if self.warnings > MOST_WARNINGS {
                    *alert = AlertDescription::InternalError.into();
                }
                // rustls minds the level, against RFC 8446 §6.
                *level = if canceled { 1 } else { 1 + (*level & 1) };
            }
            _ => {}
        }
        self.seal(content_type, &content, padding);
    }

    /// A record that rustls cannot be told to write.
    fn seal(&mut self, content_type: u8, content: &[u8], padding: usize) {
        self.take_over();
        // RFC 8446 §5.2: what the record says to be its type is the last byte of the padding.
        let (content_type, content) = match padding {
            0 => (content_type, content.to_vec()),
            _ => (0, [content, &[content_type], &vec![0; padding - 1]].concat()),
        };
        let mut record = Vec::new();
        self.keys.append(content_type, &content, &mut record);
        self.records.push(record);
    }

    /// What rustls has written.
    fn collect(&mut self) {
        let Some(rustls) = &mut self.rustls else { return };
        let wire = rustls.said();
        let mut rest = &wire[..];
        while let Some((&[_, _, _, high, low], _)) = rest.split_first_chunk::<HEADER>() {
            let (record, behind) = rest.split_at(HEADER + usize::from(u16::from_be_bytes([high, low])));
            self.records.push(record.to_vec());
            self.written += 1;
            rest = behind;
        }
    }

    /// From here on the records are made with the key of rustls.
    fn take_over(&mut self) {
        if std::mem::take(&mut self.writes) {
            let secret = Secret::from(self.keys.secret().bytes().to_vec());
            self.keys = Keys::new(self.keys.suite(), secret, self.written).expect("its own secret");
        }
    }

    fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.bytes.split_first()?;
        self.bytes = rest;
        Some(*first)
    }

    fn some(&mut self, length: usize) -> &'a [u8] {
        let (some, rest) = self.bytes.split_at(length.min(self.bytes.len()));
        self.bytes = rest;
        some
    }
}

impl Keys {
    /// Appends one record with any content.
    pub(super) fn append(&mut self, content_type: u8, content: &[u8], out: &mut Vec<u8>) {
        let mut record = [&[0; HEADER], content, &[0; TRAILER]].concat();
        self.seal(content_type, &mut record).expect("a record that is not larger than its length can say");
        out.append(&mut record);
    }
}
