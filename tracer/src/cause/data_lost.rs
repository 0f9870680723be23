//! `data-lost`: the data of an open connection went out of a device, and nobody acknowledged it.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use super::audit::nothing;
use super::evidence::Evidence;
use super::no_answer::{SILENCE, is_gone};
use super::{Cause, Diagnosis, Site};
use crate::event::Event;
use crate::flow::{Direction, Flow, Repeated};
use crate::hook::Role;
use crate::journey::Journey;
use crate::node::NetnsId;

pub(super) const CAUSE: Cause = Cause {
    code: "data-lost",
    title: "the data of an open connection went out of a device, and nobody acknowledged it",
    explanation: "\
A TCP connection was opened, and then one side sent the same data again and again. Every copy went out of a
device as it should, and nothing came back: they, or the acknowledgements, are lost beyond it.

Why, where the packets are large and smaller ones came through: a link beyond takes no packets of that size
(VPN, overlay, another provider's network), and the ICMP message that would tell the sender is filtered or was
never sent. The handshake works, small requests work, and the first full packet hangs: TLS and large answers do.
Else: a firewall or a NAT on the way forgot the connection while it was idle, or lets handshakes pass and not
what follows; the other host went away.

Proof: the copies of one packet, how long it was repeated, the device, and the largest one that was acknowledged
before. What became of them beyond is not known, so that it is never more than likely. Where another cause
explains the same connection, this one is not named.

Fix: for large packets, a route with a smaller mtu at once, and then the CNI's mtu for the pods' devices: no more
than the way takes. Else look where they go next.",
    references: &[
        "RFC 2923, 2.1: a path MTU black hole, where a connection opens and its first large packet hangs",
        "RFC 4821, and Linux Documentation/networking/ip-sysctl.rst, tcp_mtu_probing: TCP finds the size without ICMP",
        "RFC 6298, 5: what is not acknowledged is sent again, after twice as long each time",
    ],
    explains: &[],
    examine,
    audit: nothing,
};

/// What IPv6 asks of every link, and nearly all others take (RFC 8200, 5).
const FITS: u32 = 1280;
/// An Ethernet header; devices without a hardware address have none.
const LINK_BYTES: u32 = 14;

/// Where the copies went out, whom to, and whether their size may be why they are lost.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Way {
    netns: NetnsId,
    ifindex: u32,
    to: IpAddr,
    large: bool,
}

/// A connection with such data.
struct Lost<'a> {
    flow: &'a Flow,
    repeated: &'a Repeated<'a>,
    newest: &'a Journey,
    /// Bytes of the newest copy behind the link header, with a tunnel's headers.
    size: u32,
    /// The largest packet that was acknowledged before, with its size, where that is known.
    passed: Option<(&'a Journey, u32)>,
}

fn examine(evidence: &Evidence<'_>) -> Vec<Diagnosis> {
    let mut groups: BTreeMap<Way, Vec<Lost<'_>>> = BTreeMap::new();
    for (flow, repeated) in evidence.repeating() {
        if let Some((way, lost)) = lost(evidence, flow, repeated) {
            groups.entry(way).or_default().push(lost);
        }
    }
    groups
        .into_iter()
        .filter_map(|(way, lost)| one(evidence, way, &lost))
        .collect()
}

/// `None` where something is known of a copy, or it is too early to say.
fn lost<'a>(
    evidence: &Evidence<'_>,
    flow: &'a Flow,
    repeated: &'a Repeated<'a>,
) -> Option<(Way, Lost<'a>)> {
    let (first, newest) = (repeated.copies.first()?, *repeated.copies.last()?);
    let until_ns = evidence.until_ns.max(flow.last_ns);
    let silence = Duration::from_nanos(until_ns.saturating_sub(first.start_ns()));
    let known = flow.suspicious > 0 || repeated.copies.iter().any(|copy| !is_gone(copy));
    if known || silence < SILENCE {
        return None;
    }
    let (netns, ifindex, size) = sent(evidence, newest)?;
    let passed = flow
        .largest_acknowledged(repeated)
        .and_then(|journey| Some((journey, sent(evidence, journey)?.2)));
    let way = Way {
        netns,
        ifindex,
        to: newest.last_tuple()?.destination.ip(),
        large: size > FITS && passed.is_some_and(|(_, passed)| passed < size),
    };
    let lost = Lost {
        flow,
        repeated,
        newest,
        size,
        passed,
    };
    Some((way, lost))
}

