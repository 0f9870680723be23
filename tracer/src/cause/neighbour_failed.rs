//! `neighbour-failed`: the next host on the link does not answer ARP or neighbour discovery.

use std::net::IpAddr;

use super::audit::nothing;
use super::evidence::{Evidence, Failure};
use super::{Cause, Diagnosis, Site};
use crate::event::Detail;
use crate::hook::Role;
use crate::node::{NeighbourState, NetnsId};

pub(super) const CAUSE: Cause = Cause {
    code: "neighbour-failed",
    title: "the next host on the link does not answer ARP or neighbour discovery",
    explanation: "\
The packet has a route, and the kernel asked who on the link has the next address. Nobody answered (three
probes, about three seconds), so the packets that waited were dropped, and the sender may get ICMP host
unreachable. The entry in `ip neighbour` says FAILED or INCOMPLETE.

Why: the host or pod is down or gone, its address is another one, the cable, VLAN, bridge or overlay
between does not carry ARP, or the neighbour table is full (net.ipv4.neigh.default.gc_thresh3).

Proof: the kernel reported the neighbour as failed for the packet; the neighbour table agrees.

Fix: bring the host up or correct the address or route; with a full table raise gc_thresh3.",
    references: &[
        "Linux net/core/neighbour.c, neigh_timer_handler: gives up after three probes",
        "Linux net/core/neighbour.c, neigh_invalidate: reports each waiting packet (arp_error_report) and frees \
         it with NEIGH_FAILED",
    ],
    explains: &[],
    examine,
    audit: nothing,
};

/// Where the kernel frees packets that wait for a neighbour.
const FUNCTIONS: &[&str] = &[
    "neigh_invalidate",
    "arp_error_report",
    "ndisc_error_report",
    "neigh_timer_handler",
    "__neigh_event_send",
    "neigh_resolve_output",
];
const REASONS: &[&str] = &[
    "NEIGH_FAILED",
    "NEIGH_CREATEFAIL",
    "NEIGH_QUEUEFULL",
    "NEIGH_DEAD",
];

/// Namespace, device and address of the neighbour that a packet was lost for.
pub(super) fn lost_for(failure: &Failure<'_>) -> Option<(NetnsId, u32, IpAddr)> {
    let (index, event) = failure.last(Role::NeighbourFailed).or_else(|| {
        failure
            .last(Role::NeighbourQueue)
            .filter(|_| failure.dropped_for(REASONS, FUNCTIONS))
    })?;
    let Detail::Neighbour { address, ifindex } = event.detail else {
        return None;
    };
    Some((failure.netns_at(index)?, ifindex, address))
}

fn examine(evidence: &Evidence<'_>) -> Vec<Diagnosis> {
    evidence
        .group(lost_for)
        .into_iter()
        .map(|((netns, ifindex, address), failures)| {
            judge(evidence, netns, ifindex, address, &failures)
        })
        .collect()
}

