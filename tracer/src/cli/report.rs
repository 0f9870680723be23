//! `tracer report`: a capture as one page that can be sent to somebody.

use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::Args;

use super::destination::spare;
use super::explain::{damaged, filter, open, say_skipped};
use super::progress::Progress;
use super::{Exit, Failure};
use crate::capture::{Reported, Unmade, create_private, report};
use crate::view::report::page;

/// What was typed.
#[derive(Args, Debug)]
pub(super) struct Arguments {
    /// A capture: pcapng or pcap, of this or another program, also packed with gzip or zstd.
    file: PathBuf,
    /// Packets to report on, in the words of `tracer run`; none for all. What their flows met on the way
    /// matches as well.
    #[arg(value_name = "FILTER")]
    filter: Vec<String>,
    /// Where the page is written. It holds what the capture holds: it is made its owner's alone.
    #[arg(short, long, value_name = "X.html")]
    output: PathBuf,
}

pub(super) fn run(arguments: &Arguments) -> Result<Exit, Failure> {
    spare([arguments.file.as_path()], &arguments.output)?;
    let mut reader = open(&arguments.file)?;
    let only = filter(&arguments.filter, &arguments.file)?;
    let mut progress = Progress::of(&arguments.file, reader.is_packed());
    let name = arguments.file.file_name().unwrap_or_default();
    let name = name.to_string_lossy().into_owned();
    let moved = |position| progress.moved(position);
    let Reported { report, error } = report(name, &mut reader, only, moved)?;
    drop(progress);
    say_skipped(&reader);
    write(&arguments.output, &page(&report))?;
    if let Some(error) = error {
        return Err(damaged(&arguments.file, error));
    }
    Ok(if report.verdicts.is_empty() {
        Exit::Healthy
    } else {
        Exit::CauseNamed
    })
}

fn write(path: &Path, page: &str) -> anyhow::Result<()> {
    let named = || path.display().to_string();
    let mut file = create_private(path).map_err(Unmade).with_context(named)?;
    file.write_all(page.as_bytes()).with_context(named)
}
