//! Flows through NAT, in either order of their ends, and within bounds.

use tracer_ebpf::hook::HookId;

use super::*;
use crate::event::{Detail, Quoted, Transport, tcp_flag};
use crate::journey::Ending;

fn journey(id: u64, tuples: &[(&str, &str)]) -> Journey {
    let events = tuples
        .iter()
        .map(|(source, destination)| Event {
            time_ns: id,
            skb: id,
            netns: None,
            ifindex: None,
            length: None,
            mark: None,
            hook: HookId::Output,
            detail: Detail::None,
            packet: Some(Packet {
                tuple: Tuple {
                    protocol: 17,
                    source: source.parse().expect("an address"),
                    destination: destination.parse().expect("an address"),
                },
                named_protocol: 17,
                ip_id: None,
                transport: Transport::Udp,
                about: None,
            }),
            not_ip: false,
            arp: None,
        })
        .collect();
    Journey {
        id,
        events,
        ending: Ending::Delivered,
        ..Journey::default()
    }
}

#[test]
fn an_answer_that_ends_first_is_still_the_answer() {
    let mut flows = Flows::default();
    let mut reply = journey(
        1,
        &[
            ("10.0.0.2:3000", "10.0.0.1:5000"),
            ("192.0.2.1:30000", "192.0.2.10:5000"),
        ],
    );
    for packet in reply
        .events
        .iter_mut()
        .filter_map(|event| event.packet.as_mut())
    {
        let flags = tcp_flag::SYN | tcp_flag::ACK;
        packet.transport = Transport::tcp(1, flags);
    }
    let id = flows.add(reply).expect("a flow").flow;
    let request = journey(2, &[("192.0.2.10:5000", "192.0.2.1:30000")]);
    assert_eq!(flows.add(request).map(|added| added.flow), Some(id));
    let flow = flows.get(id).expect("the flow");
    assert_eq!((flow.requests, flow.replies), (1, 1));
    assert_eq!(flow.client.destination.port(), 30000);
}

/// An answer whose address was not put back, and which ends before what it answers.
#[test]
fn an_untranslated_answer_that_ends_first_is_of_the_flow_that_it_answers() {
    let mut flows = Flows::default();
    let mut reply = journey(2, &[("10.0.0.2:3000", "10.0.0.1:5000")]);
    for packet in reply
        .events
        .iter_mut()
        .filter_map(|event| event.packet.as_mut())
    {
        let flags = tcp_flag::SYN | tcp_flag::ACK;
        packet.transport = Transport::tcp(1, flags);
    }
    let id = flows.add(reply).expect("a flow").flow;
    // Refused, which is seen before the end of what began it all.
    let refusal = journey(3, &[("10.0.0.1:5000", "10.0.0.2:3000")]);
    assert_eq!(flows.add(refusal).map(|added| added.flow), Some(id));
    let request = journey(
        1,
        &[
            ("10.0.0.1:5000", "10.96.0.2:80"),
            ("10.0.0.1:5000", "10.0.0.2:3000"),
        ],
    );
    assert_eq!(flows.add(request).map(|added| added.flow), Some(id));
    let flow = flows.get(id).expect("the flow");
    assert_eq!((flow.requests, flow.replies), (2, 1));
    assert_eq!(flow.client.destination.port(), 80);
    // Every address of it is still found.
    for tuple in [
        ("10.0.0.1:5000", "10.96.0.2:80"),
        ("10.0.0.1:5000", "10.0.0.2:3000"),
    ] {
        let tuple = journey(4, &[tuple]).first_tuple().expect("a tuple");
        assert_eq!(flows.find(tuple), Some((id, Direction::Request)));
        assert_eq!(flows.find(tuple.reversed()), Some((id, Direction::Reply)));
    }
}

#[test]
fn a_reply_finds_its_request_through_nat() {
    let mut flows = Flows::default();
    let request = journey(
        1,
        &[
            ("192.0.2.10:5000", "192.0.2.1:30000"),
            ("10.0.0.1:5000", "10.0.0.2:3000"),
        ],
    );
    let reply = journey(
        2,
        &[
            ("10.0.0.2:3000", "10.0.0.1:5000"),
            ("192.0.2.1:30000", "192.0.2.10:5000"),
        ],
    );
    let id = flows.add(request).expect("a flow").flow;
    assert_eq!(flows.add(reply).map(|added| added.flow), Some(id));
    let flow = flows.get(id).expect("the flow");
    assert_eq!(flow.of(Direction::Reply).count(), 1);
    assert_eq!(flow.client.destination.port(), 30000);
}

