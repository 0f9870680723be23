//! What the causes about services share: the service that a packet was for, and its endpoints.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::evidence::{Evidence, Failure};
use super::filtered::Kind;
use super::{Diagnosis, Site};
use crate::event::{Packet, Transport, protocol};
use crate::flow::{Direction, Flow};
use crate::hook::Role;
use crate::journey::Journey;
use crate::kube::{ClusterFacts, Endpoint, Freshness, Resource, Service};
use crate::node::NetnsId;

/// A service that packets were for and that did not take them.
#[derive(Clone, Copy)]
pub(super) struct Target<'a> {
    pub(super) cluster: &'a ClusterFacts,
    pub(super) service: &'a Service,
    pub(super) protocol: u8,
    /// As the client used it.
    pub(super) address: SocketAddr,
}

/// Protocol, address and port that a client asked for; port 0 for ICMP.
pub(super) type Asked = (u8, SocketAddr);

/// Causes that packets meet which are for no service, wherever they go then.
pub(super) const BEHIND_NO_SERVICE: &[&str] = &[
    "no-listener",
    "filter-rule-drop",
    "forward-policy-drop",
    "ip-forward-off",
    "ipv6-forward-off",
    "rp-filter",
    "martian-source",
    "route-blackhole",
    "no-route",
    "neighbour-failed",
    "ttl-expired",
    "refused-elsewhere",
    "no-answer",
];

/// What a flow asked for.
pub(super) fn asked(flow: &Flow) -> Asked {
    let mut address = flow.client.destination;
    // ICMP's tuple has another number in the port's place.
    if protocol::is_icmp(flow.client.protocol) {
        address.set_port(0);
    }
    (flow.client.protocol, address)
}

/// Flows that ask for something, that nobody answered but by a refusal, that no socket took and that went on to no
/// endpoint.
pub(super) fn unserved<'e>(evidence: &'e Evidence<'_>) -> impl Iterator<Item = &'e Flow> {
    evidence.flows.iter().filter(|flow| {
        let stayed = || {
            flow.of(Direction::Request).all(|journey| {
                let last = journey.last_tuple().map(|tuple| tuple.destination);
                !journey.was_taken() && last == journey.first_tuple().map(|tuple| tuple.destination)
            })
        };
        let asks = || {
            let first = flow.of(Direction::Request).next();
            let packet = first.and_then(Journey::first_packet);
            packet.is_some_and(|packet| packet.opens() || is_ping(packet))
        };
        (flow.replies == 0 || flow.refused) && asks() && stayed()
    })
}

/// An echo request, of either family.
fn is_ping(packet: &Packet) -> bool {
    let Transport::Icmp { kind, .. } = packet.transport else {
        return false;
    };
    matches!(
        (packet.tuple.protocol, kind),
        (protocol::ICMP, 8) | (protocol::ICMP6, 128)
    )
}

/// Whether kube-proxy works in a namespace: it runs there, or the namespace has the node's addresses.
pub(super) fn has_kube_proxy(evidence: &Evidence<'_>, netns: NetnsId) -> bool {
    let site = evidence.site(netns);
    evidence.facts.kube_proxies_in(netns).next().is_some()
        || site.is_some_and(|site| is_this_nodes(evidence, site))
}

/// Whether a namespace has an address of this node.
pub(super) fn is_this_nodes(evidence: &Evidence<'_>, site: &Site<'_>) -> bool {
    node_addresses(evidence).any(|address| site.is_local(address))
}

/// Addresses of this node, by the cluster.
pub(super) fn node_addresses<'a>(
    evidence: &Evidence<'a>,
) -> impl Iterator<Item = IpAddr> + use<'a> {
    let node = evidence
        .cluster
        .and_then(|cluster| cluster.node(cluster.this_node.as_deref()?));
    node.into_iter()
        .flat_map(|node| node.internal_ips.iter().copied())
}

/// The host of an address: the node that has it, or whose pod has it, where the cluster knows.
pub(super) fn host_words(evidence: &Evidence<'_>, address: IpAddr) -> String {
    let node = evidence.cluster.and_then(|cluster| {
        let mut nodes = cluster.nodes();
        let own = nodes.find(|node| node.internal_ips.contains(&address));
        let mut pods = cluster
            .pods_at(address)
            .filter_map(|name| cluster.pod(name));
        own.map(|node| Arc::clone(&node.name.name))
            .or_else(|| pods.find_map(|pod| pod.node.as_deref().map(Arc::from)))
    });
    node.map_or_else(
        || format!("the host of {address}"),
        |name| format!("node {name}"),
    )
}

/// The service that packets to an address and port are for when they are in a namespace; its NodePort counts
/// on every address of the node.
pub(super) fn claimant<'a>(
    evidence: &Evidence<'a>,
    netns: NetnsId,
    protocol: u8,
    address: SocketAddr,
) -> Option<&'a Service> {
    let cluster = evidence.cluster?;
    cluster.service_at(protocol, address).or_else(|| {
        let service = cluster.node_port(protocol, address.port())?;
        let own = evidence.site(netns)?.is_local(address.ip());
        (own && has_kube_proxy(evidence, netns)).then_some(service)
    })
}

