//! `veth-peer-down`: the other end of a veth pair is down or gone.
//!
//! Without carrier the device's queue is `noop`, which drops (QDISC_DROP), and no ARP passes.

use std::net::IpAddr;

use super::audit::Finding;
use super::bridging::{out_device, port_of_neighbour};
use super::evidence::{Evidence, Failure};
use super::neighbour_failed::lost_for;
use super::{Cause, Diagnosis, Site};
use crate::node::{Link, NetnsId};

pub(super) const CAUSE: Cause = Cause {
    code: "veth-peer-down",
    title: "the pod's end of its veth pair is down or gone",
    explanation: "\
A pod is connected by a veth pair: one end in the pod, one on the node. While the pod's end is down the
node's end has no carrier; packets to the pod are dropped without an answer, and neither ARP nor anything
else comes through.

Why: the pod's network setup did not finish, something in the pod set the interface down, or the runtime
removed the pod's network namespace and left the route.

Proof: the packet had to leave by a veth device, or by a bridge port that is one, which is up and has no
carrier; it was dropped there or its neighbour did not answer.

Fix: set the pod's interface up, or recreate the pod.",
    references: &["Linux drivers/net/veth.c: a veth device has carrier only while its peer is up"],
    explains: &["neighbour-failed"],
    examine,
    audit,
};

const REASONS: &[&str] = &["QDISC_DROP", "DEV_READY"];
/// Where packets end whose device has no queue, or whose other end is not up.
const FUNCTIONS: &[&str] = &[
    "__dev_queue_xmit",
    "__dev_xmit_skb",
    "kfree_skb_list",
    "kfree_skb_list_reason",
    "noop_enqueue",
    "__qdisc_drop",
    "veth_xmit",
    "enqueue_to_backlog",
];

fn examine(evidence: &Evidence<'_>) -> Vec<Diagnosis> {
    evidence
        .group(|failure| {
            let (netns, link) = dead_end(evidence, failure)?;
            Some((netns, link.index))
        })
        .into_iter()
        .filter_map(|((netns, index), failures)| {
            let site = evidence.site(netns)?;
            let link = site.link(index)?;
            let first = failures.first()?;
            let what = if lost_for(first).is_some() {
                "no neighbour answers through it".to_owned()
            } else {
                first.drop_words()
            };
            Some(
                say(evidence, site, link)
                    .stopped(evidence, &failures)
                    .prove(
                        "packet",
                        format!("{} was to leave by {}, {what}", first.words(), link.name),
                    ),
            )
        })
        .collect()
}

/// The device that a lost packet had to leave by.
fn left_by<'a>(evidence: &Evidence<'a>, failure: &Failure<'_>) -> Option<(NetnsId, &'a Link)> {
    if let Some((netns, ifindex, _)) = lost_for(failure) {
        let direct = evidence.site(netns)?.link(ifindex)?;
        if direct.kind.as_deref() == Some("veth") {
            return Some((netns, direct));
        }
        return port_of_neighbour(evidence, failure);
    }
    failure
        .dropped_for(REASONS, FUNCTIONS)
        .then(|| out_device(failure))
        .flatten()
        .and_then(|(netns, ifindex)| Some((netns, evidence.site(netns)?.link(ifindex)?)))
}

/// The dead device that a lost packet had to leave by.
pub(super) fn dead_end<'a>(
    evidence: &Evidence<'a>,
    failure: &Failure<'_>,
) -> Option<(NetnsId, &'a Link)> {
    left_by(evidence, failure).filter(|(_, link)| is_dead_end(link))
}

/// A veth device that is up and has no carrier.
pub(super) fn is_dead_end(link: &Link) -> bool {
    link.kind.as_deref() == Some("veth") && link.up && link.carrier == Some(false)
}

