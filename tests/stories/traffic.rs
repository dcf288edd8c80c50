//! Connections of applications through the mesh behave as those without it.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Barrier;
use std::time::{Duration, Instant};

use socket2::SockRef;
use warren::config::meshfile::{Action, Rule, Service};
use warren::demo::pod::{ECHO_PORT, ONCE_PORT, Outcome};
use warren::demo::story::mesh::{Mesh, STOLEN, text};
use warren::demo::wait::wait_for;

use crate::apps::*;

const BOTH: [&str; 2] = ["server", "local"];

#[test]
fn the_server_sees_the_clients_own_address() {
    enrolled("traffic::the_server_sees_the_clients_own_address", |mesh| {
        let own = at(mesh, "client", 0).ip();
        for pod in BOTH {
            let server = Server::start(mesh, pod, PORT);
            let client = connect(mesh, "client", server.addr);
            let (_stream, peer) = server.accept();
            assert_eq!(peer.ip(), own, "{pod}");
            assert_eq!(client.peer_addr().expect("connected"), server.addr, "{pod}");
        }
    });
}

#[test]
fn each_direction_ends_by_itself() {
    enrolled("traffic::each_direction_ends_by_itself", |mesh| {
        for pod in BOTH {
            let mark = mesh.log_mark();
            let server = Server::start(mesh, pod, PORT);

            let (mut client, mut app) = server.pair(mesh, "client");
            client.write_all(b"question").expect("open");
            half_close(&client);
            reads(&mut app, "question");
            app.write_all(b"answer").expect("open");
            drop(app);
            reads(&mut client, "answer");

            let (mut client, mut app) = server.pair(mesh, "client");
            app.write_all(b"greeting").expect("open");
            half_close(&app);
            reads(&mut client, "greeting");
            client.write_all(b"reply").expect("open");
            drop(client);
            reads(&mut app, "reply");

            let node = mesh.lab().pod(pod).expect("a pod").node;
            let target = server.addr.to_string();
            let lines = mesh.until(PATIENCE, "both connections are logged", |mesh| {
                let lines = mesh.access_log(node, &mark);
                let ours = |line: &serde_json::Value| text(line, "dst.hbone_addr") == target && text(line, "direction") == "inbound";
                Some(lines.into_iter().filter(ours).collect::<Vec<_>>()).filter(|lines| lines.len() == 2)
            });
            for (line, (sent, received)) in lines.expect("logged").iter().zip([(6, 8), (8, 5)]) {
                assert_eq!((&line["bytes_sent"], &line["bytes_recv"]), (&sent.into(), &received.into()), "{line}");
                assert_eq!(text(line, "code"), "", "{line}");
            }
        }
    });
}

#[test]
fn a_reset_arrives_as_a_reset() {
    enrolled("traffic::a_reset_arrives_as_a_reset", |mesh| {
        // Two pods of the mesh on two nodes and on one, and without a tunnel.
        for pod in ["server", "local", "outside"] {
            let server = Server::start(mesh, pod, PORT);
            let (client, mut app) = server.pair(mesh, "client");
            reset(client);
            assert_eq!(ends_by_reset(&mut app), 0, "{pod}");

            let (mut client, app) = server.pair(mesh, "client");
            reset(app);
            assert_eq!(ends_by_reset(&mut client), 0, "{pod}");

            // After the end of the bytes, while the other has nothing to say.
            let (client, mut app) = server.pair(mesh, "client");
            half_close(&client);
            reads(&mut app, "");
            reset(client);
            breaks(&app);

            let (mut client, app) = server.pair(mesh, "client");
            half_close(&app);
            reads(&mut client, "");
            reset(app);
            breaks(&client);

            // With bytes on their way that the other does not read.
            let (mut client, mut app) = server.pair(mesh, "client");
            let sent = fill(&mut client);
            reset(client);
            assert!(ends_by_reset(&mut app) <= sent, "{pod}");

            let (mut client, mut app) = server.pair(mesh, "client");
            let sent = fill(&mut app);
            reset(app);
            assert!(ends_by_reset(&mut client) <= sent, "{pod}");
        }
    });
}

