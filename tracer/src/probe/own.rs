//! Which of the traced packets belong to a test.

use std::collections::HashSet;

use crate::event::Tuple;
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
        known.extend(journey.tuples().map(|tuple| match direction {
            Direction::Request => tuple,
            Direction::Reply => tuple.reversed(),
        }));
        own.push((direction, journey));
    }
    *journeys = others;
    own
}

fn direction(journey: &Journey, known: &HashSet<Tuple>) -> Option<Direction> {
    journey.tuples().find_map(|tuple| {
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
    use crate::journey::constructed::journey;

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
}
