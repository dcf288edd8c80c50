//! What must hold for any records of a peer: run on random bytes by the tests and on chosen ones by the target of `fuzz/`.

#![allow(clippy::missing_panics_doc, clippy::panic, clippy::expect_used, reason = "a panic is how a broken property is told")]

mod script;
mod theirs;

use self::script::Script;
use self::theirs::Theirs;
use super::keys::{Keys, Secret};
use super::*;

const SUITES: [Suite; 3] = [Suite::Aes128Gcm, Suite::Aes256Gcm, Suite::ChaCha20Poly1305];

/// What an honest peer says last.
const LAST: &[u8] = b"that was all";

/// Longer than what the longest record could still lack, and no record.
static NO_RECORD: [u8; 20_000] = [0; 20_000];

/// What came of it.
#[derive(Clone, Default, PartialEq)]
struct Heard {
    plaintext: Vec<u8>,
    closed: bool,
    failed: bool,
}

impl std::fmt::Debug for Heard {
    /// Bytes are too many to be shown.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} bytes, closed: {}, failed: {}", self.plaintext.len(), self.closed, self.failed)
    }
}

/// Opens records that a script says. However they are cut, and if the session is moved in between, the same comes of it;
/// rustls takes the same bytes out of the same records, and refuses the same. What a session that has lived through it seals
/// is what rustls reads.
///
/// The first byte says which end hears, under which suite and whether rustls hears too, the second how the bytes are cut.
/// Returns how many records were opened.
pub fn records(data: &[u8]) -> usize {
    let [how, cut, script @ ..] = data else { return 0 };
    let end = if how & 1 == 0 { End::Client } else { End::Server };
    let suite = SUITES[usize::from(how >> 2) % SUITES.len()];
    if how & 2 == 0 { alone(end, suite, *cut, script) } else { beside_rustls(end, suite, *cut, script) }
}

fn alone(end: End, suite: Suite, cut: u8, script: &[u8]) -> usize {
    let keys = |byte| Keys::new(suite, Secret::from(vec![byte; suite.hash_len()]), 0).expect("a secret as long as the hash");
    let session = || Session::with(end, keys(1), keys(2), Vec::new());
    let stream = Script::new(script, keys(2), None).run().0.concat();
    let (heard, opened) = Ours::new(session()).hear_all(&stream, None);
    let (in_pieces, _) = Ours::new(session()).hear_all(&stream, Some(cut));
    assert_eq!(in_pieces, heard, "in pieces and moved");
    opened
}

fn beside_rustls(end: End, suite: Suite, cut: u8, script: &[u8]) -> usize {
    let (peer, mut theirs, secrets) = theirs::handshake(end, suite);
    let (to, from) = match end {
        End::Client => (secrets.client, secrets.server),
        End::Server => (secrets.server, secrets.client),
    };
    let keys = |secret: &[u8]| Keys::new(suite, Secret::from(secret.to_vec()), 0).expect("a secret as long as the hash");
    let session = || Session::with(end, keys(&to), keys(&from), Vec::new());
    let (records, mut keys, peer) = Script::new(script, keys(&from), Some(peer)).run();
    let (mut stream, mut last) = (records.concat(), Vec::new());
    keys.append(APPLICATION_DATA, LAST, &mut last);

    theirs.hear(&stream);
    let before = theirs.heard.plaintext.len();
    theirs.hear(&last);
    stream.append(&mut last);
    if theirs.heard.plaintext.len() == before {
        // It failed, was closed, or waits for the rest of something that cannot come any more.
        stream.extend_from_slice(&NO_RECORD);
        theirs.hear(&NO_RECORD);
    }
    let mut ours = Ours::new(session());
    let (heard, opened) = ours.hear_all(&stream, None);
    assert_eq!(heard, theirs.heard, "what rustls makes of it");
    let (in_pieces, _) = Ours::new(session()).hear_all(&stream, Some(cut));
    assert_eq!(in_pieces, heard, "in pieces and moved");
    if let Some(peer) = peer
        && !heard.failed
    {
        answer(ours.session, peer, cut);
    }
    opened
}

