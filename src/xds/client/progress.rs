//! How far the mesh is in step with the control plane, for readiness.

use crate::base::Error;

use super::ResourceKind;

/// How far the mesh is in step with the control plane.
#[derive(Clone, Debug, Default)]
pub struct Progress {
    /// Whether a stream is open and has answered.
    pub connected: bool,
    /// Whether addresses have been received once, on this or an earlier stream.
    pub addresses: bool,
    /// Whether policies have been received once, on this or an earlier stream.
    pub authorizations: bool,
    /// How many attempts to open a stream there were.
    pub attempts: u64,
    /// What ended the last stream or attempt.
    pub last_error: Option<Error>,
}

impl Progress {
    /// Whether everything has been received once. It stays so when the stream ends: what was received is in force.
    pub fn synced(&self) -> bool {
        self.addresses && self.authorizations
    }

    /// What is missing from the control plane at `address`, and why, in words.
    pub fn waiting_for(&self, address: &str) -> Option<String> {
        let what = match (self.addresses, self.authorizations) {
            (true, true) => return None,
            (false, true) => "addresses",
            (true, false) => "policies",
            (false, false) => "addresses and policies",
        };
        Some(match &self.last_error {
            Some(error) if !self.connected => format!("{what} from the control plane at {address}: {error}"),
            _ => format!("{what} from the control plane at {address}"),
        })
    }

    pub(super) fn connecting(&mut self) {
        self.attempts += 1;
    }

    pub(super) fn received(&mut self, kind: ResourceKind) {
        self.connected = true;
        match kind {
            ResourceKind::Address => self.addresses = true,
            ResourceKind::Authorization => self.authorizations = true,
        }
    }

    pub(super) fn disconnected(&mut self, error: Option<Error>) {
        self.connected = false;
        if error.is_some() {
            self.last_error = error;
        }
    }
}