#[test]
fn large_transfers_arrive_whole_in_both_directions_at_once() {
    const SIZE: usize = 64 << 20;
    enrolled("traffic::large_transfers_arrive_whole_in_both_directions_at_once", |mesh| {
        // Of a length that no buffer divides.
        let pattern: Vec<u8> = (0..1_000_003_u32).map(|number| (number.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        for pod in BOTH {
            let (client, app) = Server::start(mesh, pod, PORT).pair(mesh, "client");
            std::thread::scope(|scope| {
                for end in [&client, &app] {
                    let pattern = &pattern;
                    scope.spawn(move || {
                        let mut end = end;
                        let mut left = SIZE;
                        while left > 0 {
                            let length = left.min(pattern.len());
                            end.write_all(&pattern[..length]).expect("open");
                            left -= length;
                        }
                        half_close(end);
                    });
                    scope.spawn(move || assert_eq!(compare(end, pattern), SIZE, "{pod}"));
                }
            });
        }
    });
}

#[test]
fn two_hundred_connections_at_once() {
    const COUNT: usize = 200;
    enrolled("traffic::two_hundred_connections_at_once", |mesh| {
        let to = at(mesh, "server", ECHO_PORT);
        let all = Barrier::new(COUNT);
        let (mesh, all) = (&*mesh, &all);
        std::thread::scope(|scope| {
            for number in 0..COUNT {
                scope.spawn(move || {
                    let mut stream = connect(mesh, "client", to);
                    let text = format!("connection {number} of many");
                    // All are open before the first one closes.
                    echoes(&mut stream, &text);
                    all.wait();
                    echoes(&mut stream, &text);
                });
            }
        });
    });
}

#[test]
fn a_service_leads_to_ready_endpoints_only() {
    const VIP: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::new(10, 77, 99, 2)), 81);
    enrolled("traffic::a_service_leads_to_ready_endpoints_only", |mesh| {
        let servers = BOTH.map(|pod| Server::start(mesh, pod, PORT));
        let pick = |mesh: &Mesh| {
            let client = try_connect(mesh, "client", VIP).ok()?;
            let mut chosen = None;
            let arrived = wait_for(PATIENCE, "one of the two is chosen", || {
                chosen = servers.iter().position(|server| server.try_accept().is_some());
                (chosen.is_some() || is_over(&client)).then_some(())
            });
            arrived.expect("in time");
            chosen
        };
        mesh.edit(|file| {
            for pod in file.pods.iter_mut().filter(|pod| BOTH.contains(&pod.name.as_str())) {
                pod.labels.insert("tier".to_owned(), "both".to_owned());
            }
            file.services.push(Service {
                name: "both".to_owned(),
                namespace: "default".to_owned(),
                hostname: None,
                vips: vec![VIP.ip()],
                ports: [(VIP.port(), PORT)].into(),
                selector: [("tier".to_owned(), "both".to_owned())].into(),
            });
        })
        .expect("the file can be written");
        knows(mesh, "both.default.svc.cluster.local");
        let mut seen = [0; 2];
        let both = mesh.until(PATIENCE, "both are chosen", |mesh| {
            seen[pick(mesh)?] += 1;
            (seen[0] > 0 && seen[1] > 0).then_some(())
        });
        both.unwrap_or_else(|error| panic!("{error}: {seen:?}"));

        mesh.edit(|file| pod(file, "local").ready = false).expect("the file can be written");
        let only_one = mesh.until(PATIENCE, "only the ready one is chosen", |mesh| {
            let picked: Vec<_> = (0..20).map(|_| pick(mesh)).collect();
            picked.iter().all(|chosen| *chosen == Some(0)).then_some(())
        });
        only_one.expect("the one that is not ready gets nothing");
        // It is the service that passes it over: its own address still leads to it.
        drop(connect(mesh, "client", servers[1].addr));
        servers[1].accept();
    });
}

#[test]
fn what_is_outside_the_mesh_is_reached_in_plaintext() {
    enrolled("traffic::what_is_outside_the_mesh_is_reached_in_plaintext", |mesh| {
        // One address that the mesh file gives to a pod outside the mesh, one that it does not know.
        for to in [at(mesh, "outside", ECHO_PORT), SocketAddr::from((STOLEN, ECHO_PORT))] {
            let mark = mesh.log_mark();
            assert_eq!(talks(mesh, "client", to), Outcome::Echoed, "{to}");
            let line = mesh.until(PATIENCE, "it is logged", |mesh| {
                mesh.access_log(1, &mark).into_iter().find(|line| text(line, "dst.addr") == to.to_string())
            });
            let line = line.expect("logged");
            assert_eq!((text(&line, "dst.hbone_addr"), text(&line, "src.identity"), text(&line, "code")), ("", "", ""), "{line}");
        }
    });
}

