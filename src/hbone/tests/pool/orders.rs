//! Callers that come and go while dials go on, fail and end, in every order: each caller gets its stream or the reason why
//! not, and no tunnel is forgotten. What threads share in the pool is behind one lock, so the order of the steps between
//! waits is all that can differ.

use std::collections::VecDeque;

use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::*;
use Event::*;

/// What happens next, if it can.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Event {
    /// One more caller.
    Ask,
    /// The caller that is there longest leaves, with its stream if it has one.
    Leave,
    /// The oldest dial goes on.
    Up,
    /// It fails.
    Fail,
    /// The oldest tunnel takes no more.
    GoAway,
    /// It breaks.
    Break,
    Drain,
    Cut,
}

const EVENTS: [Event; 8] = [Ask, Leave, Up, Fail, GoAway, Break, Drain, Cut];

/// How far all tasks get before the next event.
#[derive(Clone, Copy, Debug)]
enum Pause {
    None,
    /// Each may do one step.
    Step,
    /// Until nothing is left to do.
    Quiet,
}

const PAUSES: [Pause; 3] = [Pause::None, Pause::Step, Pause::Quiet];

impl Pause {
    async fn take(self) {
        match self {
            Pause::None => {}
            Pause::Step => tokio::task::yield_now().await,
            // The clock stands still while there is something to do.
            Pause::Quiet => tokio::time::sleep(Duration::from_millis(1)).await,
        }
    }
}

/// Dials that wait to be let go on, and the far ends of tunnels.
struct Gates {
    mine: Arc<Certificate>,
    theirs: Arc<Certificate>,
    waiting: Mutex<VecDeque<oneshot::Sender<bool>>>,
    ends: Mutex<VecDeque<(CancellationToken, JoinHandle<()>)>>,
}

impl Dialer for Gates {
    fn dial<'a>(&'a self, _key: &'a Key) -> BoxFuture<'a, io::Result<Io>> {
        Box::pin(async move {
            let (sender, up) = oneshot::channel();
            self.waiting.lock().push_back(sender);
            if up.await != Ok(true) {
                return Err(io::ErrorKind::ConnectionRefused.into());
            }
            let (near, far) = duplex(1 << 16);
            let (certificate, away) = (self.theirs.clone(), CancellationToken::new());
            let told = away.clone();
            let end = tokio::spawn(async move {
                let Ok((io, _)) = tls::accept(far, &certificate, tls::Versions::Tls13, tls::HANDSHAKE_LIMIT).await else { return };
                let Ok(mut server) = Server::handshake(io, &Settings { max_streams: 2, ..Settings::server() }).await else { return };
                let (mut streams, mut leaving) = (Vec::new(), false);
                loop {
                    tokio::select! {
                        incoming = server.next() => match incoming {
                            Some(incoming) => streams.extend(incoming.accept(HeaderMap::new())),
                            None => return,
                        },
                        () = told.cancelled(), if !leaving => {
                            leaving = true;
                            server.graceful_shutdown();
                        }
                    }
                }
            });
            self.ends.lock().push_back((away, end));
            Ok(Io::Other(Box::new(near)))
        })
    }

    fn certificate<'a>(&'a self, _source: &'a SpiffeId) -> BoxFuture<'a, Result<Arc<Certificate>>> {
        Box::pin(async { Ok(self.mine.clone()) })
    }
}

type Caller = JoinHandle<Result<Opened>>;

struct Run {
    pool: Pool,
    net: Arc<Gates>,
    callers: VecDeque<Caller>,
    happened: Vec<Event>,
}

impl Run {
    fn new(mine: &Arc<Certificate>, theirs: &Arc<Certificate>) -> Self {
        let net = Arc::new(Gates { mine: mine.clone(), theirs: theirs.clone(), waiting: Mutex::default(), ends: Mutex::default() });
        let settings = PoolSettings { max_streams: 2, ..PoolSettings::default() };
        Self { pool: Pool::new(settings, net.clone()), net, callers: VecDeque::new(), happened: Vec::new() }
    }

    /// Whether it could happen.
    fn happen(&mut self, event: Event) -> bool {
        self.happened.push(event);
        match event {
            Ask => {
                let pool = self.pool.clone();
                self.callers.push_back(tokio::spawn(async move { pool.open(&key(), request("10.0.0.1:80")).await }));
                true
            }
            Leave => self.callers.pop_front().map(|caller| caller.abort()).is_some(),
            Up | Fail => self.net.waiting.lock().pop_front().map(|gate| gate.send(event == Up)).is_some(),
            GoAway => self.net.ends.lock().front().map(|(away, _)| away.cancel()).is_some(),
            Break => self.net.ends.lock().pop_front().map(|(_, end)| end.abort()).is_some(),
            Drain => {
                let pool = self.pool.clone();
                tokio::spawn(async move { pool.drain().await });
                true
            }
            Cut => {
                self.pool.close_all();
                true
            }
        }
    }

