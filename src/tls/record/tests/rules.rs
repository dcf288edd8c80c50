//! What a peer may send, must not send, and learns about it. Two sessions joined in memory.

mod messages;
mod moving;

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

use super::*;
use crate::base::code;

fn pair(suite: SupportedCipherSuite) -> (Session, Session) {
    let length = Suite::of(suite).unwrap().hash_len();
    let [near, far] = [1, 2].map(|byte| move || (Secret::from(vec![byte; length]), 0));
    (
        Session::new(End::Client, suite, near(), far(), Vec::new()).unwrap(),
        Session::new(End::Server, suite, far(), near(), Vec::new()).unwrap(),
    )
}

/// A client and its server, with the first suite.
fn two() -> (Session, Session) {
    pair(SUITES[0].1)
}

/// One record with any content.
fn raw(session: &mut Session, content_type: u8, content: &[u8]) -> Vec<u8> {
    let mut record = Vec::new();
    session.append(content_type, content, &mut record).unwrap();
    record
}

fn data(session: &mut Session, content: &[u8]) -> Vec<u8> {
    let mut record = [&[0; HEADER], content, &[0; TRAILER]].concat();
    session.seal(&mut record).unwrap();
    record
}

fn pending(session: &mut Session) -> Vec<u8> {
    let mut out = Vec::new();
    session.pending(&mut out).unwrap();
    out
}

fn opened(session: &mut Session, record: &[u8]) -> Result<Vec<u8>> {
    let mut input = record.to_vec();
    Ok(match session.open(&mut input)? {
        Opened::Data { plaintext, consumed } => {
            assert_eq!(consumed, input.len());
            input[plaintext].to_vec()
        }
        Opened::Nothing { consumed } => {
            assert_eq!(consumed, input.len());
            Vec::new()
        }
        other => panic!("{other:?}"),
    })
}

/// `record` is refused by `reader`, and `writer` learns of it by `alert`.
fn refused(reader: &mut Session, writer: &mut Session, record: &[u8], alert: AlertDescription) {
    let error = opened(reader, record).unwrap_err();
    assert_eq!(error.code().id, code::TUNNEL_BROKEN.id);
    assert!(error.detail().contains(&format!("{alert:?}")), "{error}, expected {alert:?}");
    assert!(reader.has_pending());
    let told = opened(writer, &pending(reader)).unwrap_err();
    assert_eq!(told.code().id, code::TLS_FAILED.id);
    assert!(told.detail().ends_with(&format!("received fatal alert: {alert:?}")), "{told}");
    // Both stay as they are.
    for session in [reader, writer] {
        assert!(!session.has_pending() && pending(session).is_empty());
        assert!(session.open(&mut []).is_err() && session.end().is_err() && session.seal(&mut [0; 100]).is_err());
    }
}

#[test]
fn a_record_comes_in_any_pieces() {
    for (_, suite) in SUITES {
        let (mut near, mut far) = pair(suite);
        let mut record = data(&mut near, b"hello");
        for length in 0..record.len() {
            let needed = if length < HEADER { HEADER } else { record.len() };
            assert_eq!(far.open(&mut record[..length]).unwrap(), Opened::Incomplete { needed });
        }
        assert_eq!(opened(&mut far, &record).unwrap(), b"hello");
    }
}

#[test]
fn sizes_are_kept() {
    let (mut near, mut far) = two();
    for size in [0, MAX_PLAINTEXT + 1] {
        assert_eq!(near.seal(&mut vec![0; HEADER + size + TRAILER]).unwrap_err().code().id, code::INTERNAL.id);
    }
    assert!(near.seal(&mut []).is_err());
    let most = vec![7; MAX_PLAINTEXT];
    let record = data(&mut near, &most);
    assert!(opened(&mut far, &record).unwrap() == most);
    let record = raw(&mut near, APPLICATION_DATA, &[0; MAX_PLAINTEXT + 1]);
    refused(&mut far, &mut near, &record, AlertDescription::RecordOverflow);

    let (mut near, mut far) = two();
    assert_eq!(far.open(&mut [23, 3, 3, 0x41, 0]).unwrap(), Opened::Incomplete { needed: MAX_RECORD });
    refused(&mut far, &mut near, &[23, 3, 3, 0x41, 1], AlertDescription::RecordOverflow);
}

