use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures::future::BoxFuture;

use super::*;
use crate::identity::{FakeAuthority, FakeRoot};

/// Signs after `latency`, unless told to fail; counts.
struct Scripted {
    fake: FakeAuthority,
    latency: Duration,
    failing: Mutex<bool>,
    calls: Mutex<HashMap<SpiffeId, usize>>,
    order: Mutex<Vec<SpiffeId>>,
    at_once: AtomicUsize,
    most_at_once: AtomicUsize,
}

impl Authority for Scripted {
    fn sign<'a>(&'a self, id: &'a SpiffeId) -> BoxFuture<'a, Result<Certificate>> {
        Box::pin(async move {
            *self.calls.lock().entry(id.clone()).or_default() += 1;
            self.order.lock().push(id.clone());
            let running = self.at_once.fetch_add(1, Ordering::SeqCst) + 1;
            self.most_at_once.fetch_max(running, Ordering::SeqCst);
            tokio::time::sleep(self.latency).await;
            self.at_once.fetch_sub(1, Ordering::SeqCst);
            if *self.failing.lock() { Err(Error::new(&code::CA_UNAVAILABLE, "scripted")) } else { self.fake.mint(id) }
        })
    }
}

impl Scripted {
    fn calls(&self, id: &SpiffeId) -> usize {
        self.calls.lock().get(id).copied().unwrap_or_default()
    }
}

fn store(latency: Duration) -> (CertificateStore, Arc<Scripted>, tempfile::TempDir) {
    let directory = tempfile::tempdir().unwrap();
    let authority = Arc::new(Scripted {
        fake: FakeAuthority::load(&FakeRoot::Directory(directory.path().join("ca"))).unwrap(),
        latency,
        failing: Mutex::new(false),
        calls: Mutex::default(),
        order: Mutex::default(),
        at_once: AtomicUsize::default(),
        most_at_once: AtomicUsize::default(),
    });
    (CertificateStore::new(authority.clone()), authority, directory)
}

fn id(name: &str) -> SpiffeId {
    SpiffeId::new("cluster.local", "shop", name).unwrap()
}

#[tokio::test(start_paused = true)]
async fn one_call_serves_all_waiters() {
    let (store, authority, _directory) = store(Duration::from_secs(1));
    let who = id("a");
    let all = futures::future::join_all((0..50).map(|_| store.certificate(&who))).await;
    let first = all[0].as_ref().unwrap();
    assert!(all.iter().all(|one| Arc::ptr_eq(one.as_ref().unwrap(), first)));
    assert_eq!(authority.calls(&who), 1);
    assert_eq!(store.list()[0].state.to_string(), "Available");
}

#[tokio::test(start_paused = true)]
async fn eight_calls_at_once_and_a_connection_comes_before_a_prefetch() {
    let (store, authority, _directory) = store(Duration::from_secs(1));
    for number in 0..20 {
        store.prefetch(&id(&format!("warm{number}"))).unwrap();
    }
    tokio::task::yield_now().await;
    let start = Instant::now();
    store.certificate(&id("urgent")).await.unwrap();
    assert_eq!(start.elapsed().as_secs(), 2, "the first eight were under way, this one came next");
    let raised = Instant::now();
    store.certificate(&id("warm19")).await.unwrap();
    assert!(raised.elapsed().as_secs() <= 1, "a prefetch that a connection waits for is raised");
    assert_eq!(authority.most_at_once.load(Ordering::SeqCst), 8);
}

#[tokio::test(start_paused = true)]
async fn renews_at_half_life() {
    let (store, authority, _directory) = store(Duration::ZERO);
    let who = id("a");
    let first = store.certificate(&who).await.unwrap();
    tokio::time::sleep(Duration::from_secs(11 * 3600)).await;
    assert_eq!(authority.calls(&who), 1);
    tokio::time::sleep(Duration::from_secs(3600)).await;
    assert_eq!(authority.calls(&who), 2);
    assert!(!Arc::ptr_eq(&first, &store.certificate(&who).await.unwrap()));
}

