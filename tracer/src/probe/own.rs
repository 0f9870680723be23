//! Which of the traced packets belong to a test.

use std::collections::HashSet;

use crate::event::{Packet, Tuple};
use crate::flow::Direction;
use crate::journey::Journey;

/// Takes the journeys of the flow that a test began out of all that were traced, each with its
/// direction, in the order of first sight. NAT is followed: what a request became on its way is where
/// its reply comes from.
pub fn own(journeys: &mut Vec<Journey>, sent: Tuple) -> Vec<(Direction, Journey)> {
    journeys.sort_by_key(Journey::start_ns);
    let mut known = HashSet::from([sent]);
    let (mut own, mut others) = (Vec::new(), Vec::new());
    for journey in journeys.drain(..) {
        let Some(direction) = direction(&journey, &known) else {
            others.push(journey);
            continue;
        };
        known.extend(ends(&journey).map(|tuple| match direction {
            Direction::Request => tuple,
            Direction::Reply => tuple.reversed(),
        }));
        own.push((direction, journey));
    }
    *journeys = others;
    own
}

/// Addresses on its way; an ICMP error's are those of an answer to the packet that it is about.
fn ends(journey: &Journey) -> impl Iterator<Item = Tuple> + '_ {
    journey.own().map(Packet::as_answer)
}

fn direction(journey: &Journey, known: &HashSet<Tuple>) -> Option<Direction> {
    ends(journey).find_map(|tuple| {
        if known.contains(&tuple) {
            return Some(Direction::Request);
        }
        known
            .contains(&tuple.reversed())
            .then_some(Direction::Reply)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Quoted;
    use crate::journey::constructed::{journey, packet};

    #[test]
    fn the_reply_of_the_real_server_belongs_to_the_request() {
        let client = ("192.0.2.10:5000", "192.0.2.1:30000");
        let pod = ("10.0.0.1:5000", "10.0.0.2:3000");
        let back = |(source, destination)| (destination, source);
        let mut journeys = vec![
            journey(3, 17, &[back(pod), back(client)]),
            journey(1, 17, &[client, pod]),
            journey(
                2,
                17,
                &[
                    ("192.0.2.10:5001", "192.0.2.1:30000"),
                    ("10.0.0.1:5001", "10.0.0.2:3000"),
                ],
            ),
        ];
        let sent = journeys[1].first_tuple().expect("its addresses");
        let found: Vec<_> = own(&mut journeys, sent)
            .into_iter()
            .map(|(direction, journey)| (direction, journey.id))
            .collect();
        assert_eq!(found, [(Direction::Request, 1), (Direction::Reply, 3)]);
        assert_eq!(journeys.len(), 1);
    }

    /// The node refuses what it sent on to a pod, by an address of its own.
    #[test]
    fn a_refusal_belongs_to_the_request_that_it_is_about() {
        let client = ("192.0.2.10:5000", "192.0.2.1:53");
        let pod = ("10.0.0.1:5000", "10.0.0.2:53");
        let mut error = journey(
            2,
            1,
            &[
                ("10.0.0.2:0", "10.0.0.1:0"),
                ("192.0.2.9:0", "192.0.2.10:0"),
            ],
        );
        for (event, quoted) in error.events.iter_mut().zip([pod, client]) {
            let icmp = event.packet.as_mut().expect("headers");
            icmp.about = Some(Quoted::of(packet(17, quoted).tuple));
        }
        let mut journeys = vec![error, journey(1, 17, &[client, pod])];
        let sent = journeys[1].first_tuple().expect("its addresses");
        let found: Vec<_> = own(&mut journeys, sent)
            .into_iter()
            .map(|(direction, journey)| (direction, journey.id))
            .collect();
        assert_eq!(found, [(Direction::Request, 1), (Direction::Reply, 2)]);
    }
}
