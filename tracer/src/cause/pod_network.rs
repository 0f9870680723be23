//! What the causes about pods' networks share: which ranges this node's pods get their addresses of, and
//! who says so; which devices lead to them, and what a rule that names devices and ranges is about.

use std::net::IpAddr;

use super::audit::pod_links;
use super::evidence::Evidence;
use super::site::Site;
use crate::node::netfilter::{Rule, Subject, Test};
use crate::node::{Link, Prefix};

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

/// A node's devices, as rules for forwarded packets name them.
pub(super) struct PodDevices<'a> {
    /// Those that packets of pods come in and go out by. Empty where no pod is known.
    pods: Vec<&'a Link>,
    /// These, and those of everybody whom pods may talk with: all but other containers' bridges.
    all: Vec<&'a Link>,
    /// Ranges of the pods.
    ranges: Vec<Prefix>,
}

impl<'a> PodDevices<'a> {
    pub(super) fn of(evidence: &Evidence<'a>, site: &Site<'a>) -> Self {
        let bridge = |link: &Link| link.master.and_then(|index| site.link(index));
        let (known, unknown): (Vec<&Link>, Vec<&Link>) = pod_links(site)
            .filter(|link| bridge(link).is_none_or(|bridge| bridge.name != DOCKER_BRIDGE))
            .partition(|link| {
                let peer = link.peer_netns.and_then(|peer| evidence.site(peer));
                peer.is_some_and(|peer| peer.facts.is_pod)
            });
        // Where no namespace is known as a pod's, each may be one.
        let mut pods = if known.is_empty() { unknown } else { known };
        let mut bridges: Vec<&Link> = pods.iter().filter_map(|link| bridge(link)).collect();
        bridges.sort_unstable_by_key(|link| link.index);
        bridges.dedup_by_key(|link| link.index);
        pods.extend(bridges);
        let is_pods = |link: &Link| pods.iter().any(|own| own.index == link.index);
        let leads_out = |link: &Link| {
            let mut routes = site.facts.routes.iter();
            routes.any(|route| route.link == Some(link.index) && route.gateway.is_some())
        };
        let of_others = |link: &Link| {
            link.kind.as_deref() == Some("bridge") && !is_pods(link) && !leads_out(link)
        };
        let all = (site.facts.links.iter())
            .filter(|link| !of_others(link) && !bridge(link).is_some_and(of_others))
            .collect();
        let own = site.facts.addresses.iter().filter(|entry| {
            let mut pods = pods.iter();
            pods.any(|link| link.index == entry.link)
        });
        let ranges = pod_ranges(evidence)
            .iter()
            .flat_map(|said| said.ranges.iter().copied())
            .chain(own.map(|entry| Prefix {
                address: entry.address,
                length: entry.prefix_length,
            }))
            .collect();
        Self { pods, all, ranges }
    }

    /// Whether a rule's tests on devices and addresses can hold for packets between pods and anybody. What
    /// cannot be told holds.
    pub(super) fn may_pass(&self, rule: &Rule) -> bool {
        let any = |devices: &[&Link], incoming| {
            let held = |link: &&Link| rule.tests.iter().all(|test| holds(test, link, incoming));
            devices.iter().any(held)
        };
        let of_pods = |incoming| {
            rule.tests
                .iter()
                .all(|test| self.may_be_pod(test, incoming))
        };
        let leaving = any(&self.pods, true) && of_pods(true) && any(&self.all, false);
        let arriving = any(&self.pods, false) && of_pods(false) && any(&self.all, true);
        self.pods.is_empty() || leaving || arriving
    }

    /// Whether a test on the source or the destination can hold for a pod's address.
    fn may_be_pod(&self, test: &Test, source: bool) -> bool {
        let range = match (&test.on, source) {
            (&Subject::Source(address, length), true)
            | (&Subject::Destination(address, length), false) => Prefix { address, length },
            _ => return true,
        };
        let same = |known: &&Prefix| known.address.is_ipv4() == range.address.is_ipv4();
        let mut known = self.ranges.iter().filter(same).peekable();
        test.negated || known.peek().is_none() || known.any(|&known| overlap(known, range))
    }
}

/// Whether a test on the device that packets come in or go out by holds for one.
fn holds(test: &Test, link: &Link, incoming: bool) -> bool {
    let named = match (&test.on, incoming) {
        (Subject::In(name, true), true) | (Subject::Out(name, true), false) => {
            link.name.starts_with(name.as_str())
        }
        (Subject::In(name, false), true) | (Subject::Out(name, false), false) => link.name == *name,
        (&Subject::InIndex(index), true) | (&Subject::OutIndex(index), false) => {
            link.index == index
        }
        _ => return true,
    };
    named != test.negated
}
