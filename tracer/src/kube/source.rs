//! Which kinds of object the facts are made of, and how fresh each is.

use std::collections::BTreeMap;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use super::ObjectName;

/// A kind of object that is watched.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Resource {
    /// Services.
    Services,
    /// EndpointSlices, or Endpoints where the server has no slices.
    Endpoints,
    /// Pods of this node.
    Pods,
    /// Nodes.
    Nodes,
    /// NetworkPolicies.
    NetworkPolicies,
    /// The ConfigMap kube-system/kube-proxy.
    ProxyConfiguration,
}

impl Resource {
    /// Every kind, in the order of its number.
    pub const ALL: [Self; 6] = [
        Self::Services,
        Self::Endpoints,
        Self::Pods,
        Self::Nodes,
        Self::NetworkPolicies,
        Self::ProxyConfiguration,
    ];

    /// For people.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Services => "services",
            Self::Endpoints => "endpoints",
            Self::Pods => "pods of this node",
            Self::Nodes => "nodes",
            Self::NetworkPolicies => "network policies",
            Self::ProxyConfiguration => "kube-proxy's configuration",
        }
    }
}

/// What is wrong, and since when.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Trouble {
    /// Since when.
    pub since: SystemTime,
    /// In words.
    pub why: String,
}

/// How far facts can be relied on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Freshness<'a> {
    /// Being read for the first time.
    Waiting,
    /// Complete, and changes arrive.
    Fresh,
    /// Complete once; changes since then are not known.
    Stale(&'a Trouble),
    /// Never read.
    Unavailable(&'a Trouble),
}

impl<'a> Freshness<'a> {
    /// One word.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Fresh => "fresh",
            Self::Stale(_) => "stale",
            Self::Unavailable(_) => "unavailable",
        }
    }

    /// What is wrong, if anything is.
    pub const fn trouble(&self) -> Option<&'a Trouble> {
        match self {
            Self::Stale(trouble) | Self::Unavailable(trouble) => Some(trouble),
            Self::Waiting | Self::Fresh => None,
        }
    }
}

/// State of one kind of object.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub(super) struct Source {
    /// When its list was last complete.
    pub(super) listed: Option<SystemTime>,
    /// What is wrong now.
    pub(super) trouble: Option<Trouble>,
    /// Objects that cannot be read as they are now, and why; a capture stores the trouble only.
    #[serde(skip)]
    pub(super) damaged: BTreeMap<ObjectName, String>,
}

impl Source {
    /// How far it can be relied on, given what is wrong with the server as a whole.
    pub(super) fn freshness<'a>(&'a self, server: Option<&'a Trouble>) -> Freshness<'a> {
        match (self.listed, self.trouble.as_ref().or(server)) {
            (None, None) => Freshness::Waiting,
            (None, Some(trouble)) => Freshness::Unavailable(trouble),
            (Some(_), None) => Freshness::Fresh,
            (Some(_), Some(trouble)) => Freshness::Stale(trouble),
        }
    }

    pub(super) fn fail(&mut self, why: String) {
        fail(&mut self.trouble, why);
    }

    /// The server says everything; what cannot be read is what is wrong then.
    pub(super) fn arriving(&mut self) {
        match self.damaged.values().next() {
            Some(why) => fail(&mut self.trouble, why.clone()),
            None => self.trouble = None,
        }
    }
}

/// Notes a trouble; one that goes on keeps its beginning.
pub(super) fn fail(trouble: &mut Option<Trouble>, why: String) {
    let since = trouble
        .as_ref()
        .map_or_else(SystemTime::now, |before| before.since);
    *trouble = Some(Trouble { since, why });
}
