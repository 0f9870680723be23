//! `conntrack-full`: the connection tracking table is full, so new connections are dropped.
//!
//! The kernel makes room in a table that was full (`gc_worker`), so it may have some when it is looked at.

use std::collections::HashSet;

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

Proof: the packet was dropped by netfilter before conntrack knew it, no rule can have dropped it, and the table's
count is at its limit; or above 95 % of it, down to which the kernel clears a table that was full, with drops for
want of an entry counted.

Fix: raise nf_conntrack_max (each entry takes about 320 bytes), and find out who fills the table.",
    references: &[
        "Linux net/netfilter/nf_conntrack_core.c, __nf_conntrack_alloc: fails at nf_conntrack_max",
        "Linux net/netfilter/nf_conntrack_core.c, nf_conntrack_in: drops the packet and counts it (drop)",
        "Linux net/netfilter/nf_conntrack_core.c, gc_worker: throws out what it may from then on, until 95 % \
         are taken",
    ],
    explains: &[],
    examine,
    audit,
};

/// How many entries a namespace has and may have, and how many packets were dropped for want of one so far.
#[derive(Clone, Copy)]
struct Fill {
    count: i64,
    most: i64,
    refused: u64,
}

impl Fill {
    fn of(site: &Site<'_>) -> Option<Self> {
        let most = site.sysctl("net/netfilter/nf_conntrack_max")?;
        (most > 0).then_some(Self {
            count: site.sysctl("net/netfilter/nf_conntrack_count")?,
            most,
            refused: site.facts.counters.get("conntrack drop").unwrap_or(0),
        })
    }

    /// The next connection finds no room.
    const fn is_full(self) -> bool {
        self.count >= self.most
    }

    /// It was full and is as the kernel leaves it then.
    const fn was_full(self) -> bool {
        self.refused > 0 && self.count >= self.most - self.most / 20
    }

    /// It may be full soon.
    const fn fills(self) -> bool {
        self.count >= self.most - self.most / 5
    }

    /// Of this many entries so many are taken.
    fn words(self) -> String {
        format!("{} of {} entries", self.count, self.most)
    }
}

fn examine(evidence: &Evidence<'_>) -> Vec<Diagnosis> {
    // What a rule ended needed no entry.
    let ruled = |certain: bool| -> HashSet<u64> {
        let stops = evidence.filtered().iter();
        stops
            .filter(|stop| !certain || stop.ruling.as_ref().is_some_and(|ruling| ruling.certain))
            .map(|stop| stop.failure(evidence).journey.id)
            .collect()
    };
    let (surely, perhaps) = (ruled(true), ruled(false));
    let by_rule = |failure: &Failure<'_>, full: bool| {
        let ruled = if full { &surely } else { &perhaps };
        ruled.contains(&failure.journey.id)
    };
    evidence
        .group(|failure| {
            let netns = untracked(failure)?;
            let full = Fill::of(evidence.site(netns)?)?.is_full();
            (!by_rule(failure, full)).then_some(netns)
        })
        .into_iter()
        .filter_map(|(netns, failures)| {
            let site = evidence.site(netns)?;
            let fill = Fill::of(site)?;
            (fill.is_full() || fill.refused > 0).then(|| {
                let certain = fill.is_full() || fill.was_full();
                let (place, words) = (site.name(), fill.words());
                let summary = match (fill.is_full(), certain) {
                    (true, _) => is_full(&place, &words),
                    (false, true) => format!(
                        "The connection tracking table of {place} was full, and the kernel has cleared a little of it \
                         since: {words}. New connections are dropped, existing ones go on."
                    ),
                    (false, false) => format!(
                        "The connection tracking table of {place} was full before ({words} now), and a new connection \
                         was dropped before it had an entry."
                    ),
                };
                say(site, fill, summary)
                    .stopped(evidence, &failures)
                    .prove_if(
                        "packet",
                        failures.first().map(|first| {
                            format!("{} was dropped before conntrack knew it", first.words())
                        }),
                    )
                    .lacking_if(
                        !certain,
                        "a full table at the time of the packet: there is room now",
                    )
            })
        })
        .collect()
}

fn is_full(place: &str, words: &str) -> String {
    format!(
        "The connection tracking table of {place} is full: {words}. New connections are dropped, existing ones go on."
    )
}