/// A flow of its own for every number, a microsecond after the one before.
fn numbered(number: u64, ending: Ending) -> Journey {
    let source = format!("10.{}.{}.1:4000", number >> 8 & 255, number & 255);
    let mut journey = journey(
        number + 1,
        &[(&source, "192.0.2.1:53"), (&source, "10.9.9.9:53")],
    );
    journey.ending = ending;
    journey
}

fn answer(number: u64) -> Journey {
    let client = format!("10.{}.{}.1:4000", number >> 8 & 255, number & 255);
    journey(
        number + 1,
        &[("10.9.9.9:53", &client), ("192.0.2.1:53", &client)],
    )
}

const LOST: Ending = Ending::Dropped {
    location: 1,
    reason: Some(9),
};

#[test]
fn the_quietest_flow_goes_first_and_is_counted() {
    let mut flows = Flows::bounded(100, usize::MAX);
    for number in 0..150 {
        flows.add(numbered(number, Ending::Delivered));
        // The first one never falls quiet.
        let mut again = numbered(0, Ending::Delivered);
        again.events[0].time_ns = number + 1;
        assert_eq!(flows.add(again).map(|added| added.flow), Some(1));
    }
    assert_eq!(flows.len(), 100);
    assert_eq!(flows.forgotten().flows, 50);
    assert!(flows.get(2).is_none() && flows.get(51).is_none() && flows.get(52).is_some());
    let gone = numbered(1, Ending::Delivered);
    assert_eq!(flows.find(gone.first_tuple().expect("addresses")), None);
    assert_eq!(flows.find(gone.last_tuple().expect("addresses")), None);
}

#[test]
fn settled_flows_give_up_their_journeys_first() {
    let each = 2 * bytes(&{
        let mut journey = answer(0);
        journey.events.shrink_to_fit();
        journey
    });
    let mut flows = Flows::bounded(1000, 10 * each);
    for number in 0..100 {
        // Every tenth is lost, every tenth has no answer.
        match number % 10 {
            0 if number < 50 => flows.add(numbered(number, LOST)),
            1 if number < 50 => flows.add(numbered(number, Ending::Transmitted)),
            _ => flows
                .add(numbered(number, Ending::Delivered))
                .and_then(|_| flows.add(answer(number))),
        };
    }
    assert_eq!(flows.len(), 100);
    assert!(flows.journey_bytes <= 10 * each);
    let kept = flows.iter().map(|flow| {
        flow.kept()
            .map(|(_, journey)| bytes(journey))
            .sum::<usize>()
    });
    assert_eq!(kept.sum::<usize>(), flows.journey_bytes);
    let with_journeys = |flow: &&Flow| flow.kept().next().is_some();
    let unsettled: Vec<_> = flows.iter().filter(|flow| !flow.is_settled()).collect();
    assert_eq!(unsettled.len(), 10);
    assert!(unsettled.iter().all(with_journeys));
    assert_eq!(flows.forgotten(), Forgotten::default());
    // What is left of a settled flow.
    let second = flows.get(3).expect("the flow");
    assert!(!with_journeys(&second));
    assert_eq!((second.requests, second.replies), (1, 1));
    // Only failures are left to be given up.
    for number in 100..200 {
        flows.add(numbered(number, LOST));
    }
    assert!(flows.journey_bytes <= 10 * each);
    assert_eq!(flows.forgotten().failures, 90);
    assert!(with_journeys(&flows.get(200).expect("the last flow")));
}

#[test]
fn old_translations_make_room() {
    let mut flows = Flows::default();
    for port in 1..=1000 {
        let translated = format!("10.0.0.1:{port}");
        flows.add(journey(
            port,
            &[
                ("192.0.2.10:5000", "192.0.2.1:53"),
                (&translated, "10.0.0.2:53"),
            ],
        ));
    }
    let find = |port: u16| {
        flows.find(Tuple {
            protocol: 17,
            source: "10.0.0.2:53".parse().expect("an address"),
            destination: format!("10.0.0.1:{port}").parse().expect("an address"),
        })
    };
    assert_eq!(find(1000), Some((1, Direction::Reply)));
    assert_eq!(find(1000 - u16::from(MOST_LEGS)), None);
    assert_eq!(flows.len(), 1);
}