/// The peer, which has heard nothing until now, reads what the session has to say.
fn answer(mut session: Session, peer: Theirs, cut: u8) {
    let (mut peer, mut sent, mut wire) = (peer, Vec::new(), Vec::new());
    for (step, size) in [1, 100, MAX_PLAINTEXT, 7].into_iter().enumerate() {
        if cut >> step & 1 == 1 {
            session.refresh(cut >> 4 & 1 == 1);
        }
        session.pending(&mut wire).expect("a session that has not failed");
        let mut record = vec![cut; HEADER + size + TRAILER];
        sent.extend_from_slice(&record[HEADER..HEADER + size]);
        session.seal(&mut record).expect("a record of an allowed size");
        wire.append(&mut record);
    }
    session.close();
    session.pending(&mut wire).expect("a session that has not failed");
    peer.hear(&wire);
    assert_eq!(peer.heard, Heard { plaintext: sent, closed: true, failed: false }, "what rustls reads");
}

/// A session of ours and what it has not opened yet.
struct Ours {
    session: Session,
    input: Vec<u8>,
    heard: Heard,
    opened: usize,
}

impl Ours {
    fn new(session: Session) -> Self {
        Self { session, input: Vec::new(), heard: Heard::default(), opened: 0 }
    }

    /// In pieces of sizes that follow from `cut`; now and then the session is moved between them.
    fn hear_all(&mut self, bytes: &[u8], cut: Option<u8>) -> (Heard, usize) {
        let Some(cut) = cut else {
            self.hear(bytes);
            return (self.heard.clone(), self.opened);
        };
        let (mut random, mut rest) = (u32::from(cut), bytes);
        while !rest.is_empty() {
            // Numerical Recipes' generator: the cuts are a function of the input.
            random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let most = [1, 30, 700, 40_000][(random >> 30) as usize];
            let (piece, behind) = rest.split_at(((random >> 8) as usize % most + 1).min(rest.len()));
            rest = behind;
            self.hear(piece);
            if random >> 24 & 7 == 0 {
                self.session.pending(&mut Vec::new()).expect("no defect of ours");
            }
            if random >> 27 & 7 == 0 && !self.heard.failed {
                self.move_on();
            }
        }
        (self.heard.clone(), self.opened)
    }

    fn hear(&mut self, bytes: &[u8]) {
        self.input.extend_from_slice(bytes);
        let mut start = 0;
        loop {
            let left = self.input.len() - start;
            match self.session.open(&mut self.input[start..]) {
                Ok(Opened::Incomplete { needed }) => {
                    assert!(needed > left && needed <= MAX_RECORD);
                    break;
                }
                Ok(Opened::Data { plaintext, consumed }) => {
                    assert!(!plaintext.is_empty() && plaintext.end <= consumed && consumed <= left);
                    self.heard.plaintext.extend_from_slice(&self.input[start..][plaintext]);
                    start += consumed;
                }
                Ok(Opened::Nothing { consumed }) => {
                    assert!(consumed > 0 && consumed <= left);
                    start += consumed;
                }
                Ok(Opened::Closed { consumed }) => {
                    assert!(consumed == left && self.session.end().is_ok());
                    self.heard.closed = true;
                    start += consumed;
                    break;
                }
                Err(error) => {
                    let again = self.session.open(&mut []).expect_err("an error stays");
                    assert_eq!(again.to_string(), error.to_string());
                    self.heard.failed = true;
                    start = self.input.len();
                    break;
                }
            }
            self.opened += 1;
        }
        self.input.drain(..start);
    }

    fn move_on(&mut self) {
        let idle = Session::with(self.session.end, spare(), spare(), Vec::new());
        let exported = std::mem::replace(&mut self.session, idle).export().expect("a session that has not failed");
        let bytes = serde_json::to_vec(&exported).expect("plain data");
        let exported = serde_json::from_slice(&bytes).expect("what was written");
        self.session = Session::import(exported).expect("its own secrets");
    }
}

/// Of a session that is not used.
fn spare() -> Keys {
    Keys::new(Suite::Aes128Gcm, Secret::from(vec![0; 32]), 0).expect("a secret as long as the hash")
}
