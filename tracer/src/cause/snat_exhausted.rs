//! `snat-exhausted`: source NAT has no free port left for the destination.

use super::audit::nothing;
use super::confirm::{clash, refused};
use super::conntrack_insert_clash::is_race;
use super::evidence::Evidence;
use super::{Cause, Diagnosis, Site};
use crate::event::protocol;

pub(super) const CAUSE: Cause = Cause {
    code: "snat-exhausted",
    title: "source NAT has no free port left for this destination",
    explanation: "\
Masquerading gives all clients one address, so towards one destination address and port there are at most
as many connections as ports: 64512, or fewer where the rule names a range. When none is free the new
connection keeps a port that is in use, its conntrack entry is refused, and the packet is dropped silently.

Why: very many connections to one destination (a proxy, a database, an external API), entries that live long
after their connection (TIME_WAIT 120 s, established 5 days), or --to-source / --to-ports with a small range.

Proof: the packet was dropped when its entry was to become valid, the entry changes its source, and for this
protocol and port two packets cannot have raced; insert_failed counts them.

Fix: a larger range or more addresses, --random-fully, connections that are kept and reused.",
    references: &[
        "Linux net/netfilter/nf_nat_core.c, nf_nat_l4proto_unique_tuple: tries ports of the range and keeps a \
         taken one in the end; then the entry is refused on confirmation",
    ],
    explains: &[],
    examine,
    audit: nothing,
};

fn examine(evidence: &Evidence<'_>) -> Vec<Diagnosis> {
    evidence
        .group(|failure| {
            let clash = clash(failure)?;
            (clash.has_source_nat() && !is_race(&clash)).then_some((
                clash.netns,
                clash.original.protocol,
                clash.reply.source,
                clash.reply.destination.ip(),
            ))
        })
        .into_iter()
        .map(|((netns, number, target, address), failures)| {
            let place = evidence
                .site(netns)
                .map_or_else(|| format!("netns {netns}"), Site::name);
            let name = protocol::name(number);
            Diagnosis::new(
                &CAUSE,
                format!("{name} {target} as {address}"),
                format!(
                    "{place} changes the source of connections to {name} {target} to {address}, and no port of it is \
                     free for one more: new connections there are dropped."
                ),
            )
            .stopped(evidence, &failures)
            .prove_if(
                "packet",
                failures
                    .first()
                    .map(|first| format!("{} was dropped when its conntrack entry was to become valid", first.words())),
            )
            .prove_if("counter", refused(evidence, netns))
            .fix(
                [
                    "a wider range in the SNAT rule (--to-source ADDRESS:1024-65535), or more than one address",
                    "iptables -t nat … -j MASQUERADE --random-fully   # spreads the ports better",
                ],
                "connections that begin at that moment may change their port",
            )
            .fix(
                ["sysctl -w net.netfilter.nf_conntrack_tcp_timeout_time_wait=30   # entries free their port sooner"],
                "late packets of closed connections count as invalid",
            )
            .check(format!(
                "conntrack -L -p {name} --reply-src {} --reply-port-src {} | wc -l",
                target.ip(),
                target.port()
            ))
        })
        .collect()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::cause::Certainty;
    use crate::cause::conntrack_insert_clash::tests::clashing;
    use crate::cause::constructed::Bench;

    pub(in crate::cause) fn situation() -> Bench {
        clashing(protocol::TCP, "10.96.0.10:53", "192.0.2.1:1024")
    }

    #[test]
    fn a_tcp_connection_without_a_free_port() {
        let found = situation().only();
        assert_eq!(
            (found.code, found.certainty),
            (CAUSE.code, Certainty::Certain)
        );
        assert!(found.summary.contains("192.0.2.1"), "{found:#?}");
        let udp = clashing(protocol::UDP, "10.96.0.10:53", "192.0.2.1:1024").only();
        assert_eq!(udp.code, CAUSE.code);
    }
}
