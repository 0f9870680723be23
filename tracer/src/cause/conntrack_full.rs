//! `conntrack-full`: the connection tracking table is full, so new connections are dropped.
//!
//! Source: `__nf_conntrack_alloc` fails at `nf_conntrack_max` and `nf_conntrack_in` drops the packet
//! (net/netfilter/nf_conntrack_core.c); the log says "nf_conntrack: table full, dropping packet".

use super::audit::Finding;
use super::evidence::{Evidence, Failure};
use super::{Cause, Diagnosis, Site};
use crate::event::{Detail, NetfilterHook, Transport};
use crate::hook::Role;
use crate::node::NetnsId;

pub(super) const CAUSE: Cause = Cause {
    code: "conntrack-full",
    title: "the connection tracking table is full",
    explanation: "\
Every connection through the node takes an entry in conntrack's table. When net.netfilter.nf_conntrack_max
is reached and nothing can be thrown out early, the first packet of each new connection is dropped, while
existing connections go on. The kernel log says \"nf_conntrack: table full, dropping packet\".

Why: many short connections with long timeouts, a scan or flood, or a limit that is too small for the node.
kube-proxy sets the limit (conntrack.maxPerCore, conntrack.min).

Proof: the packet was dropped by netfilter before conntrack knew it, and the table's count is at its limit.

Fix: raise nf_conntrack_max (each entry takes about 320 bytes), and find out who fills the table.",
    explains: &[],
    examine,
    audit,
};

/// Entries and limit of a namespace.
pub(super) fn fill(site: &Site<'_>) -> Option<(i64, i64)> {
    let count = site.sysctl("net/netfilter/nf_conntrack_count")?;
    let most = site.sysctl("net/netfilter/nf_conntrack_max")?;
    (most > 0).then_some((count, most))
}

/// New connections can meet a full table: entries come and go between the packet and the reading.
pub(super) fn is_full((count, most): (i64, i64)) -> bool {
    count >= most - most / 20
}

fn examine(evidence: &Evidence<'_>) -> Vec<Diagnosis> {
    evidence
        .group(|failure| untracked(failure))
        .into_iter()
        .filter_map(|(netns, failures)| {
            let site = evidence.site(netns)?;
            let fill = fill(site)?;
            let refused = site.facts.counters.get("conntrack drop").unwrap_or(0);
            let full = is_full(fill);
            (full || refused > 0).then(|| {
                say(site, fill)
                    .stopped(evidence, &failures)
                    .prove_if(
                        "packet",
                        failures.first().map(|first| {
                            format!("{} was dropped before conntrack knew it", first.words())
                        }),
                    )
                    .prove_if(
                        "conntrack",
                        (refused > 0).then(|| {
                            format!("{refused} packets were dropped so far for want of an entry")
                        }),
                    )
                    .lacking_if(
                        !full,
                        "a full table at the time of the packet: there is room now",
                    )
            })
        })
        .collect()
}

pub(super) fn say(site: &Site<'_>, (count, most): (i64, i64)) -> Diagnosis {
    let place = site.name();
    Diagnosis::new(
        &CAUSE,
        place.clone(),
        format!(
            "The connection tracking table of {place} is full: {count} of {most} entries. New connections are dropped, \
             existing ones go on."
        ),
    )
    .prove(
        "sysctl",
        format!("nf_conntrack_count = {count}, nf_conntrack_max = {most}"),
    )
    .fix(
        [
            format!("sysctl -w net.netfilter.nf_conntrack_max={}", most.saturating_mul(2)),
            "conntrack.maxPerCore and conntrack.min in kube-proxy's configuration   # else it sets it back".into(),
        ],
        "about 320 bytes of kernel memory for each entry",
    )
    .fix(
        ["conntrack -L | awk '{print $5}' | sort | uniq -c | sort -rn | head   # who fills it"],
        "reading a large table takes a while",
    )
    .check("cat /proc/sys/net/netfilter/nf_conntrack_count /proc/sys/net/netfilter/nf_conntrack_max")
}

/// The packet was dropped in a netfilter hook where conntrack makes entries, before it had one.
fn untracked(failure: &Failure<'_>) -> Option<NetnsId> {
    let (index, event) = failure.last(Role::Netfilter)?;
    let early = matches!(
        event.detail,
        Detail::Netfilter(NetfilterHook::PreRouting | NetfilterHook::Output)
    );
    let known = failure.journey.events[index..]
        .iter()
        .any(|event| event.role() == Role::Conntrack);
    let dropped = failure.dropped_for(&["NETFILTER_DROP"], &["nf_hook_slow"]);
    // NAT drops ICMP errors and redirects that it cannot translate; they never need an entry.
    let icmp = failure.packet_at(index).is_some_and(
        |packet| matches!(packet.transport, Transport::Icmp { kind, .. } if kind != 8),
    );
    (!icmp && early && !known && dropped)
        .then(|| failure.netns_at(index))
        .flatten()
}

/// Tables that are full, or nearly.
fn audit(evidence: &Evidence<'_>) -> Vec<Finding> {
    evidence
        .sites()
        .filter_map(|site| {
            let (count, most) = fill(site)?;
            if is_full((count, most)) {
                return Some(Finding::error(say(site, (count, most))));
            }
            (count >= most / 5 * 4).then(|| {
                Finding::warning(
                    say(site, (count, most))
                        .lacking("it is not full yet: more than 80 % are taken"),
                )
            })
        })
        .collect()
}

#[cfg(test)]
pub(super) mod tests {
    use tracer_ebpf::hook::HookId;

    use super::*;
    use crate::cause::Certainty;
    use crate::cause::constructed::{Bench, ETH0, node};

    fn with(count: &str, known: bool) -> Bench {
        let mut bench = node();
        bench.sysctl("net/netfilter/nf_conntrack_count", count);
        bench.sysctl("net/netfilter/nf_conntrack_max", "1000");
        let way = bench
            .udp("192.0.2.10:4000", "10.244.0.9:53")
            .receive(ETH0)
            .netfilter(NetfilterHook::PreRouting);
        let way = if known {
            way.at(HookId::ConntrackUdp)
        } else {
            way
        };
        way.dropped("NETFILTER_DROP", "nf_hook_slow");
        bench
    }

    pub(in crate::cause) fn situation() -> Bench {
        with("1000", false)
    }

    #[test]
    fn a_full_table_drops_new_connections() {
        let found = situation().only();
        assert_eq!(
            (found.code, found.certainty),
            (CAUSE.code, Certainty::Certain)
        );
        assert!(found.fixes[0].lines[0].ends_with("nf_conntrack_max=2000"));
    }

    #[test]
    fn room_now_and_drops_before_make_it_likely() {
        let mut bench = with("10", false);
        assert!(!bench.codes().contains(&CAUSE.code));
        bench.site().counters = [("conntrack drop".to_owned(), 3)].into_iter().collect();
        assert_eq!(bench.only().certainty, Certainty::Likely);
    }

    #[test]
    fn a_rule_that_drops_is_another_case() {
        assert!(!with("1000", true).codes().contains(&CAUSE.code));
    }
}
