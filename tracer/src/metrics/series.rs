//! A bounded number of series: those that were quiet for long make room, the rest is `other`.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use prometheus::{IntCounterVec, Opts, Registry};

/// Number of labels of each series.
pub(super) const LABELS: usize = 4;
/// A series this long without change may go.
const QUIET: Duration = Duration::from_secs(3600);
/// Value of the labels of what has no room.
const OTHER: &str = "other";

type Values = [String; LABELS];

/// Counters by labels; the first label always has room, because its values are few.
pub(super) struct Series {
    counters: IntCounterVec,
    changed: Mutex<HashMap<Values, Instant>>,
    most: usize,
    quiet: Duration,
}

impl Series {
    /// Registers a family of at most `most` series.
    pub(super) fn register(
        registry: &Registry,
        name: &str,
        help: &str,
        labels: [&str; LABELS],
        most: usize,
    ) -> prometheus::Result<Self> {
        let counters = IntCounterVec::new(Opts::new(name, help), &labels)?;
        registry.register(Box::new(counters.clone()))?;
        Ok(Self {
            counters,
            changed: Mutex::default(),
            most,
            quiet: QUIET,
        })
    }

    /// Counts one.
    pub(super) fn count(&self, mut values: Values) {
        let mut changed = self
            .changed
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        if !changed.contains_key(&values) && changed.len() >= self.most {
            self.forget_quiet(&mut changed);
            if changed.len() >= self.most {
                for value in &mut values[1..] {
                    *value = OTHER.into();
                }
            }
        }
        let labels = values.each_ref().map(String::as_str);
        self.counters.with_label_values(&labels).inc();
        changed.insert(values, Instant::now());
    }

    fn forget_quiet(&self, changed: &mut HashMap<Values, Instant>) {
        changed.retain(|values, last| {
            let keep = last.elapsed() < self.quiet;
            if !keep {
                let labels = values.each_ref().map(String::as_str);
                // It is there: every key was counted once.
                let _ = self.counters.remove_label_values(&labels);
            }
            keep
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn series(most: usize, quiet: Duration) -> (Registry, Series) {
        let registry = Registry::new();
        let labels = ["reason", "namespace", "pod", "service"];
        let mut series =
            Series::register(&registry, "x_total", "Words.", labels, most).expect("a family");
        series.quiet = quiet;
        (registry, series)
    }

    fn count(series: &Series, reason: &str, pod: usize) {
        series.count([
            reason.into(),
            "default".into(),
            format!("p{pod}"),
            String::new(),
        ]);
    }

    fn pods(registry: &Registry) -> Vec<String> {
        let families = registry.gather();
        let metrics = families.iter().flat_map(|family| family.get_metric());
        let labels = metrics.flat_map(|metric| metric.get_label());
        let mut pods: Vec<_> = labels
            .filter(|label| label.name() == "pod")
            .map(|label| label.value().to_owned())
            .collect();
        pods.sort();
        pods
    }

    #[test]
    fn what_has_no_room_is_other() {
        let (registry, series) = series(2, QUIET);
        for pod in [1, 2, 3, 4, 1] {
            count(&series, "NO_SOCKET", pod);
        }
        count(&series, "TTL", 5);
        assert_eq!(pods(&registry), ["other", "other", "p1", "p2"]);
    }

    #[test]
    fn quiet_series_make_room() {
        let (registry, series) = series(2, Duration::ZERO);
        for pod in 0..100 {
            count(&series, "NO_SOCKET", pod);
        }
        assert_eq!(pods(&registry), ["p98", "p99"]);
    }
}
