//! A session that goes on elsewhere.

use super::*;

/// Through bytes, as another process would get it.
fn moved(session: Session) -> Session {
    let bytes = serde_json::to_vec(&session.export().unwrap()).unwrap();
    Session::import(serde_json::from_slice(&bytes).unwrap()).unwrap()
}

#[test]
fn it_goes_on_where_it_stopped() {
    for (suite, rustls_suite) in SUITES {
        let (mut near, mut far) = pair(rustls_suite);
        for round in 0_u8..20 {
            let record = data(&mut near, &[round; 100]);
            far = moved(far);
            assert_eq!(opened(&mut far, &record).unwrap(), [round; 100]);
            near = moved(near);
            assert_eq!(near.suite(), suite);
            // Keys change before and after the move.
            near.refresh(round % 2 == 0);
            let update = pending(&mut near);
            near = moved(near);
            opened(&mut far, &update).unwrap();
            far = moved(far);
            // What it had to say comes first there.
            assert_eq!(far.has_pending(), round % 2 == 0);
            let answer = pending(&mut far);
            if !answer.is_empty() {
                opened(&mut near, &answer).unwrap();
            }
            assert_eq!(opened(&mut near, &data(&mut far, b"x")).unwrap(), b"x");
        }
    }
}

#[test]
fn half_a_message_goes_along() {
    let (mut client, mut server) = two();
    opened(&mut client, &raw(&mut server, HANDSHAKE, &key_update(true)[..3])).unwrap();
    let mut client = moved(client);
    opened(&mut client, &raw(&mut server, HANDSHAKE, &key_update(true)[3..])).unwrap();
    server.write.advance().unwrap();
    assert_eq!(opened(&mut client, &data(&mut server, b"x")).unwrap(), b"x");
}

#[test]
fn the_end_goes_along() {
    let (mut near, mut far) = two();
    near.close();
    let mut near = moved(near);
    let mut closing = pending(&mut near);
    assert!(near.seal(&mut [0; 100]).is_err());
    far.open(&mut closing).unwrap();
    moved(far).end().unwrap();
}

#[test]
fn what_has_failed_or_does_not_fit_is_not_moved() {
    let (_, mut far) = two();
    let error = far.open(&mut [0; 5]).unwrap_err();
    assert_eq!(far.export().unwrap_err().to_string(), error.to_string());

    let (near, _) = two();
    let mut exported = near.export().unwrap();
    exported.suite = Suite::Aes256Gcm;
    assert!(Session::import(exported).is_err());
}

#[test]
fn a_secret_that_is_none_is_not_taken() {
    let (near, _) = two();
    let mut exported = serde_json::to_value(near.export().unwrap()).unwrap();
    for secret in [vec![7; 49], vec![7; 31], vec![]] {
        exported["write"]["secret"] = secret.into();
        let taken: std::result::Result<Exported, _> = serde_json::from_value(exported.clone());
        assert!(taken.is_err() || Session::import(taken.unwrap()).is_err());
    }
}
