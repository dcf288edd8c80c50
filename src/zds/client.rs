//! The proxy's side: connects to the agent for as long as the process runs, and does what it is told.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Interval, MissedTickBehavior};

use super::codec::{self, Answer, Request};
use super::pods::{Pods, Serve};
use crate::base::drain::Watch;
use crate::base::{Error, Result, code, deadline};
use crate::net::NetNs;
use crate::net::seqpacket::{Connection, Packet};

/// Between two attempts to reach the agent: doubles from the first to the last.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(15));

/// Between two attempts to start pods whose start failed.
const RETRY: Duration = Duration::from_secs(5);

/// For the connect, and for each send.
const LIMIT: Duration = Duration::from_secs(5);

/// What readiness and the admin API want to know.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// A session with the agent is open.
    pub connected: bool,
    /// The snapshot of that session is complete.
    pub snapshot: bool,
    /// Pods that are served.
    pub served: usize,
    /// Pods that are known but could not be started.
    pub pending: usize,
    /// Why the last session ended or could not begin.
    pub last_error: Option<String>,
}

impl Status {
    /// Whether the proxy serves exactly what the agent wants.
    pub fn ready(&self) -> bool {
        self.connected && self.snapshot && self.pending == 0
    }
}

/// The client. Call [`Client::run`] once.
#[derive(Debug)]
pub struct Client<S> {
    path: PathBuf,
    pods: Pods<S>,
    status: watch::Sender<Status>,
}

/// How a session ended.
enum End {
    /// The agent closed it.
    Closed,
    /// This process is shutting down.
    Draining,
}

impl<S: Serve> Client<S> {
    /// A client of the agent that listens on the socket file `path`, and the view of its status.
    pub fn new(path: PathBuf, server: S) -> (Self, watch::Receiver<Status>) {
        let (status, view) = watch::channel(Status::default());
        (Self { path, pods: Pods::new(server), status }, view)
    }

    /// Runs until a drain starts and gives back what serves the pods, which go on being served until the caller ends them.
    pub async fn run(mut self, mut drain: Watch) -> S {
        let mut retry = tokio::time::interval(RETRY);
        retry.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut pause = BACKOFF.0;
        let mut logged = None;
        loop {
            let (end, was_complete) = self.session(&mut drain, &mut retry).await;
            let error = match end {
                Ok(End::Draining) => return self.pods.into_server(),
                Ok(End::Closed) => {
                    Error::new(&code::ZDS_UNREACHABLE, format!("{}: the node agent closed the session", self.path.display()))
                }
                Err(error) => error,
            };
            if was_complete {
                pause = BACKOFF.0;
            }
            self.publish(false, Some(error.to_string()));
            // A node agent that is away for minutes is one line, not one for every attempt.
            if logged.as_deref() != Some(error.to_string().as_str()) {
                tracing::warn!(%error, "no session with the node agent, pods that are served go on");
                logged = Some(error.to_string());
            }
            if was_complete {
                logged = None;
            }
            if self.wait(pause, &mut drain, &mut retry).await {
                return self.pods.into_server();
            }
            pause = (pause * 2).min(BACKOFF.1);
        }
    }

    /// One session; tells also whether its snapshot was completed.
    async fn session(&mut self, drain: &mut Watch, retry: &mut Interval) -> (Result<End>, bool) {
        let connection = tokio::select! {
            connection = connect(&self.path) => connection,
            _ = drain.started() => return (Ok(End::Draining), false),
        };
        let connection = match connection {
            Ok(connection) => connection,
            Err(error) => return (Err(error), false),
        };
        self.pods.begin_session();
        self.publish(true, None);
        tracing::info!(path = %self.path.display(), "connected to the node agent");
        let end = self.serve(&connection, drain, retry).await;
        (end, self.pods.snapshot_received())
    }

    async fn serve(&mut self, connection: &Connection, drain: &mut Watch, retry: &mut Interval) -> Result<End> {
        loop {
            let packet = tokio::select! {
                packet = connection.receive() => packet,
                _ = retry.tick() => {
                    self.pods.retry().await;
                    self.publish(true, None);
                    continue;
                }
                _ = drain.started() => return Ok(End::Draining),
            };
            let answer = match packet {
                Ok(None) => return Ok(End::Closed),
                Ok(Some(packet)) => self.take(packet).await,
                Err(error) if error.kind() == std::io::ErrorKind::InvalidData => Err(Error::new(&code::ZDS_PROTOCOL, error.to_string())),
                Err(error) => return Err(Error::caused(&code::ZDS_UNREACHABLE, "receive from the node agent", error)),
            };
            match answer {
                Ok(answer) => {
                    self.publish(true, None);
                    send(connection, &codec::encode_answer(&answer)).await?;
                }
                Err(error) => {
                    // The agent learns why; the session cannot go on, because what it says is not understood.
                    let refusal = Answer::Refused(format!("failure to process message : {error}"));
                    send(connection, &codec::encode_answer(&refusal)).await?;
                    return Err(error);
                }
            }
        }
    }

    async fn take(&mut self, packet: Packet) -> Result<Answer> {
        let request = codec::decode_request(&packet.data, packet.fd.is_some());
        let request = request.map_err(|error| Error::caused(&code::ZDS_PROTOCOL, "a message of the node agent", error))?;
        match (packet.fd.map(NetNs::from_fd).transpose(), request) {
            (Ok(netns), request) => self.pods.handle(request, netns).await,
            // One pod's descriptor is unusable: that is no reason to end the session that all others depend on.
            (Err(error), Request::Add { uid, .. }) => {
                if !self.pods.snapshot_received() {
                    self.pods.handle(Request::Keep { uid: uid.clone() }, None).await?;
                }
                Ok(Answer::Refused(Error::caused(&code::POD_START, format!("the descriptor of pod {uid}"), error).to_string()))
            }
            (Err(error), _) => Err(Error::caused(&code::ZDS_PROTOCOL, "a descriptor of the node agent", error)),
        }
    }

    /// Waits before the next attempt; true when a drain started.
    async fn wait(&mut self, pause: Duration, drain: &mut Watch, retry: &mut Interval) -> bool {
        let pause = tokio::time::sleep(pause);
        tokio::pin!(pause);
        loop {
            tokio::select! {
                () = &mut pause => return false,
                _ = drain.started() => return true,
                _ = retry.tick() => self.pods.retry().await,
            }
        }
    }

    fn publish(&self, connected: bool, error: Option<String>) {
        let next = Status {
            connected,
            snapshot: connected && self.pods.snapshot_received(),
            served: self.pods.served(),
            pending: self.pods.pending(),
            last_error: error,
        };
        self.status.send_if_modified(|status| {
            let changed = *status != next;
            *status = next;
            changed
        });
    }
}

async fn connect(path: &Path) -> Result<Connection> {
    let connection = deadline(LIMIT, &code::ZDS_UNREACHABLE, path.display(), Connection::connect(path)).await?;
    let failed = |error| Error::caused(&code::ZDS_UNREACHABLE, format!("connect to {}", path.display()), error);
    let connection = connection.map_err(failed)?;
    send(&connection, &codec::encode_hello()).await?;
    Ok(connection)
}

async fn send(connection: &Connection, data: &[u8]) -> Result<()> {
    let sent = deadline(LIMIT, &code::ZDS_UNREACHABLE, "send to the node agent", connection.send(data, None)).await?;
    sent.map_err(|error| Error::caused(&code::ZDS_UNREACHABLE, "send to the node agent", error))
}

#[cfg(test)]
mod tests;
