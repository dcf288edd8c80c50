//! The `h2` crate at the other end, both ways round, in memory: any sizes, windows, frame sizes and cuts, half-closes, refusals
//! and resets.

mod ours;
mod theirs;

use std::sync::Arc;

use tokio::io::{DuplexStream, duplex};

use self::ours::Ours;
use super::*;
use crate::base::{code, deadline};

/// What is to become of a stream.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fate {
    /// Both send all of theirs and end.
    Whole,
    /// The server answers 503.
    Refused,
    /// An end resets it when it has sent so many bytes.
    TornByClient(usize),
    TornByServer(usize),
}

#[derive(Clone, Debug)]
struct Plan {
    fate: Fate,
    /// Bytes of the client and of the server.
    up: usize,
    down: usize,
}

/// What an end has seen of a stream.
#[derive(Clone, Debug, Default)]
struct Seen {
    status: Option<u16>,
    got: Vec<u8>,
    ended: bool,
    torn: bool,
}

/// Everything of one run.
#[derive(Debug)]
struct Scene {
    plans: Vec<Plan>,
    client: Limits,
    server: Limits,
    seed: u64,
}

#[derive(Clone, Copy, Debug)]
struct Limits {
    stream_window: u32,
    connection_window: u32,
    frame_size: u32,
    max_streams: u32,
}

#[tokio::test]
async fn our_client_speaks_with_an_h2_server() {
    for seed in 0..60 {
        let scene = scene(seed);
        let (near, far) = duplex(StdRng::seed_from_u64(seed).random_range(1..100_000));
        let all = async { tokio::join!(Ours::new(Role::Client, &scene).run(near), theirs::serve(&scene, far)) };
        let (client, server) = deadline(Duration::from_secs(60), &code::INTERNAL, "the end", all).await.unwrap();
        scene.check(&client, &server);
    }
}

#[tokio::test]
async fn an_h2_client_speaks_with_our_server() {
    for seed in 0..60 {
        let scene = scene(seed);
        let (near, far) = duplex(StdRng::seed_from_u64(seed).random_range(1..100_000));
        let all = async { tokio::join!(theirs::ask(&scene, near), Ours::new(Role::Server, &scene).run(far)) };
        let (client, server) = deadline(Duration::from_secs(60), &code::INTERNAL, "the end", all).await.unwrap();
        scene.check(&client, &server);
    }
}

fn scene(seed: u64) -> Arc<Scene> {
    let mut random = StdRng::seed_from_u64(seed);
    let mut limits = || Limits {
        stream_window: [1, 2, 100, 20_000, 65_535, 1 << 20][random.random_range(0..6)],
        connection_window: [65_535, 100_000, 1 << 20][random.random_range(0..3)],
        frame_size: [16_384, 16_385, 50_000, 1 << 20][random.random_range(0..4)],
        max_streams: [1, 3, 200][random.random_range(0..3)],
    };
    let (client, server) = (limits(), limits());
    let many = seed.is_multiple_of(10);
    let server = if many { Limits { max_streams: 200, ..server } } else { server };
    // A window of a byte needs a frame for each.
    let most = |window: u32| (window as usize * 200).clamp(300, if many { 20_000 } else { 200_000 });
    let plan = |_| {
        let (up, down) = (random.random_range(0..most(server.stream_window)), random.random_range(0..most(client.stream_window)));
        let fate = match random.random_range(0..10) {
            0 => Fate::Refused,
            1 if up > 0 => Fate::TornByClient(random.random_range(0..up)),
            2 if down > 0 => Fate::TornByServer(random.random_range(0..down)),
            _ => Fate::Whole,
        };
        Plan { fate, up, down }
    };
    let plans = (0..if many { 200 } else { 12 }).map(plan).collect();
    Arc::new(Scene { plans, client, server, seed })
}

/// The bytes of an end of a stream.
fn content(number: usize, client: bool, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    StdRng::seed_from_u64(number as u64 * 2 + u64::from(client)).fill(bytes.as_mut_slice());
    bytes
}

impl Scene {
    fn check(&self, client: &[Seen], server: &[Seen]) {
        for (number, (plan, (client, server))) in self.plans.iter().zip(client.iter().zip(server)).enumerate() {
            let facts = || {
                let of =
                    |seen: &Seen| format!("status {:?}, {} bytes, ended {}, torn {}", seen.status, seen.got.len(), seen.ended, seen.torn);
                format!("seed {}, stream {number}: {plan:?}, client {}, server {}", self.seed, of(client), of(server))
            };
            assert!(content(number, true, plan.up).starts_with(&server.got), "{}", facts());
            assert!(content(number, false, plan.down).starts_with(&client.got), "{}", facts());
            let right = match plan.fate {
                Fate::Whole => {
                    let all = (client.got.len(), server.got.len()) == (plan.down, plan.up);
                    all && client.ended && server.ended && !client.torn && !server.torn && client.status == Some(200)
                }
                Fate::Refused => client.status == Some(503),
                Fate::TornByClient(_) => !server.ended && server.torn,
                Fate::TornByServer(_) => !client.ended && client.torn,
            };
            assert!(right, "{}", facts());
        }
    }
}
