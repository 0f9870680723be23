//! `conntrack-insert-clash`: two packets of one client port race, and one of them is dropped.
//!
//! Source: kubernetes/kubernetes #56903, #62628.

use super::audit::nothing;
use super::confirm::{Clash, clash, refused};
use super::evidence::Evidence;
use super::{Cause, Diagnosis, Site};
use crate::event::protocol;

pub(super) const CAUSE: Cause = Cause {
    code: "conntrack-insert-clash",
    title: "two UDP packets from one port race for their conntrack entry, and one is dropped",
    explanation: "\
A resolver asks for A and AAAA at the same time from one source port. Both packets get a conntrack entry of
their own, both are sent to an endpoint by DNAT, perhaps not the same one, and only the first entry can
become valid: the second packet is dropped silently when it leaves the host. The resolver waits five seconds
and asks again: the \"5 second DNS delay\".

Proof: the packet was dropped when its entry was to become valid (__nf_conntrack_confirm), and no other
function comes after that one in its hook; insert_failed (conntrack -S) counts them.

Fix: make resolvers use two ports (options single-request-reopen), run NodeLocal DNSCache (which has no
DNAT), or give the service one proxy path that keeps a client on one endpoint.",
    explains: &[],
    examine,
    audit: nothing,
};

/// The entry lost a race; a changed source whose port was taken is another cause.
pub(super) fn is_race(clash: &Clash) -> bool {
    let destination_nat = clash.original.destination != clash.reply.source;
    clash.original.protocol == protocol::UDP && (destination_nat || !clash.has_source_nat())
}

fn examine(evidence: &Evidence<'_>) -> Vec<Diagnosis> {
    evidence
        .group(|failure| {
            let clash = clash(failure)?;
            is_race(&clash).then_some((clash.netns, clash.original.destination))
        })
        .into_iter()
        .map(|((netns, service), failures)| {
            let place = evidence
                .site(netns)
                .map_or_else(|| format!("netns {netns}"), Site::name);
            let first = failures.first();
            let raced = first.map_or(0, |failure| {
                failure.flow.of(failure.direction).count().saturating_sub(1)
            });
            Diagnosis::new(
                &CAUSE,
                format!("udp {service}"),
                format!(
                    "Two packets from one client port to udp {service} came at the same time, and {place} dropped one: \
                     both made a conntrack entry, and only one entry can become valid. Resolvers wait 5 s and ask again."
                ),
            )
            .stopped(evidence, &failures)
            .prove_if(
                "packet",
                first.map(|first| format!("{} was dropped when its conntrack entry was to become valid", first.words())),
            )
            .prove_if(
                "packet",
                (raced > 0).then(|| format!("{raced} more packets came from the same port")),
            )
            .prove_if("counter", refused(evidence, netns))
            .fix(
                ["options single-request-reopen   # in the pods' resolv.conf: dnsConfig.options of the pod (glibc)"],
                "none; musl (Alpine) does not know the option",
            )
            .fix(
                ["install NodeLocal DNSCache: pods then ask an address without DNAT"],
                "one more program on every node",
            )
            .check("conntrack -S   # insert_failed no longer rises")
        })
        .collect()
}

#[cfg(test)]
pub(super) mod tests {
    use tracer_ebpf::hook::HookId;

    use super::*;
    use crate::cause::Certainty;
    use crate::cause::constructed::{Bench, CNI0, at, node};
    use crate::event::{Detail, NetfilterHook, Tuple};

    pub(in crate::cause) fn clashing(number: u8, target: &str, back: &str) -> Bench {
        let mut bench = node();
        let tuple = |source: &str, destination: &str| Tuple {
            protocol: number,
            source: at(source),
            destination: at(destination),
        };
        let detail = Detail::Conntrack {
            original: tuple("10.244.0.9:4000", "10.96.0.10:53"),
            reply: tuple(target, back),
            destination_nat: false,
            relation: None,
            status: 0,
            zone: 0,
        };
        let way = if number == protocol::UDP {
            bench.udp("10.244.0.9:4000", "10.96.0.10:53")
        } else {
            bench.tcp("10.244.0.9:4000", "10.96.0.10:53")
        };
        way.receive(CNI0)
            .netfilter(NetfilterHook::PostRouting)
            .with(HookId::ConntrackConfirm, detail.clone())
            .with(HookId::ConntrackClash, Detail::None)
            .dropped("NETFILTER_DROP", "nf_hook_slow");
        bench
    }

    pub(in crate::cause) fn situation() -> Bench {
        clashing(protocol::UDP, "10.244.0.7:53", "10.244.0.9:4000")
    }

    #[test]
    fn a_lost_race_is_named() {
        let found = situation().only();
        assert_eq!(
            (found.code, found.certainty),
            (CAUSE.code, Certainty::Certain)
        );
    }
}
