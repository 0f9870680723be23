//! When to look for causes again.
//!
//! A look goes through everything that failed and is kept. While the same goes on failing it would find the
//! same again and again, at a cost that grows with what failed before. So a look waits for something new: a way
//! to fail that was not seen at this address, or the next eighth of one. More of the same waits longer.
//! Only the times of packets and their number count, so a capture is looked at when the live trace was.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};

use crate::event::Tuple;
use crate::journey::Loss;

/// A diagnosis waits this long for the connections that come right behind the first.
pub(super) const GATHER_NS: u64 = 700_000_000;
/// The same where the cluster's objects are still on their way.
pub(super) const GATHER_WITH_CLUSTER_NS: u64 = 1_700_000_000;
/// Longer for each failure that the last look went through: some ten times what a look takes for one.
const GATHER_PER_FAILURE_NS: u64 = 50_000;
/// More of the same waits this long at most,
const MORE_NS: u64 = 10_000_000_000;
/// and longer for each failure. That is some thousand times what a look takes for one, so that in a trace of
/// hours, with few failures a second, the next eighth comes first and all looks together stay linear.
const MORE_PER_FAILURE_NS: u64 = 10_000_000;
/// Which part of what was seen before is something new.
const PART: u64 = 8;
/// Most ways to fail that are told apart; with more, all are new again.
const MOST_WAYS: usize = 1 << 16;

/// Most ports of one address at which failing in one way is told apart; more are a scan, and the rest of it is
/// more of the same.
const MOST_PORTS: usize = 256;

/// A way to fail: how a packet did not arrive, where that is known, and what it was sent to.
type Way = (Option<Loss>, u8, SocketAddr);

/// How often something failed in one way.
#[derive(Default)]
struct Seen {
    /// Up to the last look.
    before: u64,
    since: u64,
}

/// What asks for a look.
#[derive(Default)]
pub(super) struct Pace {
    ways: HashMap<Way, Seen>,
    /// How many ports of an address are among the ways.
    ports: HashMap<(Option<Loss>, u8, IpAddr), usize>,
    /// When the first packet since the last look ended that is something new.
    new_ns: Option<u64>,
    /// When the first one of all did.
    first_ns: Option<u64>,
    /// How many failures the last look went through.
    failures: u64,
}

impl Pace {
    /// A packet to this client's destination asks for a look.
    pub(super) fn ask(&mut self, loss: Option<Loss>, client: Tuple, now_ns: u64) {
        if self.ways.len() >= MOST_WAYS {
            self.ways.clear();
            self.ports.clear();
        }
        let way = self.way(loss, client);
        let seen = self.ways.entry(way).or_default();
        seen.since += 1;
        self.first_ns.get_or_insert(now_ns);
        if seen.since * PART >= seen.before {
            self.new_ns.get_or_insert(now_ns);
        }
    }

    /// The way in which a packet to this client's destination failed.
    fn way(&mut self, loss: Option<Loss>, client: Tuple) -> Way {
        let Tuple {
            protocol,
            destination,
            ..
        } = client;
        let way = (loss, protocol, destination);
        if self.ways.contains_key(&way) {
            return way;
        }
        let address = destination.ip();
        let ports = self.ports.entry((loss, protocol, address)).or_default();
        if *ports < MOST_PORTS {
            *ports += 1;
            return way;
        }
        (loss, protocol, SocketAddr::new(address, 0))
    }

    /// Something asks for a look.
    pub(super) const fn is_asked(&self) -> bool {
        self.first_ns.is_some()
    }

    /// When the first packet since the last look ended that asks for one.
    pub(super) const fn asked_ns(&self) -> Option<u64> {
        self.first_ns
    }

    /// It is time to look: what asks had time to gather, or there is none with `hurry`. `awaits` the cluster.
    pub(super) fn is_due(&self, now_ns: u64, hurry: bool, awaits: bool) -> bool {
        let gather = if awaits {
            GATHER_WITH_CLUSTER_NS
        } else {
            GATHER_NS
        };
        let waited = |since: Option<u64>, least: u64, per_failure: u64| {
            let patience = least.saturating_add(self.failures.saturating_mul(per_failure));
            since.is_some_and(|since| now_ns.saturating_sub(since) >= patience)
        };
        self.is_asked() && hurry
            || waited(self.new_ns, gather, GATHER_PER_FAILURE_NS)
            || waited(self.first_ns, MORE_NS, MORE_PER_FAILURE_NS)
    }

