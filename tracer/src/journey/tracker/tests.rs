//! The tracker on constructed events.

use tracer_ebpf::hook::HookId;

use super::*;
use crate::event::{Detail, Transport};
use crate::journey::constructed::event;

#[test]
fn a_reused_skb_is_another_packet() {
    let mut tracker = Tracker::new(SocketReasons::default());
    let mut ended = Vec::new();
    tracker.push(event(HookId::LocalOut, 1, 10, 100), &mut ended);
    tracker.push(event(HookId::DeviceReceive, 1, 20, 100), &mut ended);
    assert!(ended.is_empty());
    tracker.push(event(HookId::DeviceReceive, 1, 30, 200), &mut ended);
    assert_eq!(ended.len(), 1);
    assert_eq!(ended[0].events.len(), 2);
    tracker.push(event(HookId::LocalOut, 1, 40, 200), &mut ended);
    assert_eq!(ended.len(), 2);
}

/// A datagram without an identification, as unconnected sockets send it, at a device.
fn at_device(hook: HookId, time_ns: u64, ifindex: u32, ends: (&str, &str)) -> Event {
    let mut event = other(event(hook, 1, time_ns, 0), 17, ends, 0, 100);
    event.ifindex = Some(ifindex);
    event
}

fn lengths(events: impl IntoIterator<Item = Event>) -> Vec<usize> {
    let mut tracker = Tracker::new(SocketReasons::default());
    let mut ended = Vec::new();
    for event in events {
        tracker.push(event, &mut ended);
    }
    tracker.finish(&mut ended);
    ended.iter().map(|journey| journey.events.len()).collect()
}

/// The end of what a network card sent is not seen, and its skb is the next that comes in.
#[test]
fn the_skb_of_a_packet_that_left_is_another_packets() {
    const ANSWER: (&str, &str) = ("10.0.0.2:53", "192.0.2.1:1000");
    const ANOTHER: (&str, &str) = ("192.0.2.7:2000", "10.0.0.2:53");
    let sent = [
        at_device(HookId::LocalOut, 1, 2, ANSWER),
        at_device(HookId::DeviceTransmit, 2, 2, ANSWER),
    ];
    let came = |ends| at_device(HookId::DeviceReceive, 3, 2, ends);
    assert_eq!(
        lengths(sent.clone().into_iter().chain([came(ANOTHER)])),
        [2, 1]
    );
    // TCP over IPv6 sends the same again without the hook of local output.
    let again = at_device(HookId::Output6, 3, 2, ANSWER);
    assert_eq!(lengths(sent.into_iter().chain([again])), [2, 1]);
}

/// Datagrams of unconnected sockets tell nothing by which the next would be known as another.
#[test]
fn the_skb_of_a_packet_that_a_socket_took_is_another_packets() {
    const QUESTION: (&str, &str) = ("192.0.2.1:1000", "10.0.0.2:53");
    let at = |hook, time_ns| at_device(hook, time_ns, 2, QUESTION);
    let asked = [
        at(HookId::UdpReceive, 1),
        at(HookId::UdpDeliver, 2),
        at(HookId::NetfilterHook, 3),
    ];
    assert_eq!(lengths(asked.clone()), [2, 1]);
    let [first, taken, _] = asked;
    assert_eq!(lengths([first, taken, at(HookId::Drop, 3)]), [3]);
}

/// A veth device that runs an XDP program puts the packet into an skb of its own, which may be seen first where the
/// program's verdict frees it.
#[test]
fn a_packet_that_crosses_a_veth_pair_may_come_out_in_another_skb() {
    const ENDS: (&str, &str) = ("10.0.0.2:2000", "10.0.0.3:53");
    const ANOTHER: (&str, &str) = ("10.0.0.2:2001", "10.0.0.3:53");
    let sent = |last| {
        [
            at_device(HookId::LocalOut, 1, 2, ENDS),
            at_device(HookId::DeviceTransmit, 2, 2, ENDS),
            at_device(last, 3, 2, ENDS),
        ]
    };
    let came = |hook, ends| Event {
        skb: 2,
        netns: Some(7),
        ..at_device(hook, 4, 3, ends)
    };
    for hook in [HookId::DeviceReceive, HookId::Drop] {
        let veth = sent(HookId::VethTransmit).into_iter();
        assert_eq!(lengths(veth.chain([came(hook, ENDS)])), [4], "{hook:?}");
        let veth = sent(HookId::VethTransmit).into_iter();
        assert_eq!(
            lengths(veth.chain([came(hook, ANOTHER)])),
            [3, 1],
            "{hook:?}"
        );
        // It is through already, in its own skb.
        let through = sent(HookId::DeviceReceive).into_iter();
        assert_eq!(
            lengths(through.chain([came(hook, ENDS)])),
            [3, 1],
            "{hook:?}"
        );
    }
}

