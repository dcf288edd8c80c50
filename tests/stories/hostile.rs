//! Peers that mean no good, or know no better: refused, bounded, logged, and nobody else notices.

use std::future::Future;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderValue, Method, Response};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use warren::agent::redirect::port;
use warren::demo::pod::ECHO_PORT;
use warren::demo::story::mesh::{LogMark, Mesh, STOLEN, text};

use crate::apps::*;
use crate::peers::*;

/// Longest line that a stranger can cause in a log, bytes.
const LINE: usize = 2048;
/// Ten seconds and what a busy machine adds.
const DEADLINE: Duration = Duration::from_secs(16);

#[test]
fn strangers_get_no_tunnel() {
    enrolled("hostile::strangers_get_no_tunnel", |mesh| {
        let (own, other) = (Root::of(mesh), Root::stranger());
        let echo = at(mesh, "server", ECHO_PORT);
        let mark = mesh.log_mark();
        let ((), calls) = goes_on(mesh, echo, || {
            for bytes in [&b"\x16\x03\x01nonsense"[..], b"GET / HTTP/1.1\r\nHost: server\r\n\r\n", &[0xaa; 20_000]] {
                ends(knock(mesh), bytes);
            }
            block_on(async {
                let elsewhere = own.leaf(Some("spiffe://elsewhere.example/ns/default/sa/client"));
                turned_away(mesh, None).await;
                turned_away(mesh, Some(&other.account("client"))).await;
                turned_away(mesh, Some(&elsewhere)).await;
                turned_away(mesh, Some(&own.leaf(None))).await;
                // A member of the mesh that does not go on in HTTP/2.
                let mut stream = tls(knock(mesh), Some(&own.account("client")), b"h2").await.expect("a handshake");
                stream.write_all(&[b'x'; 4096]).await.expect("open");
                over(&mut stream).await;
            });
        });
        assert!(calls > 0);
        for (code, times) in [("W3001", 4), ("W3006", 1), ("W3004", 1), ("W3005", 1), ("W1009", 1)] {
            logged(mesh, &mark, code, times);
        }
        all_lines_are_short(mesh, &mark);
    });
}

#[test]
fn requests_that_make_no_sense_are_answered_so() {
    enrolled("hostile::requests_that_make_no_sense_are_answered_so", |mesh| {
        let leaf = Root::of(mesh).account("outside");
        let (server, local) = (at(mesh, "server", ECHO_PORT), at(mesh, "local", ECHO_PORT));
        let own = |port| at(mesh, "server", port).to_string();
        let requests = [
            (head(Method::GET, &server.to_string()), 400, "W2001"),
            (head(Method::CONNECT, "10.77.2.10"), 400, "W2002"),
            (head(Method::CONNECT, "server:port"), 400, "W2002"),
            (head(Method::CONNECT, &local.to_string()), 400, "W2003"),
            (head(Method::CONNECT, "nobody.default.svc.cluster.local:80"), 503, "W2009"),
            (head(Method::CONNECT, &own(port::OUTBOUND)), 503, "W1006"),
            (head(Method::CONNECT, &own(port::INBOUND)), 503, "W1006"),
            (head(Method::CONNECT, &own(port::TUNNEL)), 503, "W1006"),
            (head(Method::CONNECT, &own(9999)), 503, "W2007"),
        ];
        let mark = mesh.log_mark();
        let mut wanted = std::collections::BTreeMap::<&str, usize>::new();
        let ((), calls) = goes_on(mesh, server, || {
            block_on(async {
                let sender = tunnel(mesh, &leaf).await;
                for (request, status, code) in requests {
                    let what = format!("{request:?}");
                    assert_eq!(ask(&sender, request).await.expect(&what).as_u16(), status, "{what}");
                    *wanted.entry(code).or_default() += 1;
                }
                // The same tunnel still serves what makes sense.
                assert_eq!(ask(&sender, head(Method::CONNECT, &server.to_string())).await.expect("an answer"), 200);
            });
        });
        assert!(calls > 0);
        for (code, times) in wanted {
            logged(mesh, &mark, code, times);
        }
        all_lines_are_short(mesh, &mark);
    });
}