const POD: (&str, &str) = ("10.0.0.1:40000", "10.0.0.2:3000");

fn back((source, destination): (&'static str, &'static str)) -> (&'static str, &'static str) {
    (destination, source)
}

fn counts(flows: &Flows, id: u64) -> (u64, u64) {
    let flow = flows.get(id).expect("the flow");
    (flow.requests, flow.replies)
}

/// The port that one client was masqueraded to is the next one's.
#[test]
fn the_answer_to_addresses_that_are_used_again_is_the_newer_flow_s() {
    const ONE: (&str, &str) = ("192.0.2.1:40000", "192.0.2.100:30000");
    const TWO: (&str, &str) = ("192.0.2.2:40000", "192.0.2.100:30000");
    let mut flows = Flows::bounded(2, usize::MAX);
    let mut add = |id, ends: &[_]| flows.add(journey(id, ends)).expect("a flow").flow;
    let one = add(1, &[ONE, ("10.0.0.1:40000", "10.0.0.3:3000"), POD]);
    assert_eq!(add(2, &[back(POD), back(ONE)]), one);
    let two = add(1_000, &[TWO, POD]);
    assert_eq!(add(1_001, &[back(POD), back(TWO)]), two);
    // One that was not translated back.
    assert_eq!(add(1_002, &[back(POD)]), two);
    // What began before the newer flow was heard of takes nothing away.
    assert_eq!(add(999, &[ONE, POD]), one);
    assert_eq!(add(1_003, &[back(POD)]), two);
    // Its other addresses are still the older one's.
    assert_eq!(add(1_004, &[("10.0.0.3:3000", "10.0.0.1:40000")]), one);
    assert_eq!(counts(&flows, one), (2, 2));
    assert_eq!(counts(&flows, two), (1, 3));
    // When the older one is forgotten, they stay with the newer one.
    let mut add = |id, ends: &[_]| flows.add(journey(id, ends)).expect("a flow").flow;
    for id in [1_005, 1_006] {
        add(id, &[TWO, POD]);
    }
    add(2_000, &[("192.0.2.3:1", "192.0.2.100:30000")]);
    assert_eq!(add(2_001, &[back(POD)]), two);
    assert!(flows.get(one).is_none());
}

/// A reply that was not expected where the addresses behind NAT are an older flow's, which is still in use.
#[test]
fn an_answer_is_its_client_s() {
    const ONE: (&str, &str) = ("192.0.2.1:5000", "192.0.2.100:80");
    const TWO: (&str, &str) = ("192.0.2.1:5000", "192.0.2.200:80");
    const POD: (&str, &str) = ("192.0.2.1:5000", "10.0.0.2:3000");
    let mut flows = Flows::default();
    let mut add = |id, ends: &[_]| flows.add(journey(id, ends)).expect("a flow").flow;
    let (one, two) = (add(10, &[ONE, POD]), add(10, &[TWO, POD]));
    assert_eq!(add(11, &[back(POD), back(TWO)]), two);
    assert_eq!(add(12, &[back(POD), back(ONE)]), one);
}

fn tcp(at_s: u64, ends: (&str, &str), sequence: u32, flags: u8) -> Journey {
    let mut journey = journey(1 + at_s * 1_000_000_000, &[ends, ends]);
    for event in &mut journey.events {
        let packet = event.packet.as_mut().expect("headers");
        packet.tuple.protocol = crate::event::protocol::TCP;
        packet.transport = Transport::tcp(sequence, flags);
    }
    journey
}

