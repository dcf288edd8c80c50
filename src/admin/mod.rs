//! What an operator asks the running process: readiness, metrics, the admin API.

pub mod api;
pub mod dump;

pub use api::{Admin, admin_router, readiness_router, stats_router};
