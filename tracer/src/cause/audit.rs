//! The audit: the causes' own predicates asked of the facts alone, without traffic.

use std::cmp::Reverse;

use super::evidence::Evidence;
use super::{CATALOGUE, Diagnosis, Site};
use crate::node::{Link, Scope};

/// How bad a finding is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Severity {
    /// It may stop packets under conditions that were not seen.
    Warning,
    /// It stops packets that a node is there for.
    Error,
}

impl Severity {
    /// In words.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Warning => "warning",
            Self::Error => "error",
        }
    }
}

/// Something wrong with the node.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// What it is, in the same form as a cause that was seen at work.
    pub diagnosis: Diagnosis,
}

impl Finding {
    pub(super) const fn error(diagnosis: Diagnosis) -> Self {
        Self {
            severity: Severity::Error,
            diagnosis,
        }
    }

    pub(super) const fn warning(diagnosis: Diagnosis) -> Self {
        Self {
            severity: Severity::Warning,
            diagnosis,
        }
    }
}

/// Asks every cause what the facts alone say; the worst first, then the surest.
pub fn audit(evidence: &Evidence<'_>) -> Vec<Finding> {
    let mut found: Vec<_> = CATALOGUE
        .iter()
        .flat_map(|cause| (cause.audit)(evidence))
        .collect();
    found.sort_by_key(|finding| Reverse((finding.severity, finding.diagnosis.certainty)));
    found
}

/// For causes that only packets show.
pub(super) fn nothing(_: &Evidence<'_>) -> Vec<Finding> {
    Vec::new()
}

/// Devices that lead to pods: veth devices whose other end is in another namespace.
pub(super) fn pod_links<'a>(site: &Site<'a>) -> impl Iterator<Item = &'a Link> {
    let own = site.facts.id;
    site.facts.links.iter().filter(move |link| {
        link.kind.as_deref() == Some("veth") && link.peer_netns.is_some_and(|peer| peer != own)
    })
}

/// A namespace that routes for others: a node, not a pod. It has IPVS services, a kube-proxy, or an address on a bridge
/// with ways to pods; a bridge without one only switches.
pub(super) fn is_node(evidence: &Evidence<'_>, site: &Site<'_>) -> bool {
    let serves = site
        .facts
        .ipvs
        .as_ref()
        .is_some_and(|table| !table.is_empty())
        || evidence
            .facts
            .kube_proxies_in(site.facts.id)
            .next()
            .is_some();
    let has_address = |bridge: u32| {
        let mut own = site.facts.addresses.iter();
        own.any(|own| own.link == bridge && own.scope == Scope::Global)
    };
    let bridged = pod_links(site).any(|link| link.master.is_some_and(has_address));
    serves || bridged
}
