//! Delta discovery: what each client asked for, what it holds, and what it is sent.

#[cfg(test)]
mod recorded;
mod serve;
mod session;
mod subscription;
#[cfg(test)]
mod tests;

pub use serve::{Ads, Counters};
pub use session::Session;
