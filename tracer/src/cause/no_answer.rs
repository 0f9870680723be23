//! `no-answer`: the packets went out of a device, and nothing came back.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::audit::nothing;
use super::evidence::Evidence;
use super::service::host_words;
use super::{Cause, Diagnosis, Site};
use crate::event::{Event, protocol};
use crate::flow::{Direction, Flow};
use crate::hook::Role;
use crate::journey::{Ending, Journey};
use crate::kube::ClusterFacts;
use crate::node::NetnsId;

pub(super) const CAUSE: Cause = Cause {
    code: "no-answer",
    title: "the packets went out of a device, and nothing came back",
    explanation: "\
The SYNs of a connection, or questions to DNS, took their way as they should and went out of a device. They
were repeated, and neither an answer nor an ICMP error came back; nothing that this trace sees dropped one.
So they, or their answers, are lost where it does not look: on the wire, at a firewall, on the other host.

Why, most often: a firewall or a cloud's security group drops in silence; the other host is down, or has
no way back to the sender (no route, reverse path filter), as to a pod's address that nobody masqueraded;
the address is somebody else's by now.

Proof: the packets and how long they were repeated, the device, the neighbour that they were handed to. What
became of them there is not known, so that it is never more than likely. Where another cause explains the
same connection, this one is not named.

Fix: look where they go next. `tracer run` there shows whether they arrive, and whether they are answered.",
    references: &[
        "Linux Documentation/networking/ip-sysctl.rst, tcp_syn_retries: a SYN without an answer is repeated after \
         1 s, then after twice as long each time",
    ],
    explains: &[],
    examine,
    audit: nothing,
};

/// An answer that takes longer is as good as none.
pub(super) const SILENCE: Duration = Duration::from_secs(3);
/// What is sent again sooner may be one packet that was seen twice.
pub(super) const AGAIN: Duration = Duration::from_millis(500);

/// Namespace and device that the flow's packets went out of, their protocol, and where to; `None` where something is
/// known of one.
fn went_out(flow: &Flow) -> Option<(NetnsId, u32, u8, SocketAddr)> {
    // What came back all the same is an ICMP error, and another cause's.
    if flow.suspicious > 0 || flow.replies > 0 {
        return None;
    }
    let asked = Duration::from_nanos(flow.last_ns.saturating_sub(flow.first_ns));
    if asked < AGAIN {
        return None;
    }
    if flow.of(Direction::Request).any(|journey| !is_gone(journey)) {
        return None;
    }
    let last = flow.of(Direction::Request).last()?;
    let transmits = |event: &Event| event.role() == Role::Transmit;
    let index = last.events.iter().rposition(transmits)?;
    Some((
        NetnsId(last.namespace_at(index)?),
        last.events[index].ifindex?,
        flow.client.protocol,
        last.last_tuple()?.destination,
    ))
}

/// A device took the packet, and it was not seen again; it may lead to a namespace that is not traced.
pub(super) fn is_gone(journey: &Journey) -> bool {
    let taken = || {
        let last = journey.events.last().map(Event::role);
        matches!(last, Some(Role::Transmit | Role::Veth))
    };
    let gone = match journey.ending {
        Ending::Transmitted => true,
        Ending::OutOfSight => taken(),
        _ => false,
    };
    gone && !journey.gap
}

fn examine(evidence: &Evidence<'_>) -> Vec<Diagnosis> {
    let mut groups: BTreeMap<_, Vec<&Flow>> = BTreeMap::new();
    for &flow in evidence.stalled() {
        let seen_ns = evidence.until_ns.max(flow.last_ns);
        let silence = Duration::from_nanos(seen_ns.saturating_sub(flow.first_ns));
        if silence >= SILENCE
            && let Some(key) = went_out(flow)
        {
            groups.entry(key).or_default().push(flow);
        }
    }
    groups
        .into_iter()
        .filter_map(|((netns, ifindex, number, to), flows)| {
            one(evidence, (netns, ifindex), number, to, &flows)
        })
        .collect()
}

