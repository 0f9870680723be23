//! Replays a capture and takes notes for a page.

use std::time::{Duration, SystemTime};

use super::reader::{ReadError, Reader};
use super::record::Header;
use super::replay::Replay;
use crate::analysis::Analysis;
use crate::filter::Filter;
use crate::printer::{Format, Printer, Show};
use crate::view::model::SummaryView;
use crate::view::report::{About, Notes, Report};

/// What reading a capture came to.
#[derive(Debug)]
pub struct Reported {
    /// What a page shows.
    pub report: Report,
    /// Why reading ended before the end of the file; what comes before is in the report.
    pub error: Option<ReadError>,
}

/// Replays a capture; only packets that match are reported on. `name` is that of the file, `progress`
/// is told the position now and then.
///
/// # Errors
/// When replaying fails for another reason than what is in the file.
pub fn report(
    name: String,
    reader: &mut Reader,
    only: Filter,
    progress: impl FnMut(u64),
) -> anyhow::Result<Reported> {
    let filter = only.to_string();
    let mut replay = Replay::new(Printer::new(Format::Silent, Show::All));
    replay.analysis().only(only);
    let mut notes = Notes::default();
    let error = read(reader, &mut replay, &mut notes, progress)?;
    let summary = end(&mut replay, &mut notes)?;
    let mut about = about(name, replay.header());
    about
        .filters
        .extend(Some(filter).filter(|filter| !filter.is_empty()));
    about.damage = error.as_ref().map(ToString::to_string);
    Ok(Reported {
        report: notes.report(about, summary),
        error,
    })
}

/// Reads to the end, or to the damage that is given.
fn read(
    reader: &mut Reader,
    replay: &mut Replay,
    notes: &mut Notes,
    progress: impl FnMut(u64),
) -> anyhow::Result<Option<ReadError>> {
    reader.each(progress, |record, reader| {
        if record.ends_phase() {
            phase_ends(replay, notes);
        }
        let known = replay.diagnoses().len();
        replay.take(record, reader, &mut |journey, names| {
            notes.journey(journey, names);
        })?;
        diagnosed(replay, known, notes);
        Ok(())
    })
}

fn end(replay: &mut Replay, notes: &mut Notes) -> anyhow::Result<SummaryView> {
    let known = replay.diagnoses().len();
    let summary = replay.finish(&mut |journey, names| notes.journey(journey, names))?;
    diagnosed(replay, known, notes);
    phase_ends(replay, notes);
    Ok(summary)
}

/// Takes down what was found since so many were known.
fn diagnosed(replay: &mut Replay, known: usize, notes: &mut Notes) {
    let new = replay.diagnoses().get(known..).unwrap_or_default().to_vec();
    let analysis = replay.analysis();
    for diagnosis in &new {
        notes.diagnosis(diagnosis, analysis.flows(), &analysis.names());
    }
}

fn phase_ends(replay: &mut Replay, notes: &mut Notes) {
    for diagnosis in replay.conclusions() {
        notes.recount(&diagnosis);
    }
    let analysis: &Analysis = replay.analysis();
    let stopped = |code: &str| analysis.stopped_by(code).collect();
    notes.phase_ends(analysis.flows(), &stopped, &analysis.names());
}

fn about(file: String, header: Option<&Header>) -> About {
    let Some(header) = header else {
        return About {
            file,
            ..About::default()
        };
    };
    let filter = Some(header.filter.clone()).filter(|filter| !filter.is_empty());
    About {
        file,
        node: header.node.clone(),
        kernel: header.kernel.clone(),
        tool: header.tool.clone(),
        filters: filter.into_iter().collect(),
        not_seen: header.not_seen.clone(),
        begin: SystemTime::UNIX_EPOCH.checked_add(Duration::from_nanos(header.wall_ns)),
        damage: None,
    }
}
