//! Joins journeys to flows: both directions of a connection and every address it has on the way.

use std::collections::HashMap;
use std::collections::VecDeque;

use crate::event::Tuple;
use crate::journey::Journey;

/// Most flows kept; the one that was quiet longest goes first.
const MOST_FLOWS: usize = 16_384;
/// Journeys kept of one flow: its first ones and its last ones.
const FIRST_JOURNEYS: usize = 8;
const LAST_JOURNEYS: usize = 8;

/// Which way a journey goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Direction {
    /// From the one who began.
    Request,
    /// Back to the one who began.
    Reply,
}

/// A connection, or what a datagram protocol has in place of one.
#[derive(Clone, Debug)]
pub struct Flow {
    /// Number, from 1, in the order of first sight.
    pub id: u64,
    /// Addresses as the one who began used them.
    pub client: Tuple,
    /// The first journeys with their directions.
    first: Vec<(Direction, Journey)>,
    /// The last journeys with their directions.
    last: VecDeque<(Direction, Journey)>,
    /// All journeys so far.
    pub journeys: u64,
    last_ns: u64,
}

impl Flow {
    /// The kept journeys, in order.
    pub fn kept(&self) -> impl Iterator<Item = (Direction, &Journey)> {
        self.first
            .iter()
            .chain(&self.last)
            .map(|(direction, journey)| (*direction, journey))
    }

    /// The kept journeys of one direction, in order.
    pub fn of(&self, direction: Direction) -> impl Iterator<Item = &Journey> {
        self.kept()
            .filter(move |&(way, _)| way == direction)
            .map(|(_, journey)| journey)
    }

    fn push(&mut self, direction: Direction, journey: Journey) {
        self.journeys += 1;
        self.last_ns = self.last_ns.max(journey.start_ns());
        if self.first.len() < FIRST_JOURNEYS {
            self.first.push((direction, journey));
            return;
        }
        if self.last.len() == LAST_JOURNEYS {
            self.last.pop_front();
        }
        self.last.push_back((direction, journey));
    }
}

/// All flows, bounded.
pub struct Flows {
    flows: HashMap<u64, Flow>,
    /// Every request-direction tuple that a flow had, before and after NAT.
    by_tuple: HashMap<Tuple, u64>,
    next_id: u64,
    most: usize,
}

impl Default for Flows {
    fn default() -> Self {
        Self::bounded(MOST_FLOWS)
    }
}

impl Flows {
    /// A store of at most so many flows.
    pub fn bounded(most: usize) -> Self {
        Self {
            flows: HashMap::new(),
            by_tuple: HashMap::new(),
            next_id: 0,
            most,
        }
    }

    /// Adds a journey; returns its flow's number, or `None` for a journey without addresses.
    pub fn add(&mut self, journey: Journey) -> Option<u64> {
        let first = journey.first_tuple()?;
        let (id, direction) = self
            .find(first)
            .unwrap_or_else(|| (self.open(first, &journey), Direction::Request));
        for tuple in journey.tuples() {
            let request = match direction {
                Direction::Request => tuple,
                Direction::Reply => tuple.reversed(),
            };
            self.by_tuple.entry(request).or_insert(id);
        }
        self.flows.get_mut(&id)?.push(direction, journey);
        Some(id)
    }

    /// A flow by its number.
    pub fn get(&self, id: u64) -> Option<&Flow> {
        self.flows.get(&id)
    }

    /// Every flow, in no order.
    pub fn iter(&self) -> impl Iterator<Item = &Flow> {
        self.flows.values()
    }

    /// Number of flows.
    pub fn len(&self) -> usize {
        self.flows.len()
    }

    /// True without flows.
    pub fn is_empty(&self) -> bool {
        self.flows.is_empty()
    }

    /// The flow of a tuple, and which way the tuple goes.
    pub fn find(&self, tuple: Tuple) -> Option<(u64, Direction)> {
        let forward = self
            .by_tuple
            .get(&tuple)
            .map(|&id| (id, Direction::Request));
        forward.or_else(|| {
            self.by_tuple
                .get(&tuple.reversed())
                .map(|&id| (id, Direction::Reply))
        })
    }

    fn open(&mut self, client: Tuple, journey: &Journey) -> u64 {
        if self.flows.len() >= self.most {
            self.forget_quietest();
        }
        self.next_id += 1;
        let flow = Flow {
            id: self.next_id,
            client,
            first: Vec::new(),
            last: VecDeque::new(),
            journeys: 0,
            last_ns: journey.start_ns(),
        };
        self.flows.insert(self.next_id, flow);
        self.next_id
    }

    /// Forgets the older half at once, so that the search is paid for rarely.
    fn forget_quietest(&mut self) {
        let mut ages: Vec<(u64, u64)> = self
            .flows
            .values()
            .map(|flow| (flow.last_ns, flow.id))
            .collect();
        ages.sort_unstable();
        for (_, id) in &ages[..ages.len() / 2] {
            self.flows.remove(id);
        }
        let flows = &self.flows;
        self.by_tuple.retain(|_, id| flows.contains_key(id));
    }
}

#[cfg(test)]
mod tests {
    use tracer_ebpf::hook::HookId;

    use super::*;
    use crate::event::{Detail, Event, Packet, Transport};
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
        let id = flows.add(request).expect("a flow");
        assert_eq!(flows.add(reply), Some(id));
        let flow = flows.get(id).expect("the flow");
        assert_eq!(flow.of(Direction::Reply).count(), 1);
        assert_eq!(flow.client.destination.port(), 30000);
    }

    #[test]
    fn the_store_is_bounded() {
        let mut flows = Flows::default();
        for number in 0..(MOST_FLOWS as u64 + 10) {
            let source = format!(
                "10.{}.{}.1:{}",
                number >> 8 & 255,
                number & 255,
                1000 + (number >> 16)
            );
            flows.add(journey(number, &[(&source, "192.0.2.1:53")]));
        }
        assert!(flows.len() <= MOST_FLOWS);
    }
}
