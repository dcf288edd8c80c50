//! `h2` on the other end, its frames read and written raw: it Huffman codes and keeps a dynamic table.

use std::time::Duration;

use ::http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

use super::*;
use crate::base::{code, deadline};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const HEADERS: u8 = 1;
const SETTINGS: u8 = 4;
const CONTINUATION: u8 = 9;
/// Of SETTINGS.
const ACK: u8 = 1;
/// Of HEADERS.
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
const PADDED: u8 = 8;
const PRIORITY: u8 = 0x20;

/// For anything that is to happen at all.
async fn soon<T>(future: impl Future<Output = T>) -> T {
    deadline(Duration::from_secs(60), &code::INTERNAL, "the event", future).await.unwrap()
}

/// RFC 9113 §4.1
struct Frame {
    kind: u8,
    flags: u8,
    stream: u32,
    payload: Vec<u8>,
}

async fn read(io: &mut DuplexStream) -> Option<Frame> {
    let mut head = [0; 9];
    io.read_exact(&mut head).await.ok()?;
    let [a, b, c, kind, flags, d, e, f, g] = head;
    let mut payload = vec![0; u32::from_be_bytes([0, a, b, c]) as usize];
    io.read_exact(&mut payload).await.unwrap();
    Some(Frame { kind, flags, stream: u32::from_be_bytes([d, e, f, g]), payload })
}

async fn write(io: &mut DuplexStream, frame: Frame) {
    let mut bytes = (frame.payload.len() as u32).to_be_bytes()[1..].to_vec();
    bytes.extend_from_slice(&[frame.kind, frame.flags]);
    bytes.extend_from_slice(&frame.stream.to_be_bytes());
    bytes.extend_from_slice(&frame.payload);
    io.write_all(&bytes).await.unwrap();
}

async fn settings(io: &mut DuplexStream, table_size: Option<u32>) {
    let payload = table_size.map(|size| [&[0, 1][..], &size.to_be_bytes()].concat()).unwrap_or_default();
    write(io, Frame { kind: SETTINGS, flags: 0, stream: 0, payload }).await;
}

async fn acknowledge(io: &mut DuplexStream) {
    write(io, Frame { kind: SETTINGS, flags: ACK, stream: 0, payload: Vec::new() }).await;
}

/// SETTINGS_HEADER_TABLE_SIZE of a SETTINGS frame.
fn table_size(payload: &[u8]) -> Option<usize> {
    let setting = payload.chunks_exact(6).find(|setting| setting[..2] == [0, 1])?;
    Some(u32::from_be_bytes(setting[2..].try_into().unwrap()) as usize)
}

/// What is sent on a connection: values that repeat, that change, that are never to be indexed, and all bytes they may have.
fn lists(random: &mut StdRng, count: usize) -> Vec<HeaderMap> {
    let every: Vec<u8> = (0..=255).filter(|byte| *byte == b'\t' || *byte >= b' ' && *byte != 0x7f).collect();
    let mut list = |round: usize| {
        let mut list = HeaderMap::new();
        list.insert("baggage", HeaderValue::from_static("k8s.pod.name=curl,k8s.namespace.name=default,service.name=curl"));
        list.insert("traceparent", HeaderValue::from_str(&format!("00-{:032x}-01", random.random::<u128>())).unwrap());
        list.insert("x-round", HeaderValue::from(round % 5));
        list.append("forwarded", HeaderValue::from_static("for=10.0.0.1"));
        list.append("forwarded", HeaderValue::from_str(&format!("for={round}")).unwrap());
        if round.is_multiple_of(3) {
            let mut secret = HeaderValue::from_static("Basic abc");
            secret.set_sensitive(true);
            list.insert("authorization", secret);
        }
        let bytes: Vec<u8> = (0..random.random_range(0..200)).map(|_| every[random.random_range(0..every.len())]).collect();
        let name = HeaderName::try_from(format!("x-{}", random.random_range(0..30))).unwrap();
        list.insert(name, HeaderValue::from_bytes(bytes.trim_ascii()).unwrap());
        if round == 7 {
            list.insert("x-every", HeaderValue::from_bytes(&every).unwrap());
            list.insert("x-large", HeaderValue::from_bytes(&[b'~'; 40_000]).unwrap());
        }
        list
    };
    (0..count).map(&mut list).collect()
}

