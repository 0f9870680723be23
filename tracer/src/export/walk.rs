//! Reads a capture once and hands out journeys, events, flows and diagnoses.

use super::table::{Reached, Row, Seen, Told};
use crate::capture::{Control, ReadError, Reader, Record, Replay};
use crate::event::Event;
use crate::filter::Filter;
use crate::flow::Flow;
use crate::printer::{Format, Printer, Show};
use crate::view::model::JourneyView;
use crate::view::names::Names;
use crate::view::table::EventRow;

/// Who takes what a capture holds.
pub trait Sink {
    /// A packet's way.
    ///
    /// # Errors
    /// When it cannot be written.
    fn journey(&mut self, row: Row<'_, Told<'_>>) -> anyhow::Result<()>;

    /// An event.
    ///
    /// # Errors
    /// When it cannot be written.
    fn event(&mut self, row: Row<'_, Seen<'_>>) -> anyhow::Result<()>;

    /// A flow, with the names as they were at the end.
    ///
    /// # Errors
    /// When it cannot be written.
    fn flow(&mut self, flow: &Flow, names: &Names<'_>, node: &str) -> anyhow::Result<()>;

    /// A diagnosis.
    ///
    /// # Errors
    /// When it cannot be written.
    fn diagnosis(&mut self, row: Row<'_, Reached<'_>>) -> anyhow::Result<()>;
}

/// What a machine is called in another program's capture.
const NOBODY: &str = "-";

/// Reads to the end or to the first damage, which is given back; what is before it is handed out.
///
/// Of the events those are handed out that match the filter by themselves, of the rest what is of a flow
/// that matches.
///
/// # Errors
/// When the sink cannot write.
pub fn walk(
    reader: &mut Reader,
    filter: Filter,
    sink: &mut impl Sink,
    progress: impl FnMut(u64),
) -> anyhow::Result<Option<ReadError>> {
    let mut replay = Replay::new(Printer::new(Format::Silent, Show::All));
    replay.analysis().only(filter.clone());
    let mut walk = Walk {
        sink,
        node: NOBODY.to_owned(),
        now_ns: 0,
        told: 0,
        failed: Ok(()),
    };
    let error = reader.each(progress, |record, reader| {
        walk.see(&record, &mut replay, reader, &filter)?;
        replay.take(record, reader, &mut |journey, names| {
            walk.tell(journey, names)
        })?;
        walk.settle(&mut replay)
    })?;
    replay.finish(&mut |journey, names| walk.tell(journey, names))?;
    walk.settle(&mut replay)?;
    let analysis = replay.analysis();
    let mut flows: Vec<_> = analysis.flows().iter().collect();
    flows.sort_unstable_by_key(|flow| flow.id);
    let names = analysis.names();
    for flow in flows {
        walk.sink.flow(flow, &names, &walk.node)?;
    }
    Ok(error)
}

struct Walk<'s, S> {
    sink: &'s mut S,
    node: String,
    /// CLOCK_MONOTONIC of what was read last, nanoseconds.
    now_ns: u64,
    /// Diagnoses that were handed out.
    told: usize,
    /// The first failure to write a journey: who is told of journeys cannot give it back.
    failed: anyhow::Result<()>,
}

impl<S: Sink> Walk<'_, S> {
    /// Looks at a record before the replay takes it.
    fn see(
        &mut self,
        record: &Record,
        replay: &mut Replay,
        reader: &Reader,
        filter: &Filter,
    ) -> anyhow::Result<()> {
        match record {
            Record::Header(header) => self.node.clone_from(&header.node),
            Record::Control(Control::Step { now_ns, .. } | Control::Finish { now_ns }) => {
                self.now_ns = *now_ns;
            }
            Record::Event(sighting) => {
                self.now_ns = sighting.event.time_ns;
                let names = replay.analysis().names();
                self.event(&sighting.event, sighting.journey, &names, filter)?;
            }
            Record::Packet(packet) => {
                self.now_ns = packet.time_ns;
                let event = replay.as_event(packet, reader);
                let names = replay.analysis().names();
                self.event(&event, None, &names, filter)?;
            }
            _ => {}
        }
        Ok(())
    }

    fn event(
        &mut self,
        event: &Event,
        journey: Option<u64>,
        names: &Names<'_>,
        filter: &Filter,
    ) -> anyhow::Result<()> {
        let name_of = |netns, ifindex| Some(names.device(Some(netns), ifindex));
        if !filter.matches_event(event, &name_of) {
            return Ok(());
        }
        let row = EventRow::new(event, journey, None, names);
        self.sink.event(Row {
            of: &Seen { event, row: &row },
            names,
            node: &self.node,
        })
    }

    fn tell(&mut self, journey: &crate::journey::Journey, names: &Names<'_>) {
        let Some(view) = JourneyView::new(journey, names) else {
            return;
        };
        if self.failed.is_ok() {
            self.failed = self.sink.journey(Row {
                of: &Told {
                    journey,
                    view: &view,
                },
                names,
                node: &self.node,
            });
        }
    }

    /// Hands out the diagnoses that are new.
    fn settle(&mut self, replay: &mut Replay) -> anyhow::Result<()> {
        std::mem::replace(&mut self.failed, Ok(()))?;
        if replay.diagnoses().len() == self.told {
            return Ok(());
        }
        let diagnoses = replay.diagnoses()[self.told..].to_vec();
        self.told += diagnoses.len();
        let names = replay.analysis().names();
        let time_ns = names.clock.wall_ns(self.now_ns);
        for diagnosis in &diagnoses {
            self.sink.diagnosis(Row {
                of: &Reached { diagnosis, time_ns },
                names: &names,
                node: &self.node,
            })?;
        }
        Ok(())
    }
}