#[test]
fn a_connection_that_is_opened_anew_is_another_flow() {
    use tcp_flag::{ACK, FIN, RST, SYN};
    const ENDS: (&str, &str) = ("192.0.2.1:5000", "192.0.2.100:80");
    for (last_flags, behind_s, sequence, another) in [
        (FIN | ACK, 1, 900, true),
        (RST, 1, 900, true),
        // Sent again.
        (RST, 1, 100, false),
        // It may have been lost before it was known, and is tried otherwise.
        (ACK, 119, 900, false),
        (ACK, 121, 900, true),
        (ACK, 121, 100, false),
    ] {
        let mut flows = Flows::default();
        let mut add = |at_s, ends, sequence, flags| {
            let added = flows.add(tcp(at_s, ends, sequence, flags));
            added.expect("a flow").flow
        };
        let old = add(0, ENDS, 100, SYN);
        assert_eq!(add(0, back(ENDS), 500, SYN | ACK), old);
        assert_eq!(add(1, back(ENDS), 501, last_flags), old);
        let new = add(1 + behind_s, ENDS, sequence, SYN);
        assert_eq!(new != old, another, "{last_flags} {behind_s} {sequence}");
        // Its opening that is sent again, its answer, and what is left of the old one are of the same flow.
        assert_eq!(add(2 + behind_s, ENDS, sequence, SYN), new);
        let stalled = flows.get(new).expect("the flow").is_stalled();
        assert_eq!(stalled, another);
        let answer = flows.add(tcp(3 + behind_s, back(ENDS), 600, SYN | ACK));
        assert_eq!(answer.map(|added| added.flow), Some(new));
        assert_eq!(flows.len(), 1 + usize::from(another));
    }
}

/// An ICMP error from here to there about a packet, as seen at each hook.
fn icmp_error(id: u64, ends: &[(&str, &str)], about: &[(&str, &str)]) -> Journey {
    let mut error = journey(id, ends);
    let quoted = journey(id, about);
    for (event, quoted) in error.events.iter_mut().zip(quoted.tuples()) {
        let packet = event.packet.as_mut().expect("headers");
        packet.tuple.protocol = crate::event::protocol::ICMP;
        packet.transport = Transport::Icmp { kind: 3, code: 3 };
        packet.about = Some(Quoted::of(quoted));
    }
    error
}

#[test]
fn an_icmp_error_is_an_answer_of_the_flow_that_it_is_about() {
    const CLIENT: (&str, &str) = ("192.0.2.1:5000", "192.0.2.100:53");
    const POD: (&str, &str) = ("10.0.0.1:5000", "10.0.0.2:53");
    let request = || journey(1, &[CLIENT, POD]);
    let from_pod = || {
        icmp_error(
            2,
            &[
                ("10.0.0.2:0", "10.0.0.1:0"),
                ("192.0.2.100:0", "192.0.2.1:0"),
            ],
            &[POD, CLIENT],
        )
    };
    let from_router = || {
        icmp_error(
            3,
            &[("10.9.9.9:0", "10.0.0.1:0"), ("10.9.9.9:0", "192.0.2.1:0")],
            &[POD, CLIENT],
        )
    };
    // It may end first.
    for journeys in [
        [request(), from_pod(), from_router()],
        [from_router(), from_pod(), request()],
    ] {
        let mut flows = Flows::default();
        for journey in journeys {
            assert_eq!(flows.add(journey).map(|added| added.flow), Some(1));
        }
        let flow = flows.get(1).expect("the flow");
        assert_eq!((flow.requests, flow.replies), (1, 2));
        assert_eq!(flow.client, request().first_tuple().expect("addresses"));
        assert!(!flow.is_settled());
        // What is about the answer is not.
        let about_answer = icmp_error(4, &[("192.0.2.1:0", "192.0.2.100:0")], &[back(CLIENT)]);
        assert_eq!(flows.add(about_answer).map(|added| added.flow), Some(2));
    }
}

#[test]
fn what_only_icmp_errors_answer_is_stalled() {
    const ENDS: (&str, &str) = ("192.0.2.1:5000", "192.0.2.100:80");
    let mut flows = Flows::default();
    let mut error = icmp_error(5, &[("10.9.9.9:0", "192.0.2.1:0")], &[ENDS]);
    let packet = error.events[0].packet.as_mut().expect("headers");
    packet.about.as_mut().expect("it quotes").protocol = crate::event::protocol::TCP;
    flows.add(tcp(0, ENDS, 100, tcp_flag::SYN));
    flows.add(error);
    flows.add(tcp(1, ENDS, 100, tcp_flag::SYN));
    let stalled = |flows: &Flows| flows.get(1).map(Flow::is_stalled);
    assert_eq!(flows.len(), 1);
    assert_eq!(stalled(&flows), Some(true));
    flows.add(tcp(2, back(ENDS), 500, tcp_flag::SYN | tcp_flag::ACK));
    assert_eq!(stalled(&flows), Some(false));
}
