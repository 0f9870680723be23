//! `mtu-exceeded`: packets are larger than a device on the way takes.

use super::evidence::{Evidence, Failure};
use super::mtu_audit::audit;
use super::{Cause, Diagnosis, Site};
use crate::event::{Detail, Packet, Transport};
use crate::flow::segment;
use crate::hook::Role;
use crate::journey::Journey;
use crate::node::{Link, NetnsId};

pub(super) const CAUSE: Cause = Cause {
    code: "mtu-exceeded",
    title: "packets are larger than a device on the way takes",
    explanation: "\
Small packets pass and large ones do not: a ping works, a handshake works, and the first full-sized segment
is lost. A device on the way has a smaller MTU than the sender reckons with; the usual one is an overlay
(VXLAN takes 50 bytes, WireGuard 60 to 80) below a pod interface that was left at 1500.

A router answers ICMP \"fragmentation needed\" (IPv6: packet too big) and the sender should then send smaller
packets; when that message is filtered or ignored the connection hangs. Bridges and veth pairs drop
without any answer.

Proof: packets of one connection were dropped as too big again and again, none of them came through in
smaller pieces, and their length is above the device's MTU.

Fix: give the pods' interfaces (the CNI's mtu) the smallest MTU of the way, or let ICMP pass.",
    references: &[
        "Linux net/ipv4/ip_forward.c, ip_forward: answers ICMP \"fragmentation needed\" to a packet that may \
         not be cut and drops it with PKT_TOO_BIG, as IPVS does",
        "Linux include/linux/netdevice.h, is_skb_forwardable: bridges and veth drop silently what is larger \
         than MTU + header + 4 bytes",
    ],
    explains: &[],
    examine,
    audit,
};

/// Ethernet header and a VLAN tag, which devices take beyond their MTU.
const LINK_BYTES: u32 = 14 + 4;
/// Where bridges and veth drop what is too large.
const SILENT: &[&str] = &[
    "br_dev_queue_push_xmit",
    "__dev_forward_skb",
    "__dev_forward_skb2",
    "dev_forward_skb",
    "veth_xmit",
    "veth_forward_skb",
];
/// A sender that learns the path's MTU loses one packet, or one burst of them.
const FEWEST: usize = 2;

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Narrow {
    netns: NetnsId,
    ifindex: u32,
    silent: bool,
}

fn examine(evidence: &Evidence<'_>) -> Vec<Diagnosis> {
    evidence
        .group(|failure| {
            let (narrow, _) = too_big(evidence, failure)?;
            is_stuck(failure).then_some(narrow)
        })
        .into_iter()
        .filter_map(|(narrow, failures)| judge(evidence, narrow, &failures))
        .collect()
}

/// The device that a packet was too large for, and the packet's length as that device counts it.
fn too_big(evidence: &Evidence<'_>, failure: &Failure<'_>) -> Option<(Narrow, u32)> {
    if let Some((index, event)) = failure.last(Role::IcmpError)
        && matches!(
            event.detail,
            Detail::Icmp { kind: 3, code: 4 } | Detail::Icmp { kind: 2, code: 0 }
        )
    {
        let netns = failure.netns_at(index)?;
        let destination = failure.packet_at(index)?.tuple.destination.ip();
        let ifindex = failure.journey.events[..index]
            .iter()
            .rev()
            .find_map(|event| match event.detail {
                Detail::Route {
                    ifindex: Some(ifindex),
                    ..
                } if event.role() == Role::Forward => Some(ifindex),
                _ => None,
            })
            .or_else(|| evidence.site(netns)?.main_route(destination)?.link)?;
        let narrow = Narrow {
            netns,
            ifindex,
            silent: false,
        };
        return Some((narrow, event.length?));
    }
    let silent = failure.dropped_for(&["PKT_TOO_BIG"], SILENT);
    if !silent || failure.rejected() {
        return None;
    }
    let (index, event) = failure
        .journey
        .events
        .iter()
        .enumerate()
        .rev()
        .find(|(_, event)| matches!(event.detail, Detail::Device { .. }))?;
    let Detail::Device { ifindex } = event.detail else {
        return None;
    };
    let netns = failure.netns_at(index)?;
    let (netns, link) = receiver(evidence, netns, ifindex)?;
    let length = event.length?.checked_sub(14)?;
    (length + 14 > link.mtu? + LINK_BYTES).then_some((
        Narrow {
            netns,
            ifindex: link.index,
            silent: true,
        },
        length,
    ))
}

