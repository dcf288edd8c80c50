//! An application's connection while a tunnel has it.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tokio::net::TcpStream;

use crate::net::socket;

/// Says how many bytes went each way, as they go.
pub trait Count: Send + Sync + 'static {
    /// Bytes from the client arrived at the server's side.
    fn client_sent(&self, bytes: usize);
    /// Bytes from the server arrived at the client's side.
    fn server_sent(&self, bytes: usize);
}

/// Which end of the connection a local application is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Side {
    /// It opened the connection.
    Client,
    /// It accepted the connection.
    Server,
}

impl Side {
    /// What an operator calls it.
    pub fn name(self) -> &'static str {
        match self {
            Side::Client => "client",
            Side::Server => "destination",
        }
    }

    /// Bytes came from the application.
    pub fn count_from(self, count: &(impl Count + ?Sized), bytes: usize) {
        match self {
            Side::Client => count.client_sent(bytes),
            Side::Server => count.server_sent(bytes),
        }
    }

    /// Bytes went to the application.
    pub fn count_to(self, count: &(impl Count + ?Sized), bytes: usize) {
        match self {
            Side::Client => count.server_sent(bytes),
            Side::Server => count.client_sent(bytes),
        }
    }
}

/// An application's connection, handed to a tunnel for as long as it lasts.
pub struct App {
    /// Its socket.
    pub socket: TcpStream,
    /// Which end it is.
    pub side: Side,
    /// Who wants to know.
    pub count: Arc<dyn Count>,
    /// What was read from it and may have to be sent again, on another tunnel.
    pub(super) unsent: Vec<u8>,
}

impl App {
    /// Nothing has been read from it.
    pub fn new(socket: TcpStream, side: Side, count: Arc<dyn Count>) -> Self {
        Self { socket, side, count, unsent: Vec::new() }
    }

    /// Closing it will send RST instead of FIN: the application must not take a refusal for an empty answer.
    pub(in crate::hbone) fn reset(&self) {
        socket::reset(&self.socket);
    }
}