#[test]
fn a_packet_comes_in_at_a_network_card_once() {
    const ENDS: (&str, &str) = ("192.0.2.7:2000", "10.0.0.2:53");
    let (receive, transmit) = (HookId::DeviceReceive, HookId::DeviceTransmit);
    for (way, expected) in [
        // Forwarded, and the next one of the client.
        (
            &[
                (receive, 2),
                (HookId::Forward, 2),
                (transmit, 3),
                (receive, 2),
            ][..],
            &[3, 1][..],
        ),
        (&[(receive, 2), (transmit, 2), (receive, 2)], &[2, 1]),
        // No hook sees what takes packets of other protocols.
        (
            &[(receive, 2), (HookId::LocalDeliverFinish, 2), (receive, 2)],
            &[2, 1],
        ),
        // Through a virtual pair, also where its own hook is not there.
        (
            &[
                (receive, 2),
                (HookId::Forward, 2),
                (transmit, 3),
                (receive, 4),
            ],
            &[4],
        ),
        // Round and round through virtual pairs.
        (
            &[
                (receive, 2),
                (transmit, 3),
                (HookId::VethTransmit, 3),
                (receive, 2),
                (transmit, 3),
            ],
            &[5],
        ),
        // Held up by a device of its own for what comes in.
        (
            &[
                (receive, 2),
                (transmit, 9),
                (receive, 2),
                (HookId::Ip4Receive, 2),
            ],
            &[4],
        ),
    ] {
        let events = (1..)
            .zip(way)
            .map(|(time, &(hook, at))| at_device(hook, time, at, ENDS));
        assert_eq!(lengths(events), expected, "{way:?}");
    }
}

/// A bridge copies what is for all to every port.
#[test]
fn the_skb_of_a_copy_that_left_is_another_packets() {
    const ENDS: (&str, &str) = ("192.0.2.7:2000", "192.0.2.255:53");
    let at = |hook, skb, time, ifindex| Event {
        skb,
        ..at_device(hook, time, ifindex, ENDS)
    };
    let events = [
        at(HookId::DeviceReceive, 1, 1, 2),
        at(HookId::BridgeFlood, 1, 2, 2),
        at(HookId::BridgeForward, 2, 3, 3),
        at(HookId::DeviceTransmit, 2, 4, 3),
        at(HookId::DeviceReceive, 2, 5, 2),
    ];
    assert_eq!(lengths(events), [4, 1]);
}

#[test]
fn a_journey_of_too_many_events_says_that_there_was_more() {
    for (more, gap) in [(0, false), (1, true)] {
        let mut tracker = Tracker::new(SocketReasons::default());
        let mut ended = Vec::new();
        for at in 0..MOST_EVENTS + more {
            tracker.push(event(HookId::Forward, 1, at as u64, 100), &mut ended);
        }
        tracker.finish(&mut ended);
        assert_eq!(ended.len(), 1);
        assert_eq!((ended[0].events.len(), ended[0].gap), (MOST_EVENTS, gap));
    }
}

#[test]
fn a_drop_after_delivery_needs_a_reason_to_be_a_loss() {
    for (reason, expected_loss) in [(Some(2), false), (Some(9), true), (None, false)] {
        let mut tracker = Tracker::new(SocketReasons::from_iter([(2, "NOT_SPECIFIED")]));
        let mut ended = Vec::new();
        tracker.push(event(HookId::TcpDeliver, 1, 10, 100), &mut ended);
        let mut drop = event(HookId::Drop, 1, 20, 100);
        drop.detail = Detail::Drop {
            location: 0,
            reason,
        };
        tracker.push(drop, &mut ended);
        assert_eq!(
            ended[0].ending != Ending::Delivered,
            expected_loss,
            "{reason:?}"
        );
    }
}

