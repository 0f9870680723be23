//! How far the facts of the cluster can be relied on, as shown.

use std::time::SystemTime;

use serde::Serialize;

use super::model::time_of_day;
use crate::kube::{ClusterFacts, Resource, State};

/// The cluster as shown.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct ClusterView {
    /// `connecting`, `none`, `unusable`, or the worst state of what is needed: `waiting`, `fresh`,
    /// `stale`, `unavailable`.
    pub state: &'static str,
    /// Address of the API server.
    pub server: Option<String>,
    /// Its version.
    pub version: Option<String>,
    /// This node's name.
    pub node: Option<String>,
    /// Why there are no facts at all.
    pub why: Option<String>,
    /// Each kind of object.
    pub facts: Vec<KindView>,
}

/// One kind of object as shown.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct KindView {
    /// The kind.
    pub kind: &'static str,
    /// `waiting`, `fresh`, `stale` or `unavailable`.
    pub state: &'static str,
    /// Number of objects.
    pub count: usize,
    /// Time of day of the last complete list, UTC.
    pub listed: Option<String>,
    /// Since when they are not fresh, UTC.
    pub since: Option<String>,
    /// For how many seconds they have not been fresh; none when they were never complete.
    pub stale_seconds: Option<u64>,
    /// Why they are not fresh.
    pub why: Option<String>,
}

impl From<&State> for ClusterView {
    fn from(state: &State) -> Self {
        let none = |state, why| Self {
            state,
            server: None,
            version: None,
            node: None,
            why,
            facts: Vec::new(),
        };
        match state {
            State::Starting => none("connecting", None),
            State::NotConfigured => none("none", None),
            State::Unusable(why) => none("unusable", Some(why.clone())),
            State::Facts(facts) => of_facts(facts),
        }
    }
}

fn of_facts(facts: &ClusterFacts) -> ClusterView {
    let kinds: Vec<_> = Resource::ALL
        .into_iter()
        .map(|kind| kind_view(facts, kind))
        .collect();
    let worst = ["unavailable", "stale", "waiting"]
        .into_iter()
        .find(|state| kinds.iter().any(|kind| kind.state == *state));
    ClusterView {
        state: worst.unwrap_or("fresh"),
        server: Some(facts.server.clone()),
        version: facts.version.clone(),
        node: facts.this_node.as_deref().map(str::to_owned),
        why: facts.trouble().map(|trouble| trouble.why.clone()),
        facts: kinds,
    }
}

fn kind_view(facts: &ClusterFacts, kind: Resource) -> KindView {
    let freshness = facts.freshness(kind);
    let trouble = freshness.trouble();
    KindView {
        kind: kind.name(),
        state: freshness.name(),
        count: facts.count(kind),
        listed: facts.listed(kind).map(seconds),
        since: trouble.map(|trouble| seconds(trouble.since)),
        stale_seconds: facts
            .stale_for(kind, SystemTime::now())
            .map(|age| age.as_secs()),
        why: trouble.map(|trouble| trouble.why.clone()),
    }
}

/// Time of day without the fraction.
fn seconds(time: SystemTime) -> String {
    let mut text = time_of_day(time);
    text.truncate("00:00:00".len());
    text
}

impl ClusterView {
    /// Whether another view says the same but for numbers.
    pub fn says_the_same(&self, other: &Self) -> bool {
        let shape = |view: &Self| {
            let kinds: Vec<_> = view
                .facts
                .iter()
                .map(|kind| (kind.state, kind.since.clone()))
                .collect();
            (view.state, view.version.clone(), view.node.clone(), kinds)
        };
        shape(self) == shape(other)
    }

    /// Whether it is worth a line while tracing: something is complete, or something is wrong.
    pub fn settled(&self) -> bool {
        self.why.is_some() || !matches!(self.state, "connecting" | "waiting")
    }

    /// In words, for a person.
    pub fn words(&self) -> String {
        let Some(server) = &self.server else {
            return match (&self.why, self.state) {
                (Some(why), _) => format!("Kubernetes: cannot be used: {why}"),
                (None, "connecting") => "Kubernetes: connecting".into(),
                (None, _) => {
                    "Kubernetes: no (neither --kubeconfig, KUBECONFIG nor a service account)".into()
                }
            };
        };
        let mut parts = vec![format!("Kubernetes: {server}")];
        parts.extend(self.version.clone());
        parts.extend(self.node.as_ref().map(|node| format!("node {node}")));
        let counts: Vec<_> = self
            .facts
            .iter()
            .filter(|kind| kind.listed.is_some())
            .map(|kind| format!("{} {}", kind.count, kind.kind))
            .collect();
        if !counts.is_empty() {
            parts.push(counts.join(", "));
        }
        let mut text = parts.join(" · ");
        // A trouble that kinds share is said once.
        let mut said: Vec<(String, Vec<&str>)> = Vec::new();
        for kind in &self.facts {
            let Some(why) = &kind.why else { continue };
            let since = kind.since.as_deref().unwrap_or_default();
            let age = kind
                .stale_seconds
                .map_or_else(String::new, |age| format!(" ({age} s ago)"));
            let trouble = format!("{} since {since}{age}: {why}", kind.state);
            match said.iter_mut().find(|(known, _)| *known == trouble) {
                Some((_, kinds)) => kinds.push(kind.kind),
                None => said.push((trouble, vec![kind.kind])),
            }
        }
        for (trouble, kinds) in said {
            text += &format!("\n  {} {trouble}", kinds.join(", "));
        }
        text
    }
}
