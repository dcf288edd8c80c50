//! The service accounts whose pods are the proxies of their nodes.

use std::collections::BTreeSet;
use std::str::FromStr;

use crate::base::{Error, Result, Str, code};
use crate::control::index::Account;

/// A set of accounts, as `namespace/name,namespace/name`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Accounts(BTreeSet<Account>);

impl Accounts {
    /// Whether that account is one of them.
    pub fn contains(&self, namespace: &str, name: &str) -> bool {
        self.0.contains(&(namespace.into(), name.into()))
    }
}

impl FromStr for Accounts {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let account = |entry: &str| match entry.split_once('/') {
            Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() && !name.contains('/') => {
                Ok((Str::from(namespace), Str::from(name)))
            }
            _ => Err(Error::new(&code::BAD_SETTING, format!("node account {entry:?}: the form is namespace/service-account"))),
        };
        text.split(',').map(str::trim).filter(|entry| !entry.is_empty()).map(account).collect::<Result<_>>().map(Self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_of_accounts() {
        let accounts: Accounts = "warren-system/warren-proxy, istio-system/ztunnel,".parse().unwrap();
        assert!(accounts.contains("warren-system", "warren-proxy") && accounts.contains("istio-system", "ztunnel"));
        assert!(!accounts.contains("istio-system", "warren-proxy") && !accounts.contains("", ""));
        assert_eq!("".parse::<Accounts>().unwrap(), Accounts::default());
        for wrong in ["ztunnel", "a/", "/b", "a/b/c", "a/b,c"] {
            assert_eq!(wrong.parse::<Accounts>().unwrap_err().code(), &code::BAD_SETTING, "{wrong}");
        }
    }
}
