//! A live tunnel becomes bytes and sockets, and goes on in a task of another thread.

mod refused;
mod states;

use std::os::fd::OwnedFd;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::runtime::Runtime;
use tokio::sync::{Notify, mpsc, watch};

use super::*;
use crate::hbone::engine::frozen::{Frozen, Kind as What, Tunnel};
use crate::hbone::engine::moving::GoesOn;
use crate::tls::record::Secret;

/// What went each way on one side, in all.
#[derive(Default)]
struct Passed {
    up: AtomicUsize,
    down: AtomicUsize,
    more: Notify,
}

impl Count for Passed {
    fn client_sent(&self, bytes: usize) {
        self.up.fetch_add(bytes, Ordering::Relaxed);
        self.more.notify_waiters();
    }

    fn server_sent(&self, bytes: usize) {
        self.down.fetch_add(bytes, Ordering::Relaxed);
        self.more.notify_waiters();
    }
}

impl Passed {
    fn both(&self) -> (usize, usize) {
        (self.up.load(Ordering::Relaxed), self.down.load(Ordering::Relaxed))
    }

    /// Waits until so much has passed both ways together.
    async fn are(&self, bytes: usize) {
        loop {
            let more = self.more.notified();
            let (up, down) = self.both();
            if up + down >= bytes {
                return;
            }
            more.await;
        }
    }
}

/// Threads to which tunnels go, and what is known of the connections in them wherever they are.
struct Elsewhere {
    runtimes: Vec<Runtime>,
    moves: AtomicUsize,
    /// Connections that have moved, each time it did.
    carried: AtomicUsize,
    client: Arc<Passed>,
    server: Arc<Passed>,
    outcomes: mpsc::UnboundedSender<Outcome>,
    ended: mpsc::UnboundedReceiver<Outcome>,
}

impl Drop for Elsewhere {
    fn drop(&mut self) {
        // To wait for them is not allowed in a task.
        self.runtimes.drain(..).for_each(Runtime::shutdown_background);
    }
}

impl Elsewhere {
    fn new() -> Self {
        let runtime = || tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let (outcomes, ended) = mpsc::unbounded_channel();
        let (client, server) = Default::default();
        let (moves, carried) = Default::default();
        Self { runtimes: vec![runtime(), runtime()], moves, carried, client, server, outcomes, ended }
    }

    fn count(&self, side: Side) -> Arc<Passed> {
        if side == Side::Client { self.client.clone() } else { self.server.clone() }
    }

    /// A socket of an application, and what a tunnel gets of it.
    async fn app(&self, side: Side) -> (TcpStream, App) {
        let (application, ours) = sockets().await;
        (application, App::new(ours, side, self.count(side)))
    }

    fn wait_for(&self, carrying: Carrying) {
        let outcomes = self.outcomes.clone();
        tokio::spawn(async move { drop(outcomes.send(carrying.await)) });
    }

    /// A connection through both; its ends.
    async fn through(&self, client: &Client, host: &mut Host) -> (TcpStream, TcpStream) {
        let (near, ours) = self.app(Side::Client).await;
        self.wait_for(client.carry(wanted("10.0.0.1:80"), ours));
        let arrival = soon(host.next()).await.unwrap();
        let (far, theirs) = self.app(Side::Server).await;
        self.wait_for(arrival.carry(HeaderMap::new(), theirs).unwrap());
        (near, far)
    }

    async fn client(&self, client: Client) -> Client {
        self.thaw_client(self.on_its_way(soon(client.freeze()).await.unwrap())).await.unwrap()
    }

    async fn host(&self, host: Host) -> Host {
        self.thaw_host(self.on_its_way(soon(host.freeze()).await.unwrap())).await.unwrap()
    }

    /// Notes what moves. Now and then the keys change, too.
    fn on_its_way(&self, frozen: Frozen) -> Frozen {
        self.carried.fetch_add(frozen.sockets().len() - 1, Ordering::Relaxed);
        if self.moves.load(Ordering::Relaxed) % 5 == 3 { rekeyed(frozen) } else { frozen }
    }