fn sorted(list: &HeaderMap, pseudo: &[(&str, &str)]) -> Vec<Field> {
    let named = list.iter().map(|(name, value)| (name.as_str().as_bytes().to_vec(), value.as_bytes().to_vec()));
    let mut list: Vec<Field> = fields(pseudo).into_iter().chain(named).collect();
    list.sort();
    list
}

/// The requests of an `h2` client are decoded to what it was asked to send; it understands our answers.
async fn client(announced: Option<u32>, client_table: u32) {
    let mut random = StdRng::seed_from_u64(4);
    let lists = lists(&mut random, 200);
    let (near, mut far) = duplex(1 << 16);
    let client = async {
        let (mut send, connection) = h2::client::Builder::new().header_table_size(client_table).handshake::<_, &[u8]>(near).await.unwrap();
        let connection = tokio::spawn(connection);
        for (round, list) in lists.iter().enumerate() {
            let mut request = Request::builder().method(Method::CONNECT).uri(format!("10.0.0.{}:80", round % 7)).body(()).unwrap();
            *request.headers_mut() = list.clone();
            send = send.ready().await.unwrap();
            let response = send.send_request(request, true).unwrap().0.await.unwrap();
            assert_eq!(response.status(), if round % 2 == 0 { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE });
            assert_eq!(response.headers(), list);
        }
        drop(send);
        connection.await.unwrap().unwrap();
    };
    let server = async {
        let mut preface = [0; 24];
        far.read_exact(&mut preface).await.unwrap();
        assert_eq!(preface, PREFACE);
        settings(&mut far, announced).await;
        let mut decoder = Decoder::new(announced.map_or(4096, |size| size as usize), 1 << 20);
        let (mut encoder, mut block, mut round) = (Encoder::new(), Vec::new(), 0);
        while let Some(frame) = read(&mut far).await {
            match frame.kind {
                SETTINGS if frame.flags & ACK != 0 => decoder.acknowledged(),
                SETTINGS => {
                    table_size(&frame.payload).into_iter().for_each(|size| encoder.announced(size));
                    acknowledge(&mut far).await;
                }
                HEADERS | CONTINUATION => {
                    assert_eq!(frame.flags & (PADDED | PRIORITY), 0);
                    block.extend_from_slice(&frame.payload);
                    if frame.flags & END_HEADERS == 0 {
                        continue;
                    }
                    let mut list = decode(&mut decoder, &std::mem::take(&mut block)).unwrap();
                    list.sort();
                    let authority = format!("10.0.0.{}:80", round % 7);
                    assert_eq!(list, sorted(&lists[round], &[(":method", "CONNECT"), (":authority", &authority)]));
                    answer(&mut far, &mut encoder, frame.stream, &lists[round], round % 2 == 0).await;
                    round += 1;
                }
                _ => {}
            }
        }
        assert_eq!(round, lists.len());
    };
    soon(async { tokio::join!(client, server) }).await;
}

async fn answer(io: &mut DuplexStream, encoder: &mut Encoder, stream: u32, list: &HeaderMap, good: bool) {
    let mut block = Vec::new();
    encoder.start(&mut block);
    encode(&mut block, b":status", if good { b"200" } else { b"503" });
    list.iter().for_each(|(name, value)| encode(&mut block, name.as_str().as_bytes(), value.as_bytes()));
    send(io, stream, &block).await;
}

