//! Settings and files → typed values.

pub mod meshfile;
