//! `bad-checksum`: a packet's checksum is wrong.

use std::net::IpAddr;

use super::audit::nothing;
use super::evidence::{Evidence, Failure};
use super::{Cause, Diagnosis, Site};
use crate::event::protocol;
use crate::hook::Role;
use crate::node::NetnsId;

pub(super) const CAUSE: Cause = Cause {
    code: "bad-checksum",
    title: "packets arrive with a wrong checksum",
    explanation: "\
The packet reached its host and its IP, TCP, UDP or ICMP checksum is wrong, so the kernel dropped it without
an answer.

Why: most often checksum offload: the sender left the checksum to its network card, and the card, a tunnel
or a hypervisor's switch did not compute it; a program that rewrites packets (tc, XDP, DPDK) did not correct
it; seldom a broken cable or memory.

Proof: the drop reason is one of IP_CSUM, TCP_CSUM, UDP_CSUM, ICMP_CSUM; the counters InCsumErrors agree.

Fix: turn transmit checksum offload off on the sender's device, or update its driver.",
    references: &[
        "Linux net/ipv4/ip_input.c, ip_rcv_core: drops with IP_CSUM",
        "Linux net/ipv4/tcp_ipv4.c, tcp_v4_do_rcv: drops with TCP_CSUM",
        "Linux net/ipv4/udp.c, __udp4_lib_rcv: drops with UDP_CSUM",
        "Linux net/ipv4/icmp.c, icmp_rcv: drops with ICMP_CSUM",
    ],
    explains: &[],
    examine,
    audit: nothing,
};

const REASONS: &[&str] = &["IP_CSUM", "TCP_CSUM", "UDP_CSUM", "ICMP_CSUM", "SKB_CSUM"];
/// Ports of VXLAN: the kernel's (flannel, Calico's 4789) and IANA's.
const VXLAN_PORTS: [u16; 2] = [8472, 4789];

/// A packet that was dropped for its checksum: where, and by which device it came.
fn wrong(failure: &Failure<'_>) -> Option<(NetnsId, Option<u32>)> {
    failure.dropped_for(REASONS, &[]).then_some(())?;
    let index = failure.last(Role::Receive).map(|(index, _)| index);
    let netns = index
        .and_then(|index| failure.netns_at(index))
        .or_else(|| failure.netns())?;
    Some((netns, failure.ingress(usize::MAX)))
}

/// The packet carries a tunnel: where it was dropped, and which node sent it.
pub(super) fn wrong_outside(failure: &Failure<'_>) -> Option<(NetnsId, IpAddr)> {
    // The journey's own addresses are those inside.
    let outer = failure.packet_at(usize::MAX)?.tuple;
    let is_vxlan = outer.protocol == protocol::UDP
        && VXLAN_PORTS.contains(&outer.destination.port())
        && failure.dropped_for(&["UDP_CSUM"], &[]);
    let (netns, _) = is_vxlan.then(|| wrong(failure)).flatten()?;
    Some((netns, outer.source.ip()))
}

fn examine(evidence: &Evidence<'_>) -> Vec<Diagnosis> {
    evidence
        .group(|failure| {
            if wrong_outside(failure).is_some() {
                return None;
            }
            let (netns, ifindex) = wrong(failure)?;
            Some((netns, ifindex, failure.journey.first_tuple()?.source.ip()))
        })
        .into_iter()
        .map(|((netns, ifindex, source), failures)| {
            let site = evidence.site(netns);
            let place = site.map_or_else(|| format!("netns {netns}"), Site::name);
            let device = ifindex.map_or_else(String::new, |ifindex| {
                site.map_or_else(|| format!("if{ifindex}"), |site| site.device(ifindex))
            });
            Diagnosis::new(
                &CAUSE,
                format!("from {source} by {device}"),
                format!(
                    "Packets from {source} arrive at {place} by {device} with a wrong checksum and are dropped without an \
                     answer: the sender's checksum offload is the usual cause."
                ),
            )
            .stopped(evidence, &failures)
            .prove_if(
                "packet",
                failures
                    .first()
                    .map(|first| format!("{} {}", first.words(), first.drop_words())),
            )
            .prove_if("counter", site.and_then(counted))
            .check("nstat -az TcpInCsumErrors UdpInCsumErrors   # no longer rise")
            .typed_for(site)
            .fix(
                ["ethtool -K DEVICE tx off   # on the sender, for the device that the packet left by"],
                "the sender's processor computes the checksums",
            )
        })
        .collect()
}

/// Counters of wrong checksums, in words.
pub(super) fn counted(site: &Site<'_>) -> Option<String> {
    let counts: Vec<String> = [
        "IpExt InCsumErrors",
        "Tcp InCsumErrors",
        "Udp InCsumErrors",
        "Icmp InCsumErrors",
    ]
    .into_iter()
    .filter_map(|name| {
        let count = site.facts.counters.get(name)?;
        (count > 0).then(|| format!("{name} is {count}"))
    })
    .collect();
    (!counts.is_empty()).then(|| counts.join(", "))
}

#[cfg(test)]
pub(super) mod tests {
    use tracer_ebpf::hook::HookId;

    use super::*;
    use crate::cause::Certainty;
    use crate::cause::constructed::{Bench, ETH0, node};

    pub(in crate::cause) fn with(port: u16) -> Bench {
        let mut bench = node();
        bench
            .udp("192.0.2.10:4000", &format!("192.0.2.1:{port}"))
            .receive(ETH0)
            .at(HookId::UdpReceive)
            .dropped("UDP_CSUM", "udp_rcv");
        bench
    }

    pub(in crate::cause) fn situation() -> Bench {
        with(514)
    }

    #[test]
    fn the_sender_is_named() {
        let found = situation().only();
        assert_eq!(
            (found.code, found.certainty),
            (CAUSE.code, Certainty::Certain)
        );
        assert_eq!(found.subject, "from 192.0.2.10 by eth0");
    }
}
