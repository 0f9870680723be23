//! `ttl-expired`: packets go round in a circle until their hop limit is used up.

use super::audit::nothing;
use super::evidence::{Evidence, Failure};
use super::{Cause, Diagnosis, Site};
use crate::event::{Detail, Transport};
use crate::hook::Role;
use crate::node::NetnsId;

pub(super) const CAUSE: Cause = Cause {
    code: "ttl-expired",
    title: "packets go round in a circle until their TTL is used up",
    explanation: "\
Each router takes one from a packet's TTL (IPv6: hop limit) and drops it at the end, with ICMP time
exceeded. Where the same packet passes the same host again and again, two routers each believe that the
other one is nearer: a routing loop. Typical: a default route back to the router that sent the packet,
because the more special route (a pod's or a node's) is missing.

traceroute makes packets expire on purpose, so one expired packet is no finding.

Proof: the very same packet (addresses, IP identification, TCP sequence) was forwarded here more than once
before it expired; the two hops that repeat are named.

Fix: the missing special route on one of the two, or a blackhole route over the range that nobody has.",
    references: &[
        "Linux net/ipv4/ip_forward.c, ip_forward: drops what has a TTL of 1 (reason IP_INHDR) and answers ICMP \
         time exceeded",
        "Linux net/ipv6/ip6_output.c, ip6_forward: the same for the hop limit",
    ],
    explains: &[],
    examine,
    audit: nothing,
};

fn examine(evidence: &Evidence<'_>) -> Vec<Diagnosis> {
    evidence
        .group(|failure| {
            let (netns, index) = expired(failure)?;
            rounds(failure, netns)?;
            let destination = failure.packet_at(index)?.tuple.destination.ip();
            Some((netns, destination))
        })
        .into_iter()
        .filter_map(|((netns, destination), failures)| {
            let first = failures.first()?;
            let rounds = rounds(first, netns)?;
            let site = evidence.site(netns);
            let name = |netns: NetnsId| {
                evidence
                    .site(netns)
                    .map_or_else(|| format!("netns {netns}"), Site::name)
            };
            let place = name(netns);
            let other = match rounds.other {
                Some(other) => name(other),
                None => "the next hop".into(),
            };
            let route = site.and_then(|site| Some(site.route_words(site.main_route(destination)?)));
            let back = rounds.other.and_then(|other| {
                let site = evidence.site(other)?;
                Some(format!(
                    "{other_name}: {}",
                    site.route_words(site.main_route(destination)?),
                    other_name = site.name()
                ))
            });
            Some(
                Diagnosis::new(
                    &CAUSE,
                    format!("{destination} at {place}"),
                    format!(
                        "Packets for {destination} go in a circle between {place} and {other} until their TTL is used \
                         up: each sends them to the other."
                    ),
                )
                .stopped(evidence, &failures)
                .prove(
                    "packet",
                    format!("{} passed {place} {} times, then its TTL was used up", first.words(), rounds.count),
                )
                .prove_if("route", route.map(|route| format!("{place}: {route}")))
                .prove_if("route", back)
                .fix(
                    [
                        format!("ip route get {destination}   # on both; one of the two must know a better way"),
                        format!("ip route add {destination} via GATEWAY dev DEVICE   # on that one"),
                        format!("ip route add unreachable {destination}   # or, where nobody has the address"),
                    ],
                    "a wrong route sends the packets elsewhere",
                )
                .check(format!("traceroute -n {destination}   # no address twice")),
            )
        })
        .collect()
}

/// Where a packet's TTL was used up.
fn expired(failure: &Failure<'_>) -> Option<(NetnsId, usize)> {
    let told = failure.last(Role::IcmpError).filter(|(_, event)| {
        matches!(
            event.detail,
            Detail::Icmp { kind: 11, code: 0 } | Detail::Icmp { kind: 3, code: 0 }
        )
    });
    let index = match told {
        Some((index, event)) => {
            // Type 3 is time exceeded in ICMPv6 only.
            let ipv6 = failure.packet_at(index)?.tuple.destination.is_ipv6();
            (ipv6 == matches!(event.detail, Detail::Icmp { kind: 3, .. })).then_some(index)?
        }
        None => {
            let (index, _) = failure.last(Role::Forward)?;
            failure
                .dropped_for(&["IP_INHDR"], &["ip_forward"])
                .then_some(index)?
        }
    };
    Some((failure.netns_at(index)?, index))
}

struct Rounds {
    count: usize,
    /// The other namespace of the circle, where it is on this machine.
    other: Option<NetnsId>,
}

/// How often the very same packet came by; `None` when it came once.
fn rounds(failure: &Failure<'_>, netns: NetnsId) -> Option<Rounds> {
    let events = &failure.journey.events;
    let forwards = |netns: NetnsId| {
        events
            .iter()
            .enumerate()
            .filter(|(index, event)| {
                event.role() == Role::Forward && failure.netns_at(*index) == Some(netns)
            })
            .count()
    };
    let here = forwards(netns);
    if here > 1 {
        let other = failure
            .journey
            .namespaces()
            .into_iter()
            .map(NetnsId)
            .filter(|&other| other != netns && forwards(other) > 1)
            .max_by_key(|&other| forwards(other));
        return Some(Rounds { count: here, other });
    }
    // The circle leads over other machines: the packet comes back as a new one.
    let own = failure.packet_at(0)?;
    let id = own.ip_id.filter(|&id| id != 0)?;
    let count = failure
        .flow
        .of(failure.direction)
        .filter(|journey| journey.passed(Role::Forward))
        .filter_map(|journey| {
            journey
                .events
                .iter()
                .find_map(|event| event.packet.as_ref())
        })
        .filter(|packet| packet.ip_id == Some(id) && packet.may_be(own))
        .filter(|packet| !matches!(packet.transport, Transport::Other))
        .count();
    (count > 1).then_some(Rounds { count, other: None })
}

#[cfg(test)]
pub(super) mod tests {
    use tracer_ebpf::hook::HookId;

    use super::*;
    use crate::cause::Certainty;
    use crate::cause::constructed::{Bench, ETH0, NODE, node};

    const OTHER: u32 = 200;

    fn with(rounds: usize) -> Bench {
        let mut bench = node();
        let mut way = bench.udp("192.0.2.10:4000", "203.0.113.9:53");
        for _ in 0..rounds {
            way = way
                .netns(NODE)
                .receive(ETH0)
                .at(HookId::Forward)
                .netns(OTHER)
                .receive(ETH0)
                .at(HookId::Forward);
        }
        way.netns(NODE)
            .receive(ETH0)
            .at(HookId::Forward)
            .with(HookId::IcmpSend, Detail::Icmp { kind: 11, code: 0 })
            .dropped("IP_INHDR", "ip_forward");
        bench
    }

    pub(in crate::cause) fn situation() -> Bench {
        with(30)
    }

    #[test]
    fn a_circle_is_named_with_its_two_hops() {
        let found = situation().only();
        assert_eq!(
            (found.code, found.certainty),
            (CAUSE.code, Certainty::Certain)
        );
        assert!(found.summary.contains("netns 200"), "{found:#?}");
        assert!(found.evidence[0].text.contains("31 times"), "{found:#?}");
    }

    #[test]
    fn traceroute_is_silent() {
        assert_eq!(with(0).codes(), [] as [&str; 0]);
    }
}
