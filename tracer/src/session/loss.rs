//! What was lost, per cause: known to the journeys under way, and told.

use std::time::{Duration, Instant};

use super::Session;
use crate::capture::{Control, Recorder};

/// How often programs that the kernel skipped are looked for: oftener than a diagnosis waits for the
/// connections behind the first, so that it knows of those that were skipped before.
const MISSED_PERIOD: Duration = Duration::from_millis(500);

/// What the journeys know of losses.
#[derive(Debug)]
pub(super) struct Known {
    lost: u64,
    /// `None` where the kernel does not count them.
    missed: Option<u64>,
    looked: Instant,
}

impl Known {
    /// Nothing was lost so far.
    pub(super) fn none() -> Self {
        Self {
            lost: 0,
            missed: Some(0),
            looked: Instant::now(),
        }
    }

    /// True when there are more lost events than before.
    const fn lost(&mut self, lost: u64) -> bool {
        let more = lost > self.lost;
        self.lost = lost;
        more
    }

    /// It is time to look for skipped programs.
    fn looks(&self, hurry: bool) -> bool {
        self.missed.is_some() && (hurry || self.looked.elapsed() >= MISSED_PERIOD)
    }

    /// True when there are more skipped programs than at the last look.
    fn missed(&mut self, missed: Option<u64>) -> bool {
        let more = missed > self.missed;
        self.missed = missed;
        self.looked = Instant::now();
        more
    }
}

impl Session {
    /// Looks for what was lost since the last look, at once with `hurry`; what is under way knows of it
    /// from then on.
    pub(super) fn look_for_loss(&mut self, now_ns: u64, hurry: bool) {
        let mut more = self.known.lost(self.inbox.lost().total());
        if self.known.looks(hurry) {
            more |= self.known.missed(self.tracing.missed());
        }
        if more {
            self.mark_loss(now_ns);
        }
    }

    /// Events may be missing from what is under way.
    pub(super) fn mark_loss(&mut self, now_ns: u64) {
        self.analysis.collector().mark_loss(now_ns);
        if let Some(recorder) = &mut self.recorder {
            recorder.control(Control::Loss { now_ns });
        }
    }

    /// Everything that was lost, per cause.
    pub(super) fn lost(&mut self) -> Vec<(String, u64)> {
        let missed = self
            .tracing
            .missed()
            .map(|missed| ("program skipped by the kernel", missed));
        let collector = self.analysis.collector();
        let (evicted, forgotten) = (collector.evicted(), collector.forgotten());
        let unwritten = self.recorder.as_ref().map_or(0, Recorder::unwritten);
        let why_unwritten = if self.capture_failed {
            "capture ended early"
        } else {
            "capture could not keep up"
        };
        let here = missed
            .into_iter()
            .chain([
                ("too many packets at once", evicted),
                ("flow forgotten for newer ones", forgotten.flows),
                ("failure forgotten for newer ones", forgotten.failures),
                (why_unwritten, unwritten),
            ])
            .filter(|&(_, count)| count > 0);
        let lost = self.inbox.lost();
        lost.iter()
            .chain(here)
            .map(|(cause, count)| (cause.to_owned(), count))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_skipped_program_is_a_loss_as_a_full_ring_is() {
        let mut known = Known::none();
        assert!(!known.lost(0) && !known.missed(Some(0)));
        assert!(known.lost(2) && !known.lost(2));
        assert!(known.missed(Some(1)) && !known.missed(Some(1)));
        assert!(known.missed(Some(2)) && !known.looks(false) && known.looks(true));
    }

    #[test]
    fn a_kernel_that_does_not_count_is_not_asked_again() {
        let mut known = Known::none();
        assert!(known.looks(true));
        assert!(!known.missed(None));
        assert!(!known.looks(true));
    }
}
