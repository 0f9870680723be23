//! Which arrival goes on with which departure.

use std::collections::HashMap;

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

    fn join(&mut self, left: (usize, Edge), came: (usize, Edge), fresh: &mut u64) {
        // A packet that goes through a third node keeps its name.
        let known = self.name(left.0, Some(left.1.journey), left.1.skb);
        let name = known.unwrap_or_else(|| {
            *fresh += 1;
            *fresh
        });
        for (capture, edge) in [left, came] {
            let names = self.names.entry((capture, edge.journey)).or_default();
            if !names.iter().any(|(skb, _)| *skb == edge.skb) {
                names.push((edge.skb, name));
            }
        }
        self.joined[came.0] += 1;
    }
}

/// Pairs each arrival with the last departure before it that is of the same packet, each once.
pub(super) fn pairs(sights: &[Sight], offsets: &[Offset]) -> Pairs {
    let mut pairs = Pairs {
        joined: vec![0; sights.len()],
        ..Pairs::default()
    };
    let aligned = |capture: usize, edge: &Edge| -> i64 {
        let clock = offsets.get(capture).and_then(|offset| offset.clock_ns);
        edge.wall_ns
            .cast_signed()
            .saturating_sub(clock.unwrap_or(0))
    };
    let slack = |capture: usize| {
        let error = offsets.get(capture).and_then(|offset| offset.error_ns);
        error.unwrap_or(UNKNOWN_ERROR_NS).cast_signed()
    };
    let mut leaving: HashMap<Key, Vec<(usize, Edge)>> = HashMap::new();
    let mut arriving = Vec::new();
    for (capture, sight) in sights.iter().enumerate() {
        for edge in &sight.leaving {
            leaving.entry(edge.key).or_default().push((capture, *edge));
        }
        arriving.extend(sight.arriving.iter().map(|edge| (capture, *edge)));
    }
    arriving.sort_by_key(|(capture, edge)| (aligned(*capture, edge), *capture));
    let mut fresh = 0;
    for (capture, came) in arriving {
        let Some(candidates) = leaving.get_mut(&came.key) else {
            continue;
        };
        let at = aligned(capture, &came);
        let nearest = candidates
            .iter()
            .enumerate()
            .filter(|(_, (from, _))| *from != capture)
            .map(|(index, (from, left))| (index, at - aligned(*from, left), *from))
            .filter(|&(_, flight, from)| {
                (-slack(from) - slack(capture)..=FLIGHT_NS).contains(&flight)
            })
            .min_by_key(|&(_, flight, _)| flight.unsigned_abs());
        let Some((index, ..)) = nearest else {
            continue;
        };
        let left = candidates.swap_remove(index);
        pairs.join(left, (capture, came), &mut fresh);
    }
    pairs
}
