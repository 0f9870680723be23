//! `tracer show`: what a capture holds, as tables.

use std::io::{BufWriter, Write, stdout};
use std::path::PathBuf;

use clap::Args;

use super::explain::{damaged, filter, open, say_skipped};
use super::progress::Progress;
use super::{Exit, Failure, Output, OutputFormat};
use crate::analysis::Depth;
use crate::capture::{ReadError, Reader, Record, Replay};
use crate::export::matches;
use crate::filter::Filter;
use crate::printer::{Format, Printer, Show};
use crate::view::json;
use crate::view::model::JourneyView;
use crate::view::table::{self, EventRow, FlowRow};

/// What was typed.
#[derive(Args, Debug)]
pub(super) struct Arguments {
    /// A capture: pcapng or pcap, of this or another program, also packed with gzip or zstd.
    file: PathBuf,
    /// Packets to show, in the words of `tracer run`; none for all.
    #[arg(value_name = "FILTER")]
    filter: Vec<String>,
    #[command(flatten)]
    what: What,
}

#[derive(Args, Debug)]
#[group(multiple = false)]
struct What {
    /// One line for each packet's journey (the default).
    #[arg(long)]
    journeys: bool,
    /// One line for each flow; of each phase at most the million heard of last.
    #[arg(long)]
    flows: bool,
    /// One line for each event.
    #[arg(long)]
    events: bool,
}

pub(super) fn run(arguments: &Arguments, output: &Output) -> Result<Exit, Failure> {
    let mut reader = open(&arguments.file)?;
    let mut out = BufWriter::with_capacity(1 << 16, stdout().lock());
    let json = output.format == OutputFormat::Json;
    let mut progress = Progress::beside_output(&arguments.file, reader.is_packed());
    let filter = filter(&arguments.filter, &arguments.file)?;
    let moved = |position| progress.moved(position);
    let error = if arguments.what.events {
        events(&mut reader, &mut out, json, &filter, moved)?
    } else if arguments.what.flows {
        flows(&mut reader, &mut out, json, filter, moved)?
    } else {
        journeys(&mut reader, &mut out, json, filter, moved)?
    };
    drop(progress);
    out.flush()?;
    say_skipped(&reader);
    match error {
        Some(error) => Err(damaged(&arguments.file, error)),
        None => Ok(Exit::Healthy),
    }
}

fn journeys(
    reader: &mut Reader,
    out: &mut impl Write,
    json: bool,
    filter: Filter,
    progress: impl FnMut(u64),
) -> anyhow::Result<Option<ReadError>> {
    let mut replay = Replay::new(Printer::new(Format::Silent, Show::All));
    replay.analysis().only(filter);
    replay.analysis().follow_to(Depth::Journeys);
    let mut written = Ok(());
    let ended = replay.run(reader, progress, |journey, names| {
        if written.is_ok()
            && let Some(view) = JourneyView::new(journey, names)
        {
            written = if json {
                json::line(out, "journey", &view)
            } else {
                table::journey(out, &view)
            };
        }
    })?;
    written?;
    Ok(ended.error)
}

fn flows(
    reader: &mut Reader,
    out: &mut impl Write,
    json: bool,
    filter: Filter,
    progress: impl FnMut(u64),
) -> anyhow::Result<Option<ReadError>> {
    let mut replay = Replay::new(Printer::new(Format::Silent, Show::Nothing));
    replay.analysis().only(filter);
    replay.analysis().follow_to(Depth::Flows);
    let error = reader.each(progress, |record, reader| {
        if record.ends_phase() {
            phase(&replay, out, json)?;
        }
        replay.take(record, reader, &mut |_, _| {})
    })?;
    replay.finish(&mut |_, _| {})?;
    phase(&replay, out, json)?;
    Ok(error)
}

/// The flows of a phase that is over.
fn phase(replay: &Replay, out: &mut impl Write, json: bool) -> anyhow::Result<()> {
    let names = replay.held().names();
    for flow in replay.held().flows_in_order() {
        let row = FlowRow::new(replay.phase(), flow, &names);
        if json {
            json::line(out, "flow", &row)?;
        } else {
            table::flow(out, &row)?;
        }
    }
    Ok(())
}

fn events(
    reader: &mut Reader,
    out: &mut impl Write,
    json: bool,
    filter: &Filter,
    progress: impl FnMut(u64),
) -> anyhow::Result<Option<ReadError>> {
    let mut replay = Replay::new(Printer::new(Format::Silent, Show::Nothing));
    let arp = filter.asks_for_arp();
    reader.each(progress, |record, reader| {
        // Only names are wanted of everything else.
        let (mut event, journey, interface) = match record {
            Record::Event(sighting) => (sighting.event, sighting.journey, sighting.interface),
            Record::Packet(packet) => {
                let event = replay.event(&packet, reader);
                (event, None, Some(packet.interface))
            }
            Record::Header(_) | Record::Symbols(_) | Record::Cluster(_) => {
                return replay.take(record, reader, &mut |_, _| {});
            }
            Record::Facts(reading) => {
                let collector = replay.analysis().collector();
                collector.add_reading(reading);
                collector.catch_up();
                return Ok(());
            }
            Record::Control(_) | Record::Counters(_) | Record::Diagnosis(_) => return Ok(()),
        };
        if arp {
            event.follow_arp();
        }
        let names = replay.analysis().names();
        if !matches(filter, &event, &names) {
            return Ok(());
        }
        let interface = interface
            .and_then(|number| reader.interfaces().get(number as usize))
            .and_then(|interface| interface.name.as_deref());
        let row = EventRow::new(&event, journey, interface, &names);
        if json {
            json::line(out, "event", &row)?;
        } else {
            table::event(out, &row.with_names(&event, &names))?;
        }
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn what_is_only_shown_has_the_names_of_what_is_explained() {
        let captures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/captures");
        for name in [
            "service-no-endpoints",
            "vip-nodeport-unbound",
            "vxlan-no-fdb",
        ] {
            let file = captures.join(name).with_extension("pcapng");
            let mut reader = Reader::open(&file).expect("a capture");
            let mut explained = Vec::new();
            let mut replay = Replay::new(Printer::new(Format::Silent, Show::All));
            let ended = replay.run(
                &mut reader,
                |_| {},
                |journey, names| {
                    if let Some(view) = JourneyView::new(journey, names) {
                        json::line(&mut explained, "journey", &view).expect("room");
                    }
                },
            );
            assert!(ended.expect("journeys").error.is_none());
            assert!(!replay.diagnoses().is_empty());
            let mut shown = Vec::new();
            let mut reader = Reader::open(&file).expect("a capture");
            let everything = Filter::default();
            journeys(&mut reader, &mut shown, true, everything, |_| {}).expect("journeys");
            assert!(!shown.is_empty() && shown == explained, "{name}");
        }
    }
}