#[test]
fn a_redirect_is_no_refusal() {
    for (kind, failed) in [(3, true), (5, false)] {
        let mut tracker = Tracker::new(SocketReasons::default());
        let mut ended = Vec::new();
        tracker.push(event(HookId::Forward, 1, 10, 100), &mut ended);
        let mut error = event(HookId::IcmpSend, 1, 20, 100);
        error.detail = Detail::Icmp { kind, code: 1 };
        tracker.push(error, &mut ended);
        tracker.finish(&mut ended);
        assert_eq!(ended[0].failed(), failed, "ICMP type {kind}");
    }
}

#[test]
fn a_service_lookup_of_other_addresses_is_not_joined() {
    let mut tracker = Tracker::new(SocketReasons::default());
    let mut ended = Vec::new();
    tracker.push(event(HookId::IpvsLookup, 1, 10, 100), &mut ended);
    let mut lookup = event(HookId::IpvsServiceFind, 1, 20, 100);
    lookup.packet = None;
    lookup.detail = Detail::Service {
        address: "192.0.2.9:80".parse().expect("an address"),
        protocol: 6,
    };
    tracker.push(lookup.clone(), &mut ended);
    lookup.detail = Detail::Service {
        address: "192.0.2.2:80".parse().expect("an address"),
        protocol: 6,
    };
    tracker.push(lookup, &mut ended);
    tracker.finish(&mut ended);
    assert_eq!(ended[0].events.len(), 2);
}

#[test]
fn silence_ends_a_journey() {
    let mut tracker = Tracker::new(SocketReasons::default());
    let mut ended = Vec::new();
    tracker.push(event(HookId::DeviceTransmit, 1, 10, 100), &mut ended);
    tracker.expire(IDLE_NS, &mut ended);
    assert!(ended.is_empty());
    tracker.expire(IDLE_NS + 11, &mut ended);
    assert_eq!(ended[0].ending, Ending::Transmitted);
}

/// An event with other headers: protocol, addresses, IP id, length.
fn other(event: Event, protocol: u8, ends: (&str, &str), id: u32, length: u32) -> Event {
    let mut packet = crate::journey::constructed::packet(protocol, ends);
    packet.ip_id = Some(id);
    Event {
        packet: Some(packet),
        length: Some(length),
        ..event
    }
}

const INNER: (&str, &str) = ("10.244.0.9:1000", "10.244.1.9:80");
const OUTER: (&str, &str) = ("192.0.2.1:40000", "192.0.2.2:8472");

/// A packet over VXLAN from one namespace to another of this machine, all at one skb.
fn over_vxlan(grown: u32) -> Vec<Journey> {
    let mut tracker = Tracker::new(SocketReasons::default());
    let mut ended = Vec::new();
    let inner = |hook, time, length| other(event(hook, 1, time, 0), 17, INNER, 7, length);
    let outer = |hook, time, length| other(event(hook, 1, time, 0), 17, OUTER, 8, length);
    for event in [
        inner(HookId::Forward, 10, 100),
        inner(HookId::VxlanTransmit, 20, 114),
        outer(HookId::LocalOut, 30, 114 + grown),
        outer(HookId::DeviceReceive, 40, 150),
        outer(HookId::UdpDeliver, 50, 130),
        outer(HookId::VxlanReceive, 60, 130),
        inner(HookId::DeviceReceive, 70, 100),
        inner(HookId::NetfilterHook, 75, 100),
        inner(HookId::UdpDeliver, 80, 100),
    ] {
        tracker.push(event, &mut ended);
    }
    tracker.finish(&mut ended);
    ended
}

#[test]
fn a_packet_stays_itself_inside_a_tunnel() {
    let ended = over_vxlan(36);
    assert_eq!(ended.len(), 1);
    let journey = &ended[0];
    assert_eq!(journey.events.len(), 9);
    assert_eq!(journey.carried, vec![2..6; 1]);
    assert_eq!(journey.ending, Ending::Delivered);
    let tuples: std::collections::HashSet<_> = journey.tuples().collect();
    assert_eq!(tuples.len(), 1, "the carrier's addresses are not its own");
}

