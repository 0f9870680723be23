//! `vxlan-no-fdb`: a VXLAN device does not know at which node a pod's network is.

use std::net::IpAddr;

use super::audit::nothing;
use super::bridging::out_device;
use super::evidence::{Evidence, Failure};
use super::neighbour_failed::lost_for;
use super::{Cause, Diagnosis, Site};
use crate::node::{Mac, NeighbourState, NetnsId};

pub(super) const CAUSE: Cause = Cause {
    code: "vxlan-no-fdb",
    title: "the VXLAN device does not know behind which node the destination is",
    explanation: "\
Overlays such as flannel use a VXLAN device without flooding: their daemon writes, for every other node, a
route to its pods, a neighbour entry for the node's overlay address, and a forwarding entry that says at
which node that hardware address is. Where one of them is missing, packets to that node's pods are lost
here, before anything is sent.

Why: the daemon does not run or has lost its store, the other node is new or was reinstalled (its hardware
address changed), or the entries were flushed.

Proof: the packet was handed to the VXLAN device and dropped there, or its neighbour on that device did not
answer; and neither neighbour entry nor forwarding entry leads on.

Fix: restart the overlay's daemon on both nodes; by hand: bridge fdb append, ip neigh replace.",
    references: &[
        "Linux drivers/net/vxlan, vxlan_xmit: finds no entry and no default destination and drops (reason \
         NO_TX_TARGET where the kernel has it)",
    ],
    explains: &["neighbour-failed"],
    examine,
    audit: nothing,
};

/// The hardware address whose entry says where unknown ones go.
const ANY: Mac = Mac([0; 6]);

/// What is missing for a next hop on a VXLAN device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Gap {
    /// The next hop's hardware address.
    Neighbour,
    /// The node behind that hardware address.
    Forwarding(Mac),
    /// Nothing, now.
    None,
}

fn examine(evidence: &Evidence<'_>) -> Vec<Diagnosis> {
    evidence
        .group(|failure| lost_at(evidence, failure))
        .into_iter()
        .filter_map(|((netns, ifindex, next), failures)| {
            let site = evidence.site(netns)?;
            let device = site.device(ifindex);
            let first = failures.first()?;
            let gap = gap(site, ifindex, next);
            let what = match gap {
                Gap::Neighbour => format!("no neighbour entry says which hardware address {next} has"),
                Gap::Forwarding(mac) => format!("no forwarding entry says behind which node {mac} ({next}) is"),
                Gap::None => format!("it did not know behind which node {next} is"),
            };
            let mac = match gap {
                Gap::Forwarding(mac) => mac.to_string(),
                Gap::Neighbour | Gap::None => "MAC".into(),
            };
            Some(
                Diagnosis::new(
                    &CAUSE,
                    format!("{next} on {device}"),
                    format!(
                        "{device} of {} cannot send to {next}: {what}. Packets to the pods there are lost on this node.",
                        site.name()
                    ),
                )
                .stopped(evidence, &failures)
                .prove(
                    "packet",
                    format!(
                        "{} was handed to {device}, {}",
                        first.words(),
                        if lost_for(first).is_some() { "and waited for its neighbour in vain".into() } else { first.drop_words() }
                    ),
                )
                .prove_if("fdb", (gap != Gap::None).then(|| what.clone()))
                .lacking_if(gap == Gap::None, "the gap itself: the entries are there now")
                .fix(
                    [
                        "kubectl -n kube-flannel rollout restart daemonset kube-flannel-ds   # or your overlay's daemon, on both nodes",
                    ],
                    "none for existing connections",
                )
                .fix(
                    [
                        format!("ip neigh replace {next} lladdr {mac} dev {device} nud permanent"),
                        format!("bridge fdb append {mac} dev {device} dst NODE   # NODE: the other node's address"),
                    ],
                    "entries by hand outlive a change of the other node",
                )
                .check(format!("bridge fdb show dev {device}; ip neigh show dev {device}")),
            )
        })
        .collect()
}

