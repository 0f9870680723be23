//! `ipvs-weight-zero`: IPVS goes on sending an old connection's packets to a real server that takes no new
//! ones and does not answer any more.

use std::net::SocketAddr;

use super::audit::Finding;
use super::evidence::{Evidence, Failure};
use super::neighbour_failed::lost_for;
use super::veth_peer_down::dead_end;
use super::{Cause, Diagnosis, Site};
use crate::event::{Packet, Transport, protocol, tcp_flag};
use crate::flow::Direction;
use crate::hook::Role;
use crate::node::{
    NeighbourState, NetnsId, RealServer, RouteKind, VirtualServer, VirtualServerKey,
};

pub(super) const CAUSE: Cause = Cause {
    code: "ipvs-weight-zero",
    title: "IPVS keeps old connections at a real server of weight 0 that does not answer any more",
    explanation: "\
Weight 0 means: no new connections, the old ones go on. kube-proxy sets it when an endpoint goes away, waits
for the connections to end, and then removes the real server. When the pod is gone before its connections
are, their packets go nowhere until the entries expire (TCP 15 min, UDP 5 min without packets), and each
packet renews them. UDP clients that keep one source port hang for as long as they try.

Proof: IPVS sent the packet on by a connection that it knew (it chose no real server), the real server is in
the table with weight 0, and nobody is there: no neighbour answers for its address, no route leads to it, or
the device to it is dead. A pod that refuses or a rule that drops is another cause.

Fix: remove the real server when its pod is gone; expire_nodest_conn=1 then ends its connections.",
    references: &[
        "Linux net/netfilter/ipvs/ip_vs_core.c, ip_vs_in: sends the packets of a known connection to its real \
         server whatever the weight, while schedulers pass over weight 0",
        "https://github.com/kubernetes/kubernetes/issues/66012",
    ],
    explains: &["neighbour-failed", "veth-peer-down", "no-route", "route-blackhole"],
    examine,
    audit,
};

/// A virtual server and one of its real servers.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Pinned {
    pub(super) netns: NetnsId,
    pub(super) protocol: u8,
    pub(super) service: SocketAddr,
    pub(super) real: SocketAddr,
}

fn examine(evidence: &Evidence<'_>) -> Vec<Diagnosis> {
    evidence
        .group(|failure| {
            let (pinned, packet) = pinned(failure)?;
            // A packet that opens a connection is a matter of reuse.
            let old = !is_syn(packet);
            let site = evidence.site(pinned.netns)?;
            let (_, real) = weightless(site, pinned)?;
            let gone = || {
                lost_for(failure).is_some()
                    || dead_end(evidence, failure).is_some()
                    || failure.passed(Role::RouteError)
                    || has_no_way(site, real)
            };
            (old && real.weight == 0 && gone()).then_some(pinned)
        })
        .into_iter()
        .filter_map(|(pinned, failures)| {
            let (server, real) = weightless(evidence.site(pinned.netns)?, pinned)?;
            Some(
                judge(pinned, server, real)
                    .stopped(evidence, &failures)
                    .prove_if(
                        "packet",
                        failures.first().map(|first| {
                            format!(
                                "{} went on by a known connection to {}, {}",
                                first.words(),
                                pinned.real,
                                first.drop_words()
                            )
                        }),
                    ),
            )
        })
        .collect()
}

/// No route leads to a real server.
fn has_no_way(site: &Site<'_>, real: &RealServer) -> bool {
    let refuses = |kind| {
        matches!(
            kind,
            RouteKind::Blackhole | RouteKind::Unreachable | RouteKind::Prohibit
        )
    };
    !site.is_local(real.address)
        && site
            .main_route(real.address)
            .is_none_or(|route| refuses(route.kind))
}