fn judge(
    evidence: &Evidence<'_>,
    netns: NetnsId,
    ifindex: u32,
    address: IpAddr,
    failures: &[&Failure<'_>],
) -> Diagnosis {
    let site = evidence.site(netns);
    let place = site.map_or_else(|| format!("netns {netns}"), Site::name);
    let device = site.map_or_else(|| format!("if{ifindex}"), |site| site.device(ifindex));
    let entry = site.and_then(|site| site.neighbour(ifindex, address));
    let answers = entry.is_some_and(|entry| {
        matches!(
            entry.state,
            NeighbourState::Reachable | NeighbourState::Permanent
        )
    });
    let reported = failures
        .iter()
        .any(|failure| failure.passed(Role::NeighbourFailed));
    let full = site.and_then(|site| fullness(site, address));
    let mut summary = format!(
        "{address} does not answer on {device} of {place}: nobody there has the address, so packets for it were dropped."
    );
    let link = site.and_then(|site| site.link(ifindex));
    if let Some(link) = link.filter(|link| link.carrier == Some(false)) {
        summary += &format!(" {} has no carrier.", link.name);
    }
    if let Some((count, most)) = full {
        summary +=
            &format!(" The neighbour table is full: {count} entries, and gc_thresh3 is {most}.");
    }
    let protocol = if address.is_ipv6() {
        "ndisc6"
    } else {
        "arping -c 3"
    };
    let version = if address.is_ipv6() { "ipv6" } else { "ipv4" };
    let diagnosis = Diagnosis::new(&CAUSE, format!("{address} on {device}"), summary)
        .stopped(evidence, failures)
        .prove_if(
            "packet",
            failures
                .first()
                .map(|first| format!("{} waited for {address} on {device} in vain", first.words())),
        )
        .prove_if(
            "neighbour",
            entry.map(|entry| format!("{address} dev {device} {}", entry.state)),
        )
        .lacking_if(
            !reported && entry.is_none_or(|entry| entry.state != NeighbourState::Failed),
            "the kernel's report that the neighbour failed",
        )
        .lacking_if(answers, "the neighbour answers now");
    let diagnosis = match full {
        Some((_, most)) => diagnosis.fix(
            [format!(
                "sysctl -w net.{version}.neigh.default.gc_thresh3={}",
                most * 4
            )],
            "more kernel memory for neighbours",
        ),
        None => diagnosis,
    };
    diagnosis
        .fix(
            [
                format!("bring up the host or pod that has {address}, or correct the address or route that names it"),
                format!("ip neigh flush to {address} dev {device}   # once it is back, to try at once"),
            ],
            "none",
        )
        .check(format!("{protocol} -I {device} {address}"))
}

/// Entries and the most that may be, when the table of this family is full.
fn fullness(site: &Site<'_>, address: IpAddr) -> Option<(usize, i64)> {
    let version = if address.is_ipv6() { "ipv6" } else { "ipv4" };
    let most = site.sysctl(&format!("net/{version}/neigh/default/gc_thresh3"))?;
    let count = site.neighbour_count(address.is_ipv6());
    (i64::try_from(count).ok()? >= most).then_some((count, most))
}

#[cfg(test)]
pub(super) mod tests {
    use tracer_ebpf::hook::HookId;

    use super::*;
    use crate::cause::Certainty;
    use crate::cause::constructed::{Bench, CNI0, ETH0, ip, neighbour, node};

    fn with(report: bool) -> Bench {
        let mut bench = node();
        let detail = Detail::Neighbour {
            address: ip("10.244.0.9"),
            ifindex: CNI0,
        };
        let way = bench
            .tcp("192.0.2.10:40000", "10.244.0.9:80")
            .receive(ETH0)
            .at(HookId::Forward)
            .at(HookId::OutputFinish)
            .with(HookId::NeighbourQueue, detail.clone());
        if report {
            way.with(HookId::NeighbourFailed, detail)
                .with(HookId::IcmpSend, Detail::Icmp { kind: 3, code: 1 })
                .dropped("NEIGH_FAILED", "arp_error_report");
        } else {
            way.dropped("NEIGH_QUEUEFULL", "__neigh_event_send");
        }
        bench
    }

    pub(in crate::cause) fn situation() -> Bench {
        with(true)
    }

    #[test]
    fn the_neighbour_that_does_not_answer_is_named() {
        let mut bench = situation();
        bench.site().neighbours = vec![neighbour(CNI0, "10.244.0.9", NeighbourState::Failed)];
        let found = bench.only();
        assert_eq!(
            (found.code, found.certainty),
            (CAUSE.code, Certainty::Certain)
        );
        assert_eq!(found.subject, "10.244.0.9 on cni0");
    }

    #[test]
    fn a_full_queue_or_an_answer_since_is_likely() {
        assert_eq!(with(false).only().certainty, Certainty::Likely);
        let mut bench = situation();
        bench.site().neighbours = vec![neighbour(CNI0, "10.244.0.9", NeighbourState::Reachable)];
        assert_eq!(bench.only().certainty, Certainty::Likely);
    }

    #[test]
    fn a_full_table_is_said() {
        let mut bench = situation();
        bench.sysctl("net/ipv4/neigh/default/gc_thresh3", "1");
        bench.site().neighbours = vec![neighbour(CNI0, "10.244.0.9", NeighbourState::Failed)];
        let found = bench.only();
        assert!(found.summary.contains("table is full"), "{found:#?}");
        assert!(found.fixes[0].lines[0].contains("gc_thresh3=4"));
    }
}
