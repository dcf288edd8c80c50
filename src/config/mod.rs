//! Settings and files → typed values.

pub mod cluster;
pub mod env;
pub mod meshfile;
pub mod settings;
pub mod watch;

pub use env::Env;
pub use settings::Settings;
