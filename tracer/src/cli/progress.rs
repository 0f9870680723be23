//! A bar on standard error while a capture is read.

use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// What takes less time needs no bar.
const DELAY: Duration = Duration::from_secs(1);

/// How far reading is, where standard error is a terminal; seen after a second.
pub(super) struct Progress {
    begun: Instant,
    /// Bytes to read; how long a packed file is unpacked is not known.
    length: Option<u64>,
    wanted: bool,
    bar: Option<ProgressBar>,
}

impl Progress {
    /// Of a file whose answer is written elsewhere or at the end.
    pub(super) fn of(file: &Path, packed: bool) -> Self {
        Self::new((!packed).then(|| length(file)))
    }

    /// Of a file whose answer is printed meanwhile: on one terminal the two would run into each other.
    pub(super) fn beside_output(file: &Path, packed: bool) -> Self {
        let mut progress = Self::of(file, packed);
        progress.wanted &= !std::io::stdout().is_terminal();
        progress
    }

    /// Of files that are each read twice.
    pub(super) fn of_two_readings(files: &[PathBuf], packed: bool) -> Self {
        Self::new((!packed).then(|| files.iter().map(|file| 2 * length(file)).sum()))
    }

    fn new(length: Option<u64>) -> Self {
        Self {
            begun: Instant::now(),
            length,
            wanted: std::io::stderr().is_terminal(),
            bar: None,
        }
    }

    /// So many bytes are read.
    pub(super) fn moved(&mut self, position: u64) {
        if self.wanted {
            self.show(position, self.begun.elapsed());
        }
    }

    fn show(&mut self, position: u64, elapsed: Duration) {
        if elapsed >= DELAY {
            let length = self.length;
            self.bar
                .get_or_insert_with(|| bar(length).with_elapsed(elapsed))
                .set_position(position);
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

fn length(file: &Path) -> u64 {
    std::fs::metadata(file).map_or(0, |metadata| metadata.len())
}

fn bar(length: Option<u64>) -> ProgressBar {
    let bar = length.map_or_else(ProgressBar::new_spinner, ProgressBar::new);
    bar.set_draw_target(ProgressDrawTarget::stderr_with_hz(4));
    let template = "{elapsed_precise} {bar:30} {bytes} {binary_bytes_per_sec}";
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    bar
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_is_seen_after_a_second() {
        let mut progress = Progress::new(Some(10));
        progress.show(1, Duration::ZERO);
        progress.show(2, Duration::from_millis(999));
        assert!(progress.bar.is_none());
        progress.show(3, DELAY);
        let bar = progress.bar.as_ref().expect("a bar");
        assert_eq!((bar.position(), bar.length()), (3, Some(10)));
    }
}
