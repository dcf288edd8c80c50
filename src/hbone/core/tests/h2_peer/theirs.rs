//! Their end.

use bytes::Bytes;
use futures::future::join_all;
use http::{Method, Request, Response};

use super::*;

/// Memory that frames may cost: small ones are no attack here.
const FRAMES: usize = 16 << 20;

/// Serves all streams of a connection.
pub(super) async fn serve(scene: &Arc<Scene>, io: DuplexStream) -> Vec<Seen> {
    let Limits { stream_window, connection_window, frame_size, max_streams } = scene.server;
    let mut server = h2::server::Builder::new()
        .initial_window_size(stream_window)
        .initial_connection_window_size(connection_window)
        .max_frame_size(frame_size)
        .data_frame_budget(FRAMES)
        .max_concurrent_streams(max_streams)
        .handshake::<_, Bytes>(io)
        .await
        .unwrap();
    let mut tasks = Vec::new();
    while let Some(request) = server.accept().await {
        let (request, mut respond) = request.unwrap();
        let number: usize = request.uri().authority().unwrap().host().parse().unwrap();
        let scene = scene.clone();
        tasks.push(tokio::spawn(async move {
            let plan = &scene.plans[number];
            let refused = plan.fate == Fate::Refused;
            let response = Response::builder().status(if refused { 503 } else { 200 }).body(()).unwrap();
            let mut seen = Seen::default();
            // The client may have torn it already.
            let Ok(send) = respond.send_response(response, refused) else { return (number, Seen { torn: true, ..seen }) };
            if !refused {
                let last = if let Fate::TornByServer(at) = plan.fate { Some(at) } else { None };
                carry(&mut seen, send, request.into_body(), content(number, false, plan.down), last, number).await;
            }
            (number, seen)
        }));
    }
    collect(scene, tasks).await
}

/// Opens all streams of a connection.
pub(super) async fn ask(scene: &Arc<Scene>, io: DuplexStream) -> Vec<Seen> {
    let Limits { stream_window, connection_window, frame_size, .. } = scene.client;
    let (send, connection) = h2::client::Builder::new()
        .initial_window_size(stream_window)
        .initial_connection_window_size(connection_window)
        .max_frame_size(frame_size)
        .data_frame_budget(FRAMES)
        .handshake::<_, Bytes>(io)
        .await
        .unwrap();
    let connection = tokio::spawn(connection);
    let mut tasks = Vec::new();
    for number in 0..scene.plans.len() {
        let (mut send, scene) = (send.clone(), scene.clone());
        tasks.push(tokio::spawn(async move {
            let plan = &scene.plans[number];
            loop {
                send = send.ready().await.unwrap();
                let request = Request::builder().method(Method::CONNECT).uri(format!("{number}:80")).body(()).unwrap();
                let (response, mut stream) = send.send_request(request, false).unwrap();
                let response = match response.await {
                    Ok(response) => response,
                    // The server's limit was not known yet.
                    Err(error) if error.reason() == Some(h2::Reason::REFUSED_STREAM) => continue,
                    Err(error) => panic!("{error}"),
                };
                let mut seen = Seen { status: Some(response.status().as_u16()), ..Seen::default() };
                if response.status() == 200 {
                    let last = if let Fate::TornByClient(at) = plan.fate { Some(at) } else { None };
                    carry(&mut seen, stream, response.into_body(), content(number, true, plan.up), last, number).await;
                } else {
                    stream.send_reset(h2::Reason::CANCEL);
                }
                return (number, seen);
            }
        }));
    }
    drop(send);
    let seen = collect(scene, tasks).await;
    connection.await.unwrap().unwrap();
    seen
}

async fn collect(scene: &Scene, tasks: Vec<tokio::task::JoinHandle<(usize, Seen)>>) -> Vec<Seen> {
    let mut all = vec![Seen::default(); scene.plans.len()];
    for done in join_all(tasks).await {
        let (number, seen) = done.unwrap();
        all[number] = seen;
    }
    all
}

/// Sends and receives at the same time, to the end or to a reset.
async fn carry(
    seen: &mut Seen,
    mut send: h2::SendStream<Bytes>,
    mut body: h2::RecvStream,
    content: Vec<u8>,
    last: Option<usize>,
    seed: usize,
) {
    let mut random = StdRng::seed_from_u64(seed as u64);
    // The end comes with the last bytes, or after them.
    let with_bytes = random.random();
    let sent = async {
        let (mut at, end) = (0, last.unwrap_or(content.len()));
        while at < end {
            send.reserve_capacity(random.random_range(1..=end - at));
            let room = match std::future::poll_fn(|cx| send.poll_capacity(cx)).await {
                Some(Ok(room)) => room.min(end - at),
                _ => return,
            };
            let done = last.is_none() && with_bytes && at + room == end;
            if send.send_data(Bytes::copy_from_slice(&content[at..at + room]), done).is_err() {
                return;
            }
            at += room;
            if done {
                return;
            }
        }
        match last {
            Some(_) => send.send_reset(h2::Reason::CANCEL),
            None => drop(send.send_data(Bytes::new(), true)),
        }
    };
    let received = async {
        while let Some(bytes) = body.data().await {
            let Ok(bytes) = bytes else {
                seen.torn = true;
                return;
            };
            seen.got.extend_from_slice(&bytes);
            if body.flow_control().release_capacity(bytes.len()).is_err() {
                return;
            }
        }
        seen.ended = true;
    };
    tokio::join!(sent, received);
}
