//! `source-address-ambiguous`: a node with several networks sends to the others from an address that is not
//! the one they know it by.
//!
//! kubelet and overlays take the address of the default route's device unless they are told (--node-ip,
//! --iface).

use std::net::IpAddr;

use super::audit::Finding;
use super::evidence::{Evidence, Failure};
use super::pod_network::{PodRanges, gives, pod_ranges};
use super::{Cause, Diagnosis, Site};
use crate::event::Tuple;
use crate::flow::Flow;
use crate::hook::Role;
use crate::kube::Resource;
use crate::node::NetnsId;

pub(super) const CAUSE: Cause = Cause {
    code: "source-address-ambiguous",
    title: "a node with several networks uses a source address that the other nodes do not know it by",
    explanation: "\
On a node with several network cards the kernel chooses the source address by the route to the destination,
kubelet registers one address (InternalIP), and the overlay another, when nobody tells them. The other
nodes' firewalls, reverse path filters and tunnels expect the InternalIP; packets from the other address are
dropped there, or answered by another way.

Proof: packets of the node to another node or its pods carry the address of another network card, which is
not its InternalIP (of the Node object, or of kubelet's --node-ip), and are refused for it (reverse path
filter, martian source); or the overlay's tunnel is bound to one. Where they only get no answer it is no more
than likely. Addresses of tunnels and bridges, and those of the pods' range, are meant to be used.

Fix: tell them: kubelet --node-ip, flannel --iface, Calico IP_AUTODETECTION_METHOD; or set the source in the
route.",
    references: &[
        "Linux net/ipv4/fib_semantics.c, fib_info_update_nhc_saddr: the source of the route, else the first \
         address of the route's device",
    ],
    explains: &["rp-filter", "martian-source"],
    examine,
    audit,
};

/// The address that the other nodes know this node by, and how that is known.
struct Known {
    address: IpAddr,
    source: &'static str,
    words: String,
}

/// What the node says of itself: its Node object, else kubelet's flag.
fn known(evidence: &Evidence<'_>, ipv4: bool) -> Option<Known> {
    let of_family = |address: &&IpAddr| address.is_ipv4() == ipv4;
    let registered = || {
        let cluster = evidence.cluster?;
        let node = cluster.node(cluster.this_node.as_deref()?)?;
        let address = *node.internal_ips.iter().find(of_family)?;
        let words = format!("InternalIP of node {} is {address}", node.name.name);
        Some(Known {
            address,
            source: "node",
            words,
        })
    };
    registered().or_else(|| {
        let kubelet = evidence
            .facts
            .components
            .iter()
            .find(|found| found.name == "kubelet")?;
        let flag = kubelet.flag("node-ip")?;
        let address = flag.split(',').find_map(|text| {
            text.parse::<IpAddr>()
                .ok()
                .filter(|address| of_family(&address))
        })?;
        let words = format!("kubelet (process {}) has --node-ip={flag}", kubelet.pid);
        Some(Known {
            address,
            source: "process",
            words,
        })
    })
}

/// Kinds of devices whose addresses a node is to send from: an overlay's, a bridge's.
const NO_CARDS: &[&str] = &[
    "vxlan",
    "geneve",
    "ipip",
    "ip6tnl",
    "sit",
    "wireguard",
    "bridge",
];

