//! Counts for others: the totals that a session tells its meter.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use super::{Session, process_ms};
use crate::kube::{ClusterFacts, Freshness, Resource};
use crate::metrics::{Meter, State};

/// How often totals are counted anew.
const TOTALS: Duration = Duration::from_secs(1);

/// Counts for others.
pub(super) struct Metered {
    meter: Arc<Meter>,
    /// When totals were last counted.
    totals: Option<Instant>,
}

impl Session {
    /// Counts what is lost from now on.
    pub fn count(&mut self, meter: Arc<Meter>) {
        self.analysis.count(Arc::clone(&meter));
        self.meter = Some(Metered {
            meter,
            totals: None,
        });
    }

    /// Counts the totals, once a second.
    pub(super) fn count_totals(&mut self, now: u64) {
        let state = match &self.meter {
            Some(Metered { totals, .. }) if totals.is_none_or(|last| last.elapsed() >= TOTALS) => {
                self.state(now)
            }
            _ => return,
        };
        if let Some(metered) = &mut self.meter {
            metered.meter.set(&state);
            metered.totals = Some(Instant::now());
        }
    }

    fn state(&mut self, now: u64) -> State {
        let cost = self.tracing.cost();
        let lost = self.lost();
        let facts = self.analysis.cluster().cloned();
        let collector = self.analysis.collector();
        let counts = collector.counts();
        let fresh = |facts: &ClusterFacts| {
            Resource::ALL
                .map(|kind| (kind.name(), facts.freshness(kind) == Freshness::Fresh))
                .to_vec()
        };
        let now_on_wall = SystemTime::now();
        let stale_for = |facts: &ClusterFacts| {
            Resource::ALL
                .map(|kind| (kind.name(), facts.stale_for(kind, now_on_wall)))
                .to_vec()
        };
        let taken = collector.facts().taken_ns;
        State {
            events: counts.events,
            packets: counts.packets,
            lost,
            left_out: self.tracing.left_out(),
            kernel_runs: cost.runs,
            kernel_time: cost.time,
            process_time: Duration::from_secs_f64(process_ms() / 1e3),
            memory: resident_bytes(),
            facts_age: taken.map(|taken| Duration::from_nanos(now.saturating_sub(taken))),
            fresh: facts.as_deref().map(fresh).unwrap_or_default(),
            stale_for: facts.as_deref().map(stale_for).unwrap_or_default(),
        }
    }
}

/// Memory of this process, bytes.
fn resident_bytes() -> Option<u64> {
    let statm = std::fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = statm.split(' ').nth(1)?.parse().ok()?;
    let page = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE).ok()??;
    Some(pages * u64::try_from(page).ok()?)
}
