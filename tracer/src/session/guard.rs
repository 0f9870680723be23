//! Keeps tracing cheap: over a limit, whole flows are left out until the cost is below it.
//!
//! Pure: it is told what tracing came to and says which share of the flows to trace.
//!
//! What it costs to tell which packets are traced, most of it with a filter, stays however few they are. When a cut
//! shows that this alone is over the limit, only the rest is held against it from then on: fewer flows would not make
//! it less.

use std::time::Duration;

use serde::Serialize;

use crate::kernel::inbox::MANY_WAITING;
use crate::kernel::load::KernelCost;
use crate::kernel::share::LEAST;

/// The share comes back up in steps of this, once the cost is below [`CALM`] of the limit.
const BACK: f64 = 1.5;
const CALM: f64 = 0.5;
/// What the share is aimed at, of the limit: traffic that grows a little does not cut flows again.
const AIM: f64 = 0.8;
/// Looks in a row that must be over the limit; one of them may be a burst that is over.
const PATIENCE: u32 = 2;
/// Events for each run must differ by this share, or the two looks were at the same flows and tell nothing.
const TELLING: f64 = 0.2;
/// What stays whatever is left out varies by this from one second to the next.
const STEADY: f64 = 1.2;

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
    /// Share of the flows that is traced; less than was last asked for where the events could not wait.
    pub share: f64,
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
    /// Percent of one processor that packets cost however few are traced, where that alone is over the limit.
    pub fixed_percent: Option<f64>,
}

impl SamplingView {
    /// In words.
    pub fn words(&self) -> String {
        let cost = format!(
            "the programs took {:.1} % of a processor for {:.0} events a second",
            self.kernel_percent, self.events_per_second
        );
        let traced = if self.share >= 1.0 {
            format!("every flow is traced again: {cost}")
        } else {
            format!(
                "only 1 of {:.0} flows is traced, whole where NAT leaves the client its port: {cost} (--max-cpu, --max-rate)",
                1.0 / self.share
            )
        };
        let Some(percent) = self.fixed_percent else {
            return traced;
        };
        format!(
            "{traced}; telling which packets are traced takes {percent:.1} % by itself, so that --max-cpu cannot be \
             kept"
        )
    }
}

/// What a run of a program came to, on the average.
#[derive(Clone, Copy, Debug)]
struct Run {
    seconds: f64,
    events: f64,
}

/// Decides which share of the flows is traced.
#[derive(Debug)]
pub(super) struct Guard {
    limits: Limits,
    /// What was last asked for.
    share: f64,
    before: Spent,
    /// Looks in a row that were over.
    over: u32,
    /// What runs came to at the last look.
    run: Option<Run>,
    /// The last look changed the share, or found it changed.
    changed: bool,
    /// Seconds that each run takes whatever is left out, where they alone are over the limit.
    fixed: Option<f64>,
}

