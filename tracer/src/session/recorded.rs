//! The capture of a trace.

use std::io;
use std::time::{Duration, Instant};

use super::{Session, process_ms};
use crate::capture::{Counters, Recorder};
use crate::view::names::monotonic_ns;

/// How often a capture is told what was lost and what tracing costs.
const COUNTED: Duration = Duration::from_secs(1);

impl Session {
    /// Writes everything into a capture from now on.
    pub fn record(&mut self, recorder: Recorder) {
        self.analysis.name_all();
        self.recorder = Some(recorder);
    }

    /// Tells the capture what was lost and what tracing costs, every second.
    pub(super) fn count_for_capture(&mut self) {
        if self.counted.elapsed() < COUNTED {
            return;
        }
        self.counted = Instant::now();
        let counters = self.counters();
        if let Some(recorder) = &mut self.recorder {
            recorder.counters(counters);
        }
    }

    pub(super) fn counters(&mut self) -> Counters {
        let cost = self.tracing.cost();
        Counters {
            time_ns: monotonic_ns(),
            lost: self.lost(),
            left_out: self.tracing.left_out(),
            kernel_runs: cost.runs,
            kernel_ns: cost.time.as_nanos() as u64,
            process_us: (process_ms() * 1e3) as u64,
        }
    }

    /// Hands over to the capture's thread; a capture that fails is said, and the trace goes on.
    pub(super) fn hand_over(&mut self) -> io::Result<()> {
        let done = self.recorder.as_mut().map_or(Ok(()), Recorder::hand_over);
        done.or_else(|error| self.capture_failed(&error))
    }

    /// Ends the capture.
    pub(super) fn end_capture(&mut self) -> io::Result<()> {
        let written = self.recorder.take().map(Recorder::finish);
        match written.transpose() {
            Ok(written) => match written.flatten() {
                Some(written) => {
                    let words = written.words();
                    let printer = self.analysis.printer();
                    printer.object("capture", &written, &words)
                }
                None => Ok(()),
            },
            Err(error) => self.capture_failed(&error),
        }
    }

    fn capture_failed(&mut self, error: &anyhow::Error) -> io::Result<()> {
        self.capture_failed = true;
        self.analysis.printer().warning(&format!(
            "the capture ends early: {error:#}; what was written before can be read, and the trace itself \
             lacks nothing"
        ))
    }
}