#[test]
fn floods_end_their_own_tunnel_only() {
    enrolled("hostile::floods_end_their_own_tunnel_only", |mesh| {
        let leaf = Root::of(mesh).account("outside");
        let server = at(mesh, "server", ECHO_PORT);
        let (mark, before) = (mesh.log_mark(), memory(mesh, 2));
        let (ended, calls) = goes_on(mesh, server, || {
            block_on(async {
                // More headers than fit.
                let mut request = head(Method::CONNECT, &server.to_string());
                let large = HeaderValue::from_bytes(&vec![b'h'; 15_000]).expect("a header");
                for number in 0..20 {
                    let name = http::HeaderName::try_from(format!("x-{number}")).expect("a name");
                    request.headers_mut().insert(name, large.clone());
                }
                let refused = ask(&tunnel(mesh, &leaf).await, request).await;
                assert!(refused.as_ref().map_or(true, |status| status.as_u16() == 431), "{refused:?}");

                // Opened and reset, over and over (CVE-2023-44487).
                let mut sender = tunnel(mesh, &leaf).await;
                for number in 0..100_000 {
                    let request = head(Method::CONNECT, &server.to_string());
                    let Ok(ready) = sender.ready().await else { return number };
                    sender = ready;
                    let Ok((answer, mut send)) = sender.send_request(request, false) else { return number };
                    send.send_reset(h2::Reason::CANCEL);
                    drop(answer);
                    if number % 64 == 0 {
                        tokio::task::yield_now().await;
                    }
                }
                100_000
            })
        });
        println!("the flood was ended after {ended} requests, {calls} calls meanwhile");
        assert!(ended < 100_000, "nothing ended the flood");
        assert!(calls > 0);
        // The flood; the headers were answered and cost nothing more.
        let line = line(mesh, 2, &mark, "W1009");
        assert!(text(&line, "src.addr").starts_with(&at(mesh, "outside", 0).ip().to_string()), "{line}");
        all_lines_are_short(mesh, &mark);
        let grown = memory(mesh, 2).saturating_sub(before);
        println!("memory grew by {} KiB", grown / 1024);
        assert!(grown < 64 << 20, "{grown} bytes");
    });
}

#[test]
fn silence_is_dropped_after_a_deadline() {
    const SILENT: usize = 1000;
    enrolled("hostile::silence_is_dropped_after_a_deadline", |mesh| {
        let leaf = Root::of(mesh).account("outside");
        let server = at(mesh, "server", ECHO_PORT);
        let (mark, before) = (mesh.log_mark(), memory(mesh, 2));
        let mut peak = 0;
        let ((), calls) = goes_on(mesh, server, || {
            let start = Instant::now();
            let mut silent: Vec<TcpStream> = (0..SILENT).map(|_| knock(mesh)).collect();
            // Half of them begin a handshake and leave it.
            for stream in silent.iter_mut().step_by(2) {
                stream.write_all(b"\x16\x03\x01\x02\x00\x01\x00").expect("open");
            }
            let preface = block_on(async {
                let mut stream = tls(knock(mesh), Some(&leaf), b"h2").await.expect("a handshake");
                peak = memory(mesh, 2);
                over(&mut stream).await;
                start.elapsed()
            });
            assert!(preface < DEADLINE, "{preface:?}");
            for stream in &mut silent {
                // It ends, however.
                let _ = stream.read_to_end(&mut Vec::new());
            }
            assert!(start.elapsed() < DEADLINE, "{:?}", start.elapsed());
        });
        assert!(calls > 0);
        // All are counted, and some are told: a thousand knocks do not make a thousand lines.
        let told = mesh.access_log(2, &mark).iter().filter(|line| text(line, "code") == "W3002").count();
        assert!((50..SILENT / 2).contains(&told), "{told} lines");
        logged(mesh, &mark, "W1009", 1);
        all_lines_are_short(mesh, &mark);
        let grown = peak.saturating_sub(before);
        println!("{SILENT} silent connections cost {} KiB", grown / 1024);
        assert!(grown < 64 << 20, "{grown} bytes");
        let metrics = metrics(mesh, 2);
        let counted = format!("warren_connections_refused_total{{code=\"W3002\"}} {SILENT}");
        assert!(metrics.contains(&counted), "{metrics}");
    });
}

/// Ports that the false server at the address of `vault` answers differently.
mod behaviour {
    pub(super) const RESETS: u16 = 7001;
    pub(super) const VANISHES: u16 = 7002;
    pub(super) const REFUSES: u16 = 7003;
    pub(super) const SILENT: u16 = 7004;
}

