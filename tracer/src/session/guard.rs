//! Keeps tracing cheap: over a limit, whole flows are left out until the cost is below it.
//!
//! Pure: it is told what tracing came to and says which share of the flows to trace.

use std::time::Duration;

use serde::Serialize;

use crate::kernel::load::KernelCost;

/// The share comes back up in steps of this, once the cost is below [`CALM`] of the limit.
const BACK: f64 = 1.5;
const CALM: f64 = 0.5;
/// What the share is aimed at, of the limit: traffic that grows a little does not cut flows again.
const AIM: f64 = 0.8;
/// Looks in a row that must be over the limit; one of them may be a burst that is over.
const PATIENCE: u32 = 2;
/// No more of the room for waiting events is taken for long: above it they would be lost.
const MOST_WAITING: f64 = 0.5;
/// Smallest share of the flows.
const LEAST: f64 = 1.0 / 65_536.0;

/// What tracing may cost.
#[derive(Clone, Copy, Default, PartialEq, Debug)]
pub struct Limits {
    /// Kernel time of the programs, as a share of one processor; `None` for no limit.
    pub cpu: Option<f64>,
    /// Events a second; `None` for no limit.
    pub rate: Option<f64>,
}

/// What tracing came to so far.
#[derive(Clone, Copy, Default, Debug)]
pub(super) struct Spent {
    /// Since the start.
    pub time: Duration,
    /// Of the programs in the kernel.
    pub kernel: KernelCost,
    /// Events that came.
    pub events: u64,
    /// Share of the room for events not yet looked at that is taken now.
    pub waiting: f64,
}

/// A change of what is traced.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
pub struct SamplingView {
    /// Share of the flows that is traced from now on, 1 for all.
    pub share: f64,
    /// Kernel time of the programs just before, percent of one processor.
    pub kernel_percent: f64,
    /// Events a second just before.
    pub events_per_second: f64,
}

impl SamplingView {
    /// In words.
    pub fn words(&self) -> String {
        let cost = format!(
            "the programs took {:.1} % of a processor for {:.0} events a second",
            self.kernel_percent, self.events_per_second
        );
        if self.share >= 1.0 {
            format!("every flow is traced again: {cost}")
        } else {
            format!(
                "only 1 of {:.0} flows is traced, whole: {cost} (--max-cpu, --max-rate)",
                1.0 / self.share
            )
        }
    }
}

/// Decides which share of the flows is traced.
#[derive(Debug)]
pub(super) struct Guard {
    limits: Limits,
    share: f64,
    before: Spent,
    /// Looks in a row that were over.
    over: u32,
}

impl Guard {
    pub(super) fn new(limits: Limits) -> Self {
        Self {
            limits,
            share: 1.0,
            before: Spent::default(),
            over: 0,
        }
    }

    /// Looks at what tracing came to since the last look; says what changes.
    pub(super) fn look(&mut self, spent: Spent) -> Option<SamplingView> {
        let before = std::mem::replace(&mut self.before, spent);
        let seconds = spent.time.saturating_sub(before.time).as_secs_f64();
        if seconds <= 0.0 {
            return None;
        }
        let kernel = spent.kernel.time.saturating_sub(before.kernel.time);
        let cpu = kernel.as_secs_f64() / seconds;
        let rate = spent.events.saturating_sub(before.events) as f64 / seconds;
        let part = |value: f64, limit: Option<f64>| limit.map_or(0.0, |limit| value / limit);
        let load = (spent.waiting / MOST_WAITING)
            .max(part(cpu, self.limits.cpu))
            .max(part(rate, self.limits.rate));
        self.over = if load > 1.0 { self.over + 1 } else { 0 };
        let share = if self.over >= PATIENCE {
            (self.share * AIM / load).max(LEAST)
        } else if load < CALM {
            (self.share * BACK).min(1.0)
        } else {
            self.share
        };
        if share == self.share {
            return None;
        }
        self.share = share;
        Some(SamplingView {
            share,
            kernel_percent: cpu * 100.0,
            events_per_second: rate,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A guard that is told seconds of `cpu` share and `rate`.
    struct Node {
        guard: Guard,
        spent: Spent,
    }

    impl Node {
        fn new(limits: Limits) -> Self {
            let guard = Guard::new(limits);
            Self {
                guard,
                spent: Spent::default(),
            }
        }

        fn second(&mut self, cpu: f64, rate: u64) -> Option<f64> {
            self.spent.time += Duration::from_secs(1);
            self.spent.kernel.time += Duration::from_secs_f64(cpu);
            self.spent.events += rate;
            self.guard.look(self.spent).map(|view| view.share)
        }
    }

    const FIVE_PERCENT: Limits = Limits {
        cpu: Some(0.05),
        rate: None,
    };

    #[test]
    fn below_the_limit_nothing_is_left_out() {
        let mut node = Node::new(FIVE_PERCENT);
        assert!((0..10).all(|_| node.second(0.049, 1_000_000).is_none()));
    }

    #[test]
    fn a_burst_of_a_second_is_let_pass() {
        let mut node = Node::new(FIVE_PERCENT);
        for _ in 0..5 {
            assert_eq!(node.second(0.2, 0), None);
            assert_eq!(node.second(0.03, 0), None);
        }
    }

    #[test]
    fn over_the_limit_the_share_falls_until_the_cost_is_below_it() {
        let mut node = Node::new(FIVE_PERCENT);
        let mut share = 1.0;
        for _ in 0..20 {
            // Half of the cost does not depend on what is left out.
            let cost = 0.02 + 0.2 * share;
            if let Some(changed) = node.second(cost, 0) {
                assert!(changed < share || cost < 0.025, "{share} {changed}");
                share = changed;
            }
        }
        assert!(0.02 + 0.2 * share <= 0.05, "{share}");
    }

    #[test]
    fn the_share_comes_back_with_calm() {
        let mut node = Node::new(FIVE_PERCENT);
        node.second(0.5, 0);
        let low = node.second(0.5, 0).unwrap();
        assert!(low < 0.1);
        let mut shares: Vec<f64> = (0..20).filter_map(|_| node.second(0.001, 0)).collect();
        assert!(shares.is_sorted());
        assert_eq!(shares.pop(), Some(1.0));
    }

    #[test]
    fn the_rate_is_a_limit_of_its_own() {
        let mut node = Node::new(Limits {
            cpu: None,
            rate: Some(1000.0),
        });
        node.second(0.9, 4000);
        assert_eq!(node.second(0.9, 4000), Some(0.2));
    }

    #[test]
    fn events_that_wait_longer_and_longer_are_too_much_as_well() {
        let mut node = Node::new(FIVE_PERCENT);
        node.spent.waiting = 0.9;
        node.second(0.03, 0);
        assert!(node.second(0.03, 0).is_some_and(|share| share < 0.5));
    }

    #[test]
    fn numbers_that_run_backwards_are_survived() {
        let mut node = Node::new(FIVE_PERCENT);
        node.second(0.01, 10);
        node.spent = Spent::default();
        assert_eq!(node.second(0.0, 0), None);
    }
}
