//! Feeds a capture to the analysis that a live trace feeds.

use std::sync::Arc;
use std::time::Duration;

use tracer_ebpf::hook::HookId;

use super::reader::{ReadError, Reader};
use super::record::{Control, Counters, Header, Packet, Record};
use crate::analysis::{Analysis, Kernel};
use crate::cause::Diagnosis;
use crate::event::{Detail, Event};
use crate::journey::Journey;
use crate::kernel::reasons::DropReasons;
use crate::kernel::symbols::{Symbols, Table};
use crate::node::{Link, NetnsFacts, NetnsId, Occasion, Reading, Snapshot, Source};
use crate::printer::Printer;
use crate::view::model::SummaryView;
use crate::view::names::Names;

/// Pause between two looks at packets that another program captured, by their times.
const LOOK_NS: u64 = 100_000_000;
/// Packets between two looks where times stand still.
const LOOK_PACKETS: u64 = 65_536;

/// A capture being explained.
pub struct Replay {
    analysis: Analysis,
    header: Option<Header>,
    counters: Counters,
    diagnoses: Vec<Diagnosis>,
    /// How many of them are of phases that are over.
    concluded: usize,
    /// Number of interfaces that a made-up namespace describes.
    described: usize,
    packets: u64,
    /// From 1: how often everything was forgotten, and one.
    phase: usize,
    first_ns: Option<u64>,
    last_ns: u64,
    looked_ns: u64,
    finished: bool,
    /// Nothing but the header was read so far.
    fresh: bool,
}

/// How a replay ended.
#[derive(Debug)]
pub struct Ended {
    /// Why before the end of the file.
    pub error: Option<ReadError>,
}

impl Replay {
    /// Nothing read yet.
    pub fn new(printer: Printer) -> Self {
        Self {
            analysis: Analysis::new(Source::recorded(), Kernel::default(), printer),
            header: None,
            counters: Counters::default(),
            diagnoses: Vec::new(),
            concluded: 0,
            described: 0,
            packets: 0,
            phase: 1,
            first_ns: None,
            last_ns: 0,
            looked_ns: 0,
            finished: false,
            fresh: false,
        }
    }

