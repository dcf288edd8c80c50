//! What follows from how a step went.

use std::time::Duration;

use rand::Rng;
use tokio::time::Instant;

use super::Reconciler;
use super::pod::{Enrolled, Outcome, Task};
use super::tracked::Tracked;
use crate::agent::board::{Board, Condition};
use crate::agent::redirect::Redirect;
use crate::agent::sandbox::Verdict;
use crate::base::{Error, code};

/// Between two attempts after a failure: doubles from the first to the last, or to the urgent last while a CNI call
/// waits.
const BACKOFF: (Duration, Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(15), Duration::from_millis(400));

/// How often the connections of a pod that leaves are counted.
const DRAIN_LOOK: Duration = Duration::from_millis(250);

impl<R: Redirect + 'static> Reconciler<R> {
    pub(super) fn settle(&mut self, task: Task, outcome: Outcome) {
        let uid = task.uid().clone();
        let Some(tracked) = self.pods.get_mut(&uid) else { return };
        let (name, now) = (task.name(), Instant::now());
        // As it was until now: what the step has found may end it.
        let exposed = tracked.exposed();
        tracked.looked = true;
        tracked.busy = false;
        let is_as_wanted = tracked.task.finish(task);
        let audit = now + self.settings.audit.mul_f64(rand::rng().random_range(0.8..1.2));
        let mut line = "";
        match outcome {
            Outcome::Step(text) => {
                line = text;
                tracked.soon();
            }
            Outcome::Enrolled(enrolled) => {
                line = "enrolled: new connections go through the proxy";
                (tracked.due, tracked.failures) = (audit, 0);
                self.board.metrics.audits.inc();
                tell(tracked, &self.board, enrolled);
                tracked.is_good(&self.board, exposed);
                if is_as_wanted {
                    tracked.answer(|| Ok(Verdict::Enrolled));
                }
            }
            Outcome::NoProxy => {
                line = match tracked.condition() {
                    Some(Condition::Open | Condition::Unknown) => "not enrolled yet: no proxy is connected to this agent",
                    _ => "enrolled, but no proxy is connected to this agent; one that runs goes on serving",
                };
                (tracked.due, tracked.failures) = (audit, 0);
            }
            Outcome::Lost => (tracked.due, tracked.failures) = (audit, 0),
            Outcome::Draining => tracked.due = now + DRAIN_LOOK,
            Outcome::Failed(error) => {
                let text = error.to_string();
                if tracked.logged != text {
                    tracing::warn!(%uid, pod = %name, %error, "pod is not as it must be, will be tried again");
                    tracked.logged = text;
                }
                let last = if tracked.waiters.is_empty() { BACKOFF.1 } else { BACKOFF.2 };
                let pause = BACKOFF.0.saturating_mul(1 << tracked.failures.min(16)).min(last);
                tracked.failures += 1;
                tracked.due = now + pause;
            }
            Outcome::Gone(text) => {
                if !text.is_empty() {
                    tracing::info!(%uid, pod = %name, "{text}");
                }
                if is_as_wanted {
                    let why = tracked.task.wanted.pod.why;
                    let gone = tracked.task.wanted.gone;
                    tracked.answer(|| match gone {
                        true => Err(Error::new(&code::NOT_CAPTURED, format!("pod {name} is gone"))),
                        false => Ok(Verdict::NotInMesh(why)),
                    });
                    self.board.remove(&uid);
                    self.pods.remove(&uid);
                    return;
                }
            }
        }
        if !is_as_wanted || self.proxies.served(&uid) != tracked.seen {
            tracked.due = now;
        }
        if !line.is_empty() && tracked.logged != line {
            tracing::info!(%uid, pod = %name, "{line}");
            line.clone_into(&mut tracked.logged);
        }
        tracked.show(&self.board);
        tracked.is_bad(&self.board);
    }
}

/// Tells a pod's owner what was done until all was as it must be.
fn tell(tracked: &Tracked, board: &Board, enrolled: Enrolled) {
    let Enrolled { applied, first, again, ended, kept } = enrolled;
    let (uid, name, left) = (tracked.task.uid(), tracked.task.name(), tracked.task.known.left);
    if applied && again {
        board.metrics.repairs.inc();
        tracing::warn!(%uid, pod = %name, "the rules of a captured pod were missing or changed: repaired");
        let text = "The rules that capture the pod's traffic were missing or had been changed. They stand again.".to_owned();
        tracked.notice(board, true, "WarrenRepaired", text);
    }
    if ended > 0 {
        board.metrics.connections_reset.inc_by(ended as u64);
        tracing::info!(%uid, pod = %name, connections = ended, "connections older than the enrolment were reset");
        let text = format!("{ended} connections were older than the enrolment. They were reset.");
        tracked.notice(board, false, "WarrenExistingReset", text);
    }
    if let Some(error) = kept {
        tracing::warn!(%uid, pod = %name, %error, "connections older than the enrolment could not be reset");
    }
    if left > 0 && (applied || first) {
        tracing::warn!(%uid, pod = %name, connections = left, "connections older than the enrolment go on outside of the mesh");
        let text = format!(
            "{left} connections are older than the enrolment and go on outside of the mesh until they end. The annotation \
             warren.dev/existing=reset has such connections reset."
        );
        tracked.notice(board, true, "WarrenExistingConnections", text);
    }
}
