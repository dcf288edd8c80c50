//! Delta discovery: what each client asked for, what it holds, and what it is sent.

mod serve;
mod session;
mod subscription;
#[cfg(test)]
mod recorded;
#[cfg(test)]
mod tests;

pub use serve::{Ads, Counters};
pub use session::Session;