/// The VXLAN device that a packet was lost at, and the next hop behind it.
fn lost_at(evidence: &Evidence<'_>, failure: &Failure<'_>) -> Option<(NetnsId, u32, IpAddr)> {
    let is_vxlan = |netns, ifindex| {
        let link = evidence.site(netns)?.link(ifindex)?;
        (link.kind.as_deref() == Some("vxlan")).then_some(())
    };
    if let Some((netns, ifindex, address)) = lost_for(failure) {
        is_vxlan(netns, ifindex)?;
        // A device that floods may well ask: then the neighbour itself is silent.
        let floods = evidence
            .site(netns)?
            .facts
            .fdb
            .iter()
            .any(|entry| entry.link == ifindex && entry.mac == ANY);
        return (!floods).then_some((netns, ifindex, address));
    }
    failure
        .dropped_for(&["NO_TX_TARGET"], &["vxlan_xmit", "vxlan_xmit_one"])
        .then_some(())?;
    let (netns, ifindex) = out_device(failure)?;
    is_vxlan(netns, ifindex)?;
    let destination = failure.journey.last_tuple()?.destination.ip();
    let next = evidence
        .site(netns)?
        .main_route(destination)
        .and_then(|route| route.gateway)
        .unwrap_or(destination);
    Some((netns, ifindex, next))
}

fn gap(site: &Site<'_>, ifindex: u32, next: IpAddr) -> Gap {
    let known = site.neighbour(ifindex, next).filter(|entry| {
        !matches!(
            entry.state,
            NeighbourState::Failed | NeighbourState::Incomplete
        )
    });
    let Some(mac) = known.and_then(|entry| entry.mac) else {
        return Gap::Neighbour;
    };
    let led = site.facts.fdb.iter().any(|entry| {
        entry.link == ifindex && (entry.mac == mac || entry.mac == ANY) && entry.remote.is_some()
    });
    if led { Gap::None } else { Gap::Forwarding(mac) }
}

#[cfg(test)]
pub(super) mod tests {
    use tracer_ebpf::hook::HookId;

    use super::*;
    use crate::cause::Certainty;
    use crate::cause::constructed::{Bench, CNI0, ip, link, neighbour, node, route};
    use crate::event::Detail;
    use crate::node::{FdbEntry, Link, Neighbour, Route};

    const VXLAN: u32 = 8;
    const MAC: Mac = Mac([2, 0, 0, 0, 0, 9]);

    fn node_with_overlay() -> Bench {
        let mut bench = node();
        let site = bench.site();
        site.links.push(Link {
            kind: Some("vxlan".into()),
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
        bench
            .tcp("10.244.0.9:4000", "10.244.7.5:80")
            .receive(CNI0)
            .transmit(VXLAN)
            .dropped("NO_TX_TARGET", "vxlan_xmit");
        bench
    }

    pub(in crate::cause) fn situation() -> Bench {
        node_with_overlay()
    }

    #[test]
    fn a_missing_entry_is_named() {
        let found = situation().only();
        assert_eq!(
            (found.code, found.certainty),
            (CAUSE.code, Certainty::Certain)
        );
        assert!(found.summary.contains("02:00:00:00:00:09"), "{found:#?}");
    }

    #[test]
    fn entries_that_are_there_now_make_it_likely() {
        let mut bench = situation();
        bench.site().fdb.push(FdbEntry {
            link: VXLAN,
            mac: MAC,
            remote: Some(ip("192.0.2.7")),
            bridge: None,
        });
        assert_eq!(bench.only().certainty, Certainty::Likely);
    }

    #[test]
    fn a_silent_neighbour_on_an_overlay_that_does_not_flood() {
        let mut bench = situation();
        bench.site().neighbours.clear();
        let detail = Detail::Neighbour {
            address: ip("10.244.7.0"),
            ifindex: VXLAN,
        };
        bench
            .tcp("10.244.0.9:4001", "10.244.7.5:80")
            .receive(CNI0)
            .with(HookId::NeighbourQueue, detail.clone())
            .with(HookId::NeighbourFailed, detail)
            .dropped("NEIGH_FAILED", "arp_error_report");
        let found = bench.only();
        assert_eq!(
            (found.failed, found.consequences.len()),
            (2, 1),
            "{found:#?}"
        );
    }
}