/// Whether a namespace that has the known address has this one on another network card.
fn is_another_cards(
    site: &Site<'_>,
    known: &Known,
    pods: &[PodRanges<'_>],
    source: IpAddr,
) -> bool {
    let device = |address| site.addresses(address).next().map(|entry| entry.link);
    let Some((right, wrong)) = device(known.address).zip(device(source)) else {
        return false;
    };
    let kind = site.link(wrong).and_then(|link| link.kind.as_deref());
    let card = kind.is_none_or(|kind| !NO_CARDS.contains(&kind));
    right != wrong && card && !gives(pods, source)
}

/// Whether a destination is another node or a pod there.
fn is_elsewhere(evidence: &Evidence<'_>, tuple: &Tuple, site: &Site<'_>) -> bool {
    let destination = tuple.destination.ip();
    let tunnel = tuple.protocol == crate::event::protocol::UDP
        && site.facts.links.iter().any(|link| {
            let port = link.vxlan.and_then(|vxlan| vxlan.port);
            port == Some(tuple.destination.port())
        });
    tunnel
        || evidence.cluster.is_some_and(|cluster| {
            let this = cluster.this_node.as_deref();
            cluster
                .nodes()
                .filter(|node| Some(&*node.name.name) != this)
                .any(|node| {
                    node.internal_ips.contains(&destination)
                        || node
                            .pod_prefixes
                            .iter()
                            .any(|prefix| prefix.contains(destination))
                })
        })
}

/// The node's own packet to another node from an address that is not its InternalIP.
fn strange(
    evidence: &Evidence<'_>,
    known: &[Known],
    pods: &[PodRanges<'_>],
    flow: &Flow,
) -> Option<(NetnsId, IpAddr)> {
    let (_, journey) = flow.kept().next()?;
    let index = journey
        .events
        .iter()
        .position(|event| event.role() == Role::LocalOut)?;
    let netns = NetnsId(journey.namespace_at(index)?);
    let site = evidence.site(netns)?;
    let tuple = journey.first_tuple()?;
    let source = tuple.source.ip();
    let known = known
        .iter()
        .find(|known| known.address.is_ipv4() == source.is_ipv4())?;
    (is_another_cards(site, known, pods, source) && is_elsewhere(evidence, &tuple, site))
        .then_some((netns, source))
}

/// Flows from one strange source.
#[derive(Default)]
struct Lost {
    flows: Vec<u64>,
    /// One that was refused for its source.
    refused: Option<u64>,
}

fn examine(evidence: &Evidence<'_>) -> Vec<Diagnosis> {
    let known: Vec<Known> = [true, false]
        .into_iter()
        .filter_map(|ipv4| known(evidence, ipv4))
        .collect();
    if known.is_empty() {
        return Vec::new();
    }
    let pods = pod_ranges(evidence);
    let mut groups: std::collections::BTreeMap<(NetnsId, IpAddr), Lost> = Default::default();
    let failed = evidence
        .failures()
        .iter()
        .filter(|failure| blames(failure))
        .map(|failure| (failure.flow, is_refused(failure)));
    let silent = evidence.stalled().iter().map(|&flow| (flow, false));
    for (flow, refused) in failed.chain(silent) {
        if let Some(key) = strange(evidence, &known, &pods, flow) {
            let lost = groups.entry(key).or_default();
            lost.flows.push(flow.id);
            lost.refused = lost.refused.or(refused.then_some(flow.id));
        }
    }
    groups
        .into_iter()
        .filter_map(|((netns, source), lost)| {
            let site = evidence.site(netns)?;
            let known = known
                .iter()
                .find(|known| known.address.is_ipv4() == source.is_ipv4())?;
            let shown = lost.refused.or(lost.flows.first().copied())?;
            let first = evidence.flows.get(shown)?;
            let destination = first.client.destination;
            let end = match lost.refused {
                Some(_) => "is refused for it",
                None => "gets no answer",
            };
            Some(
                say(site, known, source, destination.ip())
                    .stopped_flows(evidence, lost.flows.into_iter())
                    .prove(
                        "packet",
                        format!(
                            "flow {} → {destination} leaves with {source} and {end}",
                            first.client.source
                        ),
                    )
                    .lacking_if(
                        lost.refused.is_none(),
                        "a packet that was refused for its source address (reverse path filter, martian source): \
                         these may be lost for another reason",
                    )
                    .lacking_if(
                        known.source == "node"
                            && evidence
                                .cluster
                                .is_some_and(|cluster| !cluster.fresh(&[Resource::Nodes])),
                        "fresh facts of the nodes",
                    ),
            )
        })
        .collect()
}

/// Refused for its source address, which nothing had changed on the way.
fn is_refused(failure: &Failure<'_>) -> bool {
    let source = |tuple: Option<Tuple>| tuple.map(|tuple| tuple.source.ip());
    let kept = source(failure.journey.first_tuple()) == source(failure.journey.last_tuple());
    kept && (failure.passed(Role::Martian) || failure.dropped_for(&["IP_RPFILTER"], &[]))
}

/// Losses that a strange source brings about: refused for it, or gone without an answer.
fn blames(failure: &Failure<'_>) -> bool {
    failure.passed(Role::Martian)
        || failure.dropped_for(&["IP_RPFILTER", "NETFILTER_DROP"], &["nf_hook_slow"])
}

fn say(site: &Site<'_>, known: &Known, source: IpAddr, destination: IpAddr) -> Diagnosis {
    let right = known.address;
    let device = |address| {
        site.addresses(address)
            .next()
            .map_or_else(|| "a device".to_owned(), |entry| site.device(entry.link))
    };
    let route = site.main_route(destination);
    let place = site.name();
    let network = route.map_or_else(
        || format!("{destination}/32"),
        |route| route.destination.to_string(),
    );
    Diagnosis::new(
        &CAUSE,
        format!("{source} of {place}"),
        format!(
            "{place} sends to other nodes from {source} ({}), and they know it as {right} ({}): what they expect from it \
             and what comes differ.",
            device(source),
            device(right)
        ),
    )
    .prove(known.source, known.words.clone())
    .prove_if("route", route.map(|route| format!("to {destination}: {}", site.route_words(route))))
    .fix(
        [
            format!("--node-ip={source}   # kubelet's flags, when {source} is the right one; then restart kubelet"),
            format!("--iface={}   # flannel's arguments, when {right} is; Calico: IP_AUTODETECTION_METHOD", device(right)),
        ],
        "the node's address changes for the others; its tunnel is built anew",
    )
    .fix(
        [format!("ip route replace {network} dev {} src {right}", device(right))],
        "traffic to that network goes by that card from now on",
    )
    .check(format!("ip route get {destination}   # src {right}"))
}

/// Routes to other nodes, and tunnels, that use another address.
fn audit(evidence: &Evidence<'_>) -> Vec<Finding> {
    let mut found = Vec::new();
    let pods = pod_ranges(evidence);
    for known in [true, false]
        .into_iter()
        .filter_map(|ipv4| known(evidence, ipv4))
    {
        for site in evidence
            .sites()
            .filter(|site| site.addresses(known.address).next().is_some())
        {
            for link in &site.facts.links {
                let local = link.vxlan.and_then(|vxlan| vxlan.local);
                let wrong = local.filter(|&local| is_another_cards(site, &known, &pods, local));
                if let Some(source) = wrong {
                    let diagnosis = say(site, &known, source, source);
                    found.push(Finding::warning(
                        diagnosis.prove("link", format!("{} is bound to {source}", link.name)),
                    ));
                }
            }
            let nodes = evidence.cluster.into_iter().flat_map(|cluster| {
                let this = cluster.this_node.clone();
                cluster
                    .nodes()
                    .filter(move |node| Some(&node.name.name) != this.as_ref())
            });
            let wrong = nodes
                .flat_map(|node| &node.internal_ips)
                .filter(|address| address.is_ipv4() == known.address.is_ipv4())
                .find_map(|&other| Some((other, chosen(site, &known, &pods, other)?)));
            if let Some((other, source)) = wrong {
                found.push(Finding::warning(say(site, &known, source, other)));
            }
        }
    }
    found
}

/// The source that the kernel takes for a destination, where it is not the known address.
fn chosen(
    site: &Site<'_>,
    known: &Known,
    pods: &[PodRanges<'_>],
    destination: IpAddr,
) -> Option<IpAddr> {
    let route = site.main_route(destination)?;
    let source = route.preferred_source.or_else(|| {
        let first = site.facts.addresses.iter().find(|entry| {
            Some(entry.link) == route.link
                && !entry.secondary
                && entry.address.is_ipv4() == destination.is_ipv4()
        });
        first.map(|entry| entry.address)
    })?;
    is_another_cards(site, known, pods, source).then_some(source)
}

#[cfg(test)]
pub(super) mod tests {
    use serde_json::json;
    use tracer_ebpf::hook::HookId;

    use super::*;
    use crate::cause::Certainty;
    use crate::cause::audit::audit as audit_all;
    use crate::cause::constructed::{Bench, ETH0, ip, link, node, route};
    use crate::kube::constructed::cluster;
    use crate::node::{Address, Link};

    const ETH1: u32 = 4;
    /// The other node.
    const OTHER: u32 = 200;

    /// The node's second network is the one that the cluster knows, and the first has the default route; the
    /// other node refuses what comes from the first.
    fn with(internal: &str, refused: bool) -> Bench {
        let mut bench = node();
        let site = bench.site();
        site.links.push(link(ETH1, "eth1"));
        site.addresses
            .push(Address::global(ETH1, ip("198.51.100.1"), 24));
        site.routes.push(route("198.51.100.0", 24, ETH1));
        bench.cluster = Some(cluster(
            "node-a",
            &[
                json!({"kind": "Node", "metadata": {"name": "node-a"},
                    "status": {"addresses": [{"type": "InternalIP", "address": internal}]}}),
                json!({"kind": "Node", "metadata": {"name": "node-b"},
                    "status": {"addresses": [{"type": "InternalIP", "address": "203.0.113.2"}]}}),
            ],
        ));
        for _ in 0..2 {
            let way = bench
                .tcp("192.0.2.1:40000", "203.0.113.2:10250")
                .at(HookId::LocalOut)
                .transmit(ETH0);
            if refused {
                way.netns(OTHER)
                    .receive(ETH0)
                    .at(HookId::Martian)
                    .dropped("IP_RPFILTER", "ip_rcv_finish_core");
            } else {
                way.ends();
            }
        }
        bench
    }

    pub(in crate::cause) fn situation() -> Bench {
        with("198.51.100.1", true)
    }

    #[test]
    fn another_source_than_the_internal_ip_is_named() {
        let bench = situation();
        let found = bench.only();
        assert_eq!(
            (found.code, found.certainty),
            (CAUSE.code, Certainty::Certain)
        );
        assert!(found.summary.contains("192.0.2.1 (eth0)"), "{found:#?}");
        assert_eq!(bench.with_evidence(audit_all).len(), 1);
    }

    #[test]
    fn silence_alone_makes_it_likely() {
        let found = with("198.51.100.1", false).only();
        assert_eq!(
            (found.code, found.certainty),
            (CAUSE.code, Certainty::Likely)
        );
        assert!(found.missing[0].contains("refused"), "{found:#?}");
    }

    #[test]
    fn the_internal_ip_as_source_is_healthy() {
        let bench = with("192.0.2.1", false);
        assert_eq!(bench.codes(), [] as [&str; 0]);
        assert_eq!(bench.with_evidence(audit_all), []);
    }

    /// The node asks a pod of the other node that does not answer, from an address on its overlay device.
    fn asks_a_hung_pod(kind: Option<&str>, prefixes: &[&str]) -> Bench {
        let mut bench = node();
        let site = bench.site();
        site.links.push(Link {
            kind: kind.map(str::to_owned),
            ..link(ETH1, "over0")
        });
        site.addresses.push(Address {
            link: ETH1,
            address: ip("10.77.0.0"),
            prefix_length: 32,
            ..site.addresses[0].clone()
        });
        site.routes.push(route("10.77.1.0", 24, ETH1));
        bench.cluster = Some(cluster(
            "node-a",
            &[
                json!({"kind": "Node", "metadata": {"name": "node-a"}, "spec": {"podCIDRs": prefixes},
                    "status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.1"}]}}),
                json!({"kind": "Node", "metadata": {"name": "node-b"}, "spec": {"podCIDRs": ["10.77.1.0/24"]},
                    "status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.2"}]}}),
            ],
        ));
        for _ in 0..2 {
            bench
                .tcp("10.77.0.0:40000", "10.77.1.5:443")
                .at(HookId::LocalOut)
                .transmit(ETH1)
                .ends();
        }
        bench
    }

    #[test]
    fn the_overlay_s_own_address_is_no_strange_source() {
        for kind in ["vxlan", "ipip", "wireguard", "bridge"] {
            assert_eq!(asks_a_hung_pod(Some(kind), &[]).codes(), [] as [&str; 0]);
        }
        // Cilium's is a veth device with an address of the pods.
        let veth = asks_a_hung_pod(Some("veth"), &["10.77.0.0/24"]);
        assert_eq!(veth.codes(), [] as [&str; 0]);
        assert_eq!(asks_a_hung_pod(Some("veth"), &[]).codes(), [CAUSE.code]);
    }
}
