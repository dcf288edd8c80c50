use super::*;

fn hex(text: &str) -> Vec<u8> {
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).expect("hex")).collect()
}

fn add(uid: &str, name: &str, namespace: &str, service_account: &str) -> Request {
    let info = WorkloadInfo { name: name.into(), namespace: namespace.into(), service_account: service_account.into() };
    Request::Add { uid: uid.into(), info }
}

#[test]
fn recorded_messages_are_read_and_written_byte_for_byte() {
    let recordings =
        [include_str!("../../../tests/data/zds/live-messages.jsonl"), include_str!("../../../tests/data/zds/agent-restart.jsonl")];
    let mut seen = [0; 3];
    for line in recordings.iter().flat_map(|text| text.lines()) {
        let line: serde_json::Value = serde_json::from_str(line).expect("a JSON line");
        let (Some(direction), Some(bytes)) = (line["dir"].as_str(), line["hex"].as_str()) else { continue };
        let bytes = hex(bytes);
        let has_fd = line["ancillary"].is_string();
        match direction {
            "agent->ztunnel" if bytes.is_empty() => {}
            "agent->ztunnel" => {
                let request = decode_request(&bytes, has_fd).expect("a recorded request");
                assert_eq!(encode_request(&request).expect("fits"), bytes);
                let named = &line["decoded"]["WorkloadRequest"];
                match &request {
                    Request::Add { uid, info } => {
                        assert_eq!(named["add"]["uid"], uid.as_str());
                        assert_eq!(named["add"]["workload_info"]["service_account"], info.service_account.as_str());
                    }
                    Request::Del { uid } => assert_eq!(named["del"]["uid"], uid.as_str()),
                    Request::SnapshotSent => assert!(named["snapshot_sent"].is_object()),
                    Request::Keep { .. } => panic!("not in the recordings"),
                }
                seen[0] += 1;
            }
            _ if line["decoded"]["ZdsHello"].is_object() => {
                assert_eq!((decode_hello(&bytes), encode_hello()), (Ok(()), bytes));
                seen[1] += 1;
            }
            _ => {
                let answer = decode_answer(&bytes).expect("a recorded answer");
                assert_eq!((&answer, encode_answer(&answer)), (&Answer::Done, bytes));
                seen[2] += 1;
            }
        }
    }
    assert_eq!(seen, [12, 2, 12], "requests, hellos, answers");
}

#[test]
fn every_kind_survives_the_wire() {
    let keep = Request::Keep { uid: "u".into() };
    let del = Request::Del { uid: "u".into() };
    for (request, has_fd) in [(add("u", "n", "ns", "sa"), true), (keep, false), (del, false), (Request::SnapshotSent, false)] {
        assert_eq!(decode_request(&encode_request(&request).expect("fits"), has_fd), Ok(request));
    }
}

#[test]
fn malformed_requests_are_told_apart() {
    let encoded = |request| encode_request(&request).expect("fits");
    let long = "u".repeat(254);
    let no_info = wire::AddWorkload { uid: "u".into(), workload_info: None };
    let no_info = wire::WorkloadRequest { payload: Some(wire::workload_request::Payload::Add(no_info)) }.encode_to_vec();
    let cases: Vec<(&str, Vec<u8>, bool, Malformed)> = vec![
        ("nothing in it", vec![], false, Malformed::UnknownKind),
        ("a kind of the future", hex("3a00"), false, Malformed::UnknownKind),
        ("no uid", encoded(add("", "n", "ns", "sa")), true, Malformed::Missing("the pod UID")),
        ("long uid", encoded(Request::Del { uid: long }), false, Malformed::Unusable("the pod UID")),
        ("no info", no_info, true, Malformed::Missing("the workload information")),
        ("no name", encoded(add("u", "", "ns", "sa")), true, Malformed::Missing("the pod name")),
        ("identity with a slash", encoded(add("u", "n", "ns/sa/x", "sa")), true, Malformed::Unusable("the namespace")),
        ("no account", encoded(add("u", "n", "ns", "")), true, Malformed::Unusable("the service account")),
        ("no fd", encoded(add("u", "n", "ns", "sa")), false, Malformed::Descriptor("an added pod without its network namespace")),
        ("stray fd", encoded(Request::SnapshotSent), true, Malformed::Descriptor("a descriptor with a message that carries none")),
    ];
    for (name, bytes, has_fd, expected) in cases {
        assert_eq!(decode_request(&bytes, has_fd), Err(expected), "{name}");
    }
    assert!(matches!(decode_request(b"GET / HTTP/1.1\r\n", false), Err(Malformed::Undecodable(_))));
    assert!(matches!(encode_request(&add("u", &"n".repeat(1024), "ns", "sa")), Err(Malformed::TooLong(_))));
}

#[test]
fn answers_and_hellos_that_are_none() {
    assert_eq!(decode_answer(&[]), Err(Malformed::UnknownKind));
    assert!(matches!(decode_answer(&hex("0aff")), Err(Malformed::Undecodable(_))));
    assert_eq!(decode_hello(&[]), Err(Malformed::Version(0)));
    assert_eq!(decode_hello(&hex("0802")), Err(Malformed::Version(2)));
}

#[test]
fn a_refusal_always_fits_the_buffer_and_never_reads_as_done() {
    let long = encode_answer(&Answer::Refused("é".repeat(2000)));
    assert!(long.len() <= MAX_MESSAGE);
    assert!(matches!(decode_answer(&long), Ok(Answer::Refused(text)) if text.len() == MAX_REFUSAL));
    assert!(matches!(decode_answer(&encode_answer(&Answer::Refused(String::new()))), Ok(Answer::Refused(_))));
}
