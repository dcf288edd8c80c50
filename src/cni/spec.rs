//! The part of the CNI specification that a chained plugin meets: its configuration, the environment, versions, errors.

use std::borrow::Cow;
use std::net::IpAddr;
use std::path::PathBuf;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::base::{Error, Result, code};

/// Versions of the specification that are spoken, oldest first. Chained plugins came with 0.3.0.
pub const VERSIONS: &[&str] = &["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];

/// More addresses than any pod has.
const MAX_IPS: usize = 16;

/// Error numbers of the specification; those from 100 on are the plugin's own.
pub mod number {
    /// The configuration's version is not spoken.
    pub const VERSION: u32 = 1;
    /// A variable of the environment is missing or unusable.
    pub const ENVIRONMENT: u32 = 4;
    /// Reading failed.
    pub const IO: u32 = 5;
    /// What was read is not what it should be.
    pub const DECODE: u32 = 6;
    /// The configuration cannot be used.
    pub const CONFIGURATION: u32 = 7;
    /// The same call may succeed later.
    pub const LATER: u32 = 11;
    /// The agent will not have the pod started.
    pub const REFUSED: u32 = 100;
}

/// What the runtime writes to the plugin's standard input.
#[derive(Debug, Deserialize)]
pub struct Config<'a> {
    /// Which version of the specification the runtime speaks.
    #[serde(rename = "cniVersion", borrow, default)]
    pub version: Cow<'a, str>,
    /// The agent's socket.
    #[serde(default = "default_socket")]
    pub socket: PathBuf,
    /// Namespaces whose pods are never in the mesh: nobody is asked about them.
    #[serde(rename = "excludeNamespaces", borrow, default)]
    pub exclude: Vec<Cow<'a, str>>,
    /// What the plugins before this one did, as they wrote it.
    #[serde(rename = "prevResult", borrow, default)]
    pub previous: Option<&'a RawValue>,
}

/// The plugin's entry in the configuration of a network.
#[derive(Debug, Serialize)]
pub struct Entry<'a> {
    /// [`NAME`](super::NAME)
    #[serde(rename = "type")]
    pub kind: &'a str,
    /// See [`Config::socket`].
    pub socket: &'a str,
    /// See [`Config::exclude`].
    #[serde(rename = "excludeNamespaces")]
    pub exclude: &'a [String],
}

/// The pod that the call is about, from CNI_ARGS.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodArgs {
    /// K8S_POD_NAMESPACE
    pub namespace: String,
    /// K8S_POD_NAME
    pub name: String,
    /// K8S_POD_UID
    pub uid: String,
}

/// A call that failed, as the specification has it told.
#[derive(Debug, Serialize)]
pub struct Failure<'a> {
    /// The version of the caller's configuration.
    #[serde(rename = "cniVersion")]
    pub version: &'a str,
    /// One of [`number`].
    pub code: u32,
    /// What happened, with Warren's own code.
    pub msg: String,
    /// What to do.
    pub details: &'a str,
}

/// The answer to VERSION.
#[derive(Debug, Serialize)]
pub struct Supported<'a> {
    /// The version of the caller's configuration.
    #[serde(rename = "cniVersion")]
    pub version: &'a str,
    /// [`VERSIONS`]
    #[serde(rename = "supportedVersions")]
    pub supported: &'static [&'static str],
}

impl<'a> Config<'a> {
    /// Understands what the runtime wrote.
    ///
    /// # Errors
    /// CNI_CALL: it is no JSON, or no such object.
    pub fn parse(text: &'a [u8]) -> Result<Self> {
        serde_json::from_slice(text).map_err(|error| Error::caused(&code::CNI_CALL, "the configuration on standard input", error))
    }

