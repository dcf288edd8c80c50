//! Whether a policy matches a connection.

use super::Connection;
use crate::mesh::{Match, Policy};

/// A connection in the form in which matches ask for it.
pub(super) struct Subject<'a> {
    connection: &'a Connection<'a>,
    principal: Option<String>,
}

impl<'a> Subject<'a> {
    pub(super) fn new(connection: &'a Connection<'a>) -> Self {
        let principal = connection.identity.map(|peer| format!("{}/ns/{}/sa/{}", peer.trust_domain, peer.namespace, peer.service_account));
        Self { connection, principal }
    }

    /// Any rule; in it all clauses; in each any match. A rule without clauses and a clause without matches match.
    pub(super) fn matches(&self, policy: &Policy) -> bool {
        policy.rules.iter().any(|rule| rule.iter().all(|clause| clause.is_empty() || clause.iter().any(|one| self.is(one))))
    }

    fn is(&self, one: &Match) -> bool {
        if one.is_empty() {
            return false;
        }
        let peer = self.connection.identity;
        let source = self.connection.source.ip();
        let destination = self.connection.destination.ip();
        let port = self.connection.destination.port();
        let namespace = peer.map_or("", |peer| peer.namespace);
        field(&one.namespaces, &one.not_namespaces, |value| value.matches(namespace))
            && field(&one.principals, &one.not_principals, |value| {
                self.principal.as_ref().is_some_and(|principal| value.matches(principal))
            })
            && field(&one.source_ips, &one.not_source_ips, |range| range.contains(&source))
            && field(&one.destination_ips, &one.not_destination_ips, |range| range.contains(&destination))
            && field(&one.destination_ports, &one.not_destination_ports, |value| *value == port)
            && field(&one.service_accounts, &one.not_service_accounts, |value| {
                peer.is_some_and(|peer| *value.namespace == *peer.namespace && *value.service_account == *peer.service_account)
            })
    }
}

/// Any of the values, if there are any, and none of the negated ones.
fn field<T>(any: &[T], none: &[T], is: impl Fn(&T) -> bool) -> bool {
    (any.is_empty() || any.iter().any(&is)) && !none.iter().any(&is)
}
