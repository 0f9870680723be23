//! A capture written again: with the packets that are wanted, and without names where that is wanted.

use std::collections::HashSet;
use std::path::Path;

use crate::anonymize::Anonymizer;
use crate::capture::{ReadError, Reader, Record, Replay, Rewriter, Written};
use crate::filter::Filter;
use crate::printer::{Format, Printer, Show};

/// What to write again.
#[derive(Default)]
pub struct Wanted<'a> {
    /// Numbers of journeys; `None` for everything, events without a journey included.
    pub journeys: Option<HashSet<u64>>,
    /// Names are replaced by it.
    pub mapping: Option<&'a Anonymizer>,
}

impl Wanted<'_> {
    fn wants(&self, record: &Record) -> bool {
        let (Record::Event(sighting), Some(journeys)) = (record, &self.journeys) else {
            return true;
        };
        sighting
            .journey
            .is_some_and(|number| journeys.contains(&number))
    }
}

/// How writing again ended.
pub struct Again {
    /// What was written; `None` for a capture of another program, of which nothing was.
    pub written: Option<Written>,
    /// Why before the end of the file.
    pub error: Option<ReadError>,
}

/// Numbers of the journeys that a filter matches. `progress` is told the position now and then.
///
/// # Errors
/// Never of the file: what is before damage counts.
pub fn matching(
    reader: &mut Reader,
    filter: Filter,
    progress: impl FnMut(u64),
) -> anyhow::Result<HashSet<u64>> {
    let mut replay = Replay::new(Printer::new(Format::Silent, Show::All));
    replay.analysis().only(filter);
    let mut wanted = HashSet::new();
    replay.run(reader, progress, |journey, _| {
        wanted.insert(journey.id);
    })?;
    Ok(wanted)
}

/// Reads to the end or to the first damage, and writes what is wanted. `progress` is told the position now
/// and then.
///
/// # Errors
/// When the new capture cannot be written.
pub fn again(
    reader: &mut Reader,
    wanted: &Wanted<'_>,
    out: &Path,
    progress: impl FnMut(u64),
) -> anyhow::Result<Again> {
    let mut rewriter: Option<Rewriter> = None;
    let mut foreign = false;
    let error = reader.each(progress, |record, _| {
        foreign |= rewriter.is_none() && !matches!(record, Record::Header(_));
        if foreign || !wanted.wants(&record) {
            return Ok(());
        }
        let record = match wanted.mapping {
            Some(mapping) => mapping.record(record)?,
            None => Some(record),
        };
        match (record, &mut rewriter) {
            (Some(Record::Header(header)), none @ None) => {
                *none = Some(Rewriter::create(out.to_owned(), *header)?);
            }
            (Some(Record::Event(sighting)), Some(rewriter)) => rewriter.event(sighting, true)?,
            // The beginning of a rotated file that goes on with the one before it.
            (Some(Record::Header(_)), Some(_)) | (None, _) | (Some(_), None) => {}
            (Some(record), Some(rewriter)) => rewriter.record(record)?,
        }
        Ok(())
    })?;
    let written = rewriter.map(Rewriter::finish).transpose()?;
    Ok(Again { written, error })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn looking_for_what_matches_says_how_far_it_is() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("long.pcapng");
        let mut rewriter =
            Rewriter::create(path.clone(), crate::capture::Header::default()).expect("a capture");
        for now_ns in 0..5_000 {
            let control = crate::capture::Control::Loss { now_ns };
            rewriter.record(Record::Control(control)).expect("room");
        }
        rewriter.finish().expect("room");
        let mut told = 0;
        let mut reader = Reader::open(&path).expect("a capture");
        matching(&mut reader, Filter::default(), |position| told = position).expect("journeys");
        assert!(told > 0);
    }
}