fn one(
    evidence: &Evidence<'_>,
    (netns, ifindex): (NetnsId, u32),
    number: u8,
    to: SocketAddr,
    flows: &[&Flow],
) -> Option<Diagnosis> {
    let first = flows.first()?;
    let opening = first.of(Direction::Request).next()?;
    let from = opening.first_tuple()?.source;
    let site = evidence.site(netns)?;
    let (place, device) = (site.name(), site.device(ifindex));
    let hop = next_hop(site, to);
    let neighbour = site.neighbour(ifindex, hop).map(|entry| {
        let mac = entry
            .mac
            .map(|mac| format!(" at {mac}"))
            .unwrap_or_default();
        format!("{hop} dev {device}{mac} {}", entry.state)
    });
    let name = protocol::name(number);
    let opens = if number == protocol::TCP { " SYN" } else { "" };
    let filter = format!("'host {} and port {}'", to.ip(), to.port());
    let host = host_words(evidence, to.ip());
    let inner = inner_sender(evidence, first, netns);
    let diagnosis = Diagnosis::new(
        &CAUSE,
        format!("{name} {to} out of {device} of {place}"),
        format!(
            "Packets for {to} went out of {device} of {place} as they should, and nothing came back: they, or their \
             answers, are lost beyond it."
        ),
    )
    .stopped_flows(evidence, flows.iter().map(|flow| flow.id))
    .prove(
        "packet",
        format!(
            "#{} {name}{opens} {from} → {to}, repeated until {:.1} s later, never dropped here",
            opening.id,
            first.last_ns.saturating_sub(first.first_ns) as f64 / 1e9
        ),
    )
    .prove_if("route", site.main_route(to.ip()).map(|route| site.route_words(route)))
    .prove_if("neighbour", neighbour)
    .prove_if(
        "address",
        inner.as_ref().map(|(owner, own)| {
            format!("they carry the address {own} of {owner}: who answers them needs a way back to it")
        }),
    )
    .lacking(format!("what became of them beyond {device}"))
    .fix(
        [format!("tracer run {filter}   # on {host}: do they arrive, and are they answered?")],
        "none: this only looks",
    )
    .fix(
        [format!("let {name} port {} to {} through the firewalls and security groups between", to.port(), to.ip())],
        "the port becomes reachable from there",
    )
    .check(format!("tracer probe {name}://{to}"))
    .typed_for(Some(site));
    Some(match inner {
        Some((_, own)) => diagnosis.fix(
            [format!(
                "iptables -t nat -A POSTROUTING -s {own} -d {} -j MASQUERADE   # on {place}, where {own} is not routed beyond it",
                to.ip()
            )],
            "the other side sees another address; for pods the container network's own setting lasts (ipMasq, --ip-masq)",
        ),
        None => diagnosis,
    })
}

/// The namespace behind this one that sent the flow's packets, and its address, where they carry it to somebody outside
/// of the cluster.
fn inner_sender(evidence: &Evidence<'_>, flow: &Flow, netns: NetnsId) -> Option<(String, IpAddr)> {
    let journey = flow.of(Direction::Request).last()?;
    let (begun, left) = (journey.first_tuple()?, journey.last_tuple()?);
    let began = NetnsId(journey.namespace_at(0)?);
    let is_outside = |address: IpAddr| {
        let of_cluster = |cluster: &ClusterFacts| {
            let mut prefixes = cluster.nodes().flat_map(|node| &node.pod_prefixes);
            cluster.claims(address).next().is_some()
                || prefixes.any(|prefix| prefix.contains(address))
        };
        !evidence.sites().any(|site| site.is_local(address))
            && !evidence.cluster.is_some_and(of_cluster)
    };
    let carries = began != netns && begun.source == left.source;
    (carries && is_outside(left.destination.ip())).then_some(())?;
    Some((evidence.site(began)?.name(), left.source.ip()))
}

