//! One discovery stream without its transport: requests and states of the mesh in, responses out.

use std::collections::BTreeSet;
use std::sync::Arc;

use prost_types::Any;

use super::subscription::{Answer, Subscription};
use crate::base::{Result, Str};
use crate::control::index::{Delta, Index, Type};
use crate::wire::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Resource};

/// Types that are not served and were asked for; more than this are ignored.
const MAX_UNKNOWN_TYPES: usize = 16;

/// One client's stream.
///
/// [`Session::request`] for each message of the client, [`Session::advance`] whenever the mesh has changed and the
/// client can take more; the responses are sent in order. States that were skipped are merged, so a client that is
/// slow costs no memory.
#[derive(Debug)]
pub struct Session {
    node: Str,
    address: Option<Subscription>,
    authorization: Option<Subscription>,
    unknown_types: BTreeSet<String>,
    responses: u64,
    nacks: u64,
}

impl Session {
    /// A stream of the proxy of that node.
    pub fn new(node: Str) -> Self {
        Self { node, address: None, authorization: None, unknown_types: BTreeSet::new(), responses: 0, nacks: 0 }
    }

    /// Rejections so far.
    pub fn nacks(&self) -> u64 {
        self.nacks
    }

    /// Takes one message; returns what answers it.
    ///
    /// # Errors
    /// The client asks for more than a stream may hold; the stream ends.
    pub fn request(&mut self, request: &DeltaDiscoveryRequest, index: &Arc<Index>) -> Result<Option<DeltaDiscoveryResponse>> {
        let Some(of) = Type::from_url(&request.type_url) else { return Ok(self.unknown_type(request, index)) };
        if !request.response_nonce.is_empty() {
            self.outcome(of, request);
        }
        let names = (request.resource_names_subscribe.as_slice(), request.resource_names_unsubscribe.as_slice());
        let answer = match self.slot(of) {
            Some(subscription) => subscription.change(names.0, names.1, index)?,
            None => {
                let node = self.node.clone();
                let (subscription, answer) = Subscription::open(of, names, &request.initial_resource_versions, &node, index)?;
                *self.slot(of) = Some(subscription);
                // Also when it is empty: the client waits for it to know that it is up to date.
                Some(answer)
            }
        };
        Ok(answer.map(|answer| self.respond(of, answer, index)))
    }

    /// What has to be sent because the mesh has changed; at most three messages.
    ///
    /// New policies go before the workloads that name them, and policies that are gone after the workloads that no
    /// longer name them, so that no workload is ever without a policy that is meant to protect it.
    pub fn advance(&mut self, index: &Arc<Index>) -> Vec<DeltaDiscoveryResponse> {
        let node = self.node.clone();
        let mut policies = self.authorization.as_mut().map(|subscription| subscription.refresh(&node, index)).unwrap_or_default();
        let addresses = self.address.as_mut().map(|subscription| subscription.refresh(&node, index)).unwrap_or_default();
        let mut last = Answer::default();
        if !addresses.delta.is_empty() {
            last = Answer { delta: Delta { changed: Vec::new(), removed: std::mem::take(&mut policies.delta.removed) }, ..last };
        }
        let answers = [(Type::Authorization, policies), (Type::Address, addresses), (Type::Authorization, last)];
        let answers = answers.into_iter().filter(|(_, answer)| !answer.delta.is_empty());
        answers.map(|(of, answer)| self.respond(of, answer, index)).collect()
    }

    /// Acceptance needs nothing. What was rejected is not sent again until it changes.
    fn outcome(&mut self, of: Type, request: &DeltaDiscoveryRequest) {
        let is_known = self.slot(of).as_mut().is_some_and(|subscription| subscription.answered(&request.response_nonce));
        match &request.error_detail {
            _ if !is_known => tracing::debug!(node = %self.node, ?of, nonce = request.response_nonce, "a stale nonce is ignored"),
            None => {}
            Some(detail) => {
                self.nacks += 1;
                tracing::warn!(node = %self.node, ?of, code = detail.code, reason = %printable(&detail.message), "the proxy rejected a response (W4003)");
            }
        }
    }

    fn unknown_type(&mut self, request: &DeltaDiscoveryRequest, index: &Index) -> Option<DeltaDiscoveryResponse> {
        let is_news = request.response_nonce.is_empty()
            && self.unknown_types.len() < MAX_UNKNOWN_TYPES
            && self.unknown_types.insert(request.type_url.clone());
        is_news.then(|| {
            tracing::info!(node = %self.node, type_url = %printable(&request.type_url), "a type that is not served is answered empty");
            self.responses += 1;
            DeltaDiscoveryResponse {
                system_version_info: index.generation().to_string(),
                type_url: request.type_url.clone(),
                nonce: self.responses.to_string(),
                ..DeltaDiscoveryResponse::default()
            }
        })
    }

    fn respond(&mut self, of: Type, answer: Answer, index: &Index) -> DeltaDiscoveryResponse {
        self.responses += 1;
        let nonce = format!("{}-{}", index.generation(), self.responses);
        if let Some(subscription) = self.slot(of) {
            subscription.sent(nonce.clone());
        }
        let aliases = |names: &[Str]| match answer.with_aliases {
            true => names.iter().map(|name| name.to_string()).collect(),
            false => Vec::new(),
        };
        let resource = |resource: &Arc<crate::control::index::Resource>| Resource {
            name: resource.name.to_string(),
            version: resource.version.to_string(),
            aliases: aliases(&resource.aliases),
            resource: Some(Any { type_url: of.url().to_owned(), value: resource.body.to_vec() }),
        };
        DeltaDiscoveryResponse {
            system_version_info: index.generation().to_string(),
            type_url: of.url().to_owned(),
            nonce,
            resources: answer.delta.changed.iter().map(resource).collect(),
            removed_resources: answer.delta.removed.iter().map(|name| name.to_string()).collect(),
        }
    }

    fn slot(&mut self, of: Type) -> &mut Option<Subscription> {
        match of {
            Type::Address => &mut self.address,
            Type::Authorization => &mut self.authorization,
        }
    }
}

/// A client's text, fit for one log line.
fn printable(text: &str) -> String {
    text.chars().filter(|char| !char.is_control()).take(1024).collect()
}