/// IPVS by tunnel: both hooks, of IPv4 and IPv6, put the packet into another of their family.
#[test]
fn a_packet_that_ipvs_sends_through_a_tunnel_stays_itself() {
    let four = (
        ["10.0.0.1:1000", "10.0.0.2:80"],
        ["10.0.0.3:0", "10.0.0.4:0"],
    );
    let six = (
        ["[fd00::1]:1000", "[fd00::2]:80"],
        ["[fd00::3]:0", "[fd00::4]:0"],
    );
    for (hook, out, (inner, outer), carrier, grown) in [
        (HookId::IpvsTunnelTransmit, HookId::LocalOut, four, 4, 20),
        (HookId::IpvsTunnel6Transmit, HookId::Local6Out, six, 41, 40),
    ] {
        let mut tracker = Tracker::new(SocketReasons::default());
        let mut ended = Vec::new();
        for event in [
            other(event(hook, 1, 10, 0), 17, inner.into(), 7, 100),
            other(event(out, 1, 20, 0), carrier, outer.into(), 8, 100 + grown),
            other(
                event(HookId::DeviceTransmit, 1, 30, 0),
                carrier,
                outer.into(),
                8,
                114 + grown,
            ),
        ] {
            tracker.push(event, &mut ended);
        }
        tracker.finish(&mut ended);
        assert_eq!(ended.len(), 1, "{hook:?}");
        assert_eq!(ended[0].carried, vec![1..3; 1], "{hook:?}");
    }
}

#[test]
fn an_skb_that_did_not_grow_by_the_tunnels_headers_is_another_packet() {
    let ended = over_vxlan(40);
    assert_eq!(ended[0].events.len(), 2);
    assert!(ended[0].carried.is_empty());
    // What came out of the tunnel later is a journey of what carried it.
    assert_eq!(ended[1].carried, vec![0..4; 1]);
    assert_eq!(ended[1].first_tuple(), ended[0].first_tuple());
}

#[test]
fn fragments_belong_to_the_whole_and_a_lost_one_is_its_end() {
    for lost in [false, true] {
        let mut tracker = Tracker::new(SocketReasons::default());
        let mut ended = Vec::new();
        let piece = |hook, skb, time, later: bool| {
            let mut event = other(event(hook, skb, time, 0), 17, INNER, 7, 1000);
            if later && let Some(packet) = &mut event.packet {
                packet.transport = Transport::Fragment { offset: 185 };
                packet.tuple.source.set_port(0);
                packet.tuple.destination.set_port(0);
            }
            event
        };
        tracker.push(piece(HookId::LocalOut, 1, 10, false), &mut ended);
        tracker.push(piece(HookId::Fragment, 1, 20, false), &mut ended);
        tracker.push(piece(HookId::OutputFinish, 2, 30, false), &mut ended);
        tracker.push(piece(HookId::DeviceTransmit, 2, 40, false), &mut ended);
        tracker.push(piece(HookId::OutputFinish, 3, 50, true), &mut ended);
        if lost {
            let mut drop = piece(HookId::Drop, 3, 60, true);
            drop.detail = Detail::Drop {
                location: 1,
                reason: Some(9),
            };
            tracker.push(drop, &mut ended);
        }
        tracker.finish(&mut ended);
        assert_eq!(ended.len(), 1);
        assert_eq!(ended[0].failed(), lost);
        assert_eq!(ended[0].branches.len(), 1);
        assert_eq!(ended[0].first_tuple(), ended[0].last_tuple());
    }
}

/// IPv6 gives a packet its identification only when it cuts it, and takes it away when it is whole again.
#[test]
fn an_ipv6_packet_is_followed_into_its_pieces_and_back() {
    const ENDS: (&str, &str) = ("[fd00::1]:1000", "[fd00::2]:53");
    let mut tracker = Tracker::new(SocketReasons::default());
    let mut ended = Vec::new();
    let whole = |hook, skb, time| {
        let mut event = other(event(hook, skb, time, 0), 17, ENDS, 0, 2000);
        if let Some(packet) = &mut event.packet {
            packet.ip_id = None;
        }
        event
    };
    let piece = |hook, skb, time, id, later: bool| {
        let mut event = other(event(hook, skb, time, 0), 17, ENDS, id, 1400);
        if later && let Some(packet) = &mut event.packet {
            packet.transport = Transport::Fragment { offset: 185 };
            packet.tuple.source.set_port(0);
            packet.tuple.destination.set_port(0);
        }
        event
    };
    // Two packets of one flow are cut at the same time on two processors.
    for event in [
        whole(HookId::Local6Out, 1, 10),
        whole(HookId::Fragment6, 1, 11),
        piece(HookId::Output6Finish, 2, 12, 7, false),
        whole(HookId::Local6Out, 3, 13),
        whole(HookId::Fragment6, 3, 14),
        piece(HookId::Output6Finish, 4, 15, 8, false),
        piece(HookId::Output6Finish, 5, 16, 7, true),
        piece(HookId::Output6Finish, 6, 17, 8, true),
        // The receiver puts the first one together in the skb of its last piece.
        piece(HookId::DeviceReceive, 5, 18, 7, true),
        whole(HookId::Udp6Deliver, 5, 19),
    ] {
        tracker.push(event, &mut ended);
    }
    tracker.finish(&mut ended);
    assert_eq!(ended.len(), 2);
    assert_eq!(ended[0].ending, Ending::Delivered);
    let ids = |journey: &Journey| {
        let mut ids: Vec<_> = journey
            .every_event()
            .filter_map(|event| event.packet.as_ref()?.ip_id)
            .collect();
        ids.dedup();
        ids
    };
    assert_eq!((ids(&ended[0]), ids(&ended[1])), (vec![7], vec![8]));
}

