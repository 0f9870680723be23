//! `no-listener`: the packet reached the right host, and no socket there takes it.

use std::net::{IpAddr, SocketAddr};

use super::audit::nothing;
use super::evidence::{Evidence, Failure};
use super::service::claimant;
use super::{Cause, Diagnosis, Site};
use crate::event::{Packet, protocol};
use crate::flow::Direction;
use crate::hook::Role;
use crate::journey::Journey;
use crate::node::{ListeningSocket, NetnsId};

pub(super) const CAUSE: Cause = Cause {
    code: "no-listener",
    title: "nothing listens on the address and port",
    explanation: "\
The packet came to the host or pod that it was meant for, and no socket there takes it. TCP answers with
RST (\"connection refused\"), UDP with ICMP port unreachable.

Why: the program is not running, crashed, listens on another port, or only on another address (often
127.0.0.1). Behind a service the service's targetPort may be wrong. A service's own address and port, or a
NodePort, that no proxy serves looks the same from outside: then another cause is named first, or it is no
more than likely.

Proof: the packet reached the transport layer, no socket was found, the refusal was sent, the list of that
network namespace's sockets holds none for the address and port, and no service has them.

Fix: start the program, make it listen on the address (0.0.0.0 or ::), or correct the port.",
    references: &[
        "Linux net/ipv4/tcp_ipv4.c, tcp_v4_rcv: without a socket answers RST and drops with NO_SOCKET",
        "Linux net/ipv4/udp.c, udp_rcv: without a socket answers ICMP port unreachable and drops with NO_SOCKET",
    ],
    explains: &[],
    examine,
    audit: nothing,
};

/// More closed ports than this on one address are told of together: somebody scans.
const MOST_PORTS: usize = 4;
/// Where Linux frees a packet without a socket.
const FUNCTIONS: &[&str] = &[
    "tcp_v4_rcv",
    "tcp_v6_rcv",
    "udp_rcv",
    "udpv6_rcv",
    "__udp4_lib_rcv",
    "__udp6_lib_rcv",
];

fn examine(evidence: &Evidence<'_>) -> Vec<Diagnosis> {
    let hosts = evidence.group(|failure| {
        let (netns, number, address) = unheard(evidence, failure)?;
        Some((netns, number, address.ip()))
    });
    let mut found = Vec::new();
    for ((netns, number, address), failures) in hosts {
        let mut ports: std::collections::BTreeMap<u16, Vec<&Failure<'_>>> = Default::default();
        for failure in failures {
            if let Some((_, _, target)) = unheard(evidence, failure) {
                ports.entry(target.port()).or_default().push(failure);
            }
        }
        if ports.len() > MOST_PORTS {
            found.push(many(evidence, netns, number, address, &ports));
            continue;
        }
        found.extend(ports.into_iter().filter_map(|(port, failures)| {
            one(
                evidence,
                netns,
                number,
                SocketAddr::new(address, port),
                &failures,
            )
        }));
    }
    found
}

/// Namespace, protocol and address of a request that no socket took.
fn unheard(evidence: &Evidence<'_>, failure: &Failure<'_>) -> Option<(NetnsId, u8, SocketAddr)> {
    let (index, _) = failure.last(Role::Transport)?;
    if !failure.is_opening() || !found_no_socket(failure) {
        return None;
    }
    if !failure.rejected() && was_heard(failure) {
        return None;
    }
    let netns = failure.netns_at(index)?;
    let tuple = failure.packet_at(index)?.tuple;
    if is_late_answer(
        evidence.site(netns),
        tuple.protocol,
        tuple.source,
        tuple.destination,
    ) {
        return None;
    }
    Some((netns, tuple.protocol, tuple.destination))
}

/// The packet came to where sockets are looked for, and there was none.
pub(super) fn found_no_socket(failure: &Failure<'_>) -> bool {
    let dropped = failure.dropped_for(&["NO_SOCKET"], FUNCTIONS);
    failure.passed(Role::Transport)
        && !failure.was_taken()
        && (failure.rejected() || dropped)
        // Another reason is another cause: a bad checksum for one.
        && (failure.drop.is_none() || dropped)
}

/// A socket took another packet that opens the same TCP connection: this one is its repetition, which the
/// kernel frees without a reason.
fn was_heard(failure: &Failure<'_>) -> bool {
    let opens = |journey: &Journey| {
        let first = journey
            .events
            .first()
            .and_then(|event| event.packet.as_ref());
        first.is_some_and(Packet::opens)
    };
    failure.flow.client.protocol == protocol::TCP
        && failure
            .flow
            .of(Direction::Request)
            .any(|journey| journey.was_taken() && opens(journey))
}

/// A UDP answer that comes after its asker closed the socket: from a fixed port to one of those that
/// the kernel gives to programs that ask. The request was before the trace began.
fn is_late_answer(
    site: Option<&Site<'_>>,
    number: u8,
    source: SocketAddr,
    destination: SocketAddr,
) -> bool {
    let range = site
        .and_then(|site| site.facts.sysctls.get("net/ipv4/ip_local_port_range"))
        .and_then(|text| {
            let mut words = text.split_whitespace().map(str::parse::<u16>);
            Some((words.next()?.ok()?, words.next()?.ok()?))
        });
    let (first, last) = range.unwrap_or((32768, 60999));
    let given = |port: u16| (first..=last).contains(&port);
    number == protocol::UDP && given(destination.port()) && !given(source.port())
}

fn one(
    evidence: &Evidence<'_>,
    netns: NetnsId,
    number: u8,
    target: SocketAddr,
    failures: &[&Failure<'_>],
) -> Option<Diagnosis> {
    let first = failures.first()?;
    let name = protocol::name(number);
    let site = evidence.site(netns);
    let place = site.map_or_else(|| format!("netns {netns}"), Site::name);
    let asked = first.flow.client.destination;
    let mut summary = format!(
        "Nothing listens on {name} {target} in {place}: the packet arrived and was refused."
    );
    if asked != target {
        summary += &format!(
            " It was sent to {asked}, which leads there: the service's target port is wrong, or the program behind \
             it is not running."
        );
    }
    let service = claimant(evidence, netns, number, target).map(|service| &service.name);
    if let Some(service) = service {
        summary += &format!(
            " The address and port are those of s/{service}: kube-proxy should have sent the packet on before any \
             socket was looked for."
        );
    }
    let elsewhere: Vec<&ListeningSocket> = site
        .into_iter()
        .flat_map(|site| site.sockets_on_port(number, target.port()))
        .collect();
    let here = elsewhere
        .iter()
        .any(|socket| socket.takes(number, target.ip(), target.port()));
    let only = (!here).then(|| elsewhere.first().copied()).flatten();
    if let Some(socket) = only {
        summary += &format!(
            " {} listens on {} only.",
            owner(socket),
            SocketAddr::new(socket.address, socket.port)
        );
    }
    let refusal = if first.was_reset() {
        "RST sent"
    } else if first.passed(Role::IcmpError) {
        "ICMP port unreachable sent"
    } else {
        "dropped"
    };
    let unread = site.is_none_or(|site| site.misses("TCP listeners") || site.misses("UDP sockets"));
    let diagnosis = Diagnosis::new(&CAUSE, format!("{name} {target}"), summary)
        .stopped(evidence, failures)
        .prove(
            "packet",
            format!("{} reached {place}, no socket, {refusal}", first.words()),
        )
        .prove_if(
            "socket",
            (!here && !unread).then(|| match only {
                Some(socket) => format!(
                    "{} holds {name} {} and nothing holds {target}",
                    owner(socket),
                    SocketAddr::new(socket.address, socket.port)
                ),
                None => format!("no socket in {place} waits on {name} port {}", target.port()),
            }),
        )
        .lacking_if(unread, format!("the list of sockets in {place}"))
        .lacking_if(
            here,
            "a socket that takes such packets is there now; it was opened since, or it is bound to another device",
        );
    let open = "the port becomes reachable for everybody who can reach the address";
    let diagnosis = match (service, only) {
        (Some(service), _) => diagnosis
            .lacking(format!("why kube-proxy did not take it for s/{service}"))
            .fix(
                ["tracer cluster differences   # what kube-proxy should have made and did not"],
                "none: this only looks",
            )
            .fix(
                ["nodePortAddresses in kube-proxy's configuration   # nftables mode: by default the node's primary addresses only"],
                open,
            ),
        (None, Some(socket)) => diagnosis.fix(
            [format!(
                "make {} listen on {} or on all addresses (0.0.0.0, ::)",
                owner(socket),
                target.ip()
            )],
            open,
        ),
        (None, None) => diagnosis.fix(
            [format!(
                "start the program that serves {name} port {}",
                target.port()
            )],
            open,
        ),
    };
    let diagnosis = if asked == target {
        diagnosis
    } else {
        diagnosis.fix(
            ["kubectl edit service NAME   # targetPort: the port that the program listens on"],
            "connections to the old port break",
        )
    };
    Some(diagnosis.check(format!("tracer probe {name}://{asked}")))
}

fn owner(socket: &ListeningSocket) -> String {
    socket.owner.as_ref().map_or_else(
        || "a program".into(),
        |owner| format!("{} (process {})", owner.command, owner.pid),
    )
}

fn many(
    evidence: &Evidence<'_>,
    netns: NetnsId,
    number: u8,
    address: IpAddr,
    ports: &std::collections::BTreeMap<u16, Vec<&Failure<'_>>>,
) -> Diagnosis {
    let name = protocol::name(number);
    let site = evidence.site(netns);
    let place = site.map_or_else(|| format!("netns {netns}"), Site::name);
    let failures: Vec<_> = ports.values().flatten().copied().collect();
    let mut sources: Vec<IpAddr> = failures
        .iter()
        .map(|failure| failure.flow.client.source.ip())
        .collect();
    sources.sort_unstable();
    sources.dedup();
    let who = match sources.as_slice() {
        [one] => one.to_string(),
        several => format!("{} addresses", several.len()),
    };
    let open = ports
        .keys()
        .filter(|&&port| {
            site.is_some_and(|site| site.listeners(number, address, port).next().is_some())
        })
        .count();
    let claimed = ports
        .keys()
        .filter(|&&port| {
            claimant(evidence, netns, number, SocketAddr::new(address, port)).is_some()
        })
        .count();
    let unread = site.is_none_or(|site| site.misses("TCP listeners") || site.misses("UDP sockets"));
    Diagnosis::new(
        &CAUSE,
        format!("{name} {address}"),
        format!(
            "Nothing listens on {} {name} ports of {address} in {place} that {who} tried: so many ports at once are \
             a scan, or a program with a wrong list of ports.",
            ports.len()
        ),
    )
    .stopped(evidence, &failures)
    .prove_if(
        "packet",
        failures.first().map(|first| format!("{} found no socket", first.words())),
    )
    .prove_if(
        "socket",
        (!unread).then(|| format!("{open} of these ports have a socket now")),
    )
    .lacking_if(unread, format!("the list of sockets in {place}"))
    .lacking_if(
        claimed > 0,
        format!("why kube-proxy did not take those for services, whose ports {claimed} of them are"),
    )
    .fix(
        [format!("find out what on {who} asks for these ports")],
        "none: nothing is changed",
    )
    .check(format!("ss -lntu   # in {place}"))
    .typed_for(site)
}

#[cfg(test)]
pub(super) mod tests {
    use serde_json::json;
    use tracer_ebpf::hook::HookId;

    use super::*;
    use crate::cause::Certainty;
    use crate::cause::constructed::{Bench, ETH0, node, socket};
    use crate::event::{Transport, tcp_flag};
    use crate::kube::constructed::{cluster, configured};

    fn refused(bench: &mut Bench, port: u16) {
        refused_at(bench, "192.0.2.1", port);
    }

    fn refused_at(bench: &mut Bench, address: &str, port: u16) {
        bench
            .tcp("192.0.2.10:40000", &format!("{address}:{port}"))
            .receive(ETH0)
            .at(HookId::LocalDeliver)
            .at(HookId::TcpReceive)
            .at(HookId::TcpReset)
            .dropped("NO_SOCKET", "tcp_v4_rcv");
    }

    pub(in crate::cause) fn situation() -> Bench {
        let mut bench = node();
        refused(&mut bench, 8080);
        bench
    }

    #[test]
    fn a_refused_connection_is_named_and_who_listens_elsewhere() {
        let mut bench = situation();
        bench.site().sockets = vec![socket(6, "127.0.0.1", 8080)];
        let found = bench.only();
        assert_eq!(
            (found.code, found.certainty),
            (CAUSE.code, Certainty::Certain)
        );
        assert!(found.summary.contains("127.0.0.1:8080 only"), "{found:#?}");
        assert_eq!((found.failed, found.total), (1, 1));
    }

    #[test]
    fn a_socket_that_is_there_now_makes_it_likely() {
        let mut bench = situation();
        bench.site().sockets = vec![socket(6, "0.0.0.0", 8080)];
        assert_eq!(bench.only().certainty, Certainty::Likely);
        let mut bench = situation();
        bench.facts.namespaces.clear();
        assert_eq!(bench.only().certainty, Certainty::Likely);
    }

    #[test]
    fn a_repeated_opening_that_a_socket_took_before_is_silent() {
        let mut bench = node();
        let ends = ("192.0.2.10:40000", "192.0.2.1:8080");
        bench
            .tcp(ends.0, ends.1)
            .receive(ETH0)
            .at(HookId::TcpReceive)
            .at(HookId::TcpDeliver)
            .ends();
        bench
            .tcp(ends.0, ends.1)
            .receive(ETH0)
            .at(HookId::TcpReceive)
            .dropped("", "tcp_v4_rcv");
        assert!(bench.codes().is_empty(), "{:?}", bench.codes());
        // The program ended meanwhile.
        refused(&mut bench, 8080);
        assert_eq!(bench.only().code, CAUSE.code);
    }

    #[test]
    fn a_scan_is_one_diagnosis() {
        let mut bench = node();
        for port in 1..200 {
            refused(&mut bench, port);
        }
        let found = bench.only();
        assert_eq!(found.failed, 199);
        assert!(found.summary.contains("199 tcp ports"), "{found:#?}");
    }

    /// A node in iptables mode with a service on NodePort 30000.
    pub(in crate::cause) fn with_node_port() -> Bench {
        let facts = cluster(
            "node-a",
            &[
                json!({"kind": "Node", "metadata": {"name": "node-a"}, "status": {
                    "addresses": [{"type": "InternalIP", "address": "192.0.2.1"}],
                    "nodeInfo": {"kubeletVersion": "v1.33.0"}}}),
                json!({"kind": "Service", "metadata": {"namespace": "default", "name": "web"},
                    "spec": {"type": "NodePort", "clusterIPs": ["10.96.0.5"],
                        "ports": [{"port": 80, "nodePort": 30000}]}}),
                json!({"kind": "EndpointSlice", "metadata": {"namespace": "default", "name": "web-x",
                        "labels": {"kubernetes.io/service-name": "web"}},
                    "ports": [{"port": 8080}], "endpoints": [{"addresses": ["10.244.0.9"]}]}),
            ],
        );
        let mut bench = node();
        bench.cluster = Some(configured(facts, "mode: iptables"));
        bench
    }

    #[test]
    fn a_port_that_a_service_has_is_no_more_than_likely() {
        // On another address of the node than the cluster knows.
        let own = "10.244.0.1";
        for (address, port, certainty) in [
            ("192.0.2.1", 30000, Certainty::Likely),
            (own, 30000, Certainty::Likely),
            (own, 30001, Certainty::Certain),
            ("192.0.2.77", 30000, Certainty::Certain),
        ] {
            let mut bench = with_node_port();
            refused_at(&mut bench, address, port);
            let found = bench.only();
            assert_eq!((found.code, found.certainty), (CAUSE.code, certainty));
            let lines = found.fixes.iter().flat_map(|fix| &fix.lines);
            let starts = lines.filter(|line| line.starts_with("start the program"));
            assert_eq!(
                starts.count(),
                usize::from(certainty == Certainty::Certain),
                "{found:#?}"
            );
        }
        let mut bench = with_node_port();
        for port in 29990..30010 {
            refused(&mut bench, port);
        }
        assert_eq!(bench.only().certainty, Certainty::Likely);
    }

    #[test]
    fn ends_of_connections_and_late_answers_are_silent() {
        let mut bench = node();
        let flags = tcp_flag::ACK | tcp_flag::FIN;
        bench
            .packet(
                6,
                "192.0.2.10:40000",
                "192.0.2.1:80",
                Transport::tcp(1, flags),
            )
            .receive(ETH0)
            .at(HookId::TcpReceive)
            .at(HookId::TcpReset)
            .dropped("NO_SOCKET", "tcp_v4_rcv");
        bench
            .udp("192.0.2.53:53", "192.0.2.1:45000")
            .receive(ETH0)
            .at(HookId::UdpReceive)
            .with(
                HookId::IcmpSend,
                crate::event::Detail::Icmp { kind: 3, code: 3 },
            )
            .dropped("NO_SOCKET", "udp_rcv");
        assert_eq!(bench.codes(), [] as [&str; 0]);
    }
}
