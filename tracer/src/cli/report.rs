//! `tracer report`: a capture as one page that can be sent to somebody.

use std::io::{Write as _, stdout};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::Args;
use serde::Serialize;

use super::destination::spare;
use super::explain::{damaged, filter, open, say_skipped};
use super::progress::Progress;
use super::{Exit, Failure, Output, OutputFormat};
use crate::capture::{Reported, Unmade, create_private, report};
use crate::view::json;
use crate::view::model::CauseCount;
use crate::view::report::{Report, page};

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

/// The page as an object.
#[derive(Serialize)]
struct MadeView {
    page: String,
    /// What it names.
    causes: Vec<CauseCount>,
}

impl MadeView {
    fn new(page: &Path, report: &Report) -> Self {
        let diagnoses = report.verdicts.iter().map(|verdict| &verdict.diagnosis);
        Self {
            page: page.display().to_string(),
            causes: diagnoses.map(CauseCount::from).collect(),
        }
    }
}

pub(super) fn run(arguments: &Arguments, output: &Output) -> Result<Exit, Failure> {
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
    if output.format == OutputFormat::Json {
        let view = MadeView::new(&arguments.output, &report);
        json::line(&mut stdout(), "report", &view)?;
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capture::Reader;
    use crate::filter::Filter;

    #[test]
    fn the_page_as_an_object_says_what_it_names() {
        let captures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/captures");
        let mut reader =
            Reader::open(&captures.join("vip-nodeport-unbound.pcapng")).expect("a capture");
        let reported = report(String::new(), &mut reader, Filter::default(), |_| {});
        let view = MadeView::new(Path::new("x.html"), &reported.expect("a report").report);
        let view = serde_json::to_value(&view).expect("an object");
        assert_eq!(view["page"], "x.html");
        assert_eq!(view["causes"][0]["cause"], "vip-nodeport-unbound");
        assert_eq!(view["causes"][0]["failed_connections"], 3);
    }

    #[test]
    fn a_verdict_counts_the_connections_that_came_after_it_was_reached() {
        let captures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/captures");
        let mut reader = Reader::open(&captures.join("vxlan-no-fdb.pcapng")).expect("a capture");
        let reported = report(String::new(), &mut reader, Filter::default(), |_| {});
        let verdicts = reported.expect("a report").report.verdicts;
        let counts = verdicts.iter().map(|verdict| {
            let diagnosis = &verdict.diagnosis;
            (
                &*diagnosis.cause,
                diagnosis.failed_connections,
                verdict.flows.len(),
            )
        });
        assert_eq!(counts.collect::<Vec<_>>(), [("vxlan-no-fdb", 3, 3)]);
    }
}