#[test]
fn a_plaintext_client_is_served_until_policy_asks_for_an_identity() {
    enrolled("traffic::a_plaintext_client_is_served_until_policy_asks_for_an_identity", |mesh| {
        let server = at(mesh, "server", ECHO_PORT);
        let mark = mesh.log_mark();
        assert_eq!(talks(mesh, "outside", server), Outcome::Echoed);
        let outside = at(mesh, "outside", 0).ip().to_string();
        let line = mesh.until(PATIENCE, "it is logged", |mesh| {
            mesh.access_log(2, &mark).into_iter().find(|line| text(line, "src.addr").starts_with(&outside))
        });
        assert_eq!(text(&line.expect("logged"), "src.identity"), "", "plaintext has no identity");

        let mark = mesh.log_mark();
        mesh.edit(|file| file.policies.push(policy(Action::Deny, Rule { not_principals: vec!["*".to_owned()], ..Rule::default() })))
            .expect("the file can be written");
        settles(mesh, "plaintext is refused", &[("outside", server, Outcome::Refused), ("client", server, Outcome::Echoed)]);
        let line = line_of(mesh, &mark, "W2004");
        assert!(text(&line, "src.addr").starts_with(&outside) && text(&line, "error").contains("default/told"), "{line}");
    });
}

#[test]
fn allow_policies_let_through_what_they_name() {
    enrolled("traffic::allow_policies_let_through_what_they_name", |mesh| {
        use Outcome::{Echoed, Refused};
        let (echo, once) = (at(mesh, "server", ECHO_PORT), at(mesh, "server", ONCE_PORT));
        let only = |ip: std::net::IpAddr| vec![ip.into()];
        let client = at(mesh, "client", 0).ip();
        let rules = [
            ("principal", Rule { principals: principal("client"), ..Rule::default() }, [Echoed, Echoed, Refused, Refused]),
            ("namespace", Rule { namespaces: vec!["default".to_owned()], ..Rule::default() }, [Echoed, Echoed, Echoed, Refused]),
            ("other namespace", Rule { namespaces: vec!["else".to_owned()], ..Rule::default() }, [Refused; 4]),
            ("port", Rule { ports: vec![ECHO_PORT], ..Rule::default() }, [Echoed, Refused, Echoed, Echoed]),
            ("source address", Rule { source_ips: only(client), ..Rule::default() }, [Echoed, Echoed, Refused, Refused]),
            (
                "port and principal",
                Rule { ports: vec![ONCE_PORT], principals: principal("client"), ..Rule::default() },
                [Refused, Echoed, Refused, Refused],
            ),
        ];
        for (what, rule, outcomes) in rules {
            mesh.edit(|file| file.policies = vec![policy(Action::Allow, rule)]).expect("the file can be written");
            let from = [("client", echo), ("client", once), ("local", echo), ("outside", echo)];
            let wanted: Vec<_> = from.iter().zip(outcomes).map(|((from, to), outcome)| (*from, *to, outcome)).collect();
            settles(mesh, what, &wanted);
        }
    });
}

#[test]
fn an_open_connection_is_cut_when_it_is_no_longer_allowed() {
    enrolled("traffic::an_open_connection_is_cut_when_it_is_no_longer_allowed", |mesh| {
        let server = Server::start(mesh, "server", PORT);
        let guard = |mut policy: warren::config::meshfile::Policy| {
            policy.selector = [("guarded".to_owned(), "yes".to_owned())].into();
            policy
        };
        let denied = || policy(Action::Deny, Rule { principals: principal("client"), ..Rule::default() });

        // By a new policy.
        let mark = mesh.log_mark();
        let pairs = (server.pair(mesh, "client"), server.pair(mesh, "local"));
        mesh.edit(|file| file.policies.push(denied())).expect("the file can be written");
        cut_and_kept(mesh, &mark, pairs);

        // By a label that puts the pod under a policy that was there.
        mesh.edit(|file| file.policies = vec![guard(denied())]).expect("the file can be written");
        let echo = at(mesh, "server", ECHO_PORT);
        settles(mesh, "the policy protects another pod", &[("client", echo, Outcome::Echoed)]);
        let mark = mesh.log_mark();
        let pairs = (server.pair(mesh, "client"), server.pair(mesh, "local"));
        mesh.edit(|file| {
            pod(file, "server").labels.insert("guarded".to_owned(), "yes".to_owned());
        })
        .expect("the file can be written");
        cut_and_kept(mesh, &mark, pairs);

        // A plaintext client is cut like others.
        mesh.edit(|file| file.policies.clear()).expect("the file can be written");
        settles(mesh, "nothing is denied", &[("client", echo, Outcome::Echoed)]);
        let mark = mesh.log_mark();
        let pairs = (server.pair(mesh, "outside"), server.pair(mesh, "local"));
        let unidentified = policy(Action::Deny, Rule { not_principals: vec!["*".to_owned()], ..Rule::default() });
        mesh.edit(|file| file.policies.push(unidentified)).expect("the file can be written");
        cut_and_kept(mesh, &mark, pairs);
    });
}

