//! Finds out that a peer is gone although nothing is sent.

use std::time::Duration;

use h2::{Ping, PingPong};

use super::failure::of_connection;
use crate::base::{Error, code, deadline};

/// Sends PINGs until one fails or is not answered, and returns why. `at_once` sends the first one now; `ponged` is
/// called on each answer.
pub(super) async fn keep(mut pings: PingPong, interval: Duration, limit: Duration, at_once: bool, mut ponged: impl FnMut()) -> Error {
    if !at_once {
        tokio::time::sleep(interval).await;
    }
    loop {
        match deadline(limit, &code::TUNNEL_BROKEN, "HTTP/2 PING", pings.ping(Ping::opaque())).await {
            Ok(Ok(_)) => ponged(),
            Ok(Err(error)) => return of_connection("HTTP/2 PING", error),
            Err(silent) => return silent,
        }
        tokio::time::sleep(interval).await;
    }
}
