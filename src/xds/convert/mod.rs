//! Wire messages to the mesh's types: defaults filled in, anything that cannot be understood refused with a reason.
//!
//! A refusal is for one resource. Numbers are never cut to fit and unknown values never taken for known ones, so that a
//! resource either means what the control plane meant or is not there.

mod address;
mod authorization;

#[cfg(test)]
mod tests;

pub use address::{Converted, address};
pub use authorization::{RefusedPolicy, policy};

/// Why a resource is refused, or one of its parts.
type Refusal = String;

/// A port of the wire; the wire has 32 bits for it.
fn port(of: &str, value: u32) -> Result<u16, Refusal> {
    u16::try_from(value).map_err(|_| format!("{of}: {value} is not a port"))
}

fn ip(of: &str, bytes: &[u8]) -> Result<std::net::IpAddr, Refusal> {
    crate::base::addr::ip_from_bytes(bytes).ok_or_else(|| format!("{of}: an address has 4 or 16 bytes, not {}", bytes.len()))
}

/// A value of an enumeration, if this version knows it.
fn known<T: TryFrom<i32>>(of: &str, value: i32) -> Result<T, Refusal> {
    T::try_from(value).map_err(|_| format!("{of}: unknown value {value}"))
}