/// A later piece whose first piece was not seen is not another packet's of the flow.
#[test]
fn an_ipv6_fragment_does_not_join_a_whole_packet() {
    let mut tracker = Tracker::new(SocketReasons::default());
    let mut ended = Vec::new();
    let mut whole = event(HookId::DeviceReceive, 1, 10, 0);
    whole.packet = Some(crate::journey::constructed::packet(
        17,
        ("[fd00::1]:0", "[fd00::2]:0"),
    ));
    let mut later = whole.clone();
    (later.skb, later.time_ns) = (2, 20);
    if let Some(packet) = &mut later.packet {
        (packet.ip_id, packet.transport) = (Some(7), Transport::Fragment { offset: 185 });
    }
    tracker.push(whole, &mut ended);
    tracker.push(later, &mut ended);
    tracker.finish(&mut ended);
    assert_eq!(ended.len(), 2);
}

#[test]
fn a_flooded_copy_that_arrives_is_the_way_of_the_packet() {
    for floods in [HookId::BridgeFlood, HookId::BridgeReceive] {
        flooded(floods);
    }
}

/// `floods` is the last that is seen of the packet before its copies.
fn flooded(floods: HookId) {
    let mut tracker = Tracker::new(SocketReasons::default());
    let mut ended = Vec::new();
    tracker.push(event(HookId::BridgeReceive, 1, 9, 100), &mut ended);
    tracker.push(event(floods, 1, 10, 100), &mut ended);
    tracker.push(event(HookId::BridgeForward, 2, 20, 100), &mut ended);
    tracker.push(event(HookId::BridgeForward, 1, 30, 100), &mut ended);
    let mut drop = event(HookId::Drop, 1, 40, 100);
    drop.detail = Detail::Drop {
        location: 1,
        reason: Some(9),
    };
    tracker.push(drop, &mut ended);
    tracker.push(event(HookId::TcpDeliver, 2, 50, 100), &mut ended);
    tracker.finish(&mut ended);
    assert_eq!(ended.len(), 1);
    assert_eq!(ended[0].ending, Ending::Delivered);
    assert!(!ended[0].failed());
    assert_eq!(ended[0].branches[0].kind, crate::journey::BranchKind::Copy);
    assert_eq!(ended[0].branches[0].events.len(), 2);
}

#[test]
fn journeys_under_way_when_events_were_lost_say_so() {
    let mut tracker = Tracker::new(SocketReasons::default());
    let mut ended = Vec::new();
    tracker.push(event(HookId::LocalOut, 1, 10, 100), &mut ended);
    tracker.mark_loss(20);
    tracker.push(event(HookId::LocalOut, 2, 30, 200), &mut ended);
    tracker.finish(&mut ended);
    let gaps: Vec<_> = ended.iter().map(|journey| journey.gap).collect();
    assert_eq!(gaps, [true, false]);
}

/// A damaged capture may give any number.
#[test]
fn the_last_number_is_no_end() {
    let mut tracker = Tracker::new(SocketReasons::default());
    let mut ended = Vec::new();
    tracker.number_next(u64::MAX);
    for skb in 1..=3 {
        tracker.push(event(HookId::LocalOut, skb, 10 * skb, 100), &mut ended);
    }
    tracker.finish(&mut ended);
    assert_eq!(ended.len(), 3);
}