/// The finding about one device.
pub(super) fn say(evidence: &Evidence<'_>, site: &Site<'_>, link: &Link) -> Diagnosis {
    let peer = link
        .peer_netns
        .zip(link.peer_index)
        .and_then(|(netns, index)| {
            let site = evidence.site(netns)?;
            Some((site, site.link(index)?))
        });
    let other = match peer {
        Some((site, peer)) => format!("{} in {}", peer.name, site.name()),
        None => "its other end".into(),
    };
    let up = match peer {
        Some((other, peer)) => {
            let mut lines = vec![other.inside(&format!("ip link set {} up", peer.name))];
            lines.extend(gateway(site, link).map(|gateway| {
                let route = other.inside(&format!("ip route replace default via {gateway}"));
                format!("{route}   # its routes went when it was set down")
            }));
            lines
        }
        None => vec![format!(
            "ip -d link show {}   # link-netns says where the other end is; set it up there",
            link.name
        )],
    };
    Diagnosis::new(
        &CAUSE,
        format!("{} of {}", link.name, site.name()),
        format!(
            "{} in {} has no carrier: {other} is down or gone, so packets to the pod behind it are lost.",
            link.name,
            site.name()
        ),
    )
    .prove("link", format!("{} is a veth device, up, without carrier", link.name))
    .prove_if(
        "link",
        peer.map(|(_, peer)| format!("{other} is {}", if peer.up { "up" } else { "down" })),
    )
    .fix(up, "none")
    .fix(
        ["kubectl delete pod POD -n NAMESPACE   # its controller makes it anew, with a new network"],
        "the pod's connections break",
    )
    .check(format!("ip link show {}   # LOWER_UP, no NO-CARRIER", link.name))
}

/// What the pods behind a port of a bridge have as their gateway: the bridge's own address.
fn gateway(site: &Site<'_>, link: &Link) -> Option<IpAddr> {
    let own = (site.facts.addresses.iter()).filter(|entry| Some(entry.link) == link.master);
    own.map(|entry| entry.address).find(IpAddr::is_ipv4)
}

/// Devices to pods that lead nowhere.
fn audit(evidence: &Evidence<'_>) -> Vec<Finding> {
    evidence
        .sites()
        .flat_map(|site| {
            let dead = site.facts.links.iter().filter(|link| is_dead_end(link));
            dead.map(|link| Finding::error(say(evidence, site, link)))
        })
        .collect()
}

#[cfg(test)]
pub(super) mod tests {
    use tracer_ebpf::hook::HookId;

    use super::*;
    use crate::cause::Certainty;
    use crate::cause::constructed::{Bench, CNI0, ETH0, ip, link, neighbour, node};
    use crate::event::Detail;
    use crate::node::{NeighbourState, NetnsFacts};

    const VETH: u32 = 9;

    fn with(carrier: bool, waits: bool) -> Bench {
        let mut bench = node();
        bench.site().links.push(Link {
            kind: Some("veth".into()),
            carrier: Some(carrier),
            ..link(VETH, "cali9")
        });
        let way = bench
            .tcp("192.0.2.10:4000", "10.244.9.9:80")
            .receive(ETH0)
            .with(
                HookId::OutputFinish,
                Detail::Route {
                    kind: 1,
                    error: 0,
                    ifindex: Some(VETH),
                },
            );
        if waits {
            let detail = Detail::Neighbour {
                address: ip("10.244.9.9"),
                ifindex: VETH,
            };
            way.with(HookId::NeighbourQueue, detail.clone())
                .with(HookId::NeighbourFailed, detail)
                .dropped("NEIGH_FAILED", "arp_error_report");
            bench.site().neighbours = vec![neighbour(VETH, "10.244.9.9", NeighbourState::Failed)];
        } else {
            way.dropped("QDISC_DROP", "__dev_queue_xmit");
        }
        bench
    }

    pub(in crate::cause) fn situation() -> Bench {
        with(false, true)
    }

    #[test]
    fn the_failed_neighbour_is_a_consequence() {
        let found = situation().only();
        assert_eq!(
            (found.code, found.certainty),
            (CAUSE.code, Certainty::Certain)
        );
        assert_eq!(found.consequences[0].code, "neighbour-failed");
    }

    #[test]
    fn the_fix_is_typed_on_the_node_and_brings_the_route_back() {
        let mut bench = with(false, true);
        let id = NetnsId(7);
        bench.facts.namespaces.push(NetnsFacts {
            path: Some("/run/netns/cni-1".into()),
            is_pod: true,
            links: vec![Link {
                up: false,
                ..link(2, "eth0")
            }],
            ..NetnsFacts::unread(id, Some("default/web"))
        });
        let port = bench.site().links.last_mut().expect("the veth device");
        (port.peer_netns, port.peer_index, port.master) = (Some(id), Some(2), Some(CNI0));
        assert_eq!(
            bench.only().fixes[0].lines,
            [
                "nsenter --net=/run/netns/cni-1 ip link set eth0 up",
                "nsenter --net=/run/netns/cni-1 ip route replace default via 10.244.0.1   # its routes went when it was set down",
            ]
        );
    }

    #[test]
    fn a_packet_that_is_dropped_at_the_device() {
        assert_eq!(with(false, false).only().code, CAUSE.code);
        assert_eq!(with(true, false).only().code, "qdisc-drop");
        assert_eq!(with(true, true).only().code, "neighbour-failed");
    }
}
