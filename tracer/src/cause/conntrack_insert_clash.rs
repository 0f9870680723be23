//! `conntrack-insert-clash`: two packets of one client port race, and one of them is dropped.

use std::collections::HashMap;
use std::net::SocketAddr;

use super::audit::nothing;
use super::confirm::{Clash, clash, refused};
use super::evidence::{Evidence, Failure};
use super::{Cause, Diagnosis, Site};
use crate::event::{Detail, Event, Tuple, protocol};
use crate::flow::Flow;
use crate::node::NetnsId;

pub(super) const CAUSE: Cause = Cause {
    code: "conntrack-insert-clash",
    title: "two UDP packets from one port race for their conntrack entry, and one is dropped",
    explanation: "\
A resolver asks twice at the same time from one source port: for A and AAAA, or, as musl's does, every name
server of resolv.conf. Each packet gets a conntrack entry of its own and is sent to an endpoint by DNAT, and
an entry becomes valid when its packet leaves the host. Of two that clash the second is refused, and its packet
is dropped silently. The resolver waits five seconds and asks again: the \"5 second DNS delay\".

Which entries clash: two name servers that lead to one endpoint, because both entries expect the same answer.
Two questions to one server clash only in old kernels: from 5.10 on both entries are kept (clash_resolve).

Proof: the packet was dropped when its entry was to become valid (__nf_conntrack_confirm), and no other
function comes after that one in its hook; insert_failed (conntrack -S) counts them.

Fix: name one name server, make resolvers use two ports (options single-request-reopen), or run NodeLocal
DNSCache, which has no DNAT.",
    references: &[
        "Linux net/netfilter/nf_conntrack_core.c, __nf_conntrack_confirm: drops one of the two packets, and \
         insert_failed rises",
        "https://github.com/kubernetes/kubernetes/issues/56903",
        "https://github.com/kubernetes/kubernetes/issues/62628",
    ],
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
    let groups = evidence.group(|failure| {
        let clash = clash(failure)?;
        is_race(&clash).then_some((clash.netns, clash.original.destination))
    });
    if groups.is_empty() {
        return Vec::new();
    }
    let firsts = groups.values().filter_map(|failures| failures.first());
    let rivals = rivals(evidence, firsts.filter_map(|first| clash(first)));
    groups
        .into_iter()
        .filter_map(|((netns, server), failures)| {
            let refused = clash(failures.first()?)?;
            let rival = rivals.get(&refused.reply).copied();
            Some(say(evidence, netns, server, rival, &failures))
        })
        .collect()
}

/// Of each refused entry's answer: the other address that was asked from the same port and is answered the
/// same way.
fn rivals(
    evidence: &Evidence<'_>,
    refused: impl Iterator<Item = Clash>,
) -> HashMap<Tuple, SocketAddr> {
    let refused: HashMap<_, _> = refused
        .map(|clash| (clash.original.source, clash))
        .collect();
    let rival = |flow: &Flow| {
        let clash = refused.get(&flow.client.source)?;
        let expects_it = |event: &Event| matches!(event.detail, Detail::Conntrack { reply, .. } if reply == clash.reply);
        let same_answer = flow
            .kept()
            .any(|(_, journey)| journey.events.iter().any(expects_it));
        let other = flow.client.destination;
        (same_answer && other != clash.original.destination).then_some((clash.reply, other))
    };
    evidence.flows.iter().filter_map(rival).collect()
}

fn say(
    evidence: &Evidence<'_>,
    netns: NetnsId,
    server: SocketAddr,
    rival: Option<SocketAddr>,
    failures: &[&Failure<'_>],
) -> Diagnosis {
    let place = evidence
        .site(netns)
        .map_or_else(|| format!("netns {netns}"), Site::name);
    let first = failures.first();
    let raced = first.map_or(0, |failure| {
        failure.flow.of(failure.direction).count().saturating_sub(1)
    });
    let (sent, clash) = match rival {
        Some(rival) => (
            format!("to udp {server} and to {rival}"),
            "both lead to one endpoint, so both conntrack entries expect the same answer",
        ),
        None => (format!("to udp {server}"), "both made a conntrack entry"),
    };
    let diagnosis = Diagnosis::new(
        &CAUSE,
        format!("udp {server}"),
        format!(
            "Two packets from one client port {sent} came at the same time, and {place} dropped one: {clash}, and \
             only one entry can become valid. Resolvers wait 5 s and ask again."
        ),
    )
    .stopped(evidence, failures)
    .prove_if(
        "packet",
        first.map(|first| {
            format!(
                "{} was dropped when its conntrack entry was to become valid",
                first.words()
            )
        }),
    )
    .prove_if(
        "packet",
        (raced > 0).then(|| format!("{raced} more packets came from the same port")),
    )
    .prove_if(
        "flow",
        rival.map(|rival| format!("udp {rival} was asked from the same port, and the same endpoint answers")),
    )
    .prove_if("counter", refused(evidence, netns));
    let diagnosis = match rival {
        Some(_) => diagnosis.fix(
            ["one name server in the pods' resolv.conf (dnsConfig.nameservers), or dnsPolicy ClusterFirst"],
            "none where both are the same DNS pods",
        ),
        None => diagnosis.fix(
            ["options single-request-reopen   # in the pods' resolv.conf: dnsConfig.options of the pod (glibc)"],
            "none; musl (Alpine) does not know the option",
        ),
    };
    diagnosis
        .fix(
            ["install NodeLocal DNSCache: pods then ask an address without DNAT"],
            "one more program on every node",
        )
        .check("conntrack -S   # insert_failed no longer rises")
}

#[cfg(test)]
pub(super) mod tests {
    use tracer_ebpf::hook::HookId;

    use super::*;
    use crate::cause::Certainty;
    use crate::cause::constructed::{Bench, CNI0, at, node};
    use crate::event::{Detail, NetfilterHook, Tuple};

    /// A conntrack entry of the client.
    fn entry(number: u8, server: &str, target: &str, back: &str) -> Detail {
        let tuple = |source: &str, destination: &str| Tuple {
            protocol: number,
            source: at(source),
            destination: at(destination),
        };
        Detail::Conntrack {
            original: tuple("10.244.0.9:4000", server),
            reply: tuple(target, back),
            destination_nat: false,
            relation: None,
            status: 0,
            zone: 0,
        }
    }

    pub(in crate::cause) fn clashing(number: u8, target: &str, back: &str) -> Bench {
        let mut bench = node();
        let detail = entry(number, "10.96.0.10:53", target, back);
        let way = if number == protocol::UDP {
            bench.udp("10.244.0.9:4000", "10.96.0.10:53")
        } else {
            bench.tcp("10.244.0.9:4000", "10.96.0.10:53")
        };
        way.receive(CNI0)
            .netfilter(NetfilterHook::PostRouting)
            .with(HookId::ConntrackConfirm, detail)
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

    #[test]
    fn two_servers_with_one_endpoint_are_both_named() {
        let also = |endpoint: &str| {
            let mut bench = situation();
            let detail = entry(protocol::UDP, "10.96.0.11:53", endpoint, "10.244.0.9:4000");
            bench
                .udp("10.244.0.9:4000", "10.96.0.11:53")
                .receive(CNI0)
                .with(HookId::ConntrackConfirm, detail)
                .ends();
            bench.only().summary
        };
        assert!(also("10.244.0.7:53").contains("and to 10.96.0.11:53"));
        // Another endpoint answers that one, so it is not what was in the way.
        assert!(!also("10.244.0.8:53").contains("10.96.0.11"));
    }
}