#[tokio::test(start_paused = true)]
async fn a_failure_is_cached_and_retried_ever_more_slowly() {
    let (store, authority, _directory) = store(Duration::ZERO);
    let who = id("a");
    *authority.failing.lock() = true;
    assert_eq!(store.certificate(&who).await.unwrap_err().code().id, code::CA_UNAVAILABLE.id);
    for _ in 0..10 {
        let start = Instant::now();
        store.certificate(&who).await.unwrap_err();
        assert!(start.elapsed().is_zero());
    }
    assert_eq!(authority.calls(&who), 3, "callers do not start attempts beyond the early ones");
    assert!(store.list()[0].state.to_string().starts_with("Unavailable: "));
    // 1 + 2 + 4 + 8 + 15 + 15 …, each ±20 %.
    tokio::time::sleep(Duration::from_secs(165)).await;
    let calls = authority.calls(&who);
    assert!((14..=21).contains(&calls), "{calls}");
    *authority.failing.lock() = false;
    tokio::time::sleep(Duration::from_secs(20)).await;
    store.certificate(&who).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_valid_certificate_outlives_the_authority_until_it_expires() {
    let (store, authority, _directory) = store(Duration::ZERO);
    let who = id("a");
    let first = store.certificate(&who).await.unwrap();
    *authority.failing.lock() = true;
    tokio::time::sleep(Duration::from_secs(23 * 3600)).await;
    assert!(authority.calls(&who) > 2);
    assert!(Arc::ptr_eq(&first, &store.certificate(&who).await.unwrap()));
    tokio::time::sleep(Duration::from_secs(3601)).await;
    assert_eq!(store.certificate(&who).await.unwrap_err().code().id, code::CA_UNAVAILABLE.id);
}

#[tokio::test(start_paused = true)]
async fn a_new_identity_that_is_refused_at_first_is_waited_for() {
    let (store, authority, _directory) = store(Duration::ZERO);
    let who = id("a");
    *authority.failing.lock() = true;
    let waiting = tokio::spawn({
        let (store, who) = (store.clone(), who.clone());
        async move { store.certificate(&who).await }
    });
    tokio::time::sleep(Duration::from_millis(50)).await;
    *authority.failing.lock() = false;
    waiting.await.unwrap().unwrap();
    assert_eq!(authority.calls(&who), 2);
}

#[tokio::test(start_paused = true)]
async fn release_frees_waiters_and_ends_renewal() {
    let (store, authority, _directory) = store(Duration::from_secs(5));
    let who = id("a");
    let waiting = tokio::spawn({
        let (store, who) = (store.clone(), who.clone());
        async move { store.certificate(&who).await }
    });
    tokio::time::sleep(Duration::from_secs(1)).await;
    store.release(&who);
    assert_eq!(waiting.await.unwrap().unwrap_err().code().id, code::UNKNOWN_LOCAL.id);
    tokio::time::sleep(Duration::from_secs(24 * 3600)).await;
    assert_eq!(authority.calls(&who), 1);
    assert!(store.list().is_empty(), "the late answer is dropped");
}

#[tokio::test(start_paused = true)]
async fn a_released_certificate_serves_the_next_pod_for_a_while() {
    let (store, authority, _directory) = store(Duration::ZERO);
    let who = id("a");
    store.prefetch(&who).unwrap();
    let first = store.certificate(&who).await.unwrap();
    store.release(&who);
    tokio::time::sleep(Duration::from_secs(599)).await;
    *authority.failing.lock() = true;
    store.prefetch(&who).unwrap();
    assert!(Arc::ptr_eq(&first, &store.certificate(&who).await.unwrap()), "without the authority");
    tokio::time::sleep(Duration::from_secs(12 * 3600)).await;
    assert!(authority.calls(&who) > 1, "it is renewed again");

    store.release(&who);
    let calls = authority.calls(&who);
    tokio::time::sleep(Duration::from_secs(300)).await;
    store.certificate(&who).await.unwrap();
    tokio::time::sleep(Duration::from_secs(301)).await;
    assert!(store.list().is_empty(), "a connection alone does not keep it");
    assert_eq!(authority.calls(&who), calls, "nor is it renewed");
}

#[tokio::test(start_paused = true)]
async fn identities_without_pods_make_room() {
    let (store, _authority, _directory) = store(Duration::ZERO);
    for number in 0..MAX_IDENTITIES {
        store.prefetch(&id(&format!("a{number}"))).unwrap();
    }
    store.certificate(&id("a7")).await.unwrap();
    assert_eq!(store.prefetch(&id("b")).unwrap_err().code().id, code::CAPACITY.id);
    store.release(&id("a7"));
    store.prefetch(&id("b")).unwrap();
    assert!(store.list().iter().all(|listed| listed.id != id("a7")));
}
