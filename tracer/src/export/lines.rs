//! JSON: the objects that `run` and `show` print with `--format json`, one a line, all kinds in one file.

use std::io::Write;

use super::table::{Kept, Reached, Row, Seen, Told};
use super::walk::Sink;
use crate::view::json;
use crate::view::model::DiagnosisView;

/// Writes objects, and counts them.
pub struct Lines<W> {
    out: W,
    counts: [(&'static str, u64); 4],
}

impl<W: Write> Lines<W> {
    /// Nothing written yet.
    pub const fn new(out: W) -> Self {
        Self {
            out,
            counts: [
                ("journeys", 0),
                ("events", 0),
                ("flows", 0),
                ("diagnoses", 0),
            ],
        }
    }

    /// Writes what is left; gives each kind and how many there are.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn finish(mut self) -> anyhow::Result<Vec<(&'static str, u64)>> {
        self.out.flush()?;
        Ok(self.counts.to_vec())
    }
}

impl<W: Write> Sink for Lines<W> {
    fn journey(&mut self, row: Row<'_, Told<'_>>) -> anyhow::Result<()> {
        self.counts[0].1 += 1;
        Ok(json::line(&mut self.out, "journey", row.of.view)?)
    }

    fn event(&mut self, row: Row<'_, Seen<'_>>) -> anyhow::Result<()> {
        self.counts[1].1 += 1;
        Ok(json::line(&mut self.out, "event", row.of.row)?)
    }

    fn flow(&mut self, row: Row<'_, Kept<'_>>) -> anyhow::Result<()> {
        self.counts[2].1 += 1;
        Ok(json::line(&mut self.out, "flow", row.of.row)?)
    }

    fn diagnosis(&mut self, row: Row<'_, Reached<'_>>) -> anyhow::Result<()> {
        self.counts[3].1 += 1;
        let view = DiagnosisView::from(row.of.diagnosis);
        Ok(json::line(&mut self.out, "diagnosis", &view)?)
    }
}