/// The last device that took a packet, and how large the packet was there.
fn sent(evidence: &Evidence<'_>, journey: &Journey) -> Option<(NetnsId, u32, u32)> {
    let transmits = |event: &Event| event.role() == Role::Transmit;
    let index = journey.events.iter().rposition(transmits)?;
    let event = &journey.events[index];
    let (netns, ifindex) = (NetnsId(journey.namespace_at(index)?), event.ifindex?);
    let link = evidence.site(netns)?.link(ifindex)?;
    let header = link.mac.map_or(0, |_| LINK_BYTES);
    Some((netns, ifindex, event.length?.checked_sub(header)?))
}

fn one(evidence: &Evidence<'_>, way: Way, lost: &[Lost<'_>]) -> Option<Diagnosis> {
    let Lost {
        flow,
        repeated,
        newest,
        size,
        passed,
    } = lost.first()?;
    let begun = newest.first_tuple()?;
    let (from, to) = (begun.source, begun.destination);
    let site = evidence.site(way.netns)?;
    let (place, device) = (site.name(), site.device(way.ifindex));
    let first_ns = repeated.copies.first()?.start_ns();
    let lasted = newest.start_ns().saturating_sub(first_ns) as f64 / 1e9;
    let summary = if way.large {
        format!(
            "{from} sends {to} the same data again and again: it goes out of {device} of {place} in a packet of {size} bytes \
             as it should, and nobody acknowledges it, though smaller ones were. A link beyond {device} seems to take no \
             packets of this size, and the sender is not told."
        )
    } else {
        format!(
            "{from} and {to} had a connection, and now its data is sent again and again: it goes out of {device} of {place} \
             as it should, and nobody acknowledges it. It, or the acknowledgement, is lost beyond {device}."
        )
    };
    let answers = match repeated.direction {
        Direction::Request => "",
        Direction::Reply => " (answers)",
    };
    let diagnosis = Diagnosis::new(
        &CAUSE,
        format!("tcp {} out of {device} of {place}{answers}", way.to),
        summary,
    )
    .stopped_flows(evidence, lost.iter().map(|lost| lost.flow.id))
    .prove(
        "packet",
        format!(
            "#{} tcp {from} → {to}, {size} bytes at {device}, sent at least {} times within {lasted:.1} s, never dropped here",
            repeated.copies.first()?.id,
            repeated.copies.len()
        ),
    )
    .prove_if(
        "packet",
        passed.filter(|_| way.large).map(|(journey, size)| {
            format!("#{} of the same side, {size} bytes, was acknowledged: no larger one was", journey.id)
        }),
    )
    .prove_if(
        "link",
        site.link(way.ifindex)
            .and_then(|link| link.mtu)
            .map(|mtu| format!("{device} has MTU {mtu}")),
    )
    .prove_if("route", site.main_route(way.to).map(|route| site.route_words(route)))
    .lacking(format!("what became of them beyond {device}"))
    .lacking_if(
        *size > FITS && passed.is_none(),
        "whether packets of this size were ever acknowledged: if not, it may be why",
    );
    let sender = evidence
        .site(NetnsId(newest.namespace_at(0)?))
        .filter(|site| site.is_local(from.ip()));
    let look = format!(
        "tracer run 'host {} and port {}'   # on the hosts beyond {device}: how far do they come?",
        flow.client.destination.ip(),
        flow.client.destination.port()
    );
    Some(if way.large {
        by_size(diagnosis, site, sender, way).fix([look], LOOKS)
    } else {
        diagnosis
            .fix([look], LOOKS)
            .fix(
                ["let the connection say something (TCP keepalive) before a firewall on the way forgets it"],
                "helps where it was idle before",
            )
            .check(format!("ss -tnoi dst {}   # unacked and retrans are gone", to.ip()))
            .typed_for(sender)
    })
}

