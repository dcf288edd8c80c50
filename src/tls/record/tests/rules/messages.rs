//! Handshake messages after the handshake.

use tokio::io::AsyncWriteExt;

use super::super::super::message::Message;
use super::*;
use crate::tls::record::open::MAX_SILENT;

/// A NewSessionTicket with a body of that many bytes.
fn ticket(size: usize) -> Vec<u8> {
    let [_, rest @ ..] = u32::try_from(size).unwrap().to_be_bytes();
    [&[4][..], &rest, &vec![0xab; size]].concat()
}

#[test]
fn a_key_update_is_answered_once() {
    for (_, suite) in SUITES {
        let (mut near, mut far) = pair(suite);
        for round in 0_u8..100 {
            for _ in 0..3 {
                near.refresh(true);
                let update = pending(&mut near);
                assert_eq!(opened(&mut far, &update).unwrap(), b"");
            }
            assert_eq!(opened(&mut far, &data(&mut near, &[round])).unwrap(), [round]);
            // RFC 8446 §4.6.3: before the next data, once for all three, and not to be answered in turn.
            assert!(far.has_pending());
            let answer = pending(&mut far);
            assert_eq!(answer.len(), HEADER + 5 + TRAILER);
            assert_eq!(opened(&mut near, &answer).unwrap(), b"");
            assert!(!near.has_pending() && !far.has_pending());
            assert_eq!(opened(&mut near, &data(&mut far, &[round])).unwrap(), [round]);
        }
    }
}

#[test]
fn one_that_asks_for_nothing_is_not_answered() {
    let (mut near, mut far) = two();
    near.refresh(false);
    assert_eq!(opened(&mut far, &pending(&mut near)).unwrap(), b"");
    assert!(!far.has_pending());
    assert_eq!(opened(&mut far, &data(&mut near, b"x")).unwrap(), b"x");
}

#[test]
fn messages_come_in_any_pieces() {
    let (mut client, mut server) = two();
    let all = [ticket(500), ticket(3), ticket(0)].concat();
    for size in [20, 21, 100, 511, 600] {
        for piece in all.chunks(size) {
            let record = raw(&mut server, HANDSHAKE, piece);
            assert_eq!(opened(&mut client, &record).unwrap(), b"");
        }
        assert_eq!(opened(&mut client, &data(&mut server, b"x")).unwrap(), b"x");
        assert_eq!(client.messages.partial(), b"");
    }
    // A KeyUpdate may follow a ticket, and come in pieces; the key changes behind it.
    for piece in [&ticket(9)[..], &key_update(true)[..2], &key_update(true)[2..]] {
        opened(&mut client, &raw(&mut server, HANDSHAKE, piece)).unwrap();
    }
    server.write.advance().unwrap();
    assert_eq!(opened(&mut client, &data(&mut server, b"x")).unwrap(), b"x");
    assert!(client.has_pending());
}

#[test]
fn a_message_is_not_interrupted() {
    // RFC 8446 §5.1
    for (content_type, content) in [(APPLICATION_DATA, &b"x"[..]), (APPLICATION_DATA, b""), (ALERT, &[1, 0])] {
        let (mut client, mut server) = two();
        assert_eq!(opened(&mut client, &raw(&mut server, HANDSHAKE, &ticket(9)[..5])).unwrap(), b"");
        let record = raw(&mut server, content_type, content);
        refused(&mut client, &mut server, &record, AlertDescription::UnexpectedMessage);
    }
}

#[test]
fn messages_that_are_not_allowed_are_refused() {
    use AlertDescription::{DecodeError, IllegalParameter, UnexpectedMessage};
    let behind = [&key_update(false)[..], &ticket(3)].concat();
    for (content, alert) in [
        (&[][..], UnexpectedMessage),
        // A second certificate, or a request for one, was never offered.
        (&[11, 0, 0, 0], UnexpectedMessage),
        (&[13, 0, 0, 0], UnexpectedMessage),
        (&[1, 0, 0, 0], UnexpectedMessage),
        (&[24, 0, 0, 0], DecodeError),
        (&[24, 0, 0, 2, 0, 0], DecodeError),
        (&[24, 0, 0, 1, 2], IllegalParameter),
        (&[4, 1, 0, 0], DecodeError),
        // RFC 8446 §5.1: nothing stands behind a KeyUpdate in its record.
        (&behind, UnexpectedMessage),
    ] {
        let (mut client, mut server) = two();
        let record = raw(&mut server, HANDSHAKE, content);
        refused(&mut client, &mut server, &record, alert);
    }
    let (mut client, mut server) = two();
    let record = raw(&mut client, HANDSHAKE, &ticket(3));
    refused(&mut server, &mut client, &record, UnexpectedMessage);
}

