//! A bounded test while the trace goes on: its packets are gathered, and judged when they are asked for.

use std::time::{Duration, Instant};

use tokio::time::MissedTickBehavior;

use super::{PERIOD, Session, Wanting};
use crate::cause::Diagnosis;
use crate::journey::Journey;
use crate::view::model::JourneyView;
use crate::view::names::monotonic_ns;

/// How long after a bounded test its packets are waited for: longer than the silence that ends a journey.
const AFTER_WORK: Duration = Duration::from_millis(450);
/// Most journeys kept while a bounded test runs; more means that others' traffic drowns it.
const MOST_GATHERED: usize = 262_144;

impl Session {
    /// Collects until `work` is done and what it sent has had time to end; gives back every journey of
    /// that time, neither shown nor judged.
    ///
    /// # Errors
    /// When printing fails.
    pub async fn gather<T>(
        &mut self,
        work: impl Future<Output = T>,
    ) -> anyhow::Result<(T, Vec<Journey>)> {
        let (mut journeys, mut cut) = (Vec::new(), 0);
        let mut tick = tokio::time::interval(PERIOD);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        tokio::pin!(work);
        let value = loop {
            tokio::select! {
                value = &mut work => break value,
                _ = tick.tick() => cut += self.gather_ended(&mut journeys)?,
            }
        };
        let done = Instant::now();
        while done.elapsed() < AFTER_WORK {
            tick.tick().await;
            cut += self.gather_ended(&mut journeys)?;
        }
        self.look_for_loss(monotonic_ns(), true);
        journeys.extend(self.analysis.take_all());
        cut += cut_off(&mut journeys, MOST_GATHERED);
        if cut > 0 {
            eprintln!(
                "tracer: {cut} packets more came than the {MOST_GATHERED} that are kept; the test's own may be among them"
            );
        }
        Ok((value, journeys))
    }

    /// Gives how many there was no room for.
    fn gather_ended(&mut self, journeys: &mut Vec<Journey>) -> anyhow::Result<usize> {
        let (_, now) = self.take(false)?;
        journeys.extend(self.analysis.take_ended(now));
        Ok(cut_off(journeys, MOST_GATHERED))
    }

    /// Judges gathered journeys, and prints what caused their losses.
    ///
    /// # Errors
    /// When printing fails.
    pub fn judge(&mut self, journeys: Vec<Journey>) -> anyhow::Result<Vec<Diagnosis>> {
        self.analysis.judge(journeys, monotonic_ns())
    }

    /// Journeys as they are shown.
    pub fn views(&mut self, journeys: &[Journey]) -> Vec<JourneyView> {
        let wanting = Wanting::of(self.cluster.as_ref(), self.analysis.cluster());
        for journey in journeys {
            wanting.want_pods(journey);
        }
        self.analysis.views(journeys, monotonic_ns())
    }
}

/// Keeps the first ones; gives how many it did not keep.
fn cut_off(journeys: &mut Vec<Journey>, most: usize) -> usize {
    let more = journeys.len().saturating_sub(most);
    journeys.truncate(most);
    more
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_there_is_no_room_for_is_counted() {
        let mut journeys = vec![Journey::default(); 5];
        assert_eq!(cut_off(&mut journeys, 5), 0);
        assert_eq!((cut_off(&mut journeys, 3), journeys.len()), (2, 3));
    }
}