    async fn thaw_client(&self, frozen: Frozen) -> Result<Client> {
        self.thaw(sent(frozen), |frozen, goes_on| Client::thaw(frozen, CancellationToken::new(), goes_on)).await
    }

    async fn thaw_host(&self, frozen: Frozen) -> Result<Host> {
        self.thaw(sent(frozen), Host::thaw).await
    }

    async fn thaw<T, F>(&self, frozen: Frozen, thaw: F) -> Result<T>
    where
        T: Send + 'static,
        F: FnOnce(Frozen, GoesOn<'_>) -> Result<T> + Send + 'static,
    {
        let runtime = self.moves.fetch_add(1, Ordering::Relaxed) % self.runtimes.len();
        let (outcomes, client, server) = (self.outcomes.clone(), self.client.clone(), self.server.clone());
        let thawed = self.runtimes[runtime].spawn(async move {
            let goes_on = &mut |_: &TcpStream, side, carrying: Carrying| -> Arc<dyn Count> {
                let outcomes = outcomes.clone();
                tokio::spawn(async move { drop(outcomes.send(carrying.await)) });
                if side == Side::Client { client.clone() } else { server.clone() }
            };
            thaw(frozen, goes_on)
        });
        soon(thawed).await.unwrap()
    }

    /// Waits for so many good ends. Those that went on elsewhere are told so.
    async fn ends(&mut self, good: usize) {
        let mut seen = 0;
        while seen < good {
            match soon(self.ended.recv()).await.unwrap() {
                Outcome::Done(Ok(())) => seen += 1,
                Outcome::Done(Err(error)) | Outcome::Again(.., error) => {
                    assert_eq!(error.to_string(), "the tunnel was handed over (W0007)");
                }
            }
        }
    }
}

/// As another process would get it.
fn sent(frozen: Frozen) -> Frozen {
    let (bytes, sockets) = frozen.into_parts();
    let descriptors: Vec<OwnedFd> = sockets.into_iter().map(OwnedFd::from).collect();
    let bytes = bytes.bytes().to_vec();
    Frozen::from_parts(Secret::from(bytes), descriptors.into_iter().map(Into::into).collect())
}

fn state(frozen: &Frozen) -> Tunnel {
    frozen.read().unwrap().0
}

/// The same with another state.
fn changed(frozen: Frozen, change: impl FnOnce(Tunnel) -> Tunnel) -> Frozen {
    let (state, mut buffers) = frozen.read().unwrap();
    let mut contents = vec![buffers.next(state.input).unwrap(), buffers.next(state.output).unwrap()];
    for stream in state.streams.iter().flatten() {
        contents.push(buffers.next(stream.queue).unwrap());
        if let What::Carried { early, .. } = &stream.kind {
            contents.push(buffers.next(*early).unwrap());
        }
    }
    let contents: Vec<_> = contents.into_iter().map(<[u8]>::to_vec).collect();
    let state = change(state);
    let (_, sockets) = frozen.into_parts();
    let mut frozen = Frozen::new(sockets);
    frozen.note(&state, &contents.iter().map(|bytes| std::io::IoSlice::new(bytes)).collect::<Vec<_>>()).unwrap();
    frozen
}

/// With a new key for what it sends, and one that is asked for.
fn rekeyed(frozen: Frozen) -> Frozen {
    changed(frozen, |mut tunnel| {
        let mut session = Session::import(tunnel.session).unwrap();
        session.refresh(true);
        tunnel.session = session.export().unwrap();
        tunnel
    })
}

/// The bytes of one connection, which are no other's.
fn bytes_of(number: usize, length: usize) -> Vec<u8> {
    noise(length).into_iter().map(|byte| byte ^ number as u8).collect()
}

/// Like `exchange`, but of each [`STEPS`]th of the bytes it waits until it may be sent.
async fn exchange_in_steps(mut socket: TcpStream, bytes: Vec<u8>, mut allowed: watch::Receiver<usize>) -> Vec<u8> {
    let (mut read, mut write) = socket.split();
    let mut got = Vec::new();
    let sent = async {
        for (step, chunk) in bytes.chunks(bytes.len().div_ceil(STEPS)).enumerate() {
            allowed.wait_for(|allowed| step < *allowed).await.unwrap();
            write.write_all(chunk).await.unwrap();
        }
        write.shutdown().await.unwrap();
    };
    let (_, read) = tokio::join!(sent, read.read_to_end(&mut got));
    read.unwrap();
    got
}

/// Moves while a transfer lasts.
const STEPS: usize = 50;

/// Steps of it that the applications may be ahead.
const AHEAD: usize = 8;

/// A moment in a step of a transfer, in bytes that have passed.
fn moment(random: &mut StdRng, step: usize, whole: usize) -> usize {
    let part = whole / STEPS;
    step * part + random.random_range(0..part)
}

/// Eight connections, 20 MiB each way in all, while the tunnel moves [`STEPS`] times at one end or at both.
async fn transfer(client_moves: bool, server_moves: bool, window: u32) {
    const STREAMS: usize = 8;
    const LENGTH: usize = (20 << 20) / STREAMS;
    let mut random = StdRng::seed_from_u64(7);
    let mut elsewhere = Elsewhere::new();
    let with = |settings| Settings { stream_window: window, ..settings };
    let Pair { mut client, mut host, .. } = pair(with(Settings::client()), with(Settings::server())).await;
    let (allow, allowed) = watch::channel(0);
    let mut all = Vec::new();
    for number in 0..STREAMS {
        let (near, far) = elsewhere.through(&client, &mut host).await;
        let (up, down) = (bytes_of(number, LENGTH), bytes_of(number + STREAMS, LENGTH));
        let allowed = allowed.clone();
        all.push(tokio::spawn(async move {
            let (at_client, at_server) =
                tokio::join!(exchange_in_steps(near, up.clone(), allowed.clone()), exchange_in_steps(far, down.clone(), allowed));
            assert!(at_client == down && at_server == up, "connection {number}");
        }));
    }
    for step in 0..STEPS {
        allow.send_replace(step + AHEAD);
        soon(elsewhere.client.are(moment(&mut random, step, 2 * STREAMS * LENGTH))).await;
        match (client_moves, server_moves) {
            (true, true) => (client, host) = tokio::join!(elsewhere.client(client), elsewhere.host(host)),
            (true, false) => client = elsewhere.client(client).await,
            (false, _) => host = elsewhere.host(host).await,
        }
    }
    for done in soon(join_all(all)).await {
        done.unwrap();
    }
    elsewhere.ends(2 * STREAMS).await;
    let whole = (STREAMS * LENGTH, STREAMS * LENGTH);
    assert_eq!((elsewhere.client.both(), elsewhere.server.both()), (whole, whole), "each byte is counted once");
    let ends = usize::from(client_moves) + usize::from(server_moves);
    let carried = elsewhere.carried.load(Ordering::Relaxed);
    assert!(carried >= ends * (STEPS - AHEAD) * STREAMS, "all are under way at each move: {carried}");
    assert!(client.is_usable());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_servers_end_moves_again_and_again_and_nothing_is_lost() {
    transfer(false, true, 4 << 20).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_clients_end_moves_again_and_again_and_nothing_is_lost() {
    transfer(true, false, 4 << 20).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_ends_move_again_and_again_and_nothing_is_lost() {
    transfer(true, true, 4 << 20).await;
    // Credit that were lost or doubled once would show at once.
    transfer(true, true, 20_000).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_moves_is_the_same_to_an_h2_server() {
    for (window, frame, length) in [(1, 16_384, 500), (65_535, 16_384, 2_000_000), (4 << 20, 1 << 20, 4_000_000)] {
        const STREAMS: usize = 5;
        let mut random = StdRng::seed_from_u64(u64::from(window));
        let mut elsewhere = Elsewhere::new();
        let ca = scratch();
        let (near, far) = sockets().await;
        let (mine, theirs) = (ca.mint(&id("client")).unwrap(), ca.mint(&id("server")).unwrap());
        let serve = tokio::spawn(h2_echo(far, theirs, Settings { stream_window: window, frame_size: frame, ..Settings::server() }));
        let (secured, _) = tls::secured::connect(near, &mine, &[id("server")], tls::HANDSHAKE_LIMIT).await.unwrap();
        let settings = own(Settings { stream_window: window, ..Settings::client() });
        // At once, when not even SETTINGS have come.
        let mut client = elsewhere.client(Client::start(secured, &settings, CancellationToken::new())).await;
        soon(client.settled()).await.unwrap();
        let (allow, allowed) = watch::channel(0);
        let mut all = Vec::new();
        for number in 0..STREAMS {
            let (application, ours) = elsewhere.app(Side::Client).await;
            elsewhere.wait_for(client.carry(wanted("10.0.0.1:80"), ours));
            let (bytes, allowed) = (bytes_of(number, length), allowed.clone());
            all.push(tokio::spawn(async move {
                assert!(exchange_in_steps(application, bytes.clone(), allowed).await == bytes, "connection {number}");
            }));
        }
        for step in 0..STEPS {
            allow.send_replace(step + AHEAD);
            soon(elsewhere.client.are(moment(&mut random, step, 2 * STREAMS * length))).await;
            client = elsewhere.client(client).await;
        }
        for done in soon(join_all(all)).await {
            done.unwrap();
        }
        elsewhere.ends(STREAMS).await;
        assert!(elsewhere.carried.load(Ordering::Relaxed) >= (STEPS - AHEAD) * STREAMS);
        drop(client);
        soon(serve).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_moves_is_the_same_to_an_h2_client() {
    for (window, frame, length) in [(1, 16_384, 500), (65_535, 16_384, 2_000_000), (4 << 20, 1 << 20, 4_000_000)] {
        const STREAMS: usize = 5;
        let mut random = StdRng::seed_from_u64(u64::from(window));
        let mut elsewhere = Elsewhere::new();
        let ca = scratch();
        let (near, far) = sockets().await;
        let (mine, theirs) = (ca.mint(&id("client")).unwrap(), ca.mint(&id("server")).unwrap());
        let settings = Settings { stream_window: window, ..Settings::client() };
        let expected = [id("server")];
        let (connected, accepted) = tokio::join!(
            tls::connect(near, &mine, &expected, tls::Versions::Tls13, tls::HANDSHAKE_LIMIT),
            tls::secured::accept(far, &theirs, tls::HANDSHAKE_LIMIT)
        );
        let settings_of_server = own(Settings { stream_window: window, frame_size: frame, ..Settings::server() });
        let mut host = elsewhere.host(Host::start(accepted.unwrap().0, &settings_of_server)).await;
        let client = h2_client::Connection::handshake(connected.unwrap().0, &settings, CancellationToken::new()).await.unwrap();
        let client = Arc::new(client);
        let mut all = Vec::new();
        for number in 0..STREAMS {
            let (client, bytes) = (client.clone(), bytes_of(number, length));
            all.push(tokio::spawn(async move { assert!(h2_exchange(&client, bytes.clone()).await == bytes, "connection {number}") }));
            let arrival = soon(host.next()).await.unwrap();
            let (application, ours) = elsewhere.app(Side::Server).await;
            tokio::spawn(async move {
                let (mut read, mut write) = application.into_split();
                tokio::io::copy(&mut read, &mut write).await.unwrap();
                write.shutdown().await.unwrap();
            });
            elsewhere.wait_for(arrival.carry(HeaderMap::new(), ours).unwrap());
        }
        for step in 0..STEPS {
            soon(elsewhere.server.are(moment(&mut random, step, 2 * STREAMS * length))).await;
            host = elsewhere.host(host).await;
        }
        for done in soon(join_all(all)).await {
            done.unwrap();
        }
        elsewhere.ends(STREAMS).await;
        assert!(elsewhere.carried.load(Ordering::Relaxed) >= STREAMS);
    }
}