const LOOKS: &str = "none: this only looks";

/// What helps where large packets are lost.
fn by_size(
    diagnosis: Diagnosis,
    site: &Site<'_>,
    sender: Option<&Site<'_>>,
    way: Way,
) -> Diagnosis {
    let to = way.to;
    let (ip, lock) = if to.is_ipv6() {
        ("ip -6", "")
    } else {
        ("ip", "lock ")
    };
    let route = site.main_route(to);
    let via = route
        .and_then(|route| route.gateway)
        .map_or_else(String::new, |gateway| via(site, gateway));
    let device = site.device(route.and_then(|route| route.link).unwrap_or(way.ifindex));
    let smaller = format!("{ip} route replace {to} dev {device}{via} mtu {lock}{FITS}");
    let finds = "sysctl -w net.ipv4.tcp_mtu_probing=1";
    let finds = match sender {
        Some(sender) => sender.inside(finds),
        None => format!("{finds}   # on the sender"),
    };
    diagnosis
        .fix(
            [site.typed(&smaller)],
            "a little more overhead for what goes there; it does not last, and what the way takes may be more or less",
        )
        .fix(
            ["set the CNI's mtu to what the way takes, less its own tunnel's bytes (VXLAN 50), and recreate the pods"],
            "none beyond a little more overhead for each byte",
        )
        .fix(
            ["let ICMP \"fragmentation needed\" (IPv6: packet too big) through the firewalls between"],
            "none: it is needed",
        )
        .fix(
            [finds],
            "TCP takes some seconds to find the size; UDP is not helped, nor does it last",
        )
        .check(site.typed(&format!(
            "tracepath -n {to}   # pmtu: what the way takes"
        )))
}

/// A gateway as `ip route` takes it: that of an overlay is in no network of its device.
fn via(site: &Site<'_>, gateway: IpAddr) -> String {
    let on_link = site
        .main_route(gateway)
        .is_some_and(|route| route.gateway.is_none());
    format!(" via {gateway}{}", if on_link { "" } else { " onlink" })
}

#[cfg(test)]
mod tests {
    use tracer_ebpf::hook::HookId;

    use super::*;
    use crate::cause::Certainty;
    use crate::cause::constructed::{Bench, CNI0, ETH0, ip, node, route};
    use crate::event::{Transport, protocol, tcp_flag};
    use crate::node::{Mac, Route};

    const CLIENT: &str = "192.0.2.1:40000";
    const SERVER: &str = "198.51.100.7:443";
    const BEGAN: u64 = 1_000_000_000;
    const MAC: Mac = Mac([2, 0, 0, 0, 0, 1]);

    fn says(bench: &mut Bench, sequence: u32, data: u16, milliseconds: u64) {
        let transport = Transport::Tcp {
            sequence,
            flags: tcp_flag::ACK,
            data,
        };
        let way = bench.packet(protocol::TCP, CLIENT, SERVER, transport);
        let way = way.length(66 + u32::from(data)).at(HookId::LocalOut);
        let way = way.began(BEGAN + milliseconds * 1_000_000);
        way.transmit(ETH0).ends();
    }

    fn hears(bench: &mut Bench, flags: u8, milliseconds: u64) {
        let transport = Transport::tcp(1, flags);
        let way = bench.packet(protocol::TCP, SERVER, CLIENT, transport);
        let way = way.receive(ETH0).began(BEGAN + milliseconds * 1_000_000);
        way.at(HookId::TcpReceive).ends();
    }

