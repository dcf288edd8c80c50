//! Small values that every room may use: error codes, addresses, deadlines, the drain signal.

pub mod addr;
pub mod code;
pub mod deadline;
pub mod drain;
mod error;

pub use code::Code;
pub use deadline::deadline;
pub use error::{Error, Result};

/// A string that is shared, never changed.
pub type Str = std::sync::Arc<str>;