    /// Reads to the end, or to the first damage; what comes before it is used. `progress` is told the
    /// position now and then, `met` each journey that the printer wants, with the names as they are then.
    ///
    /// # Errors
    /// When printing fails.
    pub fn run(
        &mut self,
        reader: &mut Reader,
        progress: impl FnMut(u64),
        mut met: impl FnMut(&Journey, &Names<'_>),
    ) -> anyhow::Result<Ended> {
        let error = reader.each(progress, |record, reader| {
            self.take(record, reader, &mut met)
        })?;
        self.finish(&mut met)?;
        Ok(Ended { error })
    }

    /// Takes one record.
    ///
    /// # Errors
    /// When printing fails.
    pub fn take(
        &mut self,
        record: Record,
        reader: &Reader,
        met: &mut impl FnMut(&Journey, &Names<'_>),
    ) -> anyhow::Result<()> {
        match record {
            Record::Header(header) => self.begin(*header),
            Record::Event(sighting) => {
                self.fresh = false;
                self.saw(sighting.event.time_ns);
                if let Some(journey) = sighting.journey {
                    self.analysis.collector().number_next(journey);
                }
                self.analysis.push(sighting.event);
            }
            Record::Packet(packet) => self.take_packet(&packet, reader, met)?,
            Record::Control(control) => self.control(control, met)?,
            Record::Facts(reading) => {
                let collector = self.analysis.collector();
                collector.add_reading(reading);
                // What a rotated file begins with was known before.
                if self.fresh {
                    collector.catch_up();
                }
            }
            Record::Symbols(symbols) => {
                for (address, name) in symbols {
                    self.analysis.kernel().symbols.insert(address, &name);
                }
            }
            Record::Cluster(facts) => self.analysis.set_cluster(facts),
            Record::Counters(counters) => self.counters = counters,
            // The same is found again.
            Record::Diagnosis(_) => {}
        }
        Ok(())
    }

    /// A header begins a capture; that of the next rotated file goes on with it.
    fn begin(&mut self, header: Header) {
        let reasons: DropReasons = header.reasons.iter().cloned().collect();
        let of_sockets = reasons.iter().collect();
        self.analysis.collector().set_socket_reasons(of_sockets);
        *self.analysis.kernel() = Kernel {
            reasons: Arc::new(reasons),
            symbols: Table::Read(Arc::new(Symbols::default())),
            clock: header.clock(),
        };
        self.header = Some(header);
        self.fresh = true;
    }

    fn saw(&mut self, time_ns: u64) {
        self.first_ns.get_or_insert(time_ns);
        self.last_ns = self.last_ns.max(time_ns);
    }

    fn control(
        &mut self,
        control: Control,
        met: &mut impl FnMut(&Journey, &Names<'_>),
    ) -> anyhow::Result<()> {
        self.fresh = false;
        match control {
            Control::Step { now_ns, hurry } => {
                let step = self.analysis.step(now_ns, hurry, &mut *met)?;
                self.diagnoses.extend(step.diagnoses);
                self.last_ns = self.last_ns.max(now_ns);
            }
            Control::Loss { now_ns } => {
                self.analysis.collector().mark_loss(now_ns);
                return Ok(());
            }
            Control::Forget => {
                // What was read before it is forgotten with the rest.
                self.analysis.collector().catch_up();
                self.analysis.forget();
                self.phase += 1;
                self.concluded = self.diagnoses.len();
            }
            Control::Finish { now_ns } => {
                self.analysis.finish(now_ns, &mut *met)?;
                self.finished = true;
            }
        }
        self.analysis.collector().catch_up();
        Ok(())
    }

    /// A packet of another program.
    fn take_packet(
        &mut self,
        packet: &Packet,
        reader: &Reader,
        met: &mut impl FnMut(&Journey, &Names<'_>),
    ) -> anyhow::Result<()> {
        self.saw(packet.time_ns);
        let event = self.event(packet, reader);
        self.analysis.push(event);
        if self.last_ns.saturating_sub(self.looked_ns) >= LOOK_NS
            || self.packets.is_multiple_of(LOOK_PACKETS)
        {
            self.looked_ns = self.last_ns;
            let step = self.analysis.step(self.last_ns, false, &mut *met)?;
            self.diagnoses.extend(step.diagnoses);
        }
        Ok(())
    }

    /// A packet of another program as an event: a device saw it, and no more is known.
    pub fn event(&mut self, packet: &Packet, reader: &Reader) -> Event {
        self.packets += 1;
        self.as_event(packet, reader)
    }

    /// The same without counting it: to look at it before it is taken.
    pub fn as_event(&mut self, packet: &Packet, reader: &Reader) -> Event {
        self.describe(reader);
        let outbound = packet.outbound == Some(true);
        let ifindex = packet.interface.saturating_add(1);
        Event {
            time_ns: packet.time_ns,
            // Nothing tells whether two sights are of one packet.
            skb: self.packets,
            netns: Some(0),
            ifindex: Some(ifindex),
            length: Some(packet.length),
            mark: None,
            hook: if outbound {
                HookId::DeviceTransmit
            } else {
                HookId::DeviceReceive
            },
            detail: if outbound {
                Detail::Device { ifindex }
            } else {
                Detail::None
            },
            not_ip: packet.headers.is_none(),
            arp: packet.arp,
            packet: packet.headers.clone(),
        }
    }

    /// Names the interfaces of another program's file, as devices of one namespace.
    fn describe(&mut self, reader: &Reader) {
        let interfaces = reader.interfaces();
        if self.described == interfaces.len() {
            return;
        }
        self.described = interfaces.len();
        let mut namespace = NetnsFacts::unread(NetnsId(0), Some("capture"));
        namespace.links = (1..)
            .zip(interfaces)
            .map(|(index, interface)| Link::named(index, interface.name.clone()))
            .collect();
        let mut facts = Snapshot::empty();
        facts.namespaces.push(namespace);
        let reading = Reading {
            occasion: Occasion::Names,
            facts: Arc::new(facts),
        };
        let collector = self.analysis.collector();
        collector.add_reading(reading);
        collector.catch_up();
    }

    /// Ends what was under way at the end, where the file does not say how it went on; gives what it all
    /// came to.
    ///
    /// # Errors
    /// When printing fails.
    pub fn finish(
        &mut self,
        met: &mut impl FnMut(&Journey, &Names<'_>),
    ) -> anyhow::Result<SummaryView> {
        let now_ns = self.last_ns;
        if !self.finished {
            self.analysis.finish(now_ns, &mut *met)?;
            let step = self.analysis.step(now_ns, true, &mut *met)?;
            self.diagnoses.extend(step.diagnoses);
        }
        self.analysis.collector().catch_up();
        let mut summary = self.analysis.summary(now_ns);
        let first = self.first_ns.unwrap_or(now_ns);
        summary.seconds = Duration::from_nanos(now_ns.saturating_sub(first)).as_secs_f64();
        summary.lost.clone_from(&self.counters.lost);
        summary.left_out = self.counters.left_out;
        summary.kernel_runs = self.counters.kernel_runs;
        summary.kernel_ms = self.counters.kernel_ns as f64 / 1e6;
        summary.process_ms = self.counters.process_us as f64 / 1e3;
        self.analysis.printer().summary(&summary)?;
        Ok(summary)
    }

    /// Who traced what; `None` for another program's file.
    pub const fn header(&self) -> Option<&Header> {
        self.header.as_ref()
    }

    /// Diagnoses so far, each with the counts of when it was reached.
    pub fn diagnoses(&self) -> &[Diagnosis] {
        &self.diagnoses
    }

    /// Diagnoses of this phase with the counts that they have come to; the last word on each subject.
    pub fn conclusions(&self) -> Vec<Diagnosis> {
        let reached = self.diagnoses.get(self.concluded..).unwrap_or_default();
        let mut last: Vec<Diagnosis> = Vec::new();
        for diagnosis in reached {
            let same = |known: &Diagnosis| {
                known.code == diagnosis.code && known.subject == diagnosis.subject
            };
            match last.iter().position(same) {
                Some(index) => last[index] = diagnosis.clone(),
                None => last.push(diagnosis.clone()),
            }
        }
        for diagnosis in &mut last {
            self.analysis.recount(diagnosis);
        }
        last
    }

    /// Number of the phase that is being read. Flows are numbered in each from the beginning.
    pub const fn phase(&self) -> usize {
        self.phase
    }

    /// What the analysis of this phase holds so far.
    pub const fn held(&self) -> &Analysis {
        &self.analysis
    }

    /// The analysis with all that it knows.
    pub const fn analysis(&mut self) -> &mut Analysis {
        &mut self.analysis
    }
}
