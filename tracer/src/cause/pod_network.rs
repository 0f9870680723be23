//! What the causes about pods' addresses share: which ranges this node's pods get their addresses of, and
//! who says so.

use std::net::IpAddr;

use super::evidence::Evidence;
use crate::node::Prefix;

/// Docker's own bridge.
pub(super) const DOCKER_BRIDGE: &str = "docker0";

/// Who says where this node's pods are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Teller {
    /// flanneld, in its subnet.env.
    Flannel,
    /// The Node object's podCIDRs.
    Node,
    /// The CNI configuration file that is used.
    File,
}

impl Teller {
    /// As evidence names it.
    pub(super) const fn source(self) -> &'static str {
        match self {
            Self::Flannel | Self::File => "cni",
            Self::Node => "node",
        }
    }
}

/// Ranges that one of them gives.
pub(super) struct PodRanges<'a> {
    pub(super) teller: Teller,
    /// Never empty.
    pub(super) ranges: &'a [Prefix],
    /// In words.
    pub(super) words: String,
}

/// All that is said of this node's pods, by those who give out ranges first.
pub(super) fn pod_ranges<'a>(evidence: &Evidence<'a>) -> Vec<PodRanges<'a>> {
    let cni = evidence.facts.cni.as_ref();
    let flannel = cni.map(|cni| {
        let given = words(&cni.flannel);
        let text = format!("flannel's subnet.env gives this node {given}");
        (Teller::Flannel, cni.flannel.as_slice(), text)
    });
    let node = evidence.cluster.and_then(|cluster| {
        let node = cluster.node(cluster.this_node.as_deref()?)?;
        let given = words(&node.pod_prefixes);
        let text = format!("podCIDRs of node {}: {given}", node.name.name);
        Some((Teller::Node, node.pod_prefixes.as_slice(), text))
    });
    let file = cni.map(|cni| {
        let text = format!("{} gives {}", cni.file.display(), words(&cni.subnets));
        (Teller::File, cni.subnets.as_slice(), text)
    });
    [flannel, node, file]
        .into_iter()
        .flatten()
        .filter(|(_, ranges, _)| !ranges.is_empty())
        .map(|(teller, ranges, words)| PodRanges {
            teller,
            ranges,
            words,
        })
        .collect()
}

/// Whether anybody gives this node's pods an address.
pub(super) fn gives(ranges: &[PodRanges<'_>], address: IpAddr) -> bool {
    let mut all = ranges.iter().flat_map(|said| said.ranges);
    all.any(|range| range.contains(address))
}

/// Ranges in words.
pub(super) fn words(ranges: &[Prefix]) -> String {
    let texts: Vec<String> = ranges.iter().map(ToString::to_string).collect();
    texts.join(", ")
}

/// Whether two ranges have addresses in common.
pub(super) fn overlap(one: Prefix, other: Prefix) -> bool {
    one.contains(other.address) && one.length <= other.length
        || other.contains(one.address) && other.length <= one.length
}