    fn opened() -> Bench {
        let mut bench = node();
        let opens = bench.tcp(CLIENT, SERVER).at(HookId::LocalOut).began(BEGAN);
        opens.transmit(ETH0).ends();
        hears(&mut bench, tcp_flag::SYN | tcp_flag::ACK, 1);
        says(&mut bench, 1001, 0, 2);
        bench.site().links[1].mac = Some(MAC);
        bench.facts.taken_ns = Some(BEGAN + 9_000_000_000);
        bench
    }

    /// Data at these times, in milliseconds.
    fn repeats(bench: &mut Bench, data: u16, times: &[u64]) {
        for &time in times {
            says(bench, 1001, data, time);
        }
    }

    const BACKED_OFF: &[u64] = &[10, 210, 610, 1410, 3010];

    #[test]
    fn a_large_packet_that_nobody_acknowledges_is_named_with_what_passed() {
        let mut bench = opened();
        says(&mut bench, 1001, 200, 5);
        hears(&mut bench, tcp_flag::ACK, 6);
        for &time in BACKED_OFF {
            says(&mut bench, 1201, 1448, time);
        }
        let found = bench.only();
        assert_eq!(found.certainty, Certainty::Likely, "{found:#?}");
        let proofs: Vec<_> = found
            .evidence
            .iter()
            .map(|proof| proof.text.as_str())
            .collect();
        assert!(proofs[0].contains("1500 bytes at eth0, sent at least 5 times within 3.0 s"));
        assert!(proofs[1].contains("252 bytes, was acknowledged"));
        assert!(
            found.fixes[0].lines[0]
                == "ip route replace 198.51.100.7 dev eth0 via 192.0.2.254 mtu lock 1280",
            "{found:#?}"
        );
    }

    #[test]
    fn what_is_small_is_not_lost_for_its_size() {
        let mut bench = opened();
        repeats(&mut bench, 100, BACKED_OFF);
        let found = bench.only();
        assert!(found.summary.contains("had a connection"), "{found:#?}");
        assert!(found.fixes[0].lines[0].starts_with("tracer run"));
        // Larger data came through before.
        let mut bench = opened();
        says(&mut bench, 1001, 1448, 5);
        hears(&mut bench, tcp_flag::ACK, 6);
        for &time in BACKED_OFF {
            says(&mut bench, 2449, 1300, time);
        }
        assert!(bench.only().summary.contains("had a connection"));
    }

    #[test]
    fn size_is_blamed_only_where_all_that_was_acknowledged_is_known() {
        // What was sent between the handshake and the data is not there.
        let mut bench = opened();
        for &time in BACKED_OFF {
            says(&mut bench, 2449, 1448, time);
        }
        let gap = bench.only();
        // Nor is what was sent between two packets that are.
        let mut bench = opened();
        says(&mut bench, 2449, 10, 5);
        hears(&mut bench, tcp_flag::ACK, 6);
        for &time in BACKED_OFF {
            says(&mut bench, 2459, 1448, time);
        }
        let inner_gap = bench.only();
        // The trace is younger than the connection.
        let mut bench = node();
        bench.facts.taken_ns = Some(BEGAN + 9_000_000_000);
        bench.site().links[1].mac = Some(MAC);
        says(&mut bench, 1001, 200, 5);
        hears(&mut bench, tcp_flag::ACK, 6);
        for &time in BACKED_OFF {
            says(&mut bench, 1201, 1448, time);
        }
        for found in [gap, inner_gap, bench.only()] {
            assert!(found.summary.contains("had a connection"), "{found:#?}");
            assert!(found.missing[1].contains("ever acknowledged"), "{found:#?}");
        }
    }

    #[test]
    fn a_device_without_a_link_header_counts_every_byte() {
        let mut bench = opened();
        repeats(&mut bench, 1448, BACKED_OFF);
        bench.site().links[1].mac = None;
        assert!(bench.only().evidence[0].text.contains("1514 bytes at eth0"));
    }