    /// The look begins.
    pub(super) fn look(&mut self) {
        (self.new_ns, self.first_ns) = (None, None);
        for seen in self.ways.values_mut() {
            seen.before += std::mem::take(&mut seen.since);
        }
    }

    /// It went through so many failures.
    pub(super) const fn went_through(&mut self, failures: usize) {
        self.failures = failures as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::protocol;

    const SECOND: u64 = 1_000_000_000;

    fn to(port: u16) -> Tuple {
        Tuple {
            source: SocketAddr::from(([192, 0, 2, 1], 40_000)),
            destination: SocketAddr::from(([192, 0, 2, 2], port)),
            protocol: protocol::TCP,
        }
    }

    /// A look after so many failures in one way.
    fn looked(failures: usize) -> Pace {
        let mut pace = Pace::default();
        for _ in 0..failures {
            pace.ask(Some(Loss::Reset), to(80), 0);
        }
        assert!(pace.is_due(SECOND, false, false));
        pace.look();
        pace.went_through(failures);
        pace
    }

    #[test]
    fn more_of_the_same_waits_and_what_is_new_does_not() {
        let mut pace = looked(1000);
        assert!(!pace.is_due(SECOND, true, false));
        for _ in 0..124 {
            pace.ask(Some(Loss::Reset), to(80), SECOND);
        }
        assert!(!pace.is_due(3 * SECOND, false, false));
        assert!(
            pace.is_due(3 * SECOND, true, false),
            "at the end it is looked at"
        );
        assert!(
            pace.is_due(21 * SECOND, false, false),
            "it does not wait for ever"
        );
        let mut other = looked(1000);
        other.ask(Some(Loss::Reset), to(81), SECOND);
        assert!(other.is_due(2 * SECOND, false, false), "another address");
        let mut other = looked(1000);
        other.ask(Some(Loss::NoRoute), to(80), SECOND);
        assert!(other.is_due(2 * SECOND, false, false), "another loss");
        pace.ask(Some(Loss::Reset), to(80), SECOND);
        assert!(pace.is_due(2 * SECOND, false, false), "an eighth more");
    }

    #[test]
    fn few_failures_are_always_new() {
        let mut pace = looked(8);
        pace.ask(Some(Loss::Reset), to(80), SECOND);
        assert!(pace.is_due(2 * SECOND, false, false));
        assert!(
            !pace.is_due(2 * SECOND, false, true),
            "the cluster is awaited"
        );
        assert!(pace.is_due(3 * SECOND, false, true));
    }

    /// Failures at a pace of 20 a second for an hour, each at the port that its number gives: how many looks
    /// there are, how many failures, and how many all looks together go through.
    fn an_hour(port: impl Fn(usize) -> u16) -> (usize, usize, usize) {
        let mut pace = Pace::default();
        let (mut looks, mut failures, mut gone_through) = (0, 0, 0);
        for second in 0..3600 {
            for _ in 0..20 {
                pace.ask(Some(Loss::Reset), to(port(failures)), second * SECOND);
                failures += 1;
            }
            if pace.is_due(second * SECOND, false, false) {
                pace.look();
                pace.went_through(failures);
                looks += 1;
                gone_through += failures;
            }
        }
        (looks, failures, gone_through)
    }

    #[test]
    fn while_one_way_fails_for_long_looks_become_rare() {
        let (looks, failures, gone_through) = an_hour(|_| 80);
        assert!((20..200).contains(&looks), "{looks}");
        assert!(gone_through < 10 * failures, "{gone_through} of {failures}");
    }

    #[test]
    fn a_scan_of_ports_is_one_way() {
        let (looks, failures, gone_through) = an_hour(|number| number as u16);
        assert!((20..200).contains(&looks), "{looks}");
        assert!(gone_through < 12 * failures, "{gone_through} of {failures}");
    }
}