/// A request that IPVS sent on by a connection that it knew.
pub(super) fn pinned<'f>(failure: &'f Failure<'_>) -> Option<(Pinned, &'f Packet)> {
    let (index, _) = failure.last(Role::IpvsTransmit)?;
    let chosen = failure.passed(Role::IpvsSchedule) || failure.passed(Role::IpvsConnection);
    if chosen || failure.direction != Direction::Request {
        return None;
    }
    let (looked, _) = failure.last(Role::IpvsLookup)?;
    let packet = failure.packet_at(looked)?;
    Some((
        Pinned {
            netns: failure.netns_at(index)?,
            protocol: packet.tuple.protocol,
            service: packet.tuple.destination,
            real: failure.journey.last_tuple()?.destination,
        },
        packet,
    ))
}

pub(super) fn is_syn(packet: &Packet) -> bool {
    matches!(packet.transport, Transport::Tcp { flags, .. }
        if flags & (tcp_flag::SYN | tcp_flag::ACK) == tcp_flag::SYN)
}

/// The real server in the table, with its virtual server.
pub(super) fn weightless<'a>(
    site: &Site<'a>,
    pinned: Pinned,
) -> Option<(&'a VirtualServer, &'a RealServer)> {
    let server =
        site.virtual_server(pinned.protocol, pinned.service.ip(), pinned.service.port())?;
    let real = server
        .destinations
        .iter()
        .find(|real| SocketAddr::new(real.address, real.port) == pinned.real)?;
    Some((server, real))
}

fn judge(pinned: Pinned, server: &VirtualServer, real: &RealServer) -> Diagnosis {
    let Pinned {
        service,
        real: gone,
        ..
    } = pinned;
    let name = protocol::name(pinned.protocol);
    let flag = if pinned.protocol == protocol::UDP {
        "-u"
    } else {
        "-t"
    };
    let counted = [
        (real.active_connections, "active"),
        (real.inactive_connections, "inactive"),
    ];
    let connections: Vec<String> = counted
        .iter()
        .filter_map(|(count, word)| Some(format!("{} {word}", (*count)?)))
        .collect();
    let others = server
        .destinations
        .iter()
        .filter(|other| other.weight > 0)
        .count();
    Diagnosis::new(
        &CAUSE,
        format!("{name} {service} → {gone}"),
        format!(
            "IPVS keeps old connections of {name} {service} at {gone}, whose weight is 0 and which does not answer any \
             more; new connections go to its {others} other real servers."
        ),
    )
    .prove(
        "ipvs",
        format!(
            "{name} {service} has {gone} with weight 0{}{}",
            if connections.is_empty() { "" } else { " and connections: " },
            connections.join(", ")
        ),
    )
    .fix(
        [format!("ipvsadm -d {flag} {service} -r {gone}")],
        "its connections end; when the pod still answers they were worth keeping",
    )
    .fix(
        ["sysctl -w net.ipv4.vs.expire_nodest_conn=1   # then connections to removed real servers end at once"],
        "connections to a real server that is only gone for a moment are cut",
    )
    .check(format!("ipvsadm -Ln {flag} {service}   # no real server of weight 0 with connections"))
}

/// Real servers of weight 0 with connections, whose address nobody answers for.
fn audit(evidence: &Evidence<'_>) -> Vec<Finding> {
    let mut found = Vec::new();
    for site in evidence.sites() {
        let failed: Vec<_> = site
            .facts
            .neighbours
            .iter()
            .filter(|entry| matches!(entry.state, NeighbourState::Failed))
            .map(|entry| entry.address)
            .collect();
        for server in site
            .facts
            .ipvs
            .iter()
            .flatten()
            .filter(|_| !failed.is_empty())
        {
            let VirtualServerKey::Endpoint {
                protocol,
                address,
                port,
            } = server.key
            else {
                continue;
            };
            let gone = server.destinations.iter().filter(|real| {
                let used =
                    real.active_connections.unwrap_or(0) + real.inactive_connections.unwrap_or(0);
                real.weight == 0 && used > 0 && failed.contains(&real.address)
            });
            found.extend(gone.map(|real| {
                let pinned = Pinned {
                    netns: site.facts.id,
                    protocol,
                    service: SocketAddr::new(address, port),
                    real: SocketAddr::new(real.address, real.port),
                };
                Finding::warning(
                    judge(pinned, server, real)
                        .prove("neighbour", format!("{} does not answer", real.address)),
                )
            }));
        }
    }
    found
}

