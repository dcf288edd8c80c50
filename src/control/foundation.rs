//! What a control plane stands on: beside a mesh file its own directory, in a cluster the API server.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;

use super::auth::Authenticator;
use super::ca::Authority;
use super::ca::secret::{Keeper, Trouble};
use super::health::Stage;
use super::index::Index;
use super::metrics::Metrics;
use super::objects::Mesh;
use super::publish::Publisher;
use super::server::Settings;
use super::source::{AnySource, Batch, Location, Source};
use super::status::Writer;
use super::tokens::Tokens;
use crate::base::{Result, code, drain};
use crate::config::cluster;

/// Between two attempts to reach an API server that is needed for the start; doubled each time up to the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(8);

/// Nodes hear from the API server that a pod is ending, and send nobody to it any more, a moment after the pod itself.
const LINGER: Duration = Duration::from_secs(2);

/// Where the start tells how far it is.
pub(super) struct Report<'a> {
    pub(super) stage: &'a watch::Sender<Stage>,
    pub(super) trouble: Trouble,
    pub(super) metrics: Arc<Metrics>,
}

/// Authority and callers, and what keeps them current.
pub(super) struct Foundation {
    authority: watch::Receiver<Arc<Authority>>,
    callers: Arc<Authenticator>,
    ground: Ground,
}

enum Ground {
    Directory(Arc<Tokens>),
    Cluster(Box<Upkeep>),
}

/// What has to be done all the time in a cluster.
struct Upkeep {
    namespace: String,
    keeper: Keeper,
    authority: watch::Sender<Arc<Authority>>,
    trouble: Trouble,
    publisher: Publisher,
    status: Writer,
}

impl Foundation {
    /// Opens what the settings name, and the source with its first state.
    ///
    /// # Errors
    /// As [`super::Control::start`].
    pub(super) async fn lay(
        settings: &Settings,
        index: &watch::Receiver<Arc<Index>>,
        report: Report<'_>,
    ) -> Result<(Self, AnySource, Batch)> {
        match &settings.source {
            Location::File(path) => Self::on_directory(settings, path, index).await,
            Location::Kubernetes => Self::on_cluster(settings, index, report).await,
        }
    }

    async fn on_directory(settings: &Settings, file: &Path, index: &watch::Receiver<Arc<Index>>) -> Result<(Self, AnySource, Batch)> {
        let mut source = AnySource::file(file)?;
        let first = source.next().await?;
        let authority = Arc::new(Authority::open(&settings.state_dir.join("ca"), &first.mesh.trust_domain)?);
        let tokens = Arc::new(Tokens::open(&settings.state_dir.join("tokens"))?);
        // It stays what it is: nothing is sent.
        let (_, authority) = watch::channel(authority);
        let callers = Arc::new(Authenticator::files(Arc::clone(&tokens), index.clone()));
        Ok((Self { authority, callers, ground: Ground::Directory(tokens) }, source, first))
    }

    async fn on_cluster(settings: &Settings, index: &watch::Receiver<Arc<Index>>, report: Report<'_>) -> Result<(Self, AnySource, Batch)> {
        let cluster = settings.cluster.clone();
        let client = cluster::client().await?;
        let mesh = Mesh { trust_domain: (&*cluster.trust_domain).into(), root_namespace: (&*cluster.namespace).into() };
        let status = Writer::new(client.clone(), &cluster.namespace);
        let mut source = AnySource::kubernetes(mesh, &client, &status.wishes());
        let first = patiently(&mut source, report.stage, async |source| source.next().await).await?;
        let open = async |client: &mut kube::Client| Keeper::open(client.clone(), &cluster.namespace, &cluster.trust_domain).await;
        let (keeper, authority) = patiently(&mut client.clone(), report.stage, open).await?;
        let (sender, authority) = watch::channel(Arc::new(authority));
        let callers = Arc::new(Authenticator::cluster(client.clone(), cluster.proxies.clone(), index.clone()));
        let publisher = Publisher::new(client, authority.clone(), report.metrics);
        let upkeep = Upkeep { namespace: cluster.namespace, keeper, authority: sender, trouble: report.trouble, publisher, status };
        Ok((Self { authority, callers, ground: Ground::Cluster(Box::new(upkeep)) }, source, first))
    }

