//! Counts for others: what a session tells its meter.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Session, process_ms};
use crate::journey::Journey;
use crate::kube::{ClusterFacts, Freshness, Resource};
use crate::metrics::{Meter, State, Who};

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
        self.meter = Some(Metered {
            meter,
            totals: None,
        });
    }

    /// Counts the journeys that failed.
    pub(super) fn count_drops(&mut self, ended: &[Journey]) {
        if self.meter.is_none() {
            return;
        }
        self.load_symbols(false);
        let Some(Metered { meter, .. }) = &self.meter else {
            return;
        };
        let names = self.names();
        for journey in ended.iter().filter(|journey| journey.failed()) {
            self.want_pods(journey);
            let who = match (journey.first_tuple(), journey.last_tuple()) {
                (Some(first), Some(last)) => Who::of(names.cluster, first, last),
                _ => Who::default(),
            };
            meter.dropped(names.lost_because(journey), who);
        }
    }

    /// Counts the connections that causes stopped.
    pub(super) fn count_stopped(&mut self) {
        let stopped = self.collector.take_stopped();
        let Some(Metered { meter, .. }) = &self.meter else {
            return;
        };
        let cluster = self.names().cluster;
        for stopped in stopped {
            let who = Who::of(cluster, stopped.client, stopped.client);
            meter.stopped(stopped.code, who);
        }
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

    fn state(&self, now: u64) -> State {
        let counts = self.collector.counts();
        let cost = self.tracing.cost();
        let facts = self.names().cluster;
        let fresh = |facts: &ClusterFacts| {
            Resource::ALL
                .map(|kind| (kind.name(), facts.freshness(kind) == Freshness::Fresh))
                .to_vec()
        };
        let taken = self.collector.facts().taken_ns;
        State {
            events: counts.events,
            packets: counts.packets,
            lost: self.lost(),
            kernel_runs: cost.runs,
            kernel_time: cost.time,
            process_time: Duration::from_secs_f64(process_ms() / 1e3),
            memory: resident_bytes(),
            facts_age: taken.map(|taken| Duration::from_nanos(now.saturating_sub(taken))),
            fresh: facts.map(fresh).unwrap_or_default(),
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
