//! `no-route`: the host forwards, and has no route to the destination.

use std::net::IpAddr;

use super::audit::nothing;
use super::evidence::{Evidence, Failure};
use super::ip_forward_off::forwards;
use super::{Cause, Diagnosis, Site};
use crate::event::Detail;
use crate::hook::Role;
use crate::node::{NetnsId, RouteKind};

pub(super) const CAUSE: Cause = Cause {
    code: "no-route",
    title: "the host has no route to the destination",
    explanation: "\
A packet came in for another host, and no table has a route for its destination: not even a default route.
The kernel answers ICMP network unreachable and drops it. (Programs on the host itself get \"network is
unreachable\" from connect at once; no packet is made.)

Why: the CNI's daemon did not add the route to another node's pods, a link with the route's device went
down, the default route is missing in this network namespace, or the address belongs nowhere.

Proof: routing refused the packet with ENETUNREACH, and the main table has no route for the destination.

Fix: bring back what made the route (CNI daemon, link, DHCP), or add it.",
    references: &[
        "Linux net/ipv4/route.c, ip_error: answers ICMP network unreachable where fib_lookup found nothing \
         (ENETUNREACH)",
        "Linux net/ipv6/route.c, ip6_pkt_discard: answers code 0, no route",
    ],
    explains: &[],
    examine,
    audit: nothing,
};

/// errno values that routes carry.
pub(super) mod errno {
    /// No route at all.
    pub(in super::super) const NETUNREACH: u16 = libc::ENETUNREACH as u16;
    /// A blackhole route.
    pub(in super::super) const INVAL: u16 = libc::EINVAL as u16;
    /// An unreachable route, or forwarding is off.
    pub(in super::super) const HOSTUNREACH: u16 = libc::EHOSTUNREACH as u16;
    /// A prohibit route.
    pub(in super::super) const ACCES: u16 = libc::EACCES as u16;
}

/// A packet that routing refused: where, for which destination, and the route's errno.
pub(super) fn refused(
    evidence: &Evidence<'_>,
    failure: &Failure<'_>,
) -> Option<(NetnsId, IpAddr, u16)> {
    if let Some((index, event)) = failure.last(Role::RouteError) {
        let Detail::Route { error, .. } = event.detail else {
            return None;
        };
        let netns = failure.netns_at(index)?;
        let destination = failure.packet_at(index)?.tuple.destination.ip();
        let site = evidence.site(netns).filter(|_| destination.is_ipv4());
        let off = site
            .zip(failure.ingress(index))
            .and_then(|(site, ifindex)| forwards(site, ifindex));
        // Without forwarding every refusal of IPv4 looks the same; IPv6 is dropped elsewhere then.
        if off == Some(false) || failure.dropped_for(&["IP_INADDRERRORS"], &[]) {
            return None;
        }
        return Some((netns, destination, error));
    }
    let (index, event) = failure.last(Role::IcmpError)?;
    let Detail::Icmp { kind: 1, code } = event.detail else {
        return None;
    };
    let destination = failure.packet_at(index)?.tuple.destination.ip();
    let routed = [Role::Forward, Role::LocalIn, Role::Transport]
        .into_iter()
        .any(|role| failure.passed(role));
    let error = match code {
        0 => errno::NETUNREACH,
        1 => errno::ACCES,
        _ => return None,
    };
    (destination.is_ipv6() && !routed && !failure.passed(Role::NeighbourFailed))
        .then(|| Some((failure.netns_at(index)?, destination, error)))?
}

fn examine(evidence: &Evidence<'_>) -> Vec<Diagnosis> {
    evidence
        .group(|failure| match refused(evidence, failure)? {
            (netns, destination, errno::NETUNREACH) => Some((netns, destination)),
            _ => None,
        })
        .into_iter()
        .map(|((netns, destination), failures)| {
            let site = evidence.site(netns);
            let place = site.map_or_else(|| format!("netns {netns}"), Site::name);
            let unread = site.is_none_or(|site| site.misses("routes"));
            let now = site.and_then(|site| Some((site, site.main_route(destination)?)));
            let now = now.filter(|(_, route)| route.kind == RouteKind::Unicast);
            let flag = if destination.is_ipv6() { "-6 " } else { "" };
            Diagnosis::new(
                &CAUSE,
                format!("{destination} from {place}"),
                format!("{place} has no route to {destination}, so it refuses packets for it."),
            )
            .stopped(evidence, &failures)
            .prove_if(
                "packet",
                failures
                    .first()
                    .map(|first| format!("{} was refused by routing: network unreachable", first.words())),
            )
            .prove_if(
                "route",
                (!unread && now.is_none())
                    .then(|| format!("no route of the main table holds {destination}")),
            )
            .lacking_if(unread, format!("the routes of {place}"))
            .prove_if(
                "route",
                now.map(|(site, route)| format!("now there is {}", site.route_words(route))),
            )
            .lacking_if(
                now.is_some(),
                "the routes at the time of the packet, and the policy rules (ip rule)",
            )
            .fix(
                [
                    format!("ip {flag}route add {destination} via GATEWAY dev DEVICE   # in {place}"),
                    "or restart what should have made it: the CNI's daemon (flannel, calico-node), the network manager"
                        .into(),
                ],
                "a wrong route sends the packets elsewhere",
            )
            .check(format!("ip {flag}route get {destination}"))
            .typed_for(site)
        })
        .collect()
}

#[cfg(test)]
pub(super) mod tests {
    use tracer_ebpf::hook::HookId;

    use super::*;
    use crate::cause::Certainty;
    use crate::cause::constructed::{Bench, CNI0, node};

    pub(in crate::cause) fn situation() -> Bench {
        let mut bench = node();
        bench
            .site()
            .routes
            .retain(|route| route.destination.length != 0);
        bench
            .udp("10.244.0.9:40000", "203.0.113.9:53")
            .receive(CNI0)
            .at(HookId::RouteInput)
            .with(
                HookId::RouteError,
                Detail::Route {
                    kind: 7,
                    error: errno::NETUNREACH,
                    ifindex: None,
                },
            )
            .with(HookId::IcmpSend, Detail::Icmp { kind: 3, code: 0 })
            .dropped("NOT_SPECIFIED", "ip_error");
        bench
    }

    #[test]
    fn no_route_holds_the_destination() {
        let found = situation().only();
        assert_eq!(
            (found.code, found.certainty),
            (CAUSE.code, Certainty::Certain)
        );
    }

    #[test]
    fn ipv6_is_told_by_its_icmp_error() {
        let mut bench = node();
        bench
            .udp("[2001:db8::9]:4000", "[2001:db8:9::1]:53")
            .receive(CNI0)
            .at(HookId::Ip6Receive)
            .with(HookId::Icmp6Send, Detail::Icmp { kind: 1, code: 0 })
            .dropped("IP_INNOROUTES", "ip6_pkt_drop");
        assert_eq!(bench.only().code, CAUSE.code);
    }

    #[test]
    fn ipv6_is_told_by_its_route_whether_or_not_ipv4_is_forwarded() {
        for forwards in ["0", "1"] {
            let mut bench = node();
            bench.sysctl("net/ipv4/ip_forward", forwards);
            bench.sysctl("net/ipv4/conf/cni0/forwarding", forwards);
            bench
                .udp("[2001:db8::9]:4000", "[2001:db8:9::1]:53")
                .receive(CNI0)
                .at(HookId::Ip6Receive)
                .with(
                    HookId::Route6Error,
                    Detail::Route {
                        kind: 0,
                        error: errno::NETUNREACH,
                        ifindex: Some(1),
                    },
                )
                .with(HookId::Icmp6Send, Detail::Icmp { kind: 1, code: 0 })
                .dropped("IP_INNOROUTES", "ip6_pkt_drop");
            assert_eq!(bench.only().code, CAUSE.code);
        }
    }

    #[test]
    fn a_route_that_is_there_now_makes_it_likely() {
        let mut bench = situation();
        bench
            .site()
            .routes
            .push(crate::cause::constructed::route("0.0.0.0", 0, 2));
        assert_eq!(bench.only().certainty, Certainty::Likely);
    }
}
