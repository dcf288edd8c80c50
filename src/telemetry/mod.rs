//! What the process says about itself: log lines, metrics, and the server that hands such pages out. Used by every room,
//! uses only `base`.

pub mod http;
pub mod log;
pub mod metrics;
pub mod process;
pub mod rate;
pub mod ready;
pub mod tcp;

pub use metrics::Metrics;
pub use ready::Readiness;
