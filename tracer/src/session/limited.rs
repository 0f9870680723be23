//! What a trace may cost: the guard looks at it every second, and its word is carried out.

use std::time::{Duration, Instant};

use super::Session;
use super::guard::{Guard, Limits, Spent};
use crate::view::names::monotonic_ns;

/// How often it is looked at what tracing costs.
const GUARD_PERIOD: Duration = Duration::from_secs(1);

/// A guard at work.
pub(super) struct Limited {
    guard: Guard,
    looked: Instant,
    /// The share of the flows when it was last looked at.
    share: f64,
}

impl Session {
    /// Leaves flows out from now on when tracing costs more; false when the kernel does not say what its
    /// part costs, so that its limit cannot be kept.
    pub fn limit(&mut self, limits: Limits) -> bool {
        self.limited = (limits != Limits::default()).then(|| Limited {
            guard: Guard::new(limits),
            looked: Instant::now(),
            share: self.tracing.share().get(),
        });
        if self.limited.is_some() {
            self.inbox.brake(self.tracing.share().clone());
        }
        limits.cpu.is_none() || self.tracing.knows_cost()
    }

    /// Leaves flows out, or traces them again, where the limits ask for it; says so.
    pub(super) fn keep_cheap(&mut self) -> anyhow::Result<()> {
        let Some(limited) = &mut self.limited else {
            return Ok(());
        };
        let share = self.tracing.share();
        let mut change = None;
        if limited.looked.elapsed() >= GUARD_PERIOD {
            limited.looked = Instant::now();
            let (events, waiting) = self.inbox.load();
            change = limited.guard.look(Spent {
                time: self.started.elapsed(),
                kernel: self.tracing.cost(),
                events,
                waiting,
                share: share.get(),
            });
            if let Some(change) = &change {
                share.set(change.share)?;
            }
        }
        let now = share.get();
        if std::mem::replace(&mut limited.share, now) != now {
            // What is under way may be cut.
            self.mark_loss(monotonic_ns());
        }
        if let Some(change) = change {
            self.analysis
                .printer()
                .object("sampling", &change, &change.words())?;
        }
        Ok(())
    }
}
