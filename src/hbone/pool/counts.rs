//! The choice among tunnels, without a network: nobody serves them.

#![allow(clippy::expect_used, clippy::panic, reason = "what is counted must be what was meant: anything else ends the count")]

use std::io;

use futures::future::BoxFuture;

use super::*;
use crate::identity::Certificate;

/// Finds a place on the last of so many tunnels to one peer, the others being full, and gives it back.
pub(in crate::hbone) fn place(tunnels: u64, times: u32) {
    let pool = Pool::new(PoolSettings::default(), Arc::new(Nowhere));
    let (key, shared) = (key(), &pool.shared);
    let made = |id| {
        let connection = Connection::Own(Client::without_engine());
        Arc::new(Tunnel::new(id, key.source.clone(), connection, shared.gauges.clone()))
    };
    let tunnels: Vec<_> = (0..tunnels).map(made).collect();
    let (_, full) = tunnels.split_last().expect("at least one");
    let places = shared.settings.max_streams;
    let _taken: Vec<Lease> = full.iter().flat_map(|tunnel| std::iter::from_fn(|| tunnel.reserve(places))).collect();
    shared.slots.lock().insert(key.clone(), Slot { tunnels: tunnels.clone(), dials: Vec::new(), places });
    for _ in 0..times {
        let Ok(Found::Place(lease)) = shared.find(std::hint::black_box(&key), None) else { panic!("the last tunnel has places") };
        drop(std::hint::black_box(lease));
    }
}

fn key() -> Key {
    let id = |name| SpiffeId::new("cluster.local", "shop", name).expect("an id");
    Key {
        source: id("checkout"),
        destinations: vec![id("payment")],
        addr: ([10, 244, 2, 1], 15008).into(),
        source_ip: Some([10, 244, 1, 9].into()),
        gateway: false,
    }
}

struct Nowhere;

impl Dialer for Nowhere {
    fn dial<'a>(&'a self, _key: &'a Key) -> BoxFuture<'a, io::Result<Io>> {
        Box::pin(async { Err(io::ErrorKind::Unsupported.into()) })
    }

    fn certificate<'a>(&'a self, _source: &'a SpiffeId) -> BoxFuture<'a, Result<Arc<Certificate>>> {
        Box::pin(async { Err(drained()) })
    }
}
