//! What to do next about one pod, from what is wanted and what was observed. Every step leads closer; a step that fails
//! is decided anew from what is observed then.

use super::redirect::State;

/// All that counts about a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct View {
    /// It is to be in the mesh.
    pub(super) wanted: bool,
    /// What its namespace redirects.
    pub(super) state: State,
    /// What the newest proxy says.
    pub(super) served: Served,
    /// It was enrolled in this namespace before.
    pub(super) enrolled: bool,
    /// None of its connections needs the proxy any more, or the time for that is over.
    pub(super) drained: bool,
}

/// What the newest proxy says about a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Served {
    /// No proxy is connected.
    NoProxy,
    /// It does not serve the pod, or not in this namespace.
    No,
    /// It does.
    Yes,
}

/// The next step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Have the proxy serve the pod.
    Serve,
    /// Redirect new connections.
    Redirect,
    /// Stop redirecting new connections.
    Hold,
    /// Have the proxies forget the pod, and remove everything from its namespace.
    Remove,
    /// Nothing can be done until a proxy connects.
    AwaitProxy,
    /// Connections are being finished.
    AwaitDrain,
    /// All is as wanted.
    Nothing,
}

/// The proxy listens before anything is sent to it, and is told to leave only after nothing new is: no connection meets
/// a closed port.
pub(super) fn decide(view: View) -> Step {
    match (view.wanted, view.state, view.served) {
        // Rules that are in force stay so while there is no proxy: traffic waits, it is not sent unprotected.
        (true, State::Redirecting, Served::NoProxy) => Step::AwaitProxy,
        // Nor is a pod opened by what has removed them, or that leaves and is wanted again.
        (true, _, Served::NoProxy) if view.enrolled || view.state != State::Absent => Step::Redirect,
        (true, _, Served::NoProxy) => Step::AwaitProxy,
        (true, _, Served::No) => Step::Serve,
        (true, State::Redirecting, Served::Yes) => Step::Nothing,
        (true, _, Served::Yes) => Step::Redirect,
        (false, State::Redirecting | State::Outdated, _) => Step::Hold,
        (false, State::Holding, _) if !view.drained => Step::AwaitDrain,
        (false, State::Holding | State::Absent, _) => Step::Remove,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_state_has_one_next_step() {
        use Served::{No, NoProxy, Yes};
        use State::{Absent, Holding, Outdated, Redirecting};
        let cases = [
            ("a new pod", true, Absent, No, Step::Serve),
            ("the proxy listens", true, Absent, Yes, Step::Redirect),
            ("enrolled", true, Redirecting, Yes, Step::Nothing),
            ("no proxy yet: nothing is redirected to nobody", true, Absent, NoProxy, Step::AwaitProxy),
            ("wanted again while leaving, and no proxy", true, Holding, NoProxy, Step::Redirect),
            ("rules of an older version, and no proxy", true, Outdated, NoProxy, Step::Redirect),
            ("the proxy is away: fail closed", true, Redirecting, NoProxy, Step::AwaitProxy),
            ("the agent or the proxy came back", true, Redirecting, No, Step::Serve),
            ("rules of an older version", true, Outdated, Yes, Step::Redirect),
            ("wanted again while leaving", true, Holding, Yes, Step::Redirect),
            ("leaving", false, Redirecting, Yes, Step::Hold),
            ("leaving without a proxy", false, Redirecting, NoProxy, Step::Hold),
            ("leaving with changed rules", false, Outdated, Yes, Step::Hold),
            ("finishing connections", false, Holding, Yes, Step::AwaitDrain),
            ("was never enrolled", false, Absent, No, Step::Remove),
        ];
        for (name, wanted, state, served, expected) in cases {
            assert_eq!(decide(View { wanted, state, served, enrolled: false, drained: false }), expected, "{name}");
        }
        let flushed = View { wanted: true, state: Absent, served: NoProxy, enrolled: true, drained: false };
        assert_eq!(decide(flushed), Step::Redirect, "somebody has removed the rules while there is no proxy");
        let finished = View { wanted: false, state: Holding, served: Yes, enrolled: true, drained: true };
        assert_eq!(decide(finished), Step::Remove);
    }
}