#[cfg(test)]
pub(super) mod tests {
    use tracer_ebpf::hook::HookId;

    use super::*;
    use crate::cause::Certainty;
    use crate::cause::audit::audit as audit_all;
    use crate::cause::constructed::{Bench, CNI0, ETH0, Way, ip, neighbour, node, route, service};
    use crate::event::Detail;
    use crate::node::Route;

    /// A node whose first real server drains.
    fn draining() -> Bench {
        let mut bench = node();
        bench.site().ipvs = Some(vec![service(
            17,
            "10.96.0.10:53",
            &[("10.244.0.7:53", 0), ("10.244.0.8:53", 1)],
        )]);
        bench
    }

    /// A packet of a connection to it, behind IPVS.
    fn sent_on(bench: &mut Bench) -> Way<'_> {
        bench
            .udp("192.0.2.10:4000", "10.96.0.10:53")
            .receive(ETH0)
            .at(HookId::LocalDeliver)
            .at(HookId::IpvsLookup)
            .at(HookId::IpvsNatTransmit)
            .to("10.244.0.7:53")
    }

    pub(in crate::cause) fn situation() -> Bench {
        let mut bench = draining();
        let gone = Detail::Neighbour {
            address: ip("10.244.0.7"),
            ifindex: CNI0,
        };
        sent_on(&mut bench)
            .with(HookId::NeighbourQueue, gone.clone())
            .with(HookId::NeighbourFailed, gone)
            .dropped("NEIGH_FAILED", "arp_error_report");
        bench
    }

    #[test]
    fn a_packet_of_an_old_connection_is_lost() {
        let found = situation().only();
        assert_eq!(
            (found.code, found.certainty),
            (CAUSE.code, Certainty::Certain)
        );
        assert_eq!(found.consequences[0].code, "neighbour-failed");
        assert_eq!(
            found.fixes[0].lines[0],
            "ipvsadm -d -u 10.96.0.10:53 -r 10.244.0.7:53"
        );
    }

    #[test]
    fn a_real_server_with_weight_is_another_case() {
        let mut bench = situation();
        bench.site().ipvs = Some(vec![service(17, "10.96.0.10:53", &[("10.244.0.7:53", 1)])]);
        assert_eq!(bench.codes(), ["neighbour-failed"]);
    }

    #[test]
    fn a_draining_pod_that_refuses_is_another_case() {
        let mut bench = draining();
        sent_on(&mut bench)
            .transmit(CNI0)
            .netns(700)
            .receive(ETH0)
            .at(HookId::LocalDeliver)
            .at(HookId::UdpReceive)
            .dropped("NO_SOCKET", "udp_rcv");
        assert!(!bench.codes().contains(&CAUSE.code), "{:?}", bench.codes());
        let mut bench = draining();
        sent_on(&mut bench)
            .transmit(CNI0)
            .dropped("PKT_TOO_BIG", "br_dev_queue_push_xmit");
        assert!(!bench.codes().contains(&CAUSE.code), "{:?}", bench.codes());
    }

    #[test]
    fn a_real_server_without_a_route_is_gone() {
        let mut bench = draining();
        bench.site().routes.retain(|route| route.link != Some(CNI0));
        bench.site().routes.push(Route {
            kind: RouteKind::Blackhole,
            link: None,
            ..route("10.244.0.0", 24, CNI0)
        });
        sent_on(&mut bench).dropped("NOT_SPECIFIED", "ip_vs_in");
        assert_eq!(bench.codes()[0], CAUSE.code);
    }

    #[test]
    fn draining_is_healthy_until_nobody_answers() {
        let mut bench = draining();
        let drained = |bench: &mut Bench| {
            let server = &mut bench.site().ipvs.as_mut().expect("a table")[0];
            server.destinations[0].active_connections = Some(2);
        };
        drained(&mut bench);
        assert_eq!(bench.with_evidence(audit_all), []);
        bench
            .site()
            .neighbours
            .push(neighbour(CNI0, "10.244.0.7", NeighbourState::Failed));
        assert_eq!(bench.with_evidence(audit_all).len(), 1);
    }
}