    /// The addresses that the plugins before this one gave to the pod.
    ///
    /// # Errors
    /// CNI_CALL: there is no earlier result, it cannot be understood, or it holds too many addresses.
    pub fn ips(&self) -> Result<Vec<IpAddr>> {
        #[derive(Deserialize)]
        struct Previous {
            #[serde(default)]
            ips: Vec<Ip>,
        }
        #[derive(Deserialize)]
        struct Ip {
            address: IpNet,
        }
        let Some(previous) = self.previous else {
            return Err(Error::new(&code::CNI_CALL, "no prevResult: this plugin must come after the one that makes the network"));
        };
        let previous: Previous =
            serde_json::from_str(previous.get()).map_err(|error| Error::caused(&code::CNI_CALL, "prevResult", error))?;
        if previous.ips.len() > MAX_IPS {
            return Err(Error::new(&code::CNI_CALL, format!("prevResult has {} addresses, more than {MAX_IPS}", previous.ips.len())));
        }
        Ok(previous.ips.iter().map(|ip| ip.address.addr()).collect())
    }
}

impl PodArgs {
    /// Takes the pod out of `KEY=VALUE;KEY=VALUE`; `None` when the caller is not the kubelet's runtime.
    pub fn parse(args: &str) -> Option<Self> {
        let mut pod = Self::default();
        for (key, value) in args.split(';').filter_map(|pair| pair.split_once('=')) {
            let field = match key {
                "K8S_POD_NAMESPACE" => &mut pod.namespace,
                "K8S_POD_NAME" => &mut pod.name,
                "K8S_POD_UID" => &mut pod.uid,
                _ => continue,
            };
            value.clone_into(field);
        }
        (!pod.namespace.is_empty()).then_some(pod)
    }
}

fn default_socket() -> PathBuf {
    super::SOCKET.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configuration_of_a_runtime() {
        let text = br#"{"cniVersion":"1.1.0","name":"pods","type":"warren","socket":"/run/x","excludeNamespaces":["kube-system"],
            "runtimeConfig":{"a":1},"prevResult":{ "cniVersion":"1.1.0","ips":[{"address":"10.1.0.7/24","interface":2},{"address":"fd00::7/64"}]}}"#;
        let config = Config::parse(text).expect("understood");
        assert_eq!((&*config.version, config.socket.to_str()), ("1.1.0", Some("/run/x")));
        assert_eq!(config.exclude, ["kube-system"]);
        let ips: Vec<IpAddr> = ["10.1.0.7", "fd00::7"].iter().map(|ip| ip.parse().expect("an address")).collect();
        assert_eq!(config.ips().expect("addresses"), ips);
        assert!(config.previous.expect("there").get().starts_with("{ \"cniVersion\""), "kept as it was written");
    }

    #[test]
    fn what_is_missing_has_a_meaning_or_is_an_error() {
        let config = Config::parse(b"{}").expect("understood");
        assert_eq!((config.socket.to_str(), config.exclude.len()), (Some(super::super::SOCKET), 0));
        assert_eq!(config.ips().expect_err("first in the chain").code().id, "W9003");
        let null = Config::parse(br#"{"prevResult":null}"#).expect("understood");
        assert!(null.ips().is_err());
        let nonsense = Config::parse(br#"{"prevResult":{"ips":[{"address":"here"}]}}"#).expect("understood");
        assert!(nonsense.ips().is_err());
        for broken in [&b""[..], b"{", b"[1]", b"{\"cniVersion\":1}", &[0xff]] {
            assert!(Config::parse(broken).is_err(), "{}", String::from_utf8_lossy(broken));
        }
    }

    #[test]
    fn the_pod_is_found_among_the_arguments() {
        let args = "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-1;K8S_POD_INFRA_CONTAINER_ID=c;K8S_POD_UID=u-1";
        let pod = PodArgs { namespace: "shop".into(), name: "web-1".into(), uid: "u-1".into() };
        assert_eq!(PodArgs::parse(args), Some(pod));
        assert_eq!(PodArgs::parse("IgnoreUnknown=1"), None);
        assert_eq!(PodArgs::parse(""), None);
    }
}
