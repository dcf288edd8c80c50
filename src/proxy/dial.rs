//! The one way to connect: from inside the pod, with a deadline, and with errors that say whose side it is.

use std::io;
use std::net::IpAddr;

use tokio::net::TcpStream;

use super::CONNECT_LIMIT;
use crate::base::addr::NextHop;
use crate::base::{Code, Error, Result, code, deadline};
use crate::net::socket::SocketFactory;

/// What is dialled, which decides the codes of its failures.
#[derive(Clone, Copy, Debug)]
pub(super) enum To {
    /// A destination in plaintext.
    Destination,
    /// The application in the own pod.
    Application,
}

impl To {
    fn codes(self) -> [&'static Code; 3] {
        match self {
            To::Destination => [&code::CONNECT_TIMEOUT, &code::DESTINATION_REFUSED, &code::DESTINATION_UNREACHABLE],
            To::Application => [&code::APP_TIMEOUT, &code::APP_REFUSED, &code::APP_UNREACHABLE],
        }
    }
}

/// Connects to `hop`, showing `source` as the client's address if one is given.
///
/// # Errors
/// One of three codes for each kind of target: silent, refused, anything else.
pub(super) async fn dial(sockets: &SocketFactory, to: To, hop: NextHop, source: Option<IpAddr>) -> Result<TcpStream> {
    let [silent, refused, unreachable] = to.codes();
    let connected = deadline(CONNECT_LIMIT, silent, hop, sockets.connect(hop, source)).await?;
    connected.map_err(|error| {
        let code = match error.kind() {
            io::ErrorKind::ConnectionRefused => refused,
            io::ErrorKind::TimedOut => silent,
            _ => unreachable,
        };
        Error::caused(code, format!("connect to {hop}"), error)
    })
}
