//! `backlog-full`: a processor's queue of received packets has no room.

use super::audit::nothing;
use super::evidence::{Evidence, Failure};
use super::veth_peer_down::dead_end;
use super::{Cause, Diagnosis};

pub(super) const CAUSE: Cause = Cause {
    code: "backlog-full",
    title: "a processor's queue of received packets is full",
    explanation: "\
What crosses a veth pair or loopback, and what is spread over processors (RPS), waits in a queue of the
processor that goes on with it: every packet to and from a pod does. The queue takes
net.core.netdev_max_backlog packets (1000) and drops what comes then, whoever it is for.

Why: a burst that is larger than the queue; or a processor that does not keep up, because the interrupts of
a busy card, or all flows of a busy pod, are on one; or net.core.flow_limit_cpu_bitmap, by which one flow
gets no more than its share of a queue that is half full.

TCP sends lost data again, so they are no finding; what opens a connection, and packets without a
connection, are.

Proof: the packet was dropped with reason CPU_BACKLOG. Where the kernel gives no reason (before 5.17): in the
function that fills the queue, and /proc/net/softnet_stat counts drops.

Fix: a longer queue, or more processors that take part.",
    references: &[
        "Linux net/core/dev.c, enqueue_to_backlog: drops above netdev_max_backlog, and by skb_flow_limit",
        "Linux Documentation/networking/scaling.rst: RPS, and RPS flow limit",
    ],
    explains: &[],
    examine,
    audit: nothing,
};

const REASON: &str = "CPU_BACKLOG";
/// It drops what a device that is down would receive as well.
const FUNCTION: &str = "enqueue_to_backlog";
const LIMIT: &str = "net/core/netdev_max_backlog";
/// The kernel's own limit.
const USUAL: i64 = 1000;
/// A limit that fits bursts of busy nodes is this many times the usual one.
const LONGER: i64 = 4;

fn examine(evidence: &Evidence<'_>) -> Vec<Diagnosis> {
    evidence
        .group(|failure| dropped(evidence, failure).then_some(()))
        .into_iter()
        .map(|((), failures)| judge(evidence, &failures))
        .collect()
}

fn dropped(evidence: &Evidence<'_>, failure: &Failure<'_>) -> bool {
    let counted = || counter(evidence, "softnet dropped") > Some(0);
    failure.dropped_for(&[REASON], &[FUNCTION])
        && !failure.slows_down()
        && dead_end(evidence, failure).is_none()
        && (says_so(failure) || counted())
}

/// The kernel itself says that the queue was full.
fn says_so(failure: &Failure<'_>) -> bool {
    failure.dropped_for(&[REASON], &[])
}

/// A counter that is the same in every namespace.
fn counter(evidence: &Evidence<'_>, name: &str) -> Option<u64> {
    let mut namespaces = evidence.facts.namespaces.iter();
    namespaces.find_map(|facts| facts.counters.get(name))
}

fn judge(evidence: &Evidence<'_>, failures: &[&Failure<'_>]) -> Diagnosis {
    // Only the node's own namespace has it.
    let limit = (evidence.facts.namespaces.iter()).find_map(|facts| facts.sysctls.number(LIMIT));
    let room = limit.map_or_else(String::new, |limit| format!(" It takes {limit} packets."));
    let longer = limit.unwrap_or(USUAL).max(USUAL).saturating_mul(LONGER);
    let certain = failures.iter().any(|failure| says_so(failure));
    let by_flow = counter(evidence, "softnet flow_limit_count").filter(|&count| count > 0);
    let counted = counter(evidence, "softnet dropped").map(|dropped| {
        let by_flow = by_flow.map_or_else(String::new, |count| {
            format!(", {count} of them by the limit of one flow")
        });
        format!(
            "softnet_stat of all processors: {dropped} packets dropped since the start{by_flow}"
        )
    });
    Diagnosis::new(
        &CAUSE,
        "the node",
        format!(
            "A processor's queue of received packets was full, so the packet was dropped before anything looked at \
             it.{room} The processor does not keep up with what comes, or bursts are larger than the queue."
        ),
    )
    .stopped(evidence, failures)
    .prove_if(
        "packet",
        failures
            .first()
            .map(|first| format!("{} was {}", first.words(), first.drop_words())),
    )
    .prove_if("counter", counted)
    .prove_if(
        "sysctl",
        limit.map(|limit| format!("net.core.netdev_max_backlog = {limit}")),
    )
    .lacking_if(
        !certain,
        "the kernel's reason: it also drops there what a device receives that is being set down",
    )
    .fix(
        [format!("sysctl -w net.core.netdev_max_backlog={longer}")],
        "packets wait longer in a longer queue, and take memory there; lasting in /etc/sysctl.d",
    )
    .fix(
        ["let more processors take part: spread the interrupts of the card, or set rps_cpus of the busy device's queues"],
        "packets of one flow stay on one processor",
    )
    .check("awk '{print $2}' /proc/net/softnet_stat   # dropped, a line for each processor: no longer rises")
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::cause::Certainty;
    use crate::cause::constructed::{Bench, ETH0, node, sent_in_vain};
    use crate::event::tcp_flag;
    use crate::node::{Counters, Sysctls};

    fn with(reason: &str, function: &str, dropped: u64) -> Bench {
        let mut bench = node();
        bench
            .udp("192.0.2.1:40000", "192.0.2.77:53")
            .transmit(ETH0)
            .dropped(reason, function);
        let counted = [("softnet dropped".to_owned(), dropped)];
        bench.site().counters = Counters::from_iter(counted);
        bench
    }

    pub(in crate::cause) fn situation() -> Bench {
        let mut bench = with(REASON, FUNCTION, 3);
        let limit = [(LIMIT.to_owned(), "2000".to_owned())];
        bench.site().sysctls = Sysctls::from_iter(limit);
        bench
    }

    #[test]
    fn a_full_queue_is_named_with_its_limit() {
        let found = situation().only();
        assert_eq!(
            (found.code, found.certainty),
            (CAUSE.code, Certainty::Certain)
        );
        assert!(
            found.summary.contains("It takes 2000 packets."),
            "{found:#?}"
        );
        let longer = "sysctl -w net.core.netdev_max_backlog=8000";
        assert_eq!(found.fixes[0].lines, [longer]);
        // A limit that somebody set to nothing is no measure.
        let mut tiny = situation();
        tiny.site().sysctls = Sysctls::from_iter([(LIMIT.to_owned(), "1".to_owned())]);
        let longer = "sysctl -w net.core.netdev_max_backlog=4000";
        assert_eq!(tiny.only().fixes[0].lines, [longer]);
    }

    #[test]
    fn without_reasons_the_kernel_must_have_counted() {
        assert_eq!(with("", FUNCTION, 0).codes(), [""; 0]);
        assert_eq!(with("", FUNCTION, 2).only().certainty, Certainty::Likely);
    }

    #[test]
    fn data_of_tcp_is_no_finding() {
        for (flags, codes) in [(tcp_flag::ACK, &[][..]), (tcp_flag::SYN, &[CAUSE.code])] {
            let bench = sent_in_vain(flags, REASON, FUNCTION);
            assert_eq!(bench.codes(), codes);
        }
    }
}
