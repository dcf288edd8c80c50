//! What the redirection rules do to real connections, in namespaces of the test's own: a pod and a host on one wire.
//!
//! Needs CAP_SYS_ADMIN and CAP_NET_ADMIN in the current user namespace.

#![expect(clippy::expect_used, clippy::panic, reason = "a test ends by panicking")]

mod agent;
mod enrolment;
mod existing;
mod finding;
mod probes;
mod removal;
mod routing;
mod sandboxes;
mod visits;
mod world;
