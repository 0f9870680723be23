//! How many packets were lost at which time, by what stopped them, in bounded memory whatever the
//! times are.

use std::collections::BTreeMap;

/// Most spans of time that are told apart.
pub(super) const MOST_SPANS: u64 = 96;
/// Most kinds of loss that are told apart; the rest is one.
const MOST_KINDS: usize = 48;
/// What the rest is called.
const REST: &str = "others";
/// Shortest span, nanoseconds: about a millisecond.
const LEAST_SPAN_NS: u64 = 1 << 20;

/// Counts of lost packets by kind and time. Spans double in length until they are few enough.
#[derive(Clone, Debug)]
pub struct Losses {
    span_ns: u64,
    /// By kind, then by the number of the span since 1970.
    kinds: BTreeMap<String, BTreeMap<u64, u64>>,
}

impl Default for Losses {
    fn default() -> Self {
        Self {
            span_ns: LEAST_SPAN_NS,
            kinds: BTreeMap::new(),
        }
    }
}

impl Losses {
    /// Counts a packet; the time is in nanoseconds since 1970.
    pub fn add(&mut self, time_ns: u64, kind: &str) {
        let known = self.kinds.contains_key(kind);
        let kind = if known || self.kinds.len() < MOST_KINDS {
            kind
        } else {
            REST
        };
        let spans = self.kinds.entry(kind.to_owned()).or_default();
        *spans.entry(time_ns / self.span_ns).or_default() += 1;
        while let Some((first, last)) = self.reach()
            && last - first >= MOST_SPANS
        {
            self.coarsen();
        }
    }

    /// A packet that was counted is known to be of another kind.
    pub fn rename(&mut self, time_ns: u64, from: &str, to: &str) {
        let span = time_ns / self.span_ns;
        let Some(spans) = self.kinds.get_mut(from) else {
            return;
        };
        let Some(count) = spans.get_mut(&span) else {
            return;
        };
        *count -= 1;
        if *count == 0 {
            spans.remove(&span);
        }
        if spans.is_empty() {
            self.kinds.remove(from);
        }
        self.add(time_ns, to);
    }

    fn coarsen(&mut self) {
        let Some(span_ns) = self.span_ns.checked_mul(2) else {
            return;
        };
        self.span_ns = span_ns;
        for spans in self.kinds.values_mut() {
            let mut coarse = BTreeMap::new();
            for (&span, &count) in &*spans {
                *coarse.entry(span / 2).or_default() += count;
            }
            *spans = coarse;
        }
    }

    /// Numbers of the first and the last span with a loss.
    pub(super) fn reach(&self) -> Option<(u64, u64)> {
        let ends = |spans: &BTreeMap<u64, u64>| {
            Some((*spans.first_key_value()?.0, *spans.last_key_value()?.0))
        };
        self.kinds
            .values()
            .filter_map(ends)
            .reduce(|one, two| (one.0.min(two.0), one.1.max(two.1)))
    }

    /// Length of a span, nanoseconds.
    pub(super) const fn span_ns(&self) -> u64 {
        self.span_ns
    }

    /// Kinds with their counts by span and in all, the most frequent first.
    pub(super) fn kinds(&self) -> Vec<(&str, &BTreeMap<u64, u64>, u64)> {
        let mut kinds: Vec<_> = self
            .kinds
            .iter()
            .map(|(kind, spans)| (kind.as_str(), spans, spans.values().sum()))
            .collect();
        kinds.sort_by_key(|&(_, _, total)| std::cmp::Reverse(total));
        kinds
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn total(losses: &Losses) -> u64 {
        losses.kinds().iter().map(|(_, _, total)| total).sum()
    }

    #[test]
    fn spans_stay_few_and_nothing_is_lost_whatever_the_times() {
        let mut losses = Losses::default();
        for time in [u64::MAX, 0, 1, 1 << 40, 1_800_000_000_000_000_000] {
            losses.add(time, "NO_SOCKET");
        }
        for number in 0..1000 {
            losses.add(number << 30, &format!("reason {number}"));
        }
        let (first, last) = losses.reach().expect("losses");
        assert!(last - first < MOST_SPANS, "{first} to {last}");
        assert_eq!(total(&losses), 1005);
        assert!(losses.kinds().len() <= MOST_KINDS + 1);
    }

    #[test]
    fn a_loss_is_renamed_once() {
        let mut losses = Losses::default();
        losses.add(5, "NO_SOCKET");
        losses.rename(5, "NO_SOCKET", "no-listener");
        losses.rename(5, "NO_SOCKET", "no-listener");
        let kinds = losses.kinds();
        assert_eq!(kinds.len(), 1);
        assert_eq!((kinds[0].0, kinds[0].2), ("no-listener", 1));
    }
}