/// The device that has to take what is handed to one: the peer of a veth.
fn receiver<'a>(
    evidence: &Evidence<'a>,
    netns: NetnsId,
    ifindex: u32,
) -> Option<(NetnsId, &'a Link)> {
    let link = evidence.site(netns)?.link(ifindex)?;
    let peer = || {
        let (index, place) = (link.peer_index?, link.peer_netns?);
        Some((place, evidence.site(place)?.link(index)?))
    };
    let peer = (link.kind.as_deref() == Some("veth")).then(peer).flatten();
    Some(
        peer.filter(|(_, peer)| peer.mtu < link.mtu)
            .unwrap_or((netns, link)),
    )
}

/// The flow loses packets for their size again and again, and none of them came through later.
fn is_stuck(failure: &Failure<'_>) -> bool {
    let sequence = |journey: &Journey| segment(journey).map(|(sequence, _)| sequence);
    let lost: Vec<_> = failure
        .flow
        .of(failure.direction)
        .filter(|journey| journey.failed())
        .collect();
    let last = lost.iter().map(|journey| journey.start_ns()).max();
    let recovered = failure.flow.of(failure.direction).any(|journey| {
        !journey.failed()
            && Some(journey.start_ns()) > last
            && sequence(journey)
                .is_some_and(|passed| lost.iter().any(|journey| sequence(journey) == Some(passed)))
    });
    lost.len() >= FEWEST && !recovered
}

/// What became of a message of the flow that tells the sender of the smaller MTU and was lost.
fn untold(evidence: &Evidence<'_>, failure: &Failure<'_>) -> Option<String> {
    let lost = evidence.failures().iter().find(|other| {
        let tells = |packet: &Packet| {
            matches!(
                packet.transport,
                Transport::Icmp { kind: 3, code: 4 } | Transport::Icmp { kind: 2, code: 0 }
            )
        };
        other.flow.id == failure.flow.id && other.packet_at(0).is_some_and(tells)
    })?;
    let end = match evidence.stop(lost) {
        Some(stop) => format!("was ended by {}", stop.place()),
        None => format!("was {}", lost.drop_words()),
    };
    Some(format!(
        "{}, the message that tells the sender, {end}",
        lost.words()
    ))
}

fn judge(evidence: &Evidence<'_>, narrow: Narrow, failures: &[&Failure<'_>]) -> Option<Diagnosis> {
    let first = failures.first()?;
    let (_, length) = too_big(evidence, first)?;
    let site = evidence.site(narrow.netns);
    let place = site.map_or_else(|| format!("netns {}", narrow.netns), Site::name);
    let device = site.map_or_else(
        || format!("if{}", narrow.ifindex),
        |site| site.device(narrow.ifindex),
    );
    let mtu = site.and_then(|site| site.link(narrow.ifindex)?.mtu);
    let came = first.last(Role::Receive).and_then(|(index, event)| {
        let site = evidence.site(first.netns_at(index)?)?;
        let link = site.link(event.ifindex?)?;
        (link.index != narrow.ifindex || first.netns_at(index) != Some(narrow.netns))
            .then(|| format!("{} has MTU {}", link.name, link.mtu.unwrap_or(0)))
    });
    let of_mtu = mtu.map_or_else(String::new, |mtu| format!(", whose MTU is {mtu}"));
    let mut summary = format!("Packets of {length} bytes do not fit {device} of {place}{of_mtu}.");
    if let Some(came) = &came {
        summary += &format!(" They came in by a device that lets them be so large: {came}.");
    }
    summary += if narrow.silent {
        " Such a device drops without an answer, so the sender never learns to send smaller packets."
    } else {
        " The sender was told (ICMP) and goes on sending packets of this size: the message does not reach it, or it \
         may not make them smaller."
    };
    let untold = untold(evidence, first);
    let fits = mtu.is_some_and(|mtu| length <= mtu);
    let smallest = mtu.map_or_else(|| "the smaller MTU".to_owned(), |mtu| mtu.to_string());
    Some(
        Diagnosis::new(&CAUSE, format!("{device} of {place}"), summary)
            .stopped(evidence, failures)
            .prove(
                "packet",
                format!(
                    "{}, {length} bytes, {}",
                    first.words(),
                    if narrow.silent { first.drop_words() } else { "answered with ICMP \"too big\"".into() }
                ),
            )
            .prove_if("link", mtu.map(|mtu| format!("{device} has MTU {mtu}")))
            .prove_if("link", came)
            .prove_if("packet", untold)
            .lacking_if(mtu.is_none(), format!("the MTU of {device}"))
            .lacking_if(
                fits,
                "a device on the way whose MTU is below the packets' length (a route may carry a smaller one)",
            )
            .fix(
                [
                    format!("set mtu: {smallest} in the CNI's configuration and recreate the pods"),
                    format!("ip link set dev DEVICE mtu {smallest}   # at once, on the sender's interface"),
                ],
                "none beyond a little more overhead for each byte",
            )
            .fix(
                [format!(
                    "iptables -t mangle -A FORWARD -p tcp --tcp-flags SYN,RST SYN -o {device} -j TCPMSS --clamp-mss-to-pmtu"
                )],
                "helps TCP only",
            )
            .check(format!(
                "ping -M do -s {} DESTINATION   # passes when it fits",
                mtu.unwrap_or(1280).saturating_sub(28)
            )),
    )
}