type Pair = (TcpStream, TcpStream);

/// The first connection ends on both sides by a reset, within a second; the second goes on.
fn cut_and_kept(mesh: &mut Mesh, mark: &warren::demo::story::mesh::LogMark, (mut cut, mut kept): (Pair, Pair)) {
    let start = Instant::now();
    ends_by_reset(&mut cut.0);
    ends_by_reset(&mut cut.1);
    let took = start.elapsed();
    assert!(took < Duration::from_secs(1), "cut after {took:?}");
    let line = line_of(mesh, mark, "W2005");
    assert!(text(&line, "error").contains("policy"), "{line}");
    kept.0.write_all(b"still here").expect("open");
    half_close(&kept.0);
    reads(&mut kept.1, "still here");
}

#[test]
fn a_stalled_reader_stops_nobody_else() {
    enrolled("traffic::a_stalled_reader_stops_nobody_else", |mesh| {
        let (server, echo) = (Server::start(mesh, "server", PORT), at(mesh, "server", ECHO_PORT));
        // The first one of the day costs tables and caches that are not the connection's.
        assert_eq!(talks(mesh, "client", echo), Outcome::Echoed);
        let before = memories(mesh);
        let (mut writer, app) = server.pair(mesh, "client");
        let stalled = fill(&mut writer);
        let grown = memories(mesh).saturating_sub(before);
        println!("a connection whose reader stalls holds {} KiB of {} KiB written", grown / 1024, stalled / 1024);
        // Window and buffers of both ends are 8 MiB; the rest is what allocators keep.
        assert!(grown < 40 << 20, "{grown} bytes");

        let start = Instant::now();
        for _ in 0..10 {
            assert_eq!(talks(mesh, "client", echo), Outcome::Echoed);
        }
        assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
        // What was held back is not lost.
        drop(writer);
        let mut app = app;
        assert_eq!(io::copy(&mut app, &mut io::sink()).expect("a clean end"), stalled as u64);
    });
}

/// Writes until nothing more goes for a while; returns how much went.
fn fill(stream: &mut TcpStream) -> usize {
    const QUIET: Duration = Duration::from_millis(300);
    let block = vec![b'f'; 256 * 1024];
    stream.set_write_timeout(Some(QUIET)).expect("a socket");
    let mut total = 0;
    loop {
        match stream.write(&block) {
            Ok(length) => total += length,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            Err(error) => panic!("{error} after {total} bytes"),
        }
        assert!(total < 256 << 20, "nothing holds the writer back");
    }
    stream.set_write_timeout(Some(PATIENCE)).expect("a socket");
    total
}

/// Reads to the end; every byte must be the pattern's. Returns how many there were.
fn compare(mut end: &TcpStream, pattern: &[u8]) -> usize {
    let (mut buffer, mut total) = (vec![0; 256 * 1024], 0);
    loop {
        let length = end.read(&mut buffer).expect("open");
        if length == 0 {
            return total;
        }
        let mut read = &buffer[..length];
        while !read.is_empty() {
            let expected = &pattern[total % pattern.len()..];
            let (here, rest) = read.split_at(read.len().min(expected.len()));
            assert!(here == &expected[..here.len()], "other bytes after {total}");
            total += here.len();
            read = rest;
        }
    }
}

/// Waits until the kernel reports that the connection was reset; after the end of the bytes it calls that a broken pipe.
fn breaks(stream: &TcpStream) {
    let error = wait_for(PATIENCE, "the connection breaks", || stream.take_error().expect("a socket"));
    assert_eq!(error.expect("in time").kind(), io::ErrorKind::BrokenPipe);
}

fn echoes(stream: &mut TcpStream, text: &str) {
    stream.write_all(text.as_bytes()).expect("open");
    let mut answer = vec![0; text.len()];
    stream.read_exact(&mut answer).expect("an answer");
    assert_eq!(answer, text.as_bytes());
}

/// Whether the connection has ended, without taking bytes from it.
fn is_over(stream: &TcpStream) -> bool {
    let mut byte = [std::mem::MaybeUninit::uninit()];
    stream.set_nonblocking(true).expect("a socket");
    match SockRef::from(stream).peek(&mut byte) {
        Ok(length) => length == 0,
        Err(error) => error.kind() != io::ErrorKind::WouldBlock,
    }
}

fn line_of(mesh: &mut Mesh, mark: &warren::demo::story::mesh::LogMark, code: &str) -> serde_json::Value {
    line(mesh, 2, mark, code)
}