impl Guard {
    pub(super) fn new(limits: Limits) -> Self {
        Self {
            limits,
            share: 1.0,
            before: Spent::default(),
            over: 0,
            run: None,
            changed: false,
            fixed: None,
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
        let runs = spent.kernel.runs.saturating_sub(before.kernel.runs) as f64 / seconds;
        let run = (runs > 0.0).then(|| Run {
            seconds: cpu / runs,
            events: rate / runs,
        });
        let known = self.fixed;
        let was = self.share;
        self.changed |= spent.share != was;
        self.learn(cpu, run);
        // What no cut makes less is not held against the limit.
        let fixed = self.fixed.map(|each| each * runs);
        let own = fixed.map_or(cpu, |fixed| (cpu - fixed * STEADY).max(0.0));
        // What waits is no reason to trace less, it was cut enough; but none to trace more.
        let load = (spent.waiting / MANY_WAITING)
            .min(1.0)
            .max(part(own, self.limits.cpu))
            .max(part(rate, self.limits.rate));
        self.over = if load > 1.0 { self.over + 1 } else { 0 };
        let share = if self.over >= PATIENCE {
            spent.share * AIM / load
        } else if load < CALM {
            spent.share * BACK
        } else {
            spent.share
        };
        self.share = share.clamp(LEAST, 1.0);
        self.changed = self.share != was;
        let found = known.is_none() && self.fixed.is_some();
        if !self.changed && !found {
            return None;
        }
        Some(SamplingView {
            share: self.share,
            kernel_percent: cpu * 100.0,
            events_per_second: rate,
            fixed_percent: fixed.map(|fixed| fixed * 100.0),
        })
    }

    /// Finds what a cut did not make less. The traffic may have changed meanwhile, so the runs are
    /// compared and not the seconds. A second in which all was slow makes it too much: what costs less, and what
    /// comes back with the share, says so.
    fn learn(&mut self, cpu: f64, run: Option<Run>) {
        let before = std::mem::replace(&mut self.run, run).filter(|_| self.changed);
        let Some(limit) = self.limits.cpu.filter(|&limit| cpu > limit) else {
            self.fixed = None;
            return;
        };
        let Some(run) = run else {
            return;
        };
        let most = self.fixed.map(|fixed| fixed.min(run.seconds));
        self.fixed = most;
        let Some(before) = before else {
            return;
        };
        let fewer = before.events - run.events;
        if fewer.abs() < before.events.max(run.events) * TELLING {
            return;
        }
        let traced = ((before.seconds - run.seconds) / fewer).max(0.0);
        let fixed = (run.seconds - traced * run.events).max(0.0);
        let fixed = if fewer > 0.0 {
            Some(fixed)
        } else {
            most.map(|most| most.min(fixed))
        };
        let runs = cpu / run.seconds;
        self.fixed = fixed.filter(|fixed| fixed * runs > limit);
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
            let spent = Spent {
                share: 1.0,
                ..Spent::default()
            };
            Self {
                guard: Guard::new(limits),
                spent,
            }
        }

        fn second(&mut self, cpu: f64, rate: u64) -> Option<f64> {
            self.spent.time += Duration::from_secs(1);
            self.spent.kernel.time += Duration::from_secs_f64(cpu);
            self.spent.events += rate;
            self.spent.kernel.runs += RUNS;
            self.look().map(|view| view.share)
        }

        fn look(&mut self) -> Option<SamplingView> {
            let said = self.guard.look(self.spent);
            if let Some(said) = &said {
                self.spent.share = said.share;
            }
            said
        }

        /// A second in which so many runs cost something by themselves and more for what is traced.
        fn filtered(&mut self, runs: u64, each: f64, traced: f64) -> Option<SamplingView> {
            self.spent.time += Duration::from_secs(1);
            self.spent.kernel.runs += runs;
            self.spent.events += (runs as f64 * self.spent.share) as u64;
            let cost = runs as f64 * (each + traced * self.spent.share);
            self.spent.kernel.time += Duration::from_secs_f64(cost);
            self.look()
        }
    }

    const RUNS: u64 = 100_000;
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
    fn a_filter_that_alone_is_over_the_limit_does_not_blind_the_trace() {
        let mut node = Node::new(FIVE_PERCENT);
        // 12 % for the filter, a little for what matches.
        let said: Vec<_> = (0..30)
            .filter_map(|_| node.filtered(RUNS, 1.2e-6, 0.01e-6))
            .collect();
        assert_eq!(node.guard.share, 1.0);
        let last = said.last().expect("it is said");
        assert!((last.fixed_percent.expect("its cost") - 12.0).abs() < 0.1);
        let words = last.words();
        assert!(
            words.contains("12.0 %") && words.contains("cannot be kept"),
            "{words}"
        );
        // And then there is no more to say, though the cost is not quite the same each second.
        assert!((0..20).all(|second| {
            node.filtered(RUNS + 9_000 * (second % 2), 1.2e-6, 0.01e-6)
                .is_none()
        }));
        // With less to filter the limit can be kept, and holds again.
        assert_eq!(node.filtered(RUNS / 4, 1.2e-6, 0.01e-6), None);
        assert_eq!(node.guard.fixed, None);
    }

