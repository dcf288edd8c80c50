//! Names of things in a mesh of several networks, and their text forms `network/ip` and `namespace/hostname`.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use ipnet::IpNet;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::base::Str;

/// An IP and the network it has a meaning in; the network's name is often empty.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NetworkAddress {
    /// Name of the network.
    pub network: Str,
    /// The address.
    pub ip: IpAddr,
}

impl NetworkAddress {
    /// Of a network and an address; an IPv4-mapped address becomes IPv4.
    pub fn new(network: impl Into<Str>, ip: IpAddr) -> Self {
        Self { network: network.into(), ip: ip.to_canonical() }
    }
}

/// `network/ip`
impl fmt::Display for NetworkAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.network, self.ip)
    }
}

impl FromStr for NetworkAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (network, ip) = text.split_once('/').ok_or_else(|| format!("{text:?} is not of the form network/ip"))?;
        let ip: IpAddr = ip.parse().map_err(|_| format!("{ip:?} is not an IP address"))?;
        Ok(Self::new(network, ip))
    }
}

/// An address range and the network it has a meaning in.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetworkCidr {
    /// Name of the network.
    #[serde(default = "empty")]
    pub network: Str,
    /// The range; bits beyond the prefix are zero after [`NetworkCidr::new`].
    pub cidr: IpNet,
}

impl NetworkCidr {
    /// Of a network and a range.
    pub fn new(network: impl Into<Str>, cidr: IpNet) -> Self {
        Self { network: network.into(), cidr: cidr.trunc() }
    }
}

/// A host name and the namespace that says what it means.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NamespacedHostname {
    /// Namespace.
    pub namespace: Str,
    /// Host name.
    pub hostname: Str,
}

impl NamespacedHostname {
    /// Of its parts.
    pub fn new(namespace: impl Into<Str>, hostname: impl Into<Str>) -> Self {
        Self { namespace: namespace.into(), hostname: hostname.into() }
    }
}

/// `namespace/hostname`
impl fmt::Display for NamespacedHostname {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.hostname)
    }
}

impl FromStr for NamespacedHostname {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('/') {
            Some((namespace, hostname)) if !hostname.is_empty() && !hostname.contains('/') => Ok(Self::new(namespace, hostname)),
            _ => Err(format!("{text:?} is not of the form namespace/hostname")),
        }
    }
}

/// A waypoint or a network gateway: where it is, and its HBONE port.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct GatewayAddress {
    /// Where.
    pub destination: GatewayDestination,
    /// The port that takes HBONE.
    #[serde(default = "hbone_port")]
    pub hbone_mtls_port: u16,
}

impl fmt::Display for GatewayAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.destination, self.hbone_mtls_port)
    }
}

/// How a gateway is named.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum GatewayDestination {
    /// By address: a service's or a workload's.
    Address(NetworkAddress),
    /// By name: a service's or a workload's.
    Hostname(NamespacedHostname),
}

impl fmt::Display for GatewayDestination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            GatewayDestination::Address(address) => address.fmt(f),
            GatewayDestination::Hostname(hostname) => hostname.fmt(f),
        }
    }
}

impl FromStr for GatewayDestination {
    type Err = String;

    /// `network/ip` first: no host name looks like an IP.
    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(address) = text.parse() {
            return Ok(GatewayDestination::Address(address));
        }
        match text.parse() {
            Ok(hostname) => Ok(GatewayDestination::Hostname(hostname)),
            Err(_) => Err(format!("{text:?} is neither network/ip nor namespace/hostname")),
        }
    }
}

macro_rules! serde_as_text {
    ($($name:ty),*) => { $(
        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = String::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    )* };
}

serde_as_text!(NetworkAddress, NamespacedHostname, GatewayDestination);

fn empty() -> Str {
    Str::from("")
}

fn hbone_port() -> u16 {
    15008
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gateway_destination_is_an_address_if_it_can_be_one() {
        let cases = [
            ("net2/192.0.2.9", Ok("net2/192.0.2.9")),
            ("/fd00::1", Ok("/fd00::1")),
            ("/::ffff:10.0.0.1", Ok("/10.0.0.1")),
            ("shop/wp.shop.svc", Ok("shop/wp.shop.svc")),
            ("wp.shop.svc", Err(())),
            ("a/b/c", Err(())),
            ("a/", Err(())),
        ];
        for (text, expected) in cases {
            let parsed = text.parse::<GatewayDestination>();
            assert_eq!(parsed.as_ref().map(ToString::to_string).map_err(|_| ()), expected.map(str::to_owned), "{text}");
        }
    }
}
