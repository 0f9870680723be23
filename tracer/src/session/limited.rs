//! What a trace may cost: the guard looks at it every second, oftener where events pile up, and its word is carried out.

use std::time::{Duration, Instant};

use super::Session;
use super::guard::{Guard, Limits, Spent};
use crate::view::names::monotonic_ns;

/// How often it is looked at what tracing costs.
const GUARD_PERIOD: Duration = Duration::from_secs(1);
/// The same where the room for waiting events may be full sooner; what a cut changed shows by then.
const HURRIED: Duration = Duration::from_millis(100);

/// A guard at work.
pub(super) struct Limited {
    guard: Guard,
    looked: Instant,
}

impl Session {
    /// Leaves flows out from now on when tracing costs more; false when the kernel does not say what its
    /// part costs, so that its limit cannot be kept.
    pub fn limit(&mut self, limits: Limits) -> bool {
        self.limited = (limits != Limits::default()).then(|| Limited {
            guard: Guard::new(limits),
            looked: Instant::now(),
        });
        limits.cpu.is_none() || self.tracing.knows_cost()
    }

    /// Leaves flows out, or traces them again, where the limits ask for it; says so.
    pub(super) fn keep_cheap(&mut self) -> anyhow::Result<()> {
        let Some(limited) = &mut self.limited else {
            return Ok(());
        };
        let (events, waiting) = self.inbox.load();
        let period = if limited.guard.hurries(waiting) {
            HURRIED
        } else {
            GUARD_PERIOD
        };
        if limited.looked.elapsed() < period {
            return Ok(());
        }
        limited.looked = Instant::now();
        let change = limited.guard.look(Spent {
            time: self.started.elapsed(),
            kernel: self.tracing.cost(),
            events,
            waiting,
        });
        let Some(change) = change else {
            return Ok(());
        };
        self.tracing.trace_share(change.share)?;
        // What is under way may be cut.
        self.mark_loss(monotonic_ns());
        self.analysis
            .printer()
            .object("sampling", &change, &change.words())?;
        Ok(())
    }
}
