//! `vxlan-udp-blocked`: the overlay's packets are wrapped and sent, and the other node does not get them.
//!
//! VXLAN packets are UDP to port 4789 (flannel: 8472), with source ports that differ by flow; any packet filter
//! on the way sees them as such.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::audit::nothing;
use super::evidence::Evidence;
use super::filtered::{Stop, accept};
use super::{Cause, Diagnosis, Site};
use crate::event::{Detail, Tuple, protocol};
use crate::flow::{Direction, Flow};
use crate::hook::Role;
use crate::node::{Link, Mac, NetnsId};

pub(super) const CAUSE: Cause = Cause {
    code: "vxlan-udp-blocked",
    title: "the overlay's UDP packets do not get to the other node",
    explanation: "\
Pods of different nodes talk through a tunnel: the node wraps their packets into UDP to the other node, port
8472 (flannel) or 4789. A firewall that does not know of it (the node's own rules, a cloud's security group,
a switch) drops them: every pod reaches those of its own node and none of the others, while the nodes
themselves reach each other.

Proof: packets were wrapped, and the UDP packet around them was dropped by a rule or refused by the other
node for want of a tunnel device on that port. Where it is lost outside of what can be seen here, no packet of
the other node's tunnel came either, and the pods' connections stay unanswered.

Fix: allow UDP on that port between all nodes, in both directions.",
    references: &[
        "Linux net/ipv4/udp.c: without a tunnel device on that port the other node answers ICMP port \
         unreachable",
    ],
    explains: &[
        "filter-rule-drop",
        "forward-policy-drop",
        "network-policy-drop",
        "no-listener",
    ],
    examine,
    audit: nothing,
};

/// Ports that VXLAN uses where no device tells: IANA's, and Linux' old one, which flannel takes.
const PORTS: [u16; 2] = [4789, 8472];
/// Where forwarding entries say where unknown addresses go.
const ANY: Mac = Mac([0; 6]);

fn examine(evidence: &Evidence<'_>) -> Vec<Diagnosis> {
    let ports = Ports::new(evidence);
    let mut found = filtered(evidence, &ports);
    found.extend(refused(evidence, &ports));
    if found.is_empty() {
        found.extend(unheard(evidence));
    }
    found
}

/// UDP ports of tunnels: those of the devices here, and the usual ones.
struct Ports(BTreeSet<u16>);

impl Ports {
    fn new(evidence: &Evidence<'_>) -> Self {
        let own = evidence
            .sites()
            .flat_map(|site| tunnels(site).map(|(_, port)| port));
        Self(own.chain(PORTS).collect())
    }

    /// Whether a packet is a tunnel's.
    fn take(&self, tuple: &Tuple) -> bool {
        tuple.protocol == protocol::UDP && self.0.contains(&tuple.destination.port())
    }
}

/// VXLAN devices and their ports.
fn tunnels<'a>(site: &Site<'a>) -> impl Iterator<Item = (&'a Link, u16)> {
    site.facts
        .links
        .iter()
        .filter_map(|link| Some((link, link.vxlan?.port?)))
}

/// Tunnel packets that a rule dropped.
fn filtered(evidence: &Evidence<'_>, ports: &Ports) -> Vec<Diagnosis> {
    let mut groups: BTreeMap<(IpAddr, u16, String), Vec<&Stop<'_>>> = BTreeMap::new();
    for stop in evidence.filtered() {
        if let Some(tuple) = stop.tuple(evidence).filter(|tuple| ports.take(tuple)) {
            let key = (
                tuple.destination.ip(),
                tuple.destination.port(),
                stop.place(),
            );
            groups.entry(key).or_default().push(stop);
        }
    }
    groups
        .into_iter()
        .filter_map(|((peer, port, place), stops)| {
            let stop = stops.first()?;
            let failure = stop.failure(evidence);
            let outer = stops.iter().map(|stop| stop.failure(evidence).flow.id);
            let netns = failure.netns()?;
            let place_of = evidence
                .site(netns)
                .map_or_else(|| format!("netns {netns}"), Site::name);
            let flows: Vec<u64> = outer.chain(inner(evidence, peer)).collect();
            let diagnosis = say(peer, port, format!("{place} of {place_of} drops them"))
                .stopped_flows(evidence, flows.into_iter())
                .prove(
                    "packet",
                    format!("{} was {}", failure.words(), failure.drop_words()),
                )
                .lacking_if(stop.ruling.is_none(), format!("the rules of {place_of}"));
            let tuple = stop.tuple(evidence)?;
            Some(match &stop.ruling {
                Some(ruling) => diagnosis.prove("rule", place.clone()).fix(
                    [accept(&ruling.ending, &tuple)],
                    "the other node's tunnel is let in; allow it for every node",
                ),
                None => diagnosis,
            })
        })
        .map(allow)
        .collect()
}

