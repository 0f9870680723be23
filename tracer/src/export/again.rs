//! A capture written again: with the packets that are wanted, and without names where that is wanted.

use std::collections::HashSet;
use std::path::Path;

use super::walk::matches;
use crate::analysis::Depth;
use crate::anonymize::Anonymizer;
use crate::capture::{ReadError, Reader, Record, Replay, Rewriter, Sighting, Written};
use crate::event::Event;
use crate::filter::Filter;
use crate::journey::Journey;
use crate::printer::{Format, Printer, Show};
use crate::view::names::Names;

/// What to write again.
#[derive(Default)]
pub struct Wanted<'a> {
    /// Which events; `None` for all.
    pub events: Option<Matching>,
    /// Names are replaced by it.
    pub mapping: Option<&'a Anonymizer>,
}

/// Events that a filter matches.
#[derive(Default)]
pub struct Matching {
    /// Numbers of their journeys.
    journeys: HashSet<u64>,
    /// ARP, whose journeys a capture does not number: which event of the capture, from 0.
    arp: HashSet<usize>,
}

impl Matching {
    fn wants(&self, number: usize, event: &Sighting) -> bool {
        match event.journey {
            Some(journey) => self.journeys.contains(&journey),
            None => self.arp.contains(&number),
        }
    }
}

/// How writing again ended.
pub struct Again {
    /// What was written; `None` for a capture of another program, of which nothing was.
    pub written: Option<Written>,
    /// Why before the end of the file.
    pub error: Option<ReadError>,
}

/// Looks for what a filter matches. `progress` is told the position now and then.
///
/// # Errors
/// Never of the file: what is before damage counts.
pub fn matching(
    reader: &mut Reader,
    filter: Filter,
    progress: impl FnMut(u64),
) -> anyhow::Result<Matching> {
    let mut replay = Replay::new(Printer::new(Format::Silent, Show::All));
    replay.analysis().only(filter.clone());
    replay.analysis().follow_to(Depth::Journeys);
    let mut journeys = HashSet::new();
    let mut arp = HashSet::new();
    let mut met = |journey: &Journey, _: &Names<'_>| {
        // The replay's own numbers are not the capture's.
        if !journey.is_arp() {
            journeys.insert(journey.id);
        }
    };
    let mut number = 0;
    reader.each(progress, |record, reader| {
        if let Record::Event(sighting) = &record {
            if sighting.journey.is_none() && arp_matches(&filter, &sighting.event, &replay) {
                arp.insert(number);
            }
            number += 1;
        }
        replay.take(record, reader, &mut met)
    })?;
    replay.finish(&mut met)?;
    Ok(Matching { journeys, arp })
}

/// True for ARP that is asked for.
fn arp_matches(filter: &Filter, event: &Event, replay: &Replay) -> bool {
    if event.arp.is_none() || !filter.asks_for_arp() {
        return false;
    }
    let mut event = event.clone();
    event.follow_arp();
    matches(filter, &event, &replay.held().names())
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
    let mut number = 0;
    let error = reader.each(progress, |record, _| {
        foreign |= rewriter.is_none() && !matches!(record, Record::Header(_));
        if foreign {
            return Ok(());
        }
        if let Record::Event(sighting) = &record {
            let events = wanted.events.as_ref();
            let left_out = events.is_some_and(|events| !events.wants(number, sighting));
            number += 1;
            if left_out {
                return Ok(());
            }
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
            (Some(Record::Header(header)), Some(rewriter)) => rewriter.go_on_with(*header)?,
            (None, _) | (Some(_), None) => {}
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
    use crate::capture::There;
    use crate::filter::Expression;

    fn events(file: &Path) -> Vec<Event> {
        let mut events = Vec::new();
        let mut reader = Reader::open(file).expect("a capture");
        let error = reader.each(
            |_| {},
            |record, _| {
                if let Record::Event(sighting) = record {
                    events.push(sighting.event);
                }
                Ok(())
            },
        );
        assert!(error.expect("records").is_none());
        events
    }

    #[test]
    fn arp_is_written_again_where_it_is_asked_for() {
        let captures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/captures");
        let file = captures.join("vxlan-no-fdb.pcapng");
        let folder = tempfile::tempdir().expect("a folder");
        for (words, arp) in [("arp", true), ("udp or tcp", false)] {
            let mut reader = Reader::open(&file).expect("a capture");
            let expression = Expression::parse(words).expect("an expression");
            let filter = (expression.resolve(&There::default())).expect("a filter");
            let wanted = Wanted {
                events: Some(matching(&mut reader, filter, |_| {}).expect("journeys")),
                mapping: None,
            };
            let out = folder.path().join("again.pcapng");
            let mut reader = Reader::open(&file).expect("a capture");
            again(&mut reader, &wanted, &out, |_| {}).expect("room");
            let asked = |event: &Event| event.arp.is_some() == arp;
            let (all, some) = (events(&file), events(&out));
            assert!(!some.is_empty() && some.iter().all(asked), "{words}");
            if arp {
                assert_eq!(some.len(), all.iter().filter(|event| asked(event)).count());
            }
            std::fs::remove_file(out).expect("it was written");
        }
    }

    #[test]
    fn joined_captures_of_several_traces_keep_their_headers() {
        let captures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/captures");
        let file = |name| std::fs::read(captures.join(name)).expect("a capture");
        let one = file("service-no-endpoints.pcapng");
        let two = file("vip-nodeport-unbound.pcapng");
        let folder = tempfile::tempdir().expect("a folder");
        let joined = folder.path().join("joined.pcapng");
        // The first as a trace that rotates: its next file begins with the same header.
        std::fs::write(&joined, [&one[..], &one, &two].concat()).expect("room");
        let out = folder.path().join("again.pcapng");
        let mut reader = Reader::open(&joined).expect("a capture");
        again(&mut reader, &Wanted::default(), &out, |_| {}).expect("room");
        let headers = |file: &Path| {
            let mut headers = Vec::new();
            let mut reader = Reader::open(file).expect("a capture");
            let error = reader.each(
                |_| {},
                |record, _| {
                    if let Record::Header(header) = record {
                        headers.push(*header);
                    }
                    Ok(())
                },
            );
            assert!(error.expect("records").is_none());
            headers
        };
        let all = headers(&joined);
        assert_eq!((all.len(), &all[0]), (3, &all[1]));
        assert_ne!(all[1], all[2]);
        assert_eq!(headers(&out), all[1..]);
        assert_eq!(events(&out), events(&joined));
    }

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