/// In frames of at most 16 384 bytes (RFC 9113 §4.2).
async fn send(io: &mut DuplexStream, stream: u32, block: &[u8]) {
    let parts = block.chunks(16_384);
    let last = parts.len() - 1;
    for (place, part) in parts.enumerate() {
        let (kind, end) = if place == 0 { (HEADERS, END_STREAM) } else { (CONTINUATION, 0) };
        let flags = end | if place == last { END_HEADERS } else { 0 };
        write(io, Frame { kind, flags, stream, payload: part.to_vec() }).await;
    }
}

#[tokio::test]
async fn requests_of_an_h2_client_are_decoded() {
    for announced in [None, Some(4096), Some(0), Some(200), Some(65_536)] {
        for client_table in [4096, 0, 100] {
            client(announced, client_table).await;
        }
    }
}

/// An `h2` server takes our requests for what they are, whatever table it announces; we decode its answers.
async fn server(server_table: u32) {
    let mut random = StdRng::seed_from_u64(5);
    let lists = lists(&mut random, 200);
    let (mut near, far) = duplex(1 << 16);
    let server = async {
        let mut builder = h2::server::Builder::new();
        builder.header_table_size(server_table).max_header_list_size(1 << 20);
        let mut connection = builder.handshake::<_, &[u8]>(far).await.unwrap();
        let mut round = 0;
        while let Some(request) = connection.accept().await {
            let (request, mut respond) = request.unwrap();
            assert_eq!(request.method(), Method::CONNECT);
            assert_eq!(request.uri().authority().unwrap().as_str(), "10.0.0.1:80");
            assert_eq!(request.headers(), &lists[round]);
            let mut response = Response::new(());
            *response.headers_mut() = request.headers().clone();
            respond.send_response(response, true).unwrap();
            round += 1;
        }
        assert_eq!(round, lists.len());
    };
    let client = async {
        near.write_all(PREFACE).await.unwrap();
        settings(&mut near, None).await;
        let (mut decoder, mut encoder, mut answer) = (Decoder::new(4096, 1 << 20), Encoder::new(), Vec::new());
        let (mut round, mut sent) = (0, false);
        while round < lists.len() {
            let frame = read(&mut near).await.unwrap();
            match frame.kind {
                SETTINGS if frame.flags & ACK == 0 => {
                    encoder.announced(table_size(&frame.payload).unwrap_or(4096));
                    acknowledge(&mut near).await;
                }
                HEADERS | CONTINUATION => {
                    answer.extend_from_slice(&frame.payload);
                    if frame.flags & END_HEADERS == 0 {
                        continue;
                    }
                    let mut list = decode(&mut decoder, &std::mem::take(&mut answer)).unwrap();
                    list.sort();
                    assert_eq!(list, sorted(&lists[round], &[(":status", "200")]));
                    (round, sent) = (round + 1, false);
                }
                _ => {}
            }
            if !sent && round < lists.len() {
                request(&mut near, &mut encoder, round, &lists[round]).await;
                sent = true;
            }
        }
        drop(near);
    };
    soon(async { tokio::join!(client, server) }).await;
}

/// Every fourth with its values Huffman coded, which is the proof of the code's other half.
async fn request(io: &mut DuplexStream, encoder: &mut Encoder, round: usize, list: &HeaderMap) {
    let mut block = Vec::new();
    encoder.start(&mut block);
    encode(&mut block, b":method", b"CONNECT");
    encode(&mut block, b":authority", b"10.0.0.1:80");
    for (name, value) in list {
        if round % 4 != 3 {
            encode(&mut block, name.as_str().as_bytes(), value.as_bytes());
            continue;
        }
        let coded = huffman_coded(value.as_bytes());
        integer::encode(&mut block, 0, 4, 0);
        integer::encode(&mut block, 0, 7, name.as_str().len());
        block.extend_from_slice(name.as_str().as_bytes());
        integer::encode(&mut block, 0x80, 7, coded.len());
        block.extend_from_slice(&coded);
    }
    send(io, 2 * round as u32 + 1, &block).await;
}

#[tokio::test]
async fn requests_of_ours_are_taken_by_an_h2_server() {
    for server_table in [4096, 0, 100, 65_536] {
        server(server_table).await;
    }
}