/// Tunnel packets that the other node has no tunnel for.
fn refused(evidence: &Evidence<'_>, ports: &Ports) -> Vec<Diagnosis> {
    evidence
        .group(|failure| {
            let (index, _) = failure.last(Role::Transport)?;
            let tuple = failure.packet_at(index)?.tuple;
            let refused = failure.rejected() && !failure.was_taken();
            (refused && ports.take(&tuple)).then_some((
                failure.netns_at(index)?,
                tuple.destination.ip(),
                tuple.destination.port(),
            ))
        })
        .into_iter()
        .filter_map(|((netns, peer, port), failures)| {
            let site = evidence.site(netns)?;
            let first = failures.first()?;
            let others: Vec<String> = tunnels(site)
                .map(|(link, own)| format!("{} has port {own}", link.name))
                .collect();
            let flows: Vec<u64> = failures
                .iter()
                .map(|failure| failure.flow.id)
                .chain(inner(evidence, peer))
                .collect();
            let there = tunnels(site).any(|(link, own)| own == port && link.up);
            Some(allow(
                say(peer, port, format!("{} has no tunnel device on that port", site.name()))
                    .stopped_flows(evidence, flows.into_iter())
                    .prove("packet", format!("{} found no socket there and was refused", first.words()))
                    .prove_if("link", (!others.is_empty()).then(|| others.join(", ")))
                    .lacking_if(there, "that the tunnel device was missing: it is there now")
                    .fix(
                        ["kubectl -n kube-flannel rollout restart daemonset kube-flannel-ds   # or your overlay's daemon, on both nodes"],
                        "none for existing connections",
                    ),
            ))
        })
        .collect()
}

/// Pods' connections that were wrapped for a node from whose tunnel nothing came.
fn unheard(evidence: &Evidence<'_>) -> Vec<Diagnosis> {
    let mut groups: BTreeMap<(NetnsId, IpAddr, u16), Vec<&Flow>> = BTreeMap::new();
    for &flow in evidence.stalled() {
        if let Some((netns, link, port)) = wrapped(evidence, flow)
            && let Some(site) = evidence.site(netns)
            && let Some(peer) = remote(site, link, flow.client.destination.ip())
            && sent(evidence, peer, port)
            && !heard(evidence, peer, port)
        {
            groups.entry((netns, peer, port)).or_default().push(flow);
        }
    }
    groups
        .into_iter()
        .filter_map(|((netns, peer, port), flows)| {
            let site = evidence.site(netns)?;
            let first = flows.first()?;
            Some(allow(
                say(
                    peer,
                    port,
                    format!("{} sends them and hears nothing of its tunnel", site.name()),
                )
                .stopped_flows(evidence, flows.iter().map(|flow| flow.id))
                .prove(
                    "packet",
                    format!(
                        "{} packets of {} → {} were wrapped and sent to {peer}, none was answered",
                        first.of(Direction::Request).count(),
                        first.client.source,
                        first.client.destination
                    ),
                )
                .prove(
                    "packet",
                    format!("no packet to UDP port {port} came from {peer}"),
                )
                .lacking(format!(
                    "what {peer} receives: run tracer there, or: tcpdump -ni any udp port {port}"
                )),
            ))
        })
        .collect()
}