#[test]
fn false_servers_fool_no_client() {
    enrolled("hostile::false_servers_fool_no_client", |mesh| {
        let vault = stage_vault(mesh);
        let root = Root::of(mesh);
        let leaves = [root.account("vault"), root.account("outside"), Root::stranger().account("vault")];
        let listener = Server::start_at(mesh, "outside", SocketAddr::from((STOLEN, port::TUNNEL))).into_listener();
        let runtime = runtime();
        let lie = Arc::new(AtomicUsize::new(0));
        runtime.spawn(false_server(listener, leaves, lie.clone()));

        // In the order in which the false server plays them.
        for (turn, code) in ["W1009", "W3003", "W3001"].into_iter().enumerate() {
            lie.store(turn, Ordering::SeqCst);
            let mark = mesh.log_mark();
            is_reset(mesh, "client", vault);
            line(mesh, 1, &mark, code);
        }
        lie.store(3, Ordering::SeqCst);
        let to = |port| SocketAddr::from((STOLEN, port));
        for (port, bytes, code) in [(behaviour::RESETS, 7, "W1013"), (behaviour::VANISHES, 7, "W1009"), (behaviour::REFUSES, 0, "W1010")] {
            let mark = mesh.log_mark();
            match try_connect(mesh, "client", to(port)) {
                // What came before may be lost by the reset, but nothing is made up.
                Ok(mut client) => assert!(ends_by_reset(&mut client) <= bytes, "port {port}"),
                Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset),
            }
            line(mesh, 1, &mark, code);
        }
        // One that does not answer does not stop the others of its tunnel.
        let (mark, start) = (mesh.log_mark(), Instant::now());
        let mut waiting = connect(mesh, "client", to(behaviour::SILENT));
        waiting.set_read_timeout(Some(Duration::from_secs(30))).expect("a socket");
        is_reset(mesh, "client", to(behaviour::REFUSES));
        assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
        ends_by_reset(&mut waiting);
        line(mesh, 1, &mark, "W1011");
        assert!(start.elapsed() < Duration::from_secs(25), "{:?}", start.elapsed());
    });
}

/// Says garbage, is somebody else, is from elsewhere, by what is asked of it now: a proxy may dial once more on its own. Then
/// it is who it should be and answers by the port that is asked for.
async fn false_server(listener: std::net::TcpListener, [right, wrong, strange]: [Leaf; 3], lie: Arc<AtomicUsize>) {
    let listener = tokio::net::TcpListener::from_std(listener).expect("a runtime");
    loop {
        let (stream, _) = listener.accept().await.expect("a connection");
        let turn = lie.load(Ordering::SeqCst);
        let leaf = match turn {
            1 => &wrong,
            2 => &strange,
            _ => &right,
        };
        let Ok(mut stream) = tls_server(stream, leaf).await else { continue };
        if turn == 0 {
            // The client may have left before all of it is out.
            let _ = stream.write_all(&[b'g'; 100_000]).await;
            continue;
        }
        tokio::spawn(false_tunnel(stream));
    }
}

async fn false_tunnel(stream: ServerTls) {
    let Ok(mut tunnel) = h2::server::handshake(stream).await else { return };
    let mut kept = Vec::new();
    let mut vanish = false;
    let mut pings = tunnel.ping_pong().expect("not taken yet");
    loop {
        let accepted = tokio::select! {
            accepted = tunnel.accept() => accepted,
            // The pong says that the client has what was sent before.
            _ = pings.ping(h2::Ping::opaque()), if vanish => return,
        };
        let Some(Ok((request, mut respond))) = accepted else { return };
        let port = request.uri().authority().and_then(|authority| authority.port_u16()).unwrap_or_default();
        let answer = |status: u16| {
            let mut response = Response::new(());
            *response.status_mut() = http::StatusCode::from_u16(status).expect("a status");
            response
        };
        match port {
            behaviour::RESETS | behaviour::VANISHES => {
                let mut send = respond.send_response(answer(200), false).expect("asked");
                send.send_data(Bytes::from_static(b"a piece"), false).expect("open");
                if port == behaviour::RESETS {
                    send.send_reset(h2::Reason::INTERNAL_ERROR);
                } else {
                    kept.push((None, Some(send)));
                    vanish = true;
                }
            }
            behaviour::REFUSES => drop(respond.send_response(answer(500), true)),
            _ => kept.push((Some(respond), None)),
        }
    }
}

/// Sends `bytes`, and the other side ends the connection.
fn ends(mut stream: TcpStream, bytes: &[u8]) {
    stream.write_all(bytes).expect("open");
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    assert!(answer.len() < 100, "an alert at most, not {} bytes", answer.len());
}

/// In TLS 1.3 a client hears after its handshake that it is refused.
async fn turned_away(mesh: &Mesh, leaf: Option<&Leaf>) {
    if let Ok(mut stream) = tls(knock(mesh), leaf, b"h2").await {
        over(&mut stream).await;
    }
}

/// Reads until the other side ends the connection.
async fn over(stream: &mut ClientTls) {
    let mut rest = Vec::new();
    let end = stream.read_to_end(&mut rest);
    let _ = tokio::time::timeout(DEADLINE, end).await.expect("the other side ends it");
}

/// So many lines of node 2 have that code.
fn logged(mesh: &mut Mesh, mark: &LogMark, code: &str, wanted: usize) {
    count(mesh, 2, mark, code, wanted);
}

fn all_lines_are_short(mesh: &Mesh, mark: &LogMark) {
    for line in mesh.access_log(2, mark) {
        assert!(line.to_string().len() < LINE, "{line}");
        assert!(!text(&line, "direction").is_empty(), "{line}");
    }
}

pub(crate) fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime")
}

pub(crate) fn block_on<T>(work: impl Future<Output = T>) -> T {
    runtime().block_on(work)
}
