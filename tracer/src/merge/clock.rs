//! How far clocks are apart: a packet from A to B shows B's clock less A's plus its delay, one from B to A
//! the negative of it plus its own delay. The smallest of each way bound the offset from both sides
//! (the minimum-delay filter of NTP, RFC 5905): half their difference is the estimate, half their sum the
//! most that it can be wrong by. Clocks that drift during the capture make the bound wider, not wrong.

use std::collections::HashMap;

use super::sight::{Edge, Key, Sight};

/// How far a capture's clock is from that of the first one.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Offset {
    /// Its clock less the first one's, nanoseconds; `None` where no packets tell.
    pub clock_ns: Option<i64>,
    /// The most that it can be wrong by; `None` where packets went one way only.
    pub error_ns: Option<u64>,
    /// Packets that this capture and the one it is compared with saw.
    pub pairs: u64,
}

/// Packets between two captures.
#[derive(Clone, Copy, Default, Debug)]
struct Between {
    /// Least time from the first to the second, by their own clocks.
    there: Option<i64>,
    /// Least time back.
    back: Option<i64>,
    pairs: u64,
}

impl Between {
    /// The same with the captures in the other order.
    const fn reversed(self) -> Self {
        Self {
            there: self.back,
            back: self.there,
            pairs: self.pairs,
        }
    }

    /// The second clock less the first, and the error.
    fn offset(self) -> Option<(i64, Option<u64>)> {
        match (self.there, self.back) {
            (Some(there), Some(back)) => {
                let sum = there.saturating_add(back);
                // Less than nothing, where a clock was set meanwhile: the bound is as wide all the same.
                Some((
                    there.saturating_sub(back) / 2,
                    Some(sum.unsigned_abs().div_ceil(2)),
                ))
            }
            // Without delay; no packet then arrives before it was sent.
            (Some(there), None) => Some((there, None)),
            (None, Some(back)) => Some((back.saturating_neg(), None)),
            (None, None) => None,
        }
    }
}

/// The offset of each capture. Those that share no packets with the first are told by way of others.
pub(super) fn offsets(sights: &[Sight]) -> Vec<Offset> {
    let unique: Vec<_> = sights
        .iter()
        .map(|sight| (unique(&sight.leaving), unique(&sight.arriving)))
        .collect();
    let between = Table::new(&unique);
    let mut offsets = vec![Offset::default(); sights.len()];
    if let Some(first) = offsets.first_mut() {
        (first.clock_ns, first.error_ns) = (Some(0), Some(0));
    }
    // The surest link from a clock that is known to one that is not, as long as there is one.
    loop {
        let mut links = Vec::new();
        for (known, offset) in offsets.iter().enumerate() {
            let Some(base) = offset.clock_ns else {
                continue;
            };
            for (other, unknown) in offsets.iter().enumerate() {
                if unknown.clock_ns.is_some() {
                    continue;
                }
                let found = between.get(known, other);
                let Some((clock_ns, error_ns)) = found.offset() else {
                    continue;
                };
                let error_ns = offset
                    .error_ns
                    .zip(error_ns)
                    .map(|(one, two)| one.saturating_add(two));
                links.push((
                    other,
                    Offset {
                        clock_ns: Some(base.saturating_add(clock_ns)),
                        error_ns,
                        pairs: found.pairs,
                    },
                ));
            }
        }
        let surest = links
            .into_iter()
            .min_by_key(|(other, offset)| (offset.error_ns.unwrap_or(u64::MAX), *other));
        let Some((other, offset)) = surest else {
            break;
        };
        offsets[other] = offset;
    }
    // The first shares its packets with whoever was compared with it.
    let with_first = (1..sights.len()).map(|other| between.get(0, other).pairs);
    let pairs = with_first.sum();
    if let Some(first) = offsets.first_mut() {
        first.pairs = pairs;
    }
    offsets
}

type Unique<'a> = HashMap<Key, &'a Edge>;

/// Packets that nothing else in the capture looks like.
fn unique(edges: &[Edge]) -> Unique<'_> {
    let mut found: HashMap<Key, Option<&Edge>> = HashMap::with_capacity(edges.len());
    for edge in edges {
        found
            .entry(edge.key)
            .and_modify(|known| *known = None)
            .or_insert(Some(edge));
    }
    found
        .into_iter()
        .filter_map(|(key, edge)| Some((key, edge?)))
        .collect()
}

/// What is between any two captures: each pair is looked at once, whatever asks for it.
struct Table {
    /// Of each capture those before it.
    rows: Vec<Vec<Between>>,
}

impl Table {
    fn new(captures: &[(Unique<'_>, Unique<'_>)]) -> Self {
        let rows = captures.iter().enumerate().map(|(number, two)| {
            let before = captures[..number].iter();
            before.map(|one| between(one, two)).collect()
        });
        Self {
            rows: rows.collect(),
        }
    }

    /// Between two different captures.
    fn get(&self, one: usize, two: usize) -> Between {
        if one < two {
            self.rows[two][one]
        } else {
            self.rows[one][two].reversed()
        }
    }
}

fn between(one: &(Unique<'_>, Unique<'_>), two: &(Unique<'_>, Unique<'_>)) -> Between {
    let (there, forth) = least(&one.0, &two.1);
    let (back, home) = least(&two.0, &one.1);
    Between {
        there,
        back,
        pairs: forth + home,
    }
}

/// The least time between leaving and arriving, and how many packets did both.
fn least(leaving: &Unique<'_>, arriving: &Unique<'_>) -> (Option<i64>, u64) {
    let times = leaving.iter().filter_map(|(key, left)| {
        let came = arriving.get(key)?;
        Some(came.wall_ns.wrapping_sub(left.wall_ns).cast_signed())
    });
    let (mut least, mut count) = (None::<i64>, 0);
    for time in times {
        least = Some(least.map_or(time, |known| known.min(time)));
        count += 1;
    }
    (least, count)
}