    #[test]
    fn an_overlay_s_gateway_is_said_to_be_on_the_link() {
        let mut bench = opened();
        repeats(&mut bench, 1448, BACKED_OFF);
        bench.site().routes.push(Route {
            gateway: Some(ip("198.51.100.0")),
            ..route("198.51.100.0", 24, ETH0)
        });
        assert_eq!(
            bench.only().fixes[0].lines[0],
            "ip route replace 198.51.100.7 dev eth0 via 198.51.100.0 onlink mtu lock 1280"
        );
    }

    #[test]
    fn what_is_dropped_here_is_another_s() {
        let mut bench = opened();
        repeats(&mut bench, 1448, BACKED_OFF);
        let answer = Transport::tcp(1, tcp_flag::ACK);
        let answer = bench.packet(protocol::TCP, SERVER, CLIENT, answer);
        let answer = answer.receive(ETH0).began(BEGAN + 20_000_000);
        answer.dropped("NETFILTER_DROP", "nf_hook_slow");
        assert!(!bench.codes().contains(&CAUSE.code), "{:?}", bench.codes());
    }

    #[test]
    fn who_goes_on_or_is_heard_is_well() {
        // Acknowledgements carry one number again and again.
        let mut bench = opened();
        repeats(&mut bench, 0, BACKED_OFF);
        assert!(bench.codes().is_empty(), "{:?}", bench.codes());
        // A window that is closed is asked for.
        let mut bench = opened();
        repeats(&mut bench, 1, BACKED_OFF);
        assert!(bench.codes().is_empty(), "{:?}", bench.codes());
        // Too few, or sights of one packet.
        for times in [&[10, 210, 610][..], &[10, 10, 11, 11, 210, 610]] {
            let mut bench = opened();
            repeats(&mut bench, 1448, times);
            assert!(bench.codes().is_empty(), "{times:?} {:?}", bench.codes());
        }
        // It was acknowledged in the end.
        let mut bench = opened();
        repeats(&mut bench, 1448, BACKED_OFF);
        hears(&mut bench, tcp_flag::ACK, 3020);
        assert!(bench.codes().is_empty(), "{:?}", bench.codes());
        let mut bench = opened();
        repeats(&mut bench, 1448, BACKED_OFF);
        says(&mut bench, 2449, 10, 3030);
        assert!(bench.codes().is_empty(), "{:?}", bench.codes());
    }

    #[test]
    fn an_acknowledgement_of_what_came_beside_is_no_word_of_it() {
        let mut bench = opened();
        let (sent, again) = BACKED_OFF[..4].split_at(1);
        repeats(&mut bench, 1448, sent);
        let transport = Transport::Tcp {
            sequence: 2,
            flags: tcp_flag::ACK,
            data: 100,
        };
        let way = bench.packet(protocol::TCP, SERVER, CLIENT, transport);
        let way = way.receive(ETH0).began(BEGAN + 12_000_000);
        way.at(HookId::TcpReceive).ends();
        repeats(&mut bench, 1448, again);
        assert_eq!(bench.codes(), [CAUSE.code]);
    }

    #[test]
    fn it_is_too_early_to_say_or_something_is_known_of_a_copy() {
        let mut bench = opened();
        repeats(&mut bench, 1448, &BACKED_OFF[..4]);
        bench.facts.taken_ns = Some(BEGAN + 2_000_000_000);
        assert!(bench.codes().is_empty(), "{:?}", bench.codes());
        bench.seen_until_ns = Some(BEGAN + 3_100_000_000);
        assert_eq!(bench.codes(), [CAUSE.code]);
        let taken = Transport::Tcp {
            sequence: 1001,
            flags: tcp_flag::ACK,
            data: 1448,
        };
        let way = bench.packet(protocol::TCP, CLIENT, SERVER, taken);
        let way = way.receive(CNI0).began(BEGAN + 2_000_000_000);
        way.at(HookId::TcpReceive).ends();
        repeats(&mut bench, 1448, &BACKED_OFF[4..]);
        assert!(bench.codes().is_empty(), "{:?}", bench.codes());
    }
}