#[test]
fn every_byte_of_a_record_counts() {
    for (_, suite) in SUITES {
        let (mut near, _) = pair(suite);
        let record = data(&mut near, b"some text");
        for position in 0..record.len() {
            let (mut near, mut far) = pair(suite);
            let mut record = record.clone();
            record[position] ^= 1;
            // A length that is larger is waited for.
            record.resize(HEADER + usize::from(u16::from_be_bytes([record[3], record[4]])), 0);
            let alert = if position == 0 { AlertDescription::UnexpectedMessage } else { AlertDescription::BadRecordMac };
            refused(&mut far, &mut near, &record, alert);
        }
    }
}

#[test]
fn records_are_opened_once_and_in_order() {
    let (mut near, mut far) = two();
    let (one, two_) = (data(&mut near, b"1"), data(&mut near, b"2"));
    assert_eq!(opened(&mut far, &one).unwrap(), b"1");
    let mut again = Session::import(far.export().unwrap()).unwrap();
    refused(&mut again, &mut near, &one, AlertDescription::BadRecordMac);
    let (mut near, mut far) = two();
    data(&mut near, b"1");
    refused(&mut far, &mut near, &two_, AlertDescription::BadRecordMac);
}

#[test]
fn only_protected_records_are_taken() {
    // RFC 8446 §5: a change_cipher_spec is dropped during the handshake alone.
    for record in [&[20, 3, 3, 0, 1, 1][..], &[21, 3, 3, 0, 2, 2, 40], &[22, 3, 3, 0, 1, 0], b"GET / HTTP/1.1\r\n", &[0; 5]] {
        let (mut near, mut far) = two();
        refused(&mut far, &mut near, record, AlertDescription::UnexpectedMessage);
    }
    for length in 0..17 {
        let (mut near, mut far) = two();
        let record = [&[23, 3, 3, 0, length][..], &vec![0; length.into()]].concat();
        refused(&mut far, &mut near, &record, AlertDescription::BadRecordMac);
    }
}

#[test]
fn padding_is_taken_off() {
    let (mut near, mut far) = two();
    // A content type in the content: what the session appends is then padding of type 0.
    let record = raw(&mut near, 0, b"text\0\x17\0\0\0");
    assert_eq!(opened(&mut far, &record).unwrap(), b"text\0");
    let record = raw(&mut near, 0, &[&[9; 3][..], &[23], &[0; MAX_PLAINTEXT - 4]].concat());
    assert_eq!(opened(&mut far, &record).unwrap(), [9; 3]);
    // RFC 8446 §5.4
    let record = raw(&mut near, 0, &[0; 100]);
    refused(&mut far, &mut near, &record, AlertDescription::UnexpectedMessage);
}

#[test]
fn unknown_types_are_refused() {
    for content_type in [20, 24, 255] {
        let (mut near, mut far) = two();
        let record = raw(&mut near, content_type, b"x");
        refused(&mut far, &mut near, &record, AlertDescription::UnexpectedMessage);
    }
}

#[test]
fn closing_ends_one_direction() {
    let (mut near, mut far) = two();
    assert!(far.end().unwrap_err().detail().contains("without sending TLS close_notify"));
    near.close();
    let closing = pending(&mut near);
    near.close();
    assert!(!near.has_pending() && pending(&mut near).is_empty());
    assert!(near.seal(&mut [0; 100]).is_err());
    let mut input = [&closing[..], b"what follows is ignored"].concat();
    let all = input.len();
    assert_eq!(far.open(&mut input).unwrap(), Opened::Closed { consumed: all });
    assert_eq!(far.open(&mut [1, 2]).unwrap(), Opened::Closed { consumed: 2 });
    far.end().unwrap();
    // RFC 8446 §6.1: the other direction goes on.
    assert_eq!(opened(&mut near, &data(&mut far, b"late")).unwrap(), b"late");
    far.refresh(true);
    assert_eq!(opened(&mut near, &pending(&mut far)).unwrap(), b"");
    assert!(!near.has_pending());
    assert_eq!(opened(&mut near, &data(&mut far, b"later")).unwrap(), b"later");
}

