//! Reads a capture once and hands out journeys, events, flows and diagnoses.

use std::borrow::Cow;
use std::collections::HashMap;

use super::table::{Kept, Reached, Row, Seen, Told};
use crate::capture::{Control, ReadError, Reader, Record, Replay};
use crate::event::Event;
use crate::filter::Filter;
use crate::printer::{Format, Printer, Show};
use crate::view::model::JourneyView;
use crate::view::names::Names;
use crate::view::table::{EventRow, FlowRow};

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

    /// A flow, with the names as they were at the end of its phase.
    ///
    /// # Errors
    /// When it cannot be written.
    fn flow(&mut self, row: Row<'_, Kept<'_>>) -> anyhow::Result<()>;

    /// A diagnosis, with the counts of the end of its phase; the last word on its subject.
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
        reached: 0,
        moments: HashMap::new(),
        failed: Ok(()),
    };
    let error = reader.each(progress, |record, reader| {
        if record.ends_phase() {
            walk.phase_ends(&replay)?;
        }
        walk.see(&record, &mut replay, reader, &filter)?;
        replay.take(record, reader, &mut |journey, names| {
            walk.tell(journey, names)
        })?;
        walk.settle(&replay)
    })?;
    replay.finish(&mut |journey, names| walk.tell(journey, names))?;
    walk.settle(&replay)?;
    walk.phase_ends(&replay)?;
    Ok(error)
}

/// True for an event that a filter matches by itself, without what happened to its packet before and after.
pub fn matches(filter: &Filter, event: &Event, names: &Names<'_>) -> bool {
    let name_of = |netns, ifindex| Some(names.device(Some(netns), ifindex));
    filter.matches_event(event, &name_of)
}

struct Walk<'s, S> {
    sink: &'s mut S,
    node: String,
    /// CLOCK_MONOTONIC of what was read last, nanoseconds.
    now_ns: u64,
    /// Diagnoses that were reached so far.
    reached: usize,
    /// When each of this phase was first reached, nanoseconds since 1970.
    moments: HashMap<(&'static str, String), u64>,
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
        let mut event = Cow::Borrowed(event);
        if event.arp.is_some() && filter.asks_for_arp() {
            event.to_mut().follow_arp();
        }
        let event = &*event;
        if !matches(filter, event, names) {
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

    /// Hands out the diagnoses and flows of a phase: they are complete, and will be forgotten.
    fn phase_ends(&mut self, replay: &Replay) -> anyhow::Result<()> {
        let names = replay.held().names();
        for diagnosis in &replay.conclusions() {
            let key = (diagnosis.code, diagnosis.subject.clone());
            let time_ns = self.moments.get(&key).copied().unwrap_or_default();
            self.sink.diagnosis(Row {
                of: &Reached { diagnosis, time_ns },
                names: &names,
                node: &self.node,
            })?;
        }
        self.moments.clear();
        for flow in replay.held().flows_in_order() {
            let row = FlowRow::new(replay.phase(), flow, &names);
            self.sink.flow(Row {
                of: &Kept { flow, row: &row },
                names: &names,
                node: &self.node,
            })?;
        }
        Ok(())
    }

    /// Notes when diagnoses were reached.
    fn settle(&mut self, replay: &Replay) -> anyhow::Result<()> {
        std::mem::replace(&mut self.failed, Ok(()))?;
        for diagnosis in &replay.diagnoses()[self.reached..] {
            let time_ns = replay.held().names().clock.wall_ns(self.now_ns);
            let key = (diagnosis.code, diagnosis.subject.clone());
            self.moments.entry(key).or_insert(time_ns);
        }
        self.reached = replay.diagnoses().len();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use serde_json::Value;

    use super::*;
    use crate::export::Lines;

    /// Objects of a kind out of a capture that the lab made.
    fn exported(name: &str, kind: &str) -> Vec<Value> {
        let captures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/captures");
        let mut reader = Reader::open(&captures.join(name)).expect("a capture");
        let mut text = Vec::new();
        let mut lines = Lines::new(&mut text);
        walk(&mut reader, Filter::default(), &mut lines, |_| {}).expect("room");
        let text = String::from_utf8(text).expect("text");
        let objects = text.lines().map(serde_json::from_str);
        let objects = objects.map(|object: Result<Value, _>| object.expect("an object"));
        objects.filter(|object| object["type"] == kind).collect()
    }

    #[test]
    fn flows_that_a_capture_forgets_are_handed_out_before() {
        // A reproduction: its fault, and behind it the fix, whose flows are numbered anew.
        let flows = exported("vip-nodeport-unbound.pcapng", "flow");
        let keys: BTreeSet<_> = flows
            .iter()
            .map(|flow| (flow["phase"].as_u64(), flow["id"].as_u64()))
            .collect();
        assert_eq!(keys.len(), flows.len());
        assert!(keys.iter().any(|&(phase, _)| phase > Some(1)), "{keys:?}");
        // The three connections that the diagnosis is about.
        let refused = flows
            .iter()
            .filter(|flow| flow["failed"] != 0 && flow["destination"] == "192.168.3.187:30000");
        assert_eq!(refused.count(), 3);
    }

    #[test]
    fn a_diagnosis_counts_the_connections_that_came_after_it_was_reached() {
        let found = exported("vxlan-no-fdb.pcapng", "diagnosis");
        let counts: Vec<_> = found
            .iter()
            .map(|found| (&found["cause"], &found["failed_connections"]))
            .collect();
        assert_eq!(counts, [(&"vxlan-no-fdb".into(), &3.into())]);
    }
}