#[test]
fn the_quietest_journey_goes_first_when_there_are_too_many() {
    let mut tracker = Tracker::new(SocketReasons::default());
    let mut ended = Vec::new();
    let most = MOST_ACTIVE as u64;
    for skb in 1..=most {
        tracker.push(event(HookId::LocalOut, skb, skb, 100), &mut ended);
    }
    tracker.push(event(HookId::DeviceTransmit, 1, most + 1, 100), &mut ended);
    assert!(ended.is_empty());
    tracker.push(event(HookId::LocalOut, most + 2, most + 2, 100), &mut ended);
    assert_eq!(ended[0].events[0].skb, 2, "the quietest");
    assert_eq!((tracker.active(), tracker.evicted), (MOST_ACTIVE, 1));
}

#[test]
fn a_packet_that_is_copied_for_more_room_goes_on() {
    let mut tracker = Tracker::new(SocketReasons::default());
    let mut ended = Vec::new();
    tracker.push(event(HookId::OutputFinish, 1, 10, 100), &mut ended);
    tracker.push(event(HookId::DeviceTransmit, 2, 20, 100), &mut ended);
    // The old skb is another packet's now.
    tracker.push(event(HookId::DeviceReceive, 1, 30, 100), &mut ended);
    tracker.push(event(HookId::DeviceTransmit, 3, 40, 200), &mut ended);
    tracker.finish(&mut ended);
    let events: Vec<_> = ended.iter().map(|journey| journey.events.len()).collect();
    assert_eq!(events, [2, 1, 1]);
}

/// What became of an ICMP packet that ICMP took and then freed with a reason or none.
fn freed_by_icmp(hook: HookId, kind: u8, reason: Option<u32>) -> Journey {
    let mut tracker = Tracker::new(SocketReasons::from_iter([(2, "NOT_SPECIFIED")]));
    let mut ended = Vec::new();
    let (protocol, ends) = match hook {
        HookId::IcmpReceive => (1, ("192.0.2.1:0", "192.0.2.2:0")),
        _ => (58, ("[2001:db8::1]:0", "[2001:db8::2]:0")),
    };
    let at = |hook, time| {
        let mut event = other(event(hook, 1, time, 0), protocol, ends, 7, 84);
        if let Some(packet) = &mut event.packet {
            packet.transport = Transport::Icmp { kind, code: 0 };
        }
        event
    };
    tracker.push(at(HookId::DeviceReceive, 5), &mut ended);
    tracker.push(at(hook, 10), &mut ended);
    let mut drop = at(HookId::Drop, 20);
    drop.detail = Detail::Drop {
        location: 1,
        reason,
    };
    tracker.push(drop, &mut ended);
    ended.remove(0)
}

#[test]
fn an_echo_reply_that_no_icmp_socket_waits_for_was_delivered() {
    for (hook, kind, delivered) in [
        (HookId::IcmpReceive, 0, true),
        (HookId::IcmpReceive, 8, false),
        (HookId::Icmp6Receive, 129, true),
        (HookId::Icmp6Receive, 128, false),
    ] {
        let journey = freed_by_icmp(hook, kind, Some(3));
        assert_eq!(
            journey.ending == Ending::Delivered,
            delivered,
            "type {kind}"
        );
    }
}

/// Before 6.3 ICMPv6 frees all that it has used up as dropped, with no reason that says anything.
#[test]
fn an_echo_or_neighbour_packet_that_icmpv6_took_did_not_fail() {
    for kind in [128, 135, 136] {
        for reason in [None, Some(2)] {
            let journey = freed_by_icmp(HookId::Icmp6Receive, kind, reason);
            assert_eq!(journey.ending, Ending::Delivered, "type {kind}");
            assert!(!journey.failed(), "type {kind}");
        }
    }
}

#[test]
fn the_first_of_many_segments_is_the_way_of_their_packet() {
    let mut tracker = Tracker::new(SocketReasons::default());
    let mut ended = Vec::new();
    let datagram = |hook, skb, at, ip_id| other(event(hook, skb, at, 0), 17, INNER, ip_id, 1000);
    for event in [
        datagram(HookId::DeviceReceive, 1, 10, 7),
        datagram(HookId::UdpReceive, 1, 11, 7),
        datagram(HookId::UdpDeliver, 2, 12, 7),
        datagram(HookId::UdpDeliver, 3, 13, 8),
    ] {
        tracker.push(event, &mut ended);
    }
    tracker.finish(&mut ended);
    let events: Vec<_> = ended.iter().map(|journey| journey.events.len()).collect();
    assert_eq!(events, [3, 1]);
    assert!(
        ended
            .iter()
            .all(|journey| journey.ending == Ending::Delivered)
    );
}
