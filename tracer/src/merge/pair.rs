//! Which arrival goes on with which departure.

use std::collections::{HashMap, VecDeque};

use super::clock::Offset;
use super::sight::{Edge, Key, Sight};

/// Longest that a packet is on its way between nodes. The tracker gives one up after a little more.
const FLIGHT_NS: i64 = 250_000_000;
/// What is allowed for where the error of the clocks is not known.
const UNKNOWN_ERROR_NS: u64 = 1_000_000;

/// The edge of a journey in one of the captures.
type Place = (usize, u64);

/// Packets that were seen by two captures.
#[derive(Default, Debug)]
pub(super) struct Pairs {
    /// The name that an skb of a journey gets, where its journey goes on elsewhere or came from there.
    names: HashMap<Place, Vec<(u64, u64)>>,
    /// Journeys of each capture that go on with another's.
    joined: Vec<u64>,
}

impl Pairs {
    /// What an skb of a journey is called; `None` for one that no other capture saw.
    pub(super) fn name(&self, capture: usize, journey: Option<u64>, skb: u64) -> Option<u64> {
        let names = self.names.get(&(capture, journey?))?;
        names
            .iter()
            .find(|(known, _)| *known == skb)
            .map(|&(_, name)| name)
    }

    /// How many journeys of a capture go on with another's.
    pub(super) fn joined_in(&self, capture: usize) -> u64 {
        self.joined.get(capture).copied().unwrap_or_default()
    }

    fn join(&mut self, left: Sighted, came: Sighted, fresh: &mut u64) {
        // A packet that goes through a third node keeps its name.
        let known = self.name(left.capture, Some(left.edge.journey), left.edge.skb);
        let name = known.unwrap_or_else(|| {
            *fresh += 1;
            *fresh
        });
        for Sighted { capture, edge, .. } in [left, came] {
            let names = self.names.entry((capture, edge.journey)).or_default();
            if !names.iter().any(|(skb, _)| *skb == edge.skb) {
                names.push((edge.skb, name));
            }
        }
        self.joined[came.capture] += 1;
    }
}

/// A packet's edge in one of the captures, and its time by the first one's clock.
#[derive(Clone, Copy)]
struct Sighted {
    capture: usize,
    edge: Edge,
    at_ns: i64,
}

/// Pairs each arrival with the departure next to it in time that is of the same packet, each once.
pub(super) fn pairs(sights: &[Sight], offsets: &[Offset]) -> Pairs {
    let mut pairs = Pairs {
        joined: vec![0; sights.len()],
        ..Pairs::default()
    };
    let offset = |capture: usize| offsets.get(capture).copied().unwrap_or_default();
    let sighted = |capture: usize, edge: Edge| Sighted {
        capture,
        edge,
        at_ns: (edge.wall_ns.cast_signed()).saturating_sub(offset(capture).clock_ns.unwrap_or(0)),
    };
    let slack = |capture: usize| {
        let error_ns = offset(capture).error_ns.unwrap_or(UNKNOWN_ERROR_NS);
        i64::try_from(error_ns).unwrap_or(i64::MAX)
    };
    let most_slack = (0..sights.len()).map(slack).max().unwrap_or_default();
    let mut all_leaving = Vec::new();
    let mut arriving = Vec::new();
    for (capture, sight) in sights.iter().enumerate() {
        all_leaving.extend(sight.leaving.iter().map(|edge| sighted(capture, *edge)));
        arriving.extend(sight.arriving.iter().map(|edge| sighted(capture, *edge)));
    }
    for edges in [&mut all_leaving, &mut arriving] {
        edges.sort_by_key(|sighted| (sighted.at_ns, sighted.capture));
    }
    // In the order of time, so that of packets that look alike only those of about the same time are
    // looked at.
    let mut leaving: HashMap<Key, VecDeque<Sighted>> = HashMap::new();
    for left in all_leaving {
        leaving.entry(left.edge.key).or_default().push_back(left);
    }
    let mut fresh = 0;
    for came in arriving {
        let Some(candidates) = leaving.get_mut(&came.edge.key) else {
            continue;
        };
        let flight = |left: &Sighted| came.at_ns.saturating_sub(left.at_ns);
        while candidates
            .front()
            .is_some_and(|left| flight(left) > FLIGHT_NS)
        {
            candidates.pop_front();
        }
        let latest = most_slack.saturating_add(slack(came.capture));
        let nearest = candidates
            .iter()
            .take_while(|left| flight(left) >= latest.saturating_neg())
            .enumerate()
            .filter(|(_, left)| left.capture != came.capture)
            .filter(|(_, left)| {
                let early = slack(left.capture).saturating_add(slack(came.capture));
                flight(left) >= early.saturating_neg()
            })
            .min_by_key(|(_, left)| flight(left).unsigned_abs())
            .map(|(index, _)| index);
        if let Some(left) = nearest.and_then(|index| candidates.remove(index)) {
            pairs.join(left, came, &mut fresh);
        }
    }
    pairs
}
