//! `neighbour-failed`: the next host on the link does not answer ARP or neighbour discovery, or there is no room
//! for its entry.

use std::net::IpAddr;

use super::audit::Finding;
use super::evidence::{Evidence, Failure};
use super::{Cause, Diagnosis, Site};
use crate::event::Detail;
use crate::hook::Role;
use crate::node::{NeighbourState, NeighbourTable, NetnsId};

pub(super) const CAUSE: Cause = Cause {
    code: "neighbour-failed",
    title: "the next host on the link does not answer ARP or neighbour discovery",
    explanation: "\
The packet has a route, and the kernel asked who on the link has the next address. Nobody answered (three
probes, about three seconds), so the packets that waited were dropped, and the sender may get ICMP host
unreachable. The entry in `ip neighbour` says FAILED or INCOMPLETE.

Why: the host or pod is down or gone, its address is another one, the cable, VLAN, bridge or overlay
between does not carry ARP. Or the neighbour table, which all network namespaces of the node share, is full
(net.ipv4.neigh.default.gc_thresh3): then nobody is asked, and the kernel's log says \"neighbor table
overflow\".

Proof: the kernel reported the neighbour as failed for the packet; the neighbour table agrees. Or: the packet
was dropped because no entry could be made, and the table counts that (table_fulls).

Fix: bring the host up or correct the address or route; with a full table raise gc_thresh3.",
    references: &[
        "Linux net/core/neighbour.c, neigh_timer_handler: gives up after three probes",
        "Linux net/core/neighbour.c, neigh_invalidate: reports each waiting packet (arp_error_report) and frees \
         it with NEIGH_FAILED",
        "Linux net/core/neighbour.c, neigh_alloc: makes no entry when gc_thresh3 are in use; ip_finish_output2 then \
         drops with NEIGH_CREATEFAIL",
    ],
    explains: &[],
    examine,
    audit,
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

/// What the kernel says, and where it drops, when it cannot make an entry.
const NO_ENTRY: &str = "NEIGH_CREATEFAIL";
const NO_ENTRY_FUNCTIONS: &[&str] = &["ip_finish_output2", "ip6_finish_output2"];

fn examine(evidence: &Evidence<'_>) -> Vec<Diagnosis> {
    let unanswered = evidence.group(lost_for);
    let unanswered = unanswered
        .into_iter()
        .map(|((netns, ifindex, address), failures)| {
            judge(evidence, netns, ifindex, address, &failures)
        });
    let without_entry = evidence.group(without_entry);
    let without_entry = without_entry
        .into_iter()
        .filter_map(|(ipv6, failures)| overflow(evidence, ipv6, &failures));
    unanswered.chain(without_entry).collect()
}

/// The family of a packet that was dropped since its next host has no entry and gets none.
fn without_entry(failure: &Failure<'_>) -> Option<bool> {
    if !failure.dropped_for(&[NO_ENTRY], NO_ENTRY_FUNCTIONS) {
        return None;
    }
    Some(failure.packet_at(usize::MAX)?.tuple.destination.is_ipv6())
}

/// The kernel could make no entry; `None` where neither its reason nor its table says so.
fn overflow(evidence: &Evidence<'_>, ipv6: bool, failures: &[&Failure<'_>]) -> Option<Diagnosis> {
    let first = failures.first()?;
    let table = table(evidence, ipv6);
    // Refusals are counted since the node started, so they alone are not of this moment.
    let full = table.filter(|table| table.refused > 0 && table.is_full());
    if full.is_none() && !first.dropped_for(&[NO_ENTRY], &[]) {
        return None;
    }
    let family = family(ipv6);
    let summary = match full {
        Some(table) => format!(
            "The node's {family} neighbour table is full: {} entries of all network namespaces, and gc_thresh3 is {}. The \
             kernel makes no entry for another host and drops what is for it.",
            table.entries, table.most
        ),
        None => format!(
            "The kernel could make no {family} neighbour entry for the next host, and dropped what is for it."
        ),
    };
    let begun = Diagnosis::new(
        &CAUSE,
        format!("{family} neighbour table of the node"),
        summary,
    )
    .stopped(evidence, failures)
    .prove(
        "packet",
        format!(
            "{} was {}, without a neighbour entry",
            first.words(),
            first.drop_words()
        ),
    )
    .prove_if("neighbour", table.map(counted))
    .lacking_if(
        full.is_none(),
        "that the table is full (entries and table_fulls in /proc/net/stat of the node's own namespace)",
    );
    Some(make_room(
        begun,
        ipv6,
        table.map_or(1024, |table| table.most),
    ))
}

fn counted(table: NeighbourTable) -> String {
    format!(
        "{} entries, gc_thresh3 {}, {} times none could be made since the node started",
        table.entries, table.most, table.refused
    )
}

fn make_room(diagnosis: Diagnosis, ipv6: bool, most: u64) -> Diagnosis {
    let version = if ipv6 { "ipv6" } else { "ipv4" };
    let limit = |number: u8, most: u64| {
        format!("sysctl -w net.{version}.neigh.default.gc_thresh{number}={most}")
    };
    let most = most.saturating_mul(4);
    diagnosis
        .fix(
            [limit(3, most), limit(2, most / 2), limit(1, most / 8)],
            "more kernel memory for neighbours; to be made lasting in /etc/sysctl.d",
        )
        .check("dmesg | grep 'table overflow'   # no new lines")
}

