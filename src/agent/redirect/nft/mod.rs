//! Redirection by nf_tables, spoken over netlink: no `nft` program is needed, and the kernel takes a whole rule set at
//! once or leaves all as it was.

mod encode;
mod expression;
mod kernel;
mod message;

use super::plan::{Family, Mode, Plan, TABLE};
use super::{Options, Redirect, State, inside as visit, routes};
use crate::base::{Error, Result, code};
use crate::net::NetNs;
use encode::Batch;
use kernel::{Found, Kernel};

/// The back-end.
#[derive(Clone, Copy, Debug, Default)]
pub struct Nft {
    options: Options,
}

impl Nft {
    /// With the operator's choices.
    pub fn new(options: Options) -> Self {
        Self { options }
    }

    async fn install(&self, netns: &NetNs, mode: Mode) -> Result<()> {
        let options = self.options;
        inside(netns, move || assure(TABLE, &plans(mode, &options))).await
    }
}

impl Redirect for Nft {
    async fn state(&self, netns: &NetNs) -> Result<State> {
        let options = self.options;
        let rules = inside(netns, move || {
            let mut kernel = Kernel::open()?;
            let mut found = Vec::new();
            for family in [Family::V4, Family::V6] {
                if let Some(table) = kernel.find(TABLE, None, family)? {
                    found.push((family, table));
                }
            }
            let is = |mode| found == plans(mode, &options).iter().map(|plan| (plan.family, Found::expected(plan))).collect::<Vec<_>>();
            Ok(match () {
                () if found.is_empty() => State::Absent,
                () if is(Mode::Redirect) => State::Redirecting,
                () if is(Mode::Hold) => State::Holding,
                () => State::Outdated,
            })
        })
        .await?;
        match rules {
            State::Redirecting if !routes::installed(netns).await? => Ok(State::Outdated),
            state => Ok(state),
        }
    }

    async fn apply(&self, netns: &NetNs) -> Result<()> {
        // Routes first: without them the application's answers to the proxy would leave the pod.
        routes::install(netns).await?;
        self.install(netns, Mode::Redirect).await
    }

    async fn hold(&self, netns: &NetNs) -> Result<()> {
        self.install(netns, Mode::Hold).await
    }

    async fn remove(&self, netns: &NetNs) -> Result<()> {
        // The table goes last: as long as it is there the namespace counts as not clean.
        routes::remove(netns).await?;
        inside(netns, || assure(TABLE, &[])).await
    }

    async fn connections(&self, netns: &NetNs) -> Result<usize> {
        inside(netns, || {
            visit::connections().map_err(|error| Error::caused(&code::REDIRECT_FAILED, "read the table of connections", error))
        })
        .await
    }
}

/// Runs `work` inside the namespace.
async fn inside<R: Send + 'static>(netns: &NetNs, work: impl FnOnce() -> Result<R> + Send + 'static) -> Result<R> {
    prepare();
    visit::inside(netns, &code::REDIRECT_FAILED, work).await
}

/// What is wanted in the calling thread's namespace.
fn plans(mode: Mode, options: &Options) -> Vec<Plan> {
    let mut plans = vec![Plan::new(Family::V4, mode, options)];
    if visit::has_ipv6() {
        plans.push(Plan::new(Family::V6, mode, options));
    }
    plans
}

/// To be called once where the process is at home, before the functions below are called elsewhere.
pub(in crate::agent) fn prepare() {
    kernel::prepare();
}

/// Makes the tables called `table` of the calling thread's namespace hold exactly these plans, at most one for each
/// family. Where only members of a set differ, only they are changed: the kernel takes its time, 15 ms and more, to bury
/// what is removed, and has the next batch wait for that.
pub(in crate::agent) fn assure(table: &str, plans: &[Plan]) -> Result<()> {
    let mut kernel = Kernel::open()?;
    let (mut batch, mut anything) = (Batch::new(), false);
    for family in [Family::V4, Family::V6] {
        let plan = plans.iter().find(|plan| plan.family == family);
        let set = plan.and_then(|plan| plan.set.as_ref());
        let found = kernel.find(table, set.map(|set| set.name), family)?;
        if found == plan.map(Found::expected) {
            continue;
        }
        anything = true;
        if let (Some(plan), Some(set), Some(members)) = (plan, set, plan.and_then(|plan| found.as_ref()?.members(plan))) {
            batch.add_members(plan, set.name, &(&set.members - members));
            batch.remove_members(plan, set.name, &(members - &set.members));
            continue;
        }
        if found.is_some() {
            batch.remove(table, family);
        }
        if let Some(plan) = plan {
            batch.install(plan);
        }
    }
    if anything {
        kernel.commit(batch)?;
        close_later(kernel);
    }
    Ok(())
}

/// Closing the socket waits until what was replaced is not in use on any processor, some 15 ms: nobody need wait for that.
fn close_later(kernel: Kernel) {
    if let Ok(runtime) = tokio::runtime::Handle::try_current() {
        runtime.spawn_blocking(move || drop(kernel));
    }
}