/// Whom a packet to this address is handed to.
fn next_hop(site: &Site<'_>, to: SocketAddr) -> IpAddr {
    let gateway = site.main_route(to.ip()).and_then(|route| route.gateway);
    gateway.unwrap_or_else(|| to.ip())
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use tracer_ebpf::hook::HookId;

    use super::*;
    use crate::cause::Certainty;
    use crate::cause::constructed::{Bench, CNI0, ETH0, NODE, neighbour, node};
    use crate::event::{Transport, tcp_flag};
    use crate::kube::constructed::cluster;
    use crate::node::{NeighbourState, NetnsFacts};

    const CLIENT: &str = "192.0.2.1:40000";
    const SERVER: &str = "198.51.100.7:443";

    fn opens(bench: &mut Bench, second: u64) {
        let way = bench.tcp(CLIENT, SERVER).at(HookId::LocalOut);
        let way = way.began(second * 1_000_000_000);
        way.transmit(ETH0).ends();
    }

    fn silent(seconds: &[u64]) -> Bench {
        let mut bench = node();
        for &second in seconds {
            opens(&mut bench, second);
        }
        bench
    }

    #[test]
    fn what_goes_out_and_is_repeated_without_an_answer_is_said_with_the_next_hop() {
        let mut bench = silent(&[1, 2, 4]);
        let entry = neighbour(ETH0, "192.0.2.254", NeighbourState::Reachable);
        bench.site().neighbours = vec![entry];
        let found = bench.only();
        assert_eq!(
            (found.code, found.certainty),
            (CAUSE.code, Certainty::Likely)
        );
        let said = |what: &str| found.evidence.iter().any(|proof| proof.text.contains(what));
        assert!(
            said("until 3.0 s later") && said("default via 192.0.2.254"),
            "{found:#?}"
        );
        assert!(said("192.0.2.254 dev eth0 reachable"), "{found:#?}");
    }

    #[test]
    fn who_has_not_waited_long_says_nothing() {
        assert!(silent(&[1, 2]).codes().is_empty());
        let mut bench = silent(&[1, 2]);
        // The facts are of a moment when it was too early to say.
        bench.facts.taken_ns = Some(3_000_000_000);
        assert!(bench.codes().is_empty());
        bench.seen_until_ns = Some(4_100_000_000);
        assert_eq!(bench.codes(), [CAUSE.code]);
    }

    #[test]
    fn one_packet_that_is_seen_twice_is_not_repeated() {
        let mut bench = silent(&[1, 1]);
        bench.facts.taken_ns = Some(9_000_000_000);
        assert!(bench.codes().is_empty(), "{:?}", bench.codes());
    }

    #[test]
    fn an_answer_or_a_drop_is_no_silence() {
        let mut bench = silent(&[1, 2, 4]);
        let answer = bench.packet(
            protocol::TCP,
            SERVER,
            CLIENT,
            Transport::tcp(1, tcp_flag::SYN | tcp_flag::ACK),
        );
        answer.receive(ETH0).at(HookId::TcpReceive).ends();
        assert!(bench.codes().is_empty(), "{:?}", bench.codes());
        let mut bench = silent(&[1, 2, 4]);
        let lost = bench.tcp(CLIENT, SERVER).at(HookId::LocalOut);
        lost.dropped("QDISC_DROP", "dev_queue_xmit");
        assert!(!bench.codes().contains(&CAUSE.code), "{:?}", bench.codes());
    }

    #[test]
    fn the_node_to_look_at_is_named_where_the_cluster_knows_it() {
        let facts = cluster(
            "node-a",
            &[json!({
                "kind": "Node", "metadata": {"name": "node-b"},
                "status": {"addresses": [{"type": "InternalIP", "address": "198.51.100.7"}]},
            })],
        );
        let mut bench = silent(&[1, 2, 4]);
        bench.cluster = Some(facts);
        let found = bench.only();
        assert!(
            found.fixes[0].lines[0].contains("on node node-b"),
            "{found:#?}"
        );
    }

    #[test]
    fn questions_to_dns_are_repeated_as_well() {
        for (server, seconds, named) in [
            ("198.51.100.7:53", &[1, 6][..], true),
            // Both kinds of addresses are asked for at once.
            ("198.51.100.7:53", &[1, 1], false),
            // Whether an answer is due is not known.
            ("198.51.100.7:8125", &[1, 6], false),
        ] {
            let mut bench = node();
            bench.facts.taken_ns = Some(9_000_000_000);
            for &second in seconds {
                let way = bench.udp(CLIENT, server).at(HookId::LocalOut);
                let way = way.began(second * 1_000_000_000);
                way.transmit(ETH0).ends();
            }
            let codes = bench.codes();
            assert_eq!(codes == [CAUSE.code], named, "{server}: {codes:?}");
        }
    }

    #[test]
    fn a_pod_s_own_address_needs_a_way_back() {
        const POD: u32 = 200;
        for behind_nat in [false, true] {
            let mut bench = node();
            let pod = NetnsFacts::unread(NetnsId(POD), Some("web-0"));
            bench.facts.namespaces.push(pod);
            for second in [1, 2, 4] {
                let way = bench.tcp("10.244.0.9:40000", SERVER).netns(POD);
                let way = way.at(HookId::LocalOut).began(second * 1_000_000_000);
                let way = way.netns(NODE).receive(CNI0).at(HookId::Forward);
                let way = if behind_nat {
                    way.from("192.0.2.1:40000")
                } else {
                    way
                };
                way.transmit(ETH0).ends();
            }
            let found = bench.only();
            let words = "they carry the address 10.244.0.9 of web-0";
            let told = found
                .evidence
                .iter()
                .any(|proof| proof.text.starts_with(words));
            assert_eq!(told, !behind_nat, "{found:#?}");
            let last = found.fixes.last().expect("a fix");
            assert_eq!(last.lines[0].contains("MASQUERADE"), told);
        }
    }
}