    /// The authority in force.
    pub(super) fn authority(&self) -> watch::Receiver<Arc<Authority>> {
        self.authority.clone()
    }

    /// Who may call.
    pub(super) fn callers(&self) -> Arc<Authenticator> {
        Arc::clone(&self.callers)
    }

    /// Tokens that have to be made for the nodes of the source.
    pub(super) fn tokens(&self) -> Option<Arc<Tokens>> {
        match &self.ground {
            Ground::Directory(tokens) => Some(Arc::clone(tokens)),
            Ground::Cluster(_) => None,
        }
    }

    /// Names under which it is reached.
    pub(super) fn names(&self) -> Vec<String> {
        match &self.ground {
            Ground::Directory(_) => Vec::new(),
            Ground::Cluster(upkeep) => {
                let name = format!("warren-control.{}", upkeep.namespace);
                vec![format!("{name}.svc"), format!("{name}.svc.cluster.local"), name]
            }
        }
    }

    /// How long callers are sent here after the end has begun.
    pub(super) fn linger(&self) -> Duration {
        match &self.ground {
            Ground::Directory(_) => Duration::ZERO,
            Ground::Cluster(_) => LINGER,
        }
    }

    /// Starts what keeps it current.
    pub(super) fn keep(self, tasks: &mut JoinSet<()>, drain: &drain::Watch) {
        if let Ground::Cluster(upkeep) = self.ground {
            let Upkeep { keeper, authority, trouble, publisher, status, .. } = *upkeep;
            tasks.spawn(keeper.follow(authority, trouble, drain.clone()));
            tasks.spawn(publisher.run(drain.clone()));
            tasks.spawn(status.run(drain.clone()));
        }
    }
}

/// Repeats `attempt` until it succeeds: an API server that is away comes back, a role that is missing is installed, a
/// broken Secret is mended, and nothing is gained by starting anew meanwhile.
async fn patiently<S, T>(state: &mut S, stage: &watch::Sender<Stage>, attempt: impl AsyncFn(&mut S) -> Result<T>) -> Result<T> {
    let mut pause = FIRST_PAUSE;
    loop {
        match attempt(state).await {
            Ok(value) => return Ok(value),
            Err(error) if error.code() == &code::BAD_SETTING || error.code() == &code::BAD_FILE => return Err(error),
            Err(error) => {
                tracing::warn!(%error, "cannot start yet");
                stage.send_replace(Stage::Starting(error.to_string()));
            }
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Error;

    #[tokio::test(start_paused = true)]
    async fn what_may_come_is_waited_for_and_what_is_wrong_with_the_settings_is_not() {
        let (stage, stages) = watch::channel(Stage::Serving);
        let mut attempts = 0;
        let begun = tokio::time::Instant::now();
        let third = patiently(&mut attempts, &stage, async |attempts| {
            *attempts += 1;
            if *attempts < 8 { Err(Error::new(&code::API_REFUSED, format!("attempt {attempts}"))) } else { Ok(*attempts) }
        });
        assert_eq!(third.await.unwrap(), 8);
        assert_eq!(*stages.borrow(), Stage::Starting("attempt 7 (W7012)".to_owned()), "probes are told what is waited for");
        assert_eq!(begun.elapsed(), Duration::from_millis(250 + 500 + 1000 + 2000 + 4000 + 8000 + 8000));

        let wrong = patiently(&mut (), &stage, async |()| Err::<(), _>(Error::new(&code::BAD_SETTING, "no namespace"))).await;
        assert_eq!(wrong.unwrap_err().code(), &code::BAD_SETTING);
    }
}