fn say(site: &Site<'_>, fill: Fill, summary: String) -> Diagnosis {
    let Fill {
        count,
        most,
        refused,
    } = fill;
    Diagnosis::new(&CAUSE, site.name(), summary)
    .prove(
        "sysctl",
        format!("nf_conntrack_count = {count}, nf_conntrack_max = {most}"),
    )
    .prove_if(
        "conntrack",
        (refused > 0).then(|| format!("{refused} packets were dropped so far for want of an entry")),
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
            let fill = Fill::of(site)?;
            let (place, words) = (site.name(), fill.words());
            if fill.is_full() {
                return Some(Finding::error(say(site, fill, is_full(&place, &words))));
            }
            let percent = fill.count.saturating_mul(100) / fill.most;
            fill.fills().then(|| {
                let summary = format!(
                    "The connection tracking table of {place} fills up: {words} ({percent} %). When it is full, new \
                     connections are dropped."
                );
                Finding::warning(say(site, fill, summary).lacking("a full table: there is room now"))
            })
        })
        .collect()
}

#[cfg(test)]
pub(super) mod tests {
    use tracer_ebpf::hook::HookId;

    use super::*;
    use crate::cause::Certainty;
    use crate::cause::audit::Severity;
    use crate::cause::constructed::{Bench, ETH0, node};
    use crate::cause::filtered::tests::{chain, rule};
    use crate::node::netfilter::{Action, Family, RuleTable, Ruleset, Tool};

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
    fn a_table_that_the_kernel_has_cleared_since_was_full() {
        for (count, drops, said) in [
            ("1000", 0, Some(Certainty::Certain)),
            ("999", 0, None),
            ("999", 3, Some(Certainty::Certain)),
            ("950", 3, Some(Certainty::Certain)),
            ("949", 3, Some(Certainty::Likely)),
        ] {
            let mut bench = with(count, false);
            bench.site().counters = [("conntrack drop".to_owned(), drops)].into_iter().collect();
            let found = bench.diagnose();
            let found = found.iter().find(|found| found.code == CAUSE.code);
            let certainty = found.map(|found| found.certainty);
            assert_eq!(certainty, said, "{count} {drops}");
            let full = found.is_some_and(|found| found.summary.contains("is full"));
            assert_eq!(full, count == "1000", "{found:#?}");
        }
    }

    #[test]
    fn the_audit_s_words_fit_the_numbers() {
        for (count, wanted) in [
            (
                "1000",
                Some((Severity::Error, Certainty::Certain, "is full")),
            ),
            (
                "990",
                Some((
                    Severity::Warning,
                    Certainty::Likely,
                    "fills up: 990 of 1000",
                )),
            ),
            (
                "800",
                Some((
                    Severity::Warning,
                    Certainty::Likely,
                    "fills up: 800 of 1000",
                )),
            ),
            ("799", None),
        ] {
            let found = with(count, true).with_evidence(audit);
            let said = found.first().map(|found| {
                let Finding {
                    severity,
                    diagnosis,
                } = found;
                (*severity, diagnosis.certainty, diagnosis.summary.as_str())
            });
            let fits = match (said, wanted) {
                (None, None) => true,
                (Some((severity, certainty, text)), Some((wanted, sure, words))) => {
                    severity == wanted && certainty == sure && text.contains(words)
                }
                _ => false,
            };
            assert!(fits, "{count}: {said:?}");
        }
    }

    #[test]
    fn a_raw_rule_and_an_old_counter_are_the_rule() {
        let mut bench = with("10", false);
        let site = bench.site();
        site.counters = [("conntrack drop".to_owned(), 3)].into_iter().collect();
        site.ruleset = Some(Ruleset {
            tables: vec![RuleTable {
                tool: Tool::IptablesLegacy,
                family: Family::Ip,
                name: "raw".into(),
                chains: vec![chain(
                    "PREROUTING",
                    Some((NetfilterHook::PreRouting, false)),
                    vec![rule(Some(53), Action::Drop, "")],
                )],
            }],
        });
        assert_eq!(bench.codes(), ["filter-rule-drop"]);
    }

    #[test]
    fn a_rule_that_drops_is_another_case() {
        assert!(!with("1000", true).codes().contains(&CAUSE.code));
    }
}
