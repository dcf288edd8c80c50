//! What does not go on, and how that ends.

use super::*;

/// A server's end with one connection and one request, and what belongs to it.
struct Live {
    elsewhere: Elsewhere,
    frozen: Frozen,
    _client: Client,
    near: TcpStream,
    far: TcpStream,
}

async fn live() -> Live {
    let elsewhere = Elsewhere::new();
    let Pair { client, mut host, .. } = usual().await;
    let (mut near, mut far) = elsewhere.through(&client, &mut host).await;
    near.write_all(b"hello").await.unwrap();
    soon(far.read_exact(&mut [0; 5])).await.unwrap();
    let (_, ours) = elsewhere.app(Side::Client).await;
    elsewhere.wait_for(client.carry(wanted("10.0.0.1:80"), ours));
    let _unanswered = soon(host.next()).await.unwrap();
    let frozen = soon(host.freeze()).await.unwrap();
    Live { elsewhere, frozen, _client: client, near, far }
}

impl Live {
    /// Why it does not go on with these bytes.
    async fn why(&self, bytes: Vec<u8>, sockets: Vec<std::net::TcpStream>) -> Option<String> {
        let frozen = Frozen::from_parts(Secret::from(bytes), sockets);
        self.elsewhere.thaw_host(frozen).await.err().map(|error| error.to_string())
    }

    fn bytes(&mut self) -> (Vec<u8>, Vec<std::net::TcpStream>) {
        let (bytes, sockets) = std::mem::replace(&mut self.frozen, Frozen::new(Vec::new())).into_parts();
        (bytes.bytes().to_vec(), sockets)
    }
}

fn copies(sockets: &[std::net::TcpStream]) -> Vec<std::net::TcpStream> {
    sockets.iter().map(|socket| socket.try_clone().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_that_are_not_a_tunnel_of_this_version_are_refused() {
    let mut live = live().await;
    let (bytes, sockets) = live.bytes();
    for length in (0..bytes.len()).step_by(97).chain(bytes.len() - 40..bytes.len()) {
        let why = live.why(bytes[..length].to_vec(), copies(&sockets)).await;
        assert!(why.is_some_and(|why| why.starts_with("a tunnel that was handed over cannot go on here: ")), "{length}");
    }
    for at in (0..bytes.len()).step_by(101) {
        let mut bytes = bytes.clone();
        bytes[at] ^= 1;
        assert!(live.why(bytes, copies(&sockets)).await.is_some(), "{at}");
    }
    let mut newer = bytes.clone();
    newer["warren tunnel".len()] += 1;
    let why = live.why(newer, copies(&sockets)).await.unwrap();
    assert_eq!(why, "a tunnel that was handed over cannot go on here: it is of version 2, not 1 (W0007)");
    // Whole, but without the contents of a buffer.
    let mut tunnel = state(&Frozen::from_parts(Secret::from(bytes), Vec::new()));
    tunnel.input = 5;
    let mut forged = Frozen::new(Vec::new());
    forged.note(&tunnel, &[]).unwrap();
    let (forged, _) = forged.into_parts();
    assert!(live.why(forged.bytes().to_vec(), copies(&sockets)).await.is_some());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sockets_that_do_not_fit_are_refused() {
    let mut live = live().await;
    let (bytes, sockets) = live.bytes();
    let [tunnel, app] = &sockets[..] else { panic!("the request has none") };
    let with = |sockets: &[&std::net::TcpStream]| sockets.iter().map(|socket| socket.try_clone().unwrap()).collect();
    for (sockets, why) in [(with(&[]), "it has no socket"), (with(&[tunnel]), "it has too few sockets")] {
        assert!(live.why(bytes.clone(), sockets).await.unwrap().contains(why));
    }
    let why = live.why(bytes.clone(), with(&[tunnel, app, app])).await.unwrap();
    assert!(why.contains("it is of more than one tunnel"), "{why}");
    let frozen = Frozen::from_parts(Secret::from(bytes), sockets);
    let error = live.elsewhere.thaw_client(frozen).await.err().unwrap();
    assert!(error.to_string().contains("it is the other end"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tunnel_that_nobody_goes_on_with_tears_its_connections() {
    let mut live = live().await;
    drop(std::mem::replace(&mut live.frozen, Frozen::new(Vec::new())));
    for end in [&mut live.near, &mut live.far] {
        assert_eq!(soon(end.read(&mut [0; 1])).await.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
    }
    // One whose new owner could not read it, too.
    let mut live = self::live().await;
    let (bytes, sockets) = live.bytes();
    assert!(live.why(bytes[1..].to_vec(), sockets).await.is_some());
    for end in [&mut live.near, &mut live.far] {
        assert_eq!(soon(end.read(&mut [0; 1])).await.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
    }
}