/// The tunnel device that wrapped a flow's packets, and its port.
fn wrapped<'a>(evidence: &Evidence<'a>, flow: &Flow) -> Option<(NetnsId, &'a Link, u16)> {
    flow.of(Direction::Request).find_map(|journey| {
        let index = journey
            .events
            .iter()
            .position(|event| event.role() == Role::Encapsulate)?;
        let netns = NetnsId(journey.namespace_at(index)?);
        let site = evidence.site(netns)?;
        let Detail::Device { ifindex } = journey.events[index].detail else {
            return None;
        };
        let link = site.link(ifindex)?;
        Some((netns, link, link.vxlan?.port?))
    })
}

/// The node behind which an address is, by route, neighbour and forwarding entry.
fn remote(site: &Site<'_>, link: &Link, destination: IpAddr) -> Option<IpAddr> {
    let next = site
        .main_route(destination)
        .and_then(|route| route.gateway)
        .unwrap_or(destination);
    let mac = site.neighbour(link.index, next).and_then(|entry| entry.mac);
    let entries = || {
        site.facts
            .fdb
            .iter()
            .filter(|entry| entry.link == link.index)
    };
    entries()
        .find(|entry| Some(entry.mac) == mac)
        .or_else(|| entries().find(|entry| entry.mac == ANY))
        .and_then(|entry| entry.remote)
}

/// Connections of pods that wait for a node behind the tunnel.
fn inner<'e>(evidence: &'e Evidence<'_>, peer: IpAddr) -> impl Iterator<Item = u64> + 'e {
    evidence.stalled().iter().filter_map(move |flow| {
        let (netns, link, _) = wrapped(evidence, flow)?;
        let found = remote(evidence.site(netns)?, link, flow.client.destination.ip());
        (found == Some(peer)).then_some(flow.id)
    })
}

fn sent(evidence: &Evidence<'_>, peer: IpAddr, port: u16) -> bool {
    evidence.flows.iter().any(|flow| {
        let outer = flow.client;
        let to_peer = outer.destination.ip() == peer && outer.destination.port() == port;
        outer.protocol == protocol::UDP && to_peer && !flow.kept().any(|(_, one)| one.failed())
    })
}

fn heard(evidence: &Evidence<'_>, peer: IpAddr, port: u16) -> bool {
    evidence.flows.iter().any(|flow| {
        let outer = flow.client;
        outer.protocol == protocol::UDP
            && outer.source.ip() == peer
            && outer.destination.port() == port
    })
}

fn say(peer: IpAddr, port: u16, how: String) -> Diagnosis {
    Diagnosis::new(
        &CAUSE,
        format!("udp {peer}:{port}"),
        format!(
            "The overlay's packets for node {peer} (UDP port {port}) do not get there: {how}. Pods reach those of their \
             own node and none of {peer}."
        ),
    )
    .check(format!("tracer run --for 10   # while: ping a pod of {peer}"))
}

/// What helps in any case.
fn allow(diagnosis: Diagnosis) -> Diagnosis {
    let port = diagnosis
        .subject
        .rsplit(':')
        .next()
        .unwrap_or("8472")
        .to_owned();
    diagnosis.fix(
        [
            format!("iptables -I INPUT -p udp --dport {port} -s NODES -j ACCEPT   # NODES: the nodes' network, on every node"),
            format!("allow UDP {port} between the nodes in the cloud's security group or the firewall between them"),
        ],
        "who can send to that port can send into the overlay: allow the nodes only",
    )
}

#[cfg(test)]
pub(super) mod tests {
    use tracer_ebpf::hook::HookId;

    use super::*;
    use crate::cause::Certainty;
    use crate::cause::constructed::{Bench, CNI0, ETH0, ip, link, neighbour, node, route};
    use crate::cause::filtered::tests::{chain, forwarded, rule};
    use crate::event::NetfilterHook;
    use crate::node::netfilter::{Action, Tool};
    use crate::node::{FdbEntry, Neighbour, NeighbourState, Route, Vxlan};

