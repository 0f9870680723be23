//! `receive-buffer-full`: the program does not read its socket as fast as packets come.

use super::audit::nothing;
use super::evidence::Evidence;
use super::{Cause, Diagnosis, Site};
use crate::event::protocol;
use crate::hook::Role;

pub(super) const CAUSE: Cause = Cause {
    code: "receive-buffer-full",
    title: "the socket's receive buffer is full: the program does not read fast enough",
    explanation: "\
The packet reached its socket, and the socket's receive buffer had no room left, so the kernel dropped it.
For UDP nobody tells the sender: answers are missing, DNS servers and log collectors lose packets.

Why: the program is slower than the packets come, hangs, or its buffer (SO_RCVBUF, net.core.rmem_default,
at most net.core.rmem_max) is too small for bursts.

Proof: the packet was dropped with SOCKET_RCVBUFF (or PROTO_MEM: all memory for the protocol is used);
RcvbufErrors counts them.

Fix: make the program read faster or run more of it; a larger buffer helps against bursts.",
    references: &[
        "Linux net/ipv4/udp.c, __udp_enqueue_schedule_skb: SOCKET_RCVBUFF above sk_rcvbuf, PROTO_MEM when all \
         of UDP's memory is used (net.ipv4.udp_mem); counts RcvbufErrors",
    ],
    explains: &[],
    examine,
    audit: nothing,
};

const REASONS: &[&str] = &["SOCKET_RCVBUFF", "PROTO_MEM"];
/// Functions that free a datagram which its socket does not take.
/// On kernels without reasons they drop for other reasons too, so a counter has to agree.
pub const REFUSE_DATAGRAMS: &[&str] = &[
    "udp_queue_rcv_one_skb",
    "__udp_queue_rcv_skb",
    "udpv6_queue_rcv_one_skb",
    "__udp_enqueue_schedule_skb",
];
/// Datagrams lost for want of buffer, and those that the functions above dropped for any reason.
const COUNTERS: &[(&str, &str)] = &[
    ("Udp RcvbufErrors", "Udp InErrors"),
    ("Udp6RcvbufErrors", "Udp6InErrors"),
];

fn examine(evidence: &Evidence<'_>) -> Vec<Diagnosis> {
    evidence
        .group(|failure| {
            let (index, _) = failure.last(Role::Deliver)?;
            failure.dropped_for(REASONS, REFUSE_DATAGRAMS).then_some(())?;
            let tuple = failure.packet_at(index)?.tuple;
            let netns = failure.netns_at(index)?;
            let named = failure.drop?.reason.is_some();
            let counted = || evidence.site(netns).and_then(counted).is_some();
            (named || counted()).then_some((netns, tuple.protocol, tuple.destination))
        })
        .into_iter()
        .map(|((netns, number, target), failures)| {
            let site = evidence.site(netns);
            let place = site.map_or_else(|| format!("netns {netns}"), Site::name);
            let name = protocol::name(number);
            let socket =
                site.and_then(|site| site.listeners(number, target.ip(), target.port()).next());
            let who = socket
                .and_then(|socket| socket.owner.as_ref())
                .map_or_else(
                    || "The program".to_owned(),
                    |owner| format!("{} (process {})", owner.command, owner.pid),
                );
            let all_memory = failures
                .iter()
                .any(|failure| failure.dropped_for(&["PROTO_MEM"], &[]));
            let named = failures
                .iter()
                .any(|failure| failure.drop.is_some_and(|drop| drop.reason.is_some()));
            // Counters that were read before a packet was dropped say nothing of it.
            let counted_since = evidence.facts.taken_ns.is_some_and(|taken| {
                failures
                    .iter()
                    .any(|failure| failure.journey.end_ns() <= taken)
            });
            let proven = named || counted_since && site.is_some_and(nothing_else_counted);
            let summary = if all_memory {
                format!("All memory that {name} may use is taken (net.ipv4.{name}_mem), so packets for {target} in {place} were dropped.")
            } else {
                format!("{who} does not read {name} {target} in {place} fast enough: its receive buffer was full, and packets were dropped.")
            };
            Diagnosis::new(&CAUSE, format!("{name} {target}"), summary)
                .stopped(evidence, &failures)
                .prove_if(
                    "packet",
                    failures
                        .first()
                        .map(|first| format!("{} reached the socket, {}", first.words(), first.drop_words())),
                )
                .prove_if(
                    "socket",
                    socket.map(|socket| format!("{} bytes wait to be read now", socket.receive_queue)),
                )
                .prove_if("counter", site.and_then(counted))
                .lacking_if(
                    !proven,
                    "the kernel's reason for the drop (this kernel gives none, and counts other errors too)",
                )
                .fix(
                    [format!("find out why {who} reads slowly; run more of it or give it more processor time")],
                    "none",
                )
                .check("nstat -az UdpRcvbufErrors   # no longer rises")
                .typed_for(site)
                // These two are the node's: no pod has them.
                .fix(
                    ["sysctl -w net.core.rmem_max=8388608 net.core.rmem_default=1048576   # then restart the program"],
                    "more kernel memory for each socket",
                )
        })
        .collect()
}

fn counted(site: &Site<'_>) -> Option<String> {
    COUNTERS.iter().find_map(|(name, _)| {
        let count = site.facts.counters.get(name)?;
        (count > 0).then(|| format!("{name} is {count}"))
    })
}

/// Whatever those functions dropped, they dropped for want of buffer.
fn nothing_else_counted(site: &Site<'_>) -> bool {
    let counters = &site.facts.counters;
    COUNTERS
        .iter()
        .all(|(buffer, all)| counters.get(buffer) == counters.get(all))
}

#[cfg(test)]
pub(super) mod tests {
    use tracer_ebpf::hook::HookId;

    use super::*;
    use crate::cause::Certainty;
    use crate::cause::constructed::{Bench, ETH0, node, socket};
    use crate::event::Detail;

    fn with(reason: &str) -> Bench {
        let mut bench = node();
        bench.site().sockets = vec![socket(17, "0.0.0.0", 514)];
        bench
            .udp("192.0.2.10:4000", "192.0.2.1:514")
            .receive(ETH0)
            .at(HookId::UdpReceive)
            .with(
                HookId::UdpDeliver,
                Detail::Socket {
                    state: 7,
                    port: 514,
                },
            )
            .dropped(reason, "udp_queue_rcv_one_skb");
        bench
    }

    pub(in crate::cause) fn situation() -> Bench {
        with("SOCKET_RCVBUFF")
    }

    #[test]
    fn a_full_buffer_is_certain_by_its_reason() {
        for reason in REASONS {
            let found = with(reason).only();
            assert_eq!(
                (found.code, found.certainty),
                (CAUSE.code, Certainty::Certain)
            );
        }
    }

    #[test]
    fn without_a_reason_counters_have_to_agree() {
        let mut bench = with("");
        assert_eq!(bench.codes(), [] as [&str; 0]);
        for (errors, taken_ns, certainty) in [
            (3, u64::MAX, Certainty::Likely),
            // Older than the packet.
            (2, 0, Certainty::Likely),
            (2, u64::MAX, Certainty::Certain),
        ] {
            bench.facts.taken_ns = Some(taken_ns);
            let counters = [("Udp RcvbufErrors", 2), ("Udp InErrors", errors)];
            let counters = counters.map(|(name, count)| (name.to_owned(), count));
            bench.site().counters = counters.into_iter().collect();
            assert_eq!(bench.only().certainty, certainty);
        }
    }

    #[test]
    fn a_bad_checksum_is_another_case() {
        assert!(!with("UDP_CSUM").codes().contains(&CAUSE.code));
    }
}