#[test]
fn alerts_end_the_session() {
    for (alert, want) in [(116, &code::NO_PEER_CERTIFICATE), (42, &code::TLS_FAILED), (10, &code::TLS_FAILED), (99, &code::TLS_FAILED)] {
        // RFC 8446 §6: the level is ignored.
        for level in [1, 2, 77] {
            let (mut near, mut far) = two();
            let error = opened(&mut far, &raw(&mut near, ALERT, &[level, alert])).unwrap_err();
            assert_eq!(error.code().id, want.id);
            assert!(error.detail().contains("the peer's TLS refused us: received fatal alert: "), "{error}");
            assert!(!far.has_pending() && pending(&mut far).is_empty());
        }
    }
    let (mut near, mut far) = two();
    assert_eq!(opened(&mut far, &raw(&mut near, ALERT, &[1, 90])).unwrap(), b"");
    for content in [&[][..], &[2], &[2, 40, 2]] {
        let (mut near, mut far) = two();
        let record = raw(&mut near, ALERT, content);
        refused(&mut far, &mut near, &record, AlertDescription::DecodeError);
    }
}

#[test]
fn a_worn_key_is_changed() {
    for (suite, rustls_suite) in SUITES {
        let (near, mut far) = pair(rustls_suite);
        let at = |sequence| {
            let (near, _) = pair(rustls_suite);
            let mut exported = near.export().unwrap();
            exported.write.sequence = sequence;
            Session::import(exported).unwrap()
        };
        drop(near);
        let limit = suite.confidentiality_limit();
        assert!(at(limit - RESERVE).seal(&mut [0; 100]).is_err());
        let mut near = at(limit / 2 - 1);
        assert!(!near.has_pending());
        data(&mut near, b"x");
        assert!(near.has_pending());
        far.read = Keys::new(suite, Secret::from(near.write.secret().bytes().to_vec()), near.write.sequence()).unwrap();
        assert_eq!(opened(&mut far, &pending(&mut near)).unwrap(), b"");
        assert!(!near.has_pending() && !far.has_pending());
        assert_eq!((near.write.sequence(), far.read.sequence()), (0, 0));
        assert_eq!(opened(&mut far, &data(&mut near, b"y")).unwrap(), b"y");
    }
    let (near, _) = two();
    let mut exported = near.export().unwrap();
    exported.write.sequence = u64::MAX;
    let mut near = Session::import(exported).unwrap();
    assert!(near.seal(&mut [0; 100]).is_err() && near.pending(&mut Vec::new()).is_err());
}

#[test]
fn what_is_shown_holds_no_secret() {
    let (near, _) = two();
    let shown = format!("{near:?}");
    assert!(shown.contains("Aes128Gcm") && !shown.contains("secret"), "{shown}");
    let exported = near.export().unwrap();
    let shown = format!("{exported:?} {:?}", exported.write);
    assert!(!shown.contains("1, 1") && !shown.contains("secret"), "{shown}");
}

/// Whatever an authentic record holds, the session takes it or fails; it never panics, and never grows.
#[test]
fn any_content_is_survived() {
    let mut random = StdRng::seed_from_u64(1);
    for _ in 0..3000 {
        let (mut near, mut far) = two();
        for _ in 0..20 {
            let content_type = *[ALERT, HANDSHAKE, HANDSHAKE, APPLICATION_DATA, 0].choose(&mut random).unwrap();
            let mut content = vec![0; random.random_range(0..12)];
            // Small numbers are types and lengths more often than others.
            content.fill_with(|| if random.random() { *[0, 1, 4, 22, 23, 24].choose(&mut random).unwrap() } else { random.random() });
            let mut record = raw(&mut near, content_type, &content);
            if far.open(&mut record).is_err() {
                assert!(far.open(&mut record).is_err());
                break;
            }
            pending(&mut far);
            assert!(far.messages.partial().len() <= 12 * 20);
        }
    }
}

#[test]
fn a_session_may_change_its_thread() {
    fn moves<T: Send + Sync + 'static>() {}
    moves::<Session>();
}
