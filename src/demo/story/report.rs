//! What the demo found, for people and for programs.

use std::fmt::Write;

use serde::{Deserialize, Serialize};

use super::table::Table;
use crate::base::{Error, code};
use crate::demo::capture::Counters;

/// The one JSON object of `warren demo --json`. A part that was not reached is missing: it says nothing, not zero.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Report {
    /// Every claim holds.
    pub ok: bool,
    /// Why not.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub error: Option<String>,
    /// How long it took.
    pub seconds: f64,
    /// On the wire before enrolment, while the client talked to the server.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub before: Option<Counters>,
    /// On the wire while enrolled, while the same was said.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub enrolled: Option<Counters>,
    /// On the wire after enrolment.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub after: Option<Counters>,
    /// Who talked to whom, from the certificates of the tunnel.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub identities: Option<Identities>,
    /// The policy that denies one client.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub policy: Option<Policy>,
    /// The pod with a genuine certificate and somebody else's address.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub impostor: Option<Impostor>,
    /// From the change of the mesh file to the first connection through the mesh, milliseconds.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub enrolment_ms: Option<u64>,
    /// What was claimed and what was seen, in order.
    pub claims: Vec<Claim>,
    /// How fast it is.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub table: Option<Table>,
}

/// One thing that must be so.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claim {
    /// A sentence.
    pub claim: String,
    /// Whether it is so.
    pub holds: bool,
    /// What was seen.
    pub seen: String,
}

impl Claim {
    /// The error of a claim that does not hold.
    pub fn error(&self) -> Error {
        Error::new(&code::DEMO_CLAIM, format!("{}; seen: {}", self.claim, self.seen))
    }
}

/// SPIFFE identities of the tunnel's ends.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identities {
    /// Of the client.
    pub source: String,
    /// Of the server.
    pub destination: String,
}

/// A denial.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policy {
    /// The code in the access log of the server's proxy.
    pub code: String,
    /// Why, from there.
    pub reason: String,
    /// From the change of the mesh file to the first refusal, milliseconds.
    pub effective_ms: u64,
}

/// A refusal of a wrong identity.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Impostor {
    /// The code in the access log of the client's proxy.
    pub code: String,
    /// Whom it wanted and whom it got, from there.
    pub reason: String,
}

impl Report {
    /// Notes a claim and what was seen.
    pub fn claim(&mut self, claim: &str, holds: bool, seen: impl Into<String>) {
        self.claims.push(Claim { claim: claim.to_owned(), holds, seen: seen.into() });
    }

    /// For people.
    pub fn text(&self) -> String {
        let mut text = String::new();
        for claim in &self.claims {
            let verdict = if claim.holds { "holds" } else { "FAILS" };
            let _ = writeln!(text, "{verdict}  {}\n       {}", claim.claim, claim.seen);
        }
        if let Some(table) = &self.table {
            let _ = write!(text, "\n{}", table.text());
        }
        let _ = writeln!(text, "\n{} in {:.1} s", if self.ok { "every claim holds" } else { "not every claim holds" }, self.seconds);
        text
    }
}