    #[test]
    fn without_packets_the_limit_is_kept() {
        let mut node = Node::new(FIVE_PERCENT);
        for _ in 0..5 {
            node.filtered(RUNS, 1.2e-6, 0.5e-6);
        }
        assert!(node.guard.fixed.is_some());
        let said = node
            .filtered(0, 1.2e-6, 0.5e-6)
            .expect("the share comes back");
        assert_eq!(said.fixed_percent, None);
    }

    #[test]
    fn what_is_traced_keeps_the_limit_beside_a_filter_that_does_not() {
        let mut node = Node::new(FIVE_PERCENT);
        for _ in 0..60 {
            node.filtered(RUNS, 0.8e-6, 3e-6);
        }
        let share = node.guard.share;
        assert!(share > 0.1 && share * 0.3 <= 0.05 + 0.2 * 0.08, "{share}");
    }

    #[test]
    fn a_second_in_which_all_is_slow_is_not_taken_for_the_filter() {
        let mut node = Node::new(FIVE_PERCENT);
        for slowness in [1.0, 1.0, 4.0] {
            node.filtered(RUNS, slowness * 0.6e-6, slowness * 3e-6);
        }
        for _ in 0..30 {
            node.filtered(RUNS, 0.6e-6, 3e-6);
        }
        let share = node.guard.share;
        assert!(share > 0.1 && share * 0.3 <= 0.05 + 0.2 * 0.06, "{share}");
    }

    #[test]
    fn a_flow_that_floods_alone_is_not_taken_for_the_filter() {
        let mut node = Node::new(FIVE_PERCENT);
        // It is traced until the share is below its number.
        let looks = (0..10).take_while(|_| {
            node.second(0.5, 2 * RUNS);
            node.guard.share > 0.01
        });
        assert_eq!(looks.count(), 2);
        assert_eq!(node.guard.fixed, None);
    }

    #[test]
    fn traffic_that_grows_is_not_taken_for_the_filter() {
        let mut node = Node::new(FIVE_PERCENT);
        for runs in [RUNS, RUNS, 3 * RUNS, 9 * RUNS, 9 * RUNS, 9 * RUNS] {
            let said = node.filtered(runs, 0.01e-6, 2e-6);
            assert!(said.is_none_or(|said| said.fixed_percent.is_none()));
        }
        assert!(node.guard.share < 0.05);
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
    fn what_was_left_out_at_once_is_said_and_comes_back_when_no_more_waits() {
        let mut node = Node::new(FIVE_PERCENT);
        node.spent.share = 0.125;
        node.spent.waiting = 0.6;
        assert_eq!(node.second(0.03, 0), Some(0.125));
        for waiting in [0.6, 0.58, 0.56] {
            node.spent.waiting = waiting;
            assert_eq!(node.second(0.01, 0), None);
        }
        node.spent.waiting = 0.1;
        assert_eq!(node.second(0.01, 0), Some(0.125 * BACK));
    }

    #[test]
    fn what_was_left_out_at_once_tells_what_stays_as_well() {
        let mut node = Node::new(FIVE_PERCENT);
        node.filtered(RUNS, 0.8e-6, 3e-6);
        node.spent.share = 0.125;
        node.filtered(RUNS, 0.8e-6, 3e-6);
        let fixed = node.guard.fixed.expect("it is over the limit");
        assert!((fixed - 0.8e-6).abs() < 0.01e-6, "{fixed}");
    }

    #[test]
    fn numbers_that_run_backwards_are_survived() {
        let mut node = Node::new(FIVE_PERCENT);
        node.second(0.01, 10);
        node.spent = Spent {
            share: 1.0,
            ..Spent::default()
        };
        assert_eq!(node.second(0.0, 0), None);
    }
}