#[test]
fn floods_are_bounded() {
    type Flood = fn(&mut Session) -> Vec<u8>;
    let empty: Flood = |session| raw(session, APPLICATION_DATA, b"");
    let tickets: Flood = |session| raw(session, HANDSHAKE, &ticket(3));
    let canceled: Flood = |session| raw(session, ALERT, &[1, 90]);
    let updates: Flood = |session| {
        session.refresh(true);
        pending(session)
    };
    for flood in [empty, tickets, canceled, updates] {
        let (mut client, mut server) = two();
        for _ in 0..3 {
            for _ in 0..MAX_SILENT {
                assert_eq!(opened(&mut client, &flood(&mut server)).unwrap(), b"");
            }
            // Data between them starts the count anew.
            assert_eq!(opened(&mut client, &data(&mut server, b"x")).unwrap(), b"x");
        }
        for _ in 0..MAX_SILENT {
            assert_eq!(opened(&mut client, &flood(&mut server)).unwrap(), b"");
        }
        let record = flood(&mut server);
        refused(&mut client, &mut server, &record, AlertDescription::UnexpectedMessage);
    }
    // A record full of messages holds no more of them than that many records.
    let (mut client, mut server) = two();
    let record = raw(&mut server, HANDSHAKE, &ticket(0).repeat(MAX_PLAINTEXT / 4));
    refused(&mut client, &mut server, &record, AlertDescription::UnexpectedMessage);
}

#[test]
fn a_message_is_found_whole() {
    let mut messages = Messages::new(true, Vec::new());
    messages.add(&ticket(2));
    messages.add(&key_update(true));
    assert_eq!(messages.next().unwrap(), Some(Message::Ticket(vec![0xab; 2])));
    assert_eq!(messages.next().unwrap(), Some(Message::KeyUpdate { requested: true }));
    assert_eq!(messages.next().unwrap(), None);
}

/// A client behind a real handshake, and its server, whose own ticket was never sent.
async fn before_the_ticket() -> (Session, Session) {
    let mesh = Mesh::new();
    let (near, far) = tcp();
    let near = async {
        let mut near = mesh.connect(near).await.unwrap();
        near.socket.write_all(&pending(&mut near.session)).await.unwrap();
        near.session
    };
    let (near, far) = tokio::join!(near, mesh.accept(far));
    let mut exported = far.unwrap().session.export().unwrap();
    assert!(!exported.queued.is_empty());
    (exported.queued, exported.write.sequence) = (Vec::new(), 0);
    (near, Session::import(exported).unwrap())
}

#[tokio::test]
async fn a_ticket_that_cannot_be_read_is_refused() {
    for body in [&b""[..], b"x", &[0xff; 300]] {
        let (mut client, mut server) = before_the_ticket().await;
        let [_, rest @ ..] = u32::try_from(body.len()).unwrap().to_be_bytes();
        let record = raw(&mut server, HANDSHAKE, &[&[4][..], &rest, body].concat());
        refused(&mut client, &mut server, &record, AlertDescription::DecodeError);
    }
}

#[tokio::test]
async fn a_ticket_that_is_too_long_is_dropped() {
    let (mut client, mut server) = before_the_ticket().await;
    for piece in ticket(0xffff).chunks(MAX_PLAINTEXT) {
        opened(&mut client, &raw(&mut server, HANDSHAKE, piece)).unwrap();
    }
    // And the others of that server with it.
    opened(&mut client, &raw(&mut server, HANDSHAKE, &ticket(3))).unwrap();
    assert_eq!(opened(&mut client, &data(&mut server, b"x")).unwrap(), b"x");
}
