//! All captures as one, in the order of the first one's clock.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::path::Path;

use super::clock::Offset;
use super::facts::Known;
use super::pair::Pairs;
use super::sight::Sight;
use super::space::Space;
use crate::capture::{
    BETWEEN_PROGRESS, Control, Header, ReadError, Reader, Record, Rewriter, Sighting, Written,
};
use crate::view::names::Clock;

/// A capture being read.
struct Thread {
    reader: Reader,
    space: Space,
    clock: Clock,
    /// Nanoseconds that this clock is before the first one's.
    offset_ns: i64,
    /// The record that comes next.
    next: Option<Record>,
    /// Time of the last event up to it.
    at_ns: u64,
    error: Option<ReadError>,
}

impl Thread {
    /// A time of this node by the result's clock, whose two faces are the same: nanoseconds since 1970.
    fn aligned(&self, time_ns: u64) -> u64 {
        let wall = self.clock.wall_ns(time_ns);
        wall.saturating_add_signed(self.offset_ns.saturating_neg())
    }

    fn advance(&mut self) {
        self.next = match self.reader.next() {
            Ok(record) => record,
            Err(error) => {
                self.error = Some(error);
                None
            }
        };
        if let Some(Record::Event(sighting)) = &self.next {
            self.at_ns = self.at_ns.max(self.aligned(sighting.event.time_ns));
        }
    }
}

/// Writes the result; gives what was wrong with each capture. `progress` is told the bytes read now and then.
///
/// # Errors
/// When the result cannot be written.
pub(super) fn weave(
    readers: Vec<Reader>,
    sights: &[Sight],
    offsets: &[Offset],
    pairs: &Pairs,
    out: &Path,
    mut progress: impl FnMut(u64),
) -> anyhow::Result<(Written, Vec<Option<ReadError>>)> {
    let mut header = header(sights);
    let mut threads = Vec::with_capacity(readers.len());
    for (number, ((reader, sight), offset)) in
        readers.into_iter().zip(sights).zip(offsets).enumerate()
    {
        let own = &sight.header;
        let mut thread = Thread {
            reader,
            space: Space::new(number, own, &mut header.reasons),
            clock: own.clock(),
            offset_ns: offset.clock_ns.unwrap_or(0),
            next: None,
            at_ns: 0,
            error: None,
        };
        thread.advance();
        threads.push(thread);
    }
    let several = sights
        .iter()
        .any(|sight| sight.header.node != sights[0].header.node);
    let nodes = threads.iter().zip(sights).map(|(thread, sight)| {
        let name = several.then(|| sight.header.node.clone());
        (thread.space.clone(), name)
    });
    let mut known = Known::new(nodes.collect());
    let mut rewriter = Rewriter::create(out.to_owned(), header)?;
    // A node looks while events of a moment ago are on their way to it, and goes on to look behind its last
    // one. All nodes look together once the events of all are past that moment.
    let mut moments = BinaryHeap::new();
    let mut now_ns = 0;
    let mut records = 0u64;
    while let Some(number) = earliest(&threads) {
        let thread = &mut threads[number];
        let Some(record) = thread.next.take() else {
            continue;
        };
        now_ns = now_ns.max(thread.at_ns);
        look(&mut rewriter, &mut moments, thread.at_ns)?;
        if let Record::Control(Control::Step { now_ns, .. }) = record {
            moments.push(Reverse(thread.aligned(now_ns)));
        } else {
            take(number, record, thread, pairs, &mut known, &mut rewriter)?;
        }
        thread.advance();
        records += 1;
        if records.is_multiple_of(BETWEEN_PROGRESS) {
            progress(threads.iter().map(|thread| thread.reader.position()).sum());
        }
    }
    look(&mut rewriter, &mut moments, u64::MAX)?;
    // As a live trace ends, once for all.
    rewriter.record(Record::Control(Control::Finish { now_ns }))?;
    rewriter.record(Record::Control(Control::Step {
        now_ns,
        hurry: true,
    }))?;
    let errors = threads.into_iter().map(|thread| thread.error).collect();
    Ok((rewriter.finish()?, errors))
}

/// The moments before a time.
fn look(
    rewriter: &mut Rewriter,
    moments: &mut BinaryHeap<Reverse<u64>>,
    before_ns: u64,
) -> anyhow::Result<()> {
    while let Some(&Reverse(now_ns)) = moments.peek()
        && now_ns < before_ns
    {
        moments.pop();
        // What another node still has to say counts as well.
        let hurry = false;
        rewriter.record(Record::Control(Control::Step { now_ns, hurry }))?;
    }
    Ok(())
}

/// The capture whose next record comes first.
fn earliest(threads: &[Thread]) -> Option<usize> {
    (threads.iter().enumerate())
        .filter(|(_, thread)| thread.next.is_some())
        .min_by_key(|(number, thread)| (thread.at_ns, *number))
        .map(|(number, _)| number)
}

fn take(
    number: usize,
    record: Record,
    thread: &Thread,
    pairs: &Pairs,
    known: &mut Known,
    rewriter: &mut Rewriter,
) -> anyhow::Result<()> {
    let aligned = |time_ns| thread.aligned(time_ns);
    let record = match record {
        Record::Event(sighting) => {
            let joined = pairs.name(number, sighting.journey, sighting.event.skb);
            let mut event = thread.space.event(sighting.event, joined);
            event.time_ns = aligned(event.time_ns);
            // Journeys are numbered anew: two halves are one.
            return rewriter.event(Sighting { event, ..sighting }, false);
        }
        Record::Control(Control::Loss { now_ns }) => Record::Control(Control::Loss {
            now_ns: aligned(now_ns),
        }),
        Record::Facts(reading) => Record::Facts(known.reading(number, reading, aligned)),
        Record::Cluster(facts) => Record::Cluster(known.cluster(number, facts)),
        Record::Counters(counters) => Record::Counters(known.counters(number, counters, aligned)),
        Record::Symbols(symbols) => Record::Symbols(
            symbols
                .into_iter()
                .map(|(address, name)| (thread.space.address(address), name))
                .collect(),
        ),
        // Others may go on after one ended, and what each found is found again of all together.
        Record::Control(Control::Step { .. } | Control::Finish { .. } | Control::Forget)
        | Record::Diagnosis(_)
        | Record::Header(_)
        | Record::Packet(_) => return Ok(()),
    };
    rewriter.record(record)
}

/// The result's header; drop reasons are added one capture after the other.
fn header(sights: &[Sight]) -> Header {
    let all = |field: fn(&Header) -> &str| {
        let mut texts: Vec<&str> = sights.iter().map(|sight| field(&sight.header)).collect();
        texts.dedup();
        texts.retain(|text| !text.is_empty());
        texts.join(", ")
    };
    let first = sights.first().map(|sight| &sight.header);
    let mut attached = Vec::new();
    for sight in sights {
        for hook in &sight.header.attached {
            if !attached.contains(hook) {
                attached.push(hook.clone());
            }
        }
    }
    let not_seen = sights.iter().flat_map(|sight| {
        let header = &sight.header;
        let lines = header.not_seen.iter();
        lines.map(|line| format!("{}: {line}", header.node))
    });
    let wall_ns = first.map_or(0, |header| header.wall_ns);
    Header {
        node: all(|header| &header.node),
        kernel: all(|header| &header.kernel),
        tool: env!("CARGO_PKG_VERSION").into(),
        filter: all(|header| &header.filter),
        attached,
        not_seen: not_seen.collect(),
        reasons: Vec::new(),
        wall_ns,
        monotonic_ns: wall_ns,
    }
}