const fn family(ipv6: bool) -> &'static str {
    if ipv6 { "IPv6" } else { "IPv4" }
}

fn table(evidence: &Evidence<'_>, ipv6: bool) -> Option<NeighbourTable> {
    let mut tables = evidence.facts.neighbour_tables.iter();
    tables.find(|table| table.ipv6 == ipv6).copied()
}

/// Tables without room for another host.
fn audit(evidence: &Evidence<'_>) -> Vec<Finding> {
    let tables = evidence.facts.neighbour_tables.iter();
    tables
        .filter(|table| table.is_full() && table.refused > 0)
        .map(|&table| {
            let family = family(table.ipv6);
            let summary = format!(
                "The node's {family} neighbour table has as many entries as gc_thresh3 allows, and could not take others \
                 before: packets for hosts that have no entry are dropped then."
            );
            let begun = Diagnosis::new(&CAUSE, format!("{family} neighbour table of the node"), summary)
                .prove("neighbour", counted(table))
                .lacking("how many of the entries stay for good: those are not limited");
            Finding::warning(make_room(begun, table.ipv6, table.most))
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
    let mut others = evidence.sites().filter(|other| other.facts.id != netns);
    let holder = others.find_map(|other| Some((other, other.addresses(address).next()?)));
    let why = holder.map_or_else(
        || "nobody there has the address".to_owned(),
        |(holder, _)| {
            let name = holder.name();
            format!("{name} has it, so perhaps the question or the answer is lost between the two")
        },
    );
    let mut summary = format!(
        "{address} does not answer on {device} of {place}: {why}, so packets for it were dropped."
    );
    let link = site.and_then(|site| site.link(ifindex));
    if let Some(link) = link.filter(|link| link.carrier == Some(false)) {
        summary += &format!(" {} has no carrier.", link.name);
    }
    let protocol = if address.is_ipv6() {
        "ndisc6"
    } else {
        "arping -c 3"
    };
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
        .lacking_if(answers, "the neighbour answers now")
        .prove_if(
            "address",
            holder.map(|(holder, own)| {
                format!("{address} is on {} of {}", holder.device(own.link), holder.name())
            }),
        )
        .lacking_if(
            holder.is_some(),
            "where it is lost: VLANs and ports of the bridges between (bridge vlan, bridge link), queues (tc -s qdisc), \
             rules for ARP and bridges (nft list ruleset, ebtables -L)",
        );
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

#[cfg(test)]
pub(super) mod tests {
    use tracer_ebpf::hook::HookId;

    use super::*;
    use crate::cause::Certainty;
    use crate::cause::constructed::{Bench, CNI0, ETH0, ip, neighbour, node};
    use crate::node::{Address, NetnsFacts};

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
        assert!(found.summary.contains("nobody there has the address"));
    }

    #[test]
    fn an_address_that_another_namespace_has_is_not_nobodys() {
        let mut bench = situation();
        let mut elsewhere = NetnsFacts::unread(NetnsId(9), Some("web"));
        elsewhere.addresses = vec![Address::global(2, ip("10.244.0.9"), 24)];
        bench.facts.namespaces.push(elsewhere);
        let found = bench.only();
        assert_eq!(found.certainty, Certainty::Likely);
        assert!(found.summary.contains("web has it"), "{found:#?}");
    }

    #[test]
    fn a_full_queue_or_an_answer_since_is_likely() {
        assert_eq!(with(false).only().certainty, Certainty::Likely);
        let mut bench = situation();
        bench.site().neighbours = vec![neighbour(CNI0, "10.244.0.9", NeighbourState::Reachable)];
        assert_eq!(bench.only().certainty, Certainty::Likely);
    }

    /// A packet that was dropped where the next host is looked for, on a node with a table of so many entries.
    fn refused(reason: &str, function: &str, entries: u64, refused: u64) -> Bench {
        let mut bench = node();
        bench.facts.neighbour_tables = vec![NeighbourTable {
            ipv6: false,
            entries,
            most: 1_024,
            refused,
        }];
        bench
            .udp("192.0.2.10:40000", "10.244.0.9:53")
            .receive(ETH0)
            .at(HookId::OutputFinish)
            .dropped(reason, function);
        bench
    }

    #[test]
    fn a_table_without_room_is_named_with_its_limit() {
        for (reason, function) in [(NO_ENTRY, "ip_finish_output2"), ("", "ip_finish_output2")] {
            let found = refused(reason, function, 1_030, 7).only();
            assert_eq!(
                (found.code, found.certainty),
                (CAUSE.code, Certainty::Certain)
            );
            assert!(found.summary.contains("gc_thresh3 is 1024"), "{found:#?}");
            assert!(found.fixes[0].lines[0].ends_with("gc_thresh3=4096"));
        }
        let bench = refused(NO_ENTRY, "ip_finish_output2", 1_030, 7);
        assert_eq!(bench.with_evidence(audit).len(), 1);
    }

    #[test]
    fn a_table_with_room_or_without_a_refusal_is_no_proof() {
        for (entries, times) in [(1_030, 0), (40, 7)] {
            let bench = refused(NO_ENTRY, "ip_finish_output2", entries, times);
            let found = bench.only();
            assert_eq!(found.certainty, Certainty::Likely);
            assert!(!found.summary.contains("is full"), "{found:#?}");
            assert_eq!(bench.with_evidence(audit), []);
            // The function drops for other reasons too.
            let bench = refused("", "ip_finish_output2", entries, times);
            assert!(bench.codes().is_empty());
        }
    }
}
