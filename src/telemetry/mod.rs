//! What the process says about itself: log lines and metrics. Used by every room, uses only `base`.

pub mod log;
pub mod metrics;
pub mod process;
pub mod ready;
pub mod tcp;

pub use metrics::Metrics;
pub use ready::Readiness;
