//! Rules → clauses and matches.

use std::net::IpAddr;

use super::spec::{Condition, Operation, Rule, Source};
use crate::base::addr::ip_to_bytes;
use crate::wire::authorization::string_match::MatchType;
use crate::wire::authorization::{self as wire, Action, Address, Clause, Match, ServiceAccountMatch, StringMatch};

/// The rules of one policy so far.
pub(super) struct Rules<'a> {
    action: Action,
    namespace: &'a str,
    pub(super) done: Vec<wire::Rule>,
    /// HTTP attributes that were asked for.
    pub(super) http: Vec<String>,
}

impl<'a> Rules<'a> {
    pub(super) fn new(action: Action, namespace: &'a str) -> Self {
        Self { action, namespace, done: Vec::new(), http: Vec::new() }
    }

    /// One clause says where to, one where from, and each condition is one: all of them must match.
    pub(super) fn add(&mut self, rule: &Rule) -> Result<(), String> {
        let known = self.http.len();
        let mut clauses = Vec::new();
        let to = rule.to.iter().flatten().map(|to| self.operation(&to.operation)).collect::<Result<Vec<_>, _>>()?;
        let from = rule.from.iter().flatten().map(|from| self.source(&from.source)).collect::<Result<Vec<_>, _>>()?;
        clauses.extend([to, from].into_iter().filter(|matches| !matches.is_empty()));
        for condition in rule.when.iter().flatten() {
            clauses.push(vec![self.condition(condition)?]);
        }
        if self.http.len() > known && self.action == Action::Allow {
            return Ok(());
        }
        // What remains of a match of HTTP attributes alone matches every connection, and so does a clause it is in. (On
        // the wire a match without fields would match none.)
        let clauses = clauses.into_iter().filter(|matches| !matches.contains(&Match::default()));
        self.done.push(wire::Rule { clauses: clauses.map(|matches| Clause { matches }).collect() });
        Ok(())
    }

    fn operation(&mut self, operation: &Operation) -> Result<Match, String> {
        let http = [
            ("hosts", &operation.hosts),
            ("notHosts", &operation.not_hosts),
            ("methods", &operation.methods),
            ("notMethods", &operation.not_methods),
            ("paths", &operation.paths),
            ("notPaths", &operation.not_paths),
        ];
        let fields = Match {
            destination_ports: ports("ports", values(&operation.ports))?,
            not_destination_ports: ports("notPorts", values(&operation.not_ports))?,
            ..Match::default()
        };
        self.not_empty("operation", fields, &http)
    }

    fn source(&mut self, source: &Source) -> Result<Match, String> {
        let http = [
            ("requestPrincipals", &source.request_principals),
            ("notRequestPrincipals", &source.not_request_principals),
            ("remoteIpBlocks", &source.remote_ip_blocks),
            ("notRemoteIpBlocks", &source.not_remote_ip_blocks),
        ];
        let accounts = |field: &str, names: &[String]| accounts(field, names, self.namespace);
        let fields = Match {
            principals: strings(values(&source.principals)),
            not_principals: strings(values(&source.not_principals)),
            namespaces: strings(values(&source.namespaces)),
            not_namespaces: strings(values(&source.not_namespaces)),
            source_ips: networks("ipBlocks", values(&source.ip_blocks))?,
            not_source_ips: networks("notIpBlocks", values(&source.not_ip_blocks))?,
            service_accounts: accounts("serviceAccounts", values(&source.service_accounts))?,
            not_service_accounts: accounts("notServiceAccounts", values(&source.not_service_accounts))?,
            ..Match::default()
        };
        self.not_empty("source", fields, &http)
    }

    /// Notes the HTTP attributes that are there. Something must be: nobody means all by writing nothing.
    fn not_empty(&mut self, what: &str, fields: Match, http: &[(&str, &Option<Vec<String>>)]) -> Result<Match, String> {
        let known = self.http.len();
        for (name, _) in http.iter().filter(|(_, values)| values.as_ref().is_some_and(|values| !values.is_empty())) {
            self.http.push((*name).to_owned());
        }
        match fields == Match::default() && self.http.len() == known {
            true => Err(format!("the {what} is empty")),
            false => Ok(fields),
        }
    }

    fn condition(&mut self, condition: &Condition) -> Result<Match, String> {
        let (is, is_not) = (values(&condition.values), values(&condition.not_values));
        let key = condition.key.as_str();
        if is.is_empty() && is_not.is_empty() {
            return Err(format!("when {key:?}: values or notValues must be given"));
        }
        let none = Match::default();
        Ok(match key {
            "source.ip" => Match { source_ips: networks(key, is)?, not_source_ips: networks(key, is_not)?, ..none },
            "source.namespace" => Match { namespaces: strings(is), not_namespaces: strings(is_not), ..none },
            "source.principal" => Match { principals: strings(is), not_principals: strings(is_not), ..none },
            "destination.ip" => Match { destination_ips: networks(key, is)?, not_destination_ips: networks(key, is_not)?, ..none },
            "destination.port" => Match { destination_ports: ports(key, is)?, not_destination_ports: ports(key, is_not)?, ..none },
            other => {
                self.http.push(other.to_owned());
                none
            }
        })
    }
}

fn values(values: &Option<Vec<String>>) -> &[String] {
    values.as_deref().unwrap_or_default()
}

/// `*` is anything present, `a*` a prefix, `*a` a suffix.
pub(crate) fn strings(values: &[String]) -> Vec<StringMatch> {
    values.iter().map(|value| StringMatch { match_type: Some(string(value)) }).collect()
}

fn string(value: &str) -> MatchType {
    match (value, value.strip_prefix('*'), value.strip_suffix('*')) {
        ("*", ..) => MatchType::Presence(()),
        (_, Some(suffix), _) => MatchType::Suffix(suffix.to_owned()),
        (_, None, Some(prefix)) => MatchType::Prefix(prefix.to_owned()),
        _ => MatchType::Exact(value.to_owned()),
    }
}

fn ports(field: &str, values: &[String]) -> Result<Vec<u32>, String> {
    values.iter().map(|value| value.parse::<u16>().map(u32::from).map_err(|_| format!("{field}: {value:?} is no port"))).collect()
}

fn networks(field: &str, values: &[String]) -> Result<Vec<Address>, String> {
    values.iter().map(|value| network(value).ok_or_else(|| format!("{field}: {value:?} is no address or block of addresses"))).collect()
}

fn network(text: &str) -> Option<Address> {
    let (ip, length) = match text.split_once('/') {
        Some((ip, length)) => (ip.parse::<IpAddr>().ok()?, Some(length.parse::<u8>().ok()?)),
        None => (text.parse().ok()?, None),
    };
    let longest = if ip.is_ipv4() { 32 } else { 128 };
    let length = length.unwrap_or(longest);
    (length <= longest).then(|| Address { address: ip_to_bytes(ip), length: u32::from(length) })
}

/// `namespace/name`, or a name in the policy's own namespace.
fn accounts(field: &str, values: &[String], namespace: &str) -> Result<Vec<ServiceAccountMatch>, String> {
    let account = |value: &String| {
        let (namespace, name) = value.split_once('/').unwrap_or((namespace, value));
        match namespace.is_empty() || name.is_empty() || name.contains('/') || value.contains('*') {
            true => Err(format!("{field}: {value:?} is no service account")),
            false => Ok(ServiceAccountMatch { namespace: namespace.to_owned(), service_account: name.to_owned() }),
        }
    };
    values.iter().map(account).collect()
}