/// The services that gave packets back: no endpoint was chosen for them.
pub(super) fn refused<'e, 'a>(
    evidence: &'e Evidence<'a>,
    wanted: impl Fn(&Target<'a>) -> bool,
) -> Vec<(Target<'a>, Vec<&'e Failure<'a>>)> {
    let Some(cluster) = evidence.cluster else {
        return Vec::new();
    };
    let groups: BTreeMap<(u8, SocketAddr), Vec<&Failure<'a>>> = evidence.group(|failure| {
        let tuple = failure.journey.first_tuple()?;
        let sent_on = failure.journey.last_tuple()?.destination != tuple.destination;
        let key = (tuple.protocol, tuple.destination);
        (!sent_on && gave_back(failure)).then_some(key)
    });
    groups
        .into_iter()
        .filter_map(|((protocol, address), failures)| {
            let target = Target {
                cluster,
                service: cluster.service_at(protocol, address).or_else(|| {
                    // A virtual address of the node that the cluster does not know.
                    let by_ipvs = failures.iter().any(|failure| by_ipvs(failure));
                    let known = cluster.node_port(protocol, address.port());
                    known.filter(|_| by_ipvs)
                })?,
                protocol,
                address,
            };
            wanted(&target).then_some((target, failures))
        })
        .collect()
}

/// IPVS had nobody to give the packet to, or a rule refused it.
fn gave_back(failure: &Failure<'_>) -> bool {
    by_ipvs(failure)
        || failure.rejected()
        || failure.dropped_for(&["NETFILTER_DROP"], &["nf_hook_slow"])
}

/// IPVS had a virtual server for the packet.
fn by_ipvs(failure: &Failure<'_>) -> bool {
    failure.passed(Role::IpvsNoDestination)
}

impl<'a> Target<'a> {
    /// Endpoints of the address's family.
    pub(super) fn endpoints(&self) -> impl Iterator<Item = &'a Endpoint> {
        let four = self.address.is_ipv4();
        self.cluster
            .endpoints_of(&self.service.name)
            .map(|(endpoint, _)| endpoint)
            .filter(move |endpoint| endpoint.address.is_ipv4() == four)
    }

    /// For people: `s/namespace/name (tcp 192.0.2.1:80)`.
    pub(super) fn words(&self) -> String {
        let name = protocol::name(self.protocol);
        format!("s/{} ({name} {})", self.service.name, self.address)
    }

    /// The command that shows whether it answers.
    pub(super) fn probe(&self) -> String {
        format!(
            "tracer probe {}://{}",
            protocol::name(self.protocol),
            self.address
        )
    }

    /// The selector as kubectl takes it.
    pub(super) fn selector(&self) -> Option<String> {
        let selector = &self.service.selector;
        let parts: Vec<_> = selector
            .iter()
            .map(|(key, value)| format!("{key}={value}"))
            .collect();
        (!parts.is_empty()).then(|| parts.join(","))
    }
}

/// What the packet itself proves, and what is missing without it.
pub(super) fn prove_refusal(
    evidence: &Evidence<'_>,
    diagnosis: Diagnosis,
    failures: &[&Failure<'_>],
) -> Diagnosis {
    let refused = failures.iter().find_map(|failure| {
        let stop = evidence.stop(failure)?;
        matches!(stop.kind, Kind::NoEndpoints | Kind::NoLocalEndpoints).then_some((failure, stop))
    });
    if let Some((failure, stop)) = refused {
        let words = failure.words();
        return diagnosis.prove("rule", format!("{words} was refused by {}", stop.place()));
    }
    let by_ipvs = failures.iter().find(|failure| by_ipvs(failure));
    match (by_ipvs, failures.first()) {
        (Some(failure), _) => diagnosis.prove(
            "packet",
            format!(
                "{} found its virtual server and no real server",
                failure.words()
            ),
        ),
        (None, Some(failure)) => diagnosis
            .prove(
                "packet",
                format!(
                    "{} was given back before any endpoint was chosen",
                    failure.words()
                ),
            )
            .lacking("that the rule which refused it is kube-proxy's"),
        (None, None) => diagnosis,
    }
}

/// Facts that are not fresh make a diagnosis no more than likely.
pub(super) fn lacking_fresh(
    diagnosis: Diagnosis,
    cluster: &ClusterFacts,
    resources: &[Resource],
) -> Diagnosis {
    resources.iter().fold(diagnosis, |diagnosis, &resource| {
        match cluster.freshness(resource) {
            Freshness::Fresh => diagnosis,
            other => {
                let why = other
                    .trouble()
                    .map_or("not read yet", |trouble| &trouble.why);
                let age = cluster
                    .stale_for(resource, cluster.taken)
                    .map_or_else(String::new, |age| {
                        format!(" (stale for {} s)", age.as_secs())
                    });
                diagnosis.lacking(format!("fresh facts of {}{age}: {why}", resource.name()))
            }
        }
    })
}
