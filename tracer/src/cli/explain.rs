//! `tracer explain`: the answer of a live trace, from its capture.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use clap::Args;

use super::progress::Progress;
use super::{Exit, Failure, Output};
use crate::capture::{Reader, Replay, There};
use crate::filter::{Expression, Filter};
use crate::printer::{Printer, Show};

/// What was typed.
#[derive(Args, Debug)]
pub(super) struct Arguments {
    /// A capture: pcapng or pcap, of this or another program, also packed with gzip or zstd.
    file: PathBuf,
    /// Packets to explain, in the words of `tracer run`; none for all. What their flows met on the way
    /// matches as well.
    #[arg(value_name = "FILTER")]
    filter: Vec<String>,
    /// Show packets that arrived as well, not only those that did not.
    #[arg(long)]
    all: bool,
}

pub(super) fn run(arguments: &Arguments, output: &Output) -> Result<Exit, Failure> {
    let show = Show::all_or_failed(arguments.all);
    let filter = filter(&arguments.filter, &arguments.file)?;
    let named = explain(&arguments.file, filter, show, output)?;
    Ok(if named.is_empty() {
        Exit::Healthy
    } else {
        Exit::CauseNamed
    })
}

/// Prints what a capture shows of the packets that match; gives the codes of the causes.
pub(super) fn explain(
    file: &Path,
    filter: Filter,
    show: Show,
    output: &Output,
) -> Result<BTreeSet<&'static str>, Failure> {
    let mut reader = open(file)?;
    let mut replay = Replay::new(Printer::new(output.printer_format(), show));
    replay.analysis().only(filter);
    let mut progress = Progress::beside_output(file, reader.is_packed());
    let ended = replay.run(&mut reader, |position| progress.moved(position), |_, _| {})?;
    drop(progress);
    say_skipped(&reader);
    match ended.error {
        Some(error) => Err(damaged(file, error)),
        None => Ok(replay.diagnoses().iter().map(|found| found.code).collect()),
    }
}

/// What was typed about packets, with names as they were where the capture was made.
pub(super) fn filter(words: &[String], file: &Path) -> Result<Filter, Failure> {
    let wrong = |error: crate::filter::Error| Failure::usage(error.to_string());
    let expression = Expression::parse(&words.join(" ")).map_err(wrong)?;
    // Most expressions name nothing that has to be looked up.
    if let Ok(filter) = expression.clone().resolve(&There::default()) {
        return Ok(filter);
    }
    // What is in a pipe is gone once the names were looked up.
    let once = std::fs::metadata(file).is_ok_and(|found| !found.is_file() && !found.is_dir());
    if once {
        return Err(Failure::usage(format!(
            "{}: a filter with names reads the capture twice: write it to a file first, and name that",
            file.display()
        )));
    }
    let there = There::read(file).map_err(|error| damaged(file, error))?;
    expression.resolve(&there).map_err(wrong)
}

/// Opens a capture.
pub(super) fn open(file: &Path) -> Result<Reader, Failure> {
    Reader::open(file).map_err(|error| damaged(file, error))
}

/// A file that cannot be read, or not to its end.
pub(super) fn damaged(file: &Path, error: crate::capture::ReadError) -> Failure {
    anyhow::Error::new(error)
        .context(file.display().to_string())
        .into()
}

/// Says what of the capture cannot be had.
pub(super) fn say_skipped(reader: &Reader) {
    for (what, count) in reader.skipped().iter() {
        eprintln!("tracer: passed over {count} {what}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_with_names_needs_a_file_that_can_be_read_twice() {
        let folder = tempfile::tempdir().expect("a folder");
        let pipe = folder.path().join("pipe");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).expect("a pipe");
        let words = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        let failure = filter(&words("netns node"), &pipe).expect_err("it cannot be read twice");
        assert_eq!(failure.exit, Exit::Usage);
        let said = failure.error.to_string();
        assert!(said.contains("pipe: ") && said.contains("a file"), "{said}");
        // One without names is read once.
        assert!(filter(&words("udp port 53"), &pipe).is_ok());
    }
}
