//! The ground that the other stories stand on: two nodes, their pods, and a capture that sees what is there to see.

mod common;

use std::time::Duration;

use common::{assert_echoed, sandboxed, say, warren};
use warren::demo::capture::{Capture, Recorder, Wanted};
use warren::demo::lab::{Lab, PodSpec, WIRE};
use warren::demo::pod::{ECHO_PORT, Outcome};

const LIMIT: Duration = Duration::from_secs(10);

const PODS: [PodSpec<'_>; 2] = [PodSpec { name: "client", node: 1, hosts: &[10] }, PodSpec { name: "server", node: 2, hosts: &[10, 66] }];

#[test]
fn pods_talk_over_the_wire_and_the_capture_reads_it() {
    sandboxed("pods_talk_over_the_wire_and_the_capture_reads_it", |dir| {
        let lab = Lab::two_nodes(dir, &PODS).expect("a lab");
        let (client, server) = (lab.pod("client").expect("made"), lab.pod("server").expect("made"));
        let wanted = Wanted { marker: b"marker-4711".to_vec(), app_ports: vec![ECHO_PORT], hbone_port: 15008 };
        let pcap = dir.join("wire.pcap");
        let file = std::fs::File::create(&pcap).expect("a scratch file");
        let recorder = Recorder::new(file).expect("a scratch file");
        let capture = Capture::start(&lab.node(1).expect("made").netns, WIRE, wanted, Some(recorder)).expect("a packet socket");
        let mut serving = lab.start(server, "server", warren(&["demo-pod", "serve"])).expect("a server starts");
        serving.wait_for_output("listening", LIMIT).expect("the server listens");

        let quiet = capture.counters().expect("nothing lost");
        assert_eq!((quiet.plaintext_payload_hits, quiet.app_port_packets), (0, 0));
        for ip in &server.ips {
            assert_echoed(&say(&lab, client, &format!("{ip}:{ECHO_PORT}"), "marker-4711"));
        }
        let seen = capture.counters().expect("nothing lost") - quiet;
        assert_eq!(seen.plaintext_payload_hits, 4, "twice there and back: {seen:?}");
        assert!(seen.app_port_packets >= 6, "{seen:?}");
        assert_eq!((seen.hbone_packets, seen.tls13_records), (0, 0));

        let refused = say(&lab, client, &format!("{}:1", server.ip()), "nobody listens");
        assert_eq!(refused.outcome, Outcome::Refused, "{refused:?}");

        let total = capture.counters().expect("nothing lost");
        capture.stop().expect("an unbroken capture").expect("the recorder").finish().expect("the file is written");
        let file = std::fs::File::open(&pcap).expect("written above");
        let mut reader = pcap_file::pcap::PcapReader::new(file).expect("a pcap header");
        let mut packets = 0;
        while let Some(packet) = reader.next_packet() {
            assert!(packet.expect("a whole packet").data.len() >= 14, "an Ethernet header");
            packets += 1;
        }
        assert!(packets >= total.frames, "{packets} in the file, {} counted", total.frames);
    });
}

#[test]
fn a_child_is_reported_with_its_last_words_and_dies_with_its_handle() {
    sandboxed("a_child_is_reported_with_its_last_words_and_dies_with_its_handle", |dir| {
        let lab = Lab::two_nodes(dir, &PODS).expect("a lab");
        let server = lab.pod("server").expect("made");
        let mut first = lab.start(server, "first", warren(&["demo-pod", "serve"])).expect("a server starts");
        first.wait_for_output("listening", LIMIT).expect("the server listens");
        let mut second = lab.start(server, "second", warren(&["demo-pod", "serve"])).expect("a server starts");
        let error = second.wait_for_output("listening", LIMIT).expect_err("the port is taken");
        assert_eq!(error.code().id, "W8003");
        assert!(error.detail().contains("port 8080"), "{error}");

        let pid = first.pid();
        drop(first);
        assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists());
    });
}

#[test]
#[should_panic(expected = "story was not told")]
fn a_story_under_a_wrong_name_does_not_pass() {
    sandboxed("no_test_has_this_name", |_| unreachable!("no test has this name"));
}
