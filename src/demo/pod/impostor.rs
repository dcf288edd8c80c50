//! A proxy that is genuine, at an address that is not its own: it has a certificate from the authority, and listens where
//! the mesh expects another workload.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use super::server::listen;
use crate::base::{Error, Result, code, deadline};
use crate::identity::{Authority, GrpcAuthority, GrpcAuthoritySettings, SpiffeId};
use crate::proxy::HBONE_PORT;
use crate::tls::channel::{Channel, ChannelSettings};
use crate::tls::{self, RootSource, TokenSource};

const LIMIT: Duration = Duration::from_secs(5);

/// Where the certificate comes from and for whom it is.
#[derive(Clone, Debug, clap::Args)]
pub struct Impostor {
    /// Listens on this address.
    #[arg(long)]
    pub ip: IpAddr,
    /// The certificate authority, `https://host:port`.
    #[arg(long)]
    pub ca: String,
    /// Its root certificate.
    #[arg(long)]
    pub root: PathBuf,
    /// The node's token.
    #[arg(long)]
    pub token: PathBuf,
    /// Service account of the certificate.
    #[arg(long)]
    pub account: String,
}

/// Gets a certificate and answers tunnels until the process ends: prints `listening`, then what became of each attempt.
///
/// # Errors
/// The authority does not sign, or the port is taken.
pub async fn impersonate(wanted: Impostor) -> Result<()> {
    let channel = Channel::new(ChannelSettings {
        address: wanted.ca,
        root: RootSource::File(wanted.root),
        alternative_name: None,
        token: TokenSource::File(wanted.token),
        cluster_id: String::new(),
        headers: Vec::new(),
        unreachable: &code::CA_UNAVAILABLE,
    })?;
    let id: SpiffeId = format!("spiffe://cluster.local/ns/default/sa/{}", wanted.account).parse()?;
    let authority = GrpcAuthority::new(channel, GrpcAuthoritySettings::default());
    let certificate = deadline(LIMIT, &code::CA_UNAVAILABLE, "certificate", authority.sign(&id)).await??;
    let listener = listen(wanted.ip, HBONE_PORT)?;
    println!("listening as {id}");
    loop {
        let (stream, client) = listener.accept().await.map_err(|error| Error::caused(&code::BIND_FAILED, "accept", error))?;
        match tls::accept(stream, &certificate, tls::Versions::Tls13, LIMIT).await {
            // In TLS 1.3 the client refuses after the server has finished: only silence or data tell.
            Ok((stream, peer)) => match first_byte(stream).await {
                true => println!("accepted by {peer} from {client}"),
                false => println!("turned away by {peer} from {client}"),
            },
            Err(error) => println!("turned away by {client}: {error}"),
        }
    }
}

/// Whether the client goes on to talk through the tunnel.
async fn first_byte(mut stream: impl tokio::io::AsyncRead + Unpin) -> bool {
    use tokio::io::AsyncReadExt;
    let mut byte = [0; 1];
    let read = tokio::time::timeout(LIMIT, stream.read(&mut byte)).await;
    matches!(read, Ok(Ok(1)))
}
