//! Flows through NAT, in either order of their ends, and within bounds.

use tracer_ebpf::hook::HookId;

use super::*;
use crate::event::{Detail, Transport, tcp_flag};
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
                ip_id: None,
                transport: Transport::Udp,
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
        packet.transport = Transport::Tcp { sequence: 1, flags };
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
        packet.transport = Transport::Tcp { sequence: 1, flags };
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
