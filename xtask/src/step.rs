//! Announces what is being done: a spinner or bar on a terminal, plain lines elsewhere.

use std::io::{IsTerminal as _, stderr};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// One announced step. Dropped without `done`, it leaves no claim of success behind.
pub(crate) struct Step {
    bar: ProgressBar,
    name: String,
    started: Instant,
}

impl Step {
    /// Announces a step of unknown length.
    pub(crate) fn start(name: impl Into<String>) -> Self {
        Self::with_bar(
            name.into(),
            ProgressBar::new_spinner(),
            "{spinner} {msg} ({elapsed})",
        )
    }

    /// Announces a download of a known number of bytes.
    pub(crate) fn download(name: impl Into<String>, bytes: u64) -> Self {
        Self::with_bar(
            name.into(),
            ProgressBar::new(bytes),
            "{spinner} {msg} [{bar:30}] {bytes}/{total_bytes} {bytes_per_sec} eta {eta}",
        )
    }

    fn with_bar(name: String, bar: ProgressBar, template: &str) -> Self {
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        bar.set_message(name.clone());
        if stderr().is_terminal() {
            bar.enable_steady_tick(Duration::from_millis(100));
        } else {
            eprintln!("xtask: {name} ...");
        }
        Self {
            bar,
            name,
            started: Instant::now(),
        }
    }

    /// Says how far the download is.
    pub(crate) fn position(&self, bytes: u64) {
        self.bar.set_position(bytes);
    }

    /// Shows the latest line of the program at work, on a terminal only.
    pub(crate) fn detail(&self, line: &str) {
        let line: String = line.chars().take(60).collect();
        self.bar.set_message(format!("{}: {line}", self.name));
    }

    /// Ends the step as a success.
    pub(crate) fn done(self) {
        self.bar.finish_and_clear();
        eprintln!(
            "xtask: {}: done in {:.1} s",
            self.name,
            self.started.elapsed().as_secs_f32()
        );
    }
}

impl Drop for Step {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

/// A fact worth a line of its own.
pub(crate) fn note(line: impl AsRef<str>) {
    eprintln!("xtask: {}", line.as_ref());
}