    fn was(&self, events: &[Event]) -> bool {
        self.happened.iter().any(|event| events.contains(event))
    }

    /// Lets all dials go on, also those that callers start because an earlier one was of no use.
    async fn let_all_up(&mut self) {
        Pause::Quiet.take().await;
        while self.happen(Up) {
            Pause::Quiet.take().await;
        }
    }

    async fn check(mut self) {
        self.let_all_up().await;
        let mut streams = Vec::new();
        for caller in std::mem::take(&mut self.callers) {
            assert!(caller.is_finished(), "a caller waits for ever");
            match caller.await.unwrap() {
                Ok(opened) => streams.push(opened),
                Err(error) => {
                    let could = match code_of(&error) {
                        code if code == code::TUNNEL_REFUSED.id => self.was(&[Fail]),
                        code if code == code::DRAINED.id => self.was(&[Drain, Cut, GoAway]),
                        _ => self.was(&[GoAway, Break, Cut]),
                    };
                    assert!(could, "{error}");
                }
            }
        }
        assert_eq!(self.pool.counters().streams, streams.len(), "as many places are taken as there are streams");
        drop(streams);
        Pause::Quiet.take().await;
        assert_eq!(self.pool.counters().streams, 0);
        let broken = self.net.ends.lock().is_empty();
        assert!(!broken || self.pool.counters().tunnels == 0, "a tunnel that broke is still kept");
        if !self.was(&[Drain, Cut]) {
            let dials = self.pool.counters().dials;
            let kept = self.pool.counters().tunnels > 0;
            self.happen(Ask);
            self.let_all_up().await;
            let again = self.callers.pop_front().unwrap();
            assert!(again.is_finished(), "a later caller waits for ever");
            let again = again.await.unwrap().unwrap();
            let dialled = self.pool.counters().dials - dials;
            assert_eq!(dialled, u64::from(!again.tunnel.reused));
            // One that was told to end is still there for a while.
            assert!(again.tunnel.reused == kept || self.was(&[GoAway, Break]), "a tunnel is forgotten");
        }
        tokio::time::timeout(Duration::from_secs(60), self.pool.drain()).await.expect("a tunnel is left over");
    }
}

/// All runs of so many events after the first caller has come.
async fn every_order(length: u32, pauses: &[Pause]) -> usize {
    let ca = scratch();
    let (mine, theirs) = (Arc::new(ca.mint(&id("client")).unwrap()), Arc::new(ca.mint(&id("server")).unwrap()));
    let steps: Vec<_> = EVENTS.iter().flat_map(|event| pauses.iter().map(move |pause| (*pause, *event))).collect();
    let mut runs = 0;
    for number in 0..steps.len().pow(length) {
        let mut run = Run::new(&mine, &theirs);
        run.happen(Ask);
        let chosen: Vec<_> = (0..length).map(|place| steps[number / steps.len().pow(place) % steps.len()]).collect();
        let mut possible = true;
        for (pause, event) in &chosen {
            pause.take().await;
            possible = run.happen(*event);
            if !possible {
                break;
            }
        }
        if possible {
            runs += 1;
            let checked = std::panic::AssertUnwindSafe(run.check());
            if let Err(panic) = futures::FutureExt::catch_unwind(checked).await {
                eprintln!("after one caller has come: {chosen:?}");
                std::panic::resume_unwind(panic);
            }
        }
    }
    runs
}

#[tokio::test(start_paused = true)]
async fn few_events_at_any_step() {
    let runs = every_order(2, &PAUSES).await + every_order(3, &[Pause::Step, Pause::Quiet]).await;
    assert!(runs > 1000, "{runs}");
}

#[tokio::test(start_paused = true)]
async fn more_events_one_after_the_other() {
    let runs = every_order(4, &[Pause::Quiet]).await;
    assert!(runs > 500, "{runs}");
}

#[test]
fn a_dial_that_never_told_how_it_went_is_forgotten() {
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    let (one, other) = (runtime(), runtime());
    let ca = scratch();
    let [mine, theirs] = ["client", "server"].map(|name| Arc::new(ca.mint(&id(name)).unwrap()));
    let mut run = Run::new(&mine, &theirs);
    one.block_on(async {
        run.happen(Ask);
        Pause::Quiet.take().await;
    });
    drop(one);
    run.net.waiting.lock().clear();
    run.callers.clear();
    other.block_on(async {
        run.happen(Ask);
        run.let_all_up().await;
        assert!(run.callers.pop_front().unwrap().await.unwrap().is_ok());
    });
}