    const VXLAN: u32 = 8;
    const MAC: Mac = Mac([2, 0, 0, 0, 0, 9]);

    fn overlay(bench: &mut Bench) {
        let site = bench.site();
        site.links.push(Link {
            kind: Some("vxlan".into()),
            vxlan: Some(Vxlan {
                id: Some(1),
                port: Some(8472),
                local: Some(ip("192.0.2.1")),
                link: Some(ETH0),
            }),
            ..link(VXLAN, "flannel.1")
        });
        site.routes.push(Route {
            gateway: Some(ip("10.244.7.0")),
            ..route("10.244.7.0", 24, VXLAN)
        });
        site.neighbours.push(Neighbour {
            mac: Some(MAC),
            ..neighbour(VXLAN, "10.244.7.0", NeighbourState::Permanent)
        });
        site.fdb.push(FdbEntry {
            link: VXLAN,
            mac: MAC,
            remote: Some(ip("192.0.2.7")),
            bridge: None,
        });
        for _ in 0..2 {
            bench
                .tcp("10.244.0.9:4000", "10.244.7.5:80")
                .receive(CNI0)
                .transmit(VXLAN)
                .with(HookId::VxlanTransmit, Detail::Device { ifindex: VXLAN })
                .ends();
        }
    }

    /// The wrapped packets leave the node.
    fn leaves() -> Bench {
        let mut bench = node();
        overlay(&mut bench);
        bench
            .udp("192.0.2.1:55555", "192.0.2.7:8472")
            .transmit(ETH0)
            .ends();
        bench
    }

    pub(in crate::cause) fn situation() -> Bench {
        let drop = || rule(Some(8472), Action::Drop, "");
        let out = chain("OUTPUT", Some((NetfilterHook::Output, false)), vec![drop()]);
        let mut filter = forwarded(Tool::IptablesLegacy, vec![out]);
        let rules = filter.site().ruleset.take();
        let mut bench = node();
        overlay(&mut bench);
        bench.site().ruleset = rules;
        bench
            .udp("192.0.2.1:55555", "192.0.2.7:8472")
            .at(HookId::LocalOut)
            .netfilter(NetfilterHook::Output)
            .dropped("NETFILTER_DROP", "nf_hook_slow");
        bench
    }

    #[test]
    fn a_rule_that_drops_the_tunnel_is_named_and_the_pods_flows_with_it() {
        let found = situation().only();
        assert_eq!(
            (found.code, found.certainty),
            (CAUSE.code, Certainty::Certain)
        );
        assert_eq!(
            (found.failed, found.consequences.len()),
            (2, 1),
            "{found:#?}"
        );
        assert!(found.summary.contains("filter/OUTPUT rule 1"), "{found:#?}");
    }

    #[test]
    fn a_peer_without_a_tunnel_refuses() {
        let mut bench = node();
        bench
            .udp("192.0.2.7:55555", "192.0.2.1:8472")
            .receive(ETH0)
            .at(HookId::UdpReceive)
            .with(HookId::IcmpSend, Detail::Icmp { kind: 3, code: 3 })
            .dropped("NO_SOCKET", "udp_rcv");
        let found = bench.only();
        assert_eq!(
            (found.code, found.certainty),
            (CAUSE.code, Certainty::Certain)
        );
        assert_eq!(found.consequences[0].code, "no-listener");
    }

    #[test]
    fn silence_of_the_other_tunnel_is_likely() {
        let mut bench = leaves();
        assert_eq!(bench.only().certainty, Certainty::Likely);
        bench
            .udp("192.0.2.7:44444", "192.0.2.1:8472")
            .receive(ETH0)
            .at(HookId::UdpReceive)
            .at(HookId::UdpDeliver)
            .ends();
        assert_eq!(bench.codes(), [] as [&str; 0]);
    }
}
