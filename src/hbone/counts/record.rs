//! Records of TLS, sealed and opened in place.

use std::hint::black_box;

use super::MOST;
use crate::tls::record::{End, Exported, ExportedKeys, HEADER, Opened, Session, Suite, TRAILER};

pub(super) fn seal(size: usize, times: u32) {
    let mut session = session(End::Client);
    let mut record = vec![7; HEADER + size + TRAILER];
    for _ in 0..times {
        session.seal(black_box(&mut record)).expect("a record of an allowed size");
    }
}

pub(super) fn open(size: usize, times: u32) {
    let (mut near, mut far) = (session(End::Client), session(End::Server));
    let mut records = vec![vec![7; HEADER + size + TRAILER]; MOST as usize];
    for record in &mut records {
        near.seal(record).expect("a record of an allowed size");
    }
    for record in records.iter_mut().take(times as usize) {
        let opened = far.open(black_box(record)).expect("a record of ours");
        assert!(matches!(black_box(opened), Opened::Data { plaintext, .. } if plaintext.len() == size));
    }
}

/// Under keys that everybody knows.
fn session(end: End) -> Session {
    let keys = |of| ExportedKeys { secret: vec![if of == End::Client { 1 } else { 2 }; 32].into(), sequence: 0 };
    let (write, read) = match end {
        End::Client => (keys(End::Client), keys(End::Server)),
        End::Server => (keys(End::Server), keys(End::Client)),
    };
    let (partial, queued) = (Vec::new(), Vec::new());
    let exported = Exported { end, suite: Suite::Aes128Gcm, write, read, partial, queued, closed: false, peer_closed: false, silent: 0 };
    Session::import(exported).expect("secrets as long as the hash")
}