#[cfg(test)]
pub(super) mod tests {
    use tracer_ebpf::hook::HookId;

    use super::*;
    use crate::cause::Certainty;
    use crate::cause::constructed::{Bench, CNI0, ETH0, node};
    use crate::event::tcp_flag;

    fn data(bench: &mut Bench, length: u32, passes: bool) {
        let transport = Transport::tcp(5000, tcp_flag::ACK);
        let way = bench
            .packet(6, "192.0.2.10:40000", "10.244.0.9:80", transport)
            .length(length)
            .receive(ETH0)
            .with(
                HookId::Forward,
                Detail::Route {
                    kind: 1,
                    error: 0,
                    ifindex: Some(CNI0),
                },
            );
        if passes {
            way.transmit(CNI0).ends();
        } else {
            way.with(HookId::IcmpSend, Detail::Icmp { kind: 3, code: 4 })
                .dropped("PKT_TOO_BIG", "ip_forward");
        }
    }

    pub(in crate::cause) fn situation() -> Bench {
        let mut bench = node();
        bench.site().links[2].mtu = Some(1450);
        for _ in 0..3 {
            data(&mut bench, 1500, false);
        }
        bench
    }

    #[test]
    fn the_narrow_device_and_both_mtus_are_named() {
        let found = situation().only();
        assert_eq!(
            (found.code, found.certainty),
            (CAUSE.code, Certainty::Certain)
        );
        assert!(
            found.summary.contains("cni0") && found.summary.contains("1450"),
            "{found:#?}"
        );
        assert!(found.summary.contains("eth0 has MTU 1500"), "{found:#?}");
    }

    #[test]
    fn the_message_that_was_lost_is_shown() {
        let mut bench = situation();
        let told = Transport::Icmp { kind: 3, code: 4 };
        bench
            .packet(1, "192.0.2.1:0", "192.0.2.10:0", told)
            .about(6, "192.0.2.10:40000", "10.244.0.9:80")
            .dropped("NETFILTER_DROP", "nf_hook_slow");
        let found = bench.only();
        let proof = found.evidence.last().map(|proof| proof.text.as_str());
        assert!(
            proof.is_some_and(|text| text.contains("the message that tells the sender, was dropped")),
            "{found:#?}"
        );
    }

    #[test]
    fn a_sender_that_learns_is_healthy() {
        let mut bench = situation();
        data(&mut bench, 1450, true);
        assert_eq!(bench.codes(), [] as [&str; 0]);
        let mut bench = node();
        data(&mut bench, 1500, false);
        assert_eq!(bench.codes(), [] as [&str; 0]);
    }

    #[test]
    fn a_device_that_takes_the_size_makes_it_likely() {
        let mut bench = situation();
        bench.site().links[2].mtu = Some(1500);
        assert_eq!(bench.only().certainty, Certainty::Likely);
    }

    #[test]
    fn a_bridge_drops_without_an_answer() {
        let mut bench = node();
        bench.site().links[2].mtu = Some(1450);
        for _ in 0..2 {
            bench
                .udp("192.0.2.10:40000", "10.244.0.9:80")
                .length(1514)
                .receive(ETH0)
                .transmit(CNI0)
                .dropped("NOT_SPECIFIED", "br_dev_queue_push_xmit");
        }
        let found = bench.only();
        assert_eq!(found.code, CAUSE.code);
        assert!(found.summary.contains("without an answer"), "{found:#?}");
    }
}
