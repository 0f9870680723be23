//! From events to what is said: the collector with the names of one kernel and a printer.
//!
//! A live session feeds it from the ring buffer, a replay from a capture. Both say the same because
//! everything that is right of the events happens here.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::cause::{Certainty, Diagnosis, DropNames, REFUSE_DATAGRAMS};
use crate::collector::{Collector, Extent};
use crate::event::Event;
use crate::filter::{Filter, Following};
use crate::flow::{Flow, Flows};
use crate::journey::{Ending, Journey};
use crate::kernel::reasons::DropReasons;
use crate::kernel::symbols::{Symbols, Table};
use crate::kube::ClusterFacts;
use crate::metrics::{Meter, Who};
use crate::node::{NetnsId, Source};
use crate::printer::Printer;
use crate::view::model::{CauseCount, DeviceCount, JourneyView, SummaryView};
use crate::view::names::{Clock, Names};

/// What low cost does not see.
const LOW_COST: &str = "only lost packets are seen at low cost, not their way: tracer run shows it";

/// What the traced kernel calls things.
pub struct Kernel {
    /// Its drop reasons.
    pub reasons: Arc<DropReasons>,
    /// Its functions.
    pub symbols: Table,
    /// Its clock.
    pub clock: Clock,
}

/// How far events are followed; what lies beyond is neither kept nor looked for.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Depth {
    /// Journeys, which are told and forgotten.
    Journeys,
    /// Flows as well.
    Flows,
    /// The causes of failures as well.
    Causes,
}

/// The middle of the program at work.
pub struct Analysis {
    collector: Collector,
    kernel: Kernel,
    printer: Printer,
    /// Journeys that ended and are not yet told.
    ended: Vec<Journey>,
    /// Only journeys that it picks are told and judged.
    only: Following,
    depth: Depth,
    /// Namespaces are named even when nothing is shown: a capture holds their names.
    name_all: bool,
    /// The way of packets is not seen, only their loss.
    losses_only: bool,
    /// Who counts what is lost.
    meter: Option<Arc<Meter>>,
}

/// What one step came to.
#[derive(Default)]
pub struct Step {
    /// New diagnoses.
    pub diagnoses: Vec<Diagnosis>,
    /// Journeys ended, or a diagnosis was due.
    pub happened: bool,
}

impl Analysis {
    /// Nothing seen yet.
    pub fn new(source: Source, kernel: Kernel, printer: Printer) -> Self {
        let socket_reasons = kernel.reasons.iter().collect();
        Self {
            collector: Collector::new(source, socket_reasons),
            kernel,
            printer,
            ended: Vec::new(),
            only: Following::default(),
            depth: Depth::Causes,
            name_all: false,
            losses_only: false,
            meter: None,
        }
    }

    /// Tells and judges only journeys that match, and what belongs to their flows.
    pub fn only(&mut self, filter: Filter) {
        self.collector.follow_arp(filter.asks_for_arp());
        self.only = Following::new(filter);
    }

    /// Tells and judges of what the kernel followed by a filter only what its `not` does not exclude.
    pub fn leave_out(&mut self, filter: Filter) {
        self.only = Following::of_traced(filter);
    }

    /// Forgets flows, facts and diagnoses: what comes next is judged by itself.
    pub fn forget(&mut self) {
        self.collector.forget();
        self.only.forget();
    }

    /// Follows events no further than this; else to their causes.
    pub const fn follow_to(&mut self, depth: Depth) {
        self.depth = depth;
    }

    /// Names every namespace that is seen.
    pub const fn name_all(&mut self) {
        self.name_all = true;
    }

    /// Only lost packets are seen, not their way: no cause is certain.
    pub const fn sees_losses_only(&mut self) {
        self.losses_only = true;
    }

    /// Counts what is lost from now on.
    pub fn count(&mut self, meter: Arc<Meter>) {
        self.meter = Some(meter);
    }

    /// The collector.
    pub const fn collector(&mut self) -> &mut Collector {
        &mut self.collector
    }

    /// The flows.
    pub const fn flows(&self) -> &Flows {
        self.collector.all_flows()
    }

    /// The flows by their numbers.
    pub fn flows_in_order(&self) -> Vec<&Flow> {
        let mut flows: Vec<_> = self.flows().iter().collect();
        flows.sort_unstable_by_key(|flow| flow.id);
        flows
    }

    /// Every cause at work, as the last look for causes found it.
    pub fn causes(&self) -> &[Diagnosis] {
        self.collector.causes()
    }

    /// Gives a diagnosis of before the counts that it has come to.
    pub fn recount(&self, diagnosis: &mut Diagnosis) {
        self.collector.recount(diagnosis);
    }

    /// Numbers of the kept flows that a cause is known to have stopped.
    pub fn stopped_by(&self, code: &str) -> impl Iterator<Item = u64> + '_ {
        self.collector.stopped_by(code)
    }

    /// What the kernel calls things.
    pub const fn kernel(&mut self) -> &mut Kernel {
        &mut self.kernel
    }

    /// The printer.
    pub const fn printer(&mut self) -> &mut Printer {
        &mut self.printer
    }

    /// What the cluster is like from now on.
    pub fn set_cluster(&mut self, facts: Option<Arc<ClusterFacts>>) {
        self.collector.set_cluster(facts);
    }

    /// What the cluster is like.
    pub const fn cluster(&self) -> Option<&Arc<ClusterFacts>> {
        self.collector.cluster()
    }

    /// Takes an event; gives the number of its journey.
    pub fn push(&mut self, event: Event) -> Option<u64> {
        self.collector.push(event, &mut self.ended)
    }

    /// Tells what ended, and diagnoses what is due; at once with `hurry`. Each journey that is shown
    /// or counted is given to `met`, with the names as they are then.
    ///
    /// # Errors
    /// When printing fails.
    pub fn step(
        &mut self,
        now_ns: u64,
        hurry: bool,
        met: impl FnMut(&Journey, &Names<'_>),
    ) -> anyhow::Result<Step> {
        self.collector.expire(now_ns, &mut self.ended);
        self.tell_refused();
        let ended = self.settle(now_ns, met)?;
        let due = self.collector.is_due(now_ns, hurry);
        Ok(Step {
            diagnoses: self.diagnose(now_ns, hurry)?,
            happened: ended || due,
        })
    }

    /// Diagnoses what is due, and prints it.
    fn diagnose(&mut self, now_ns: u64, hurry: bool) -> anyhow::Result<Vec<Diagnosis>> {
        if self.depth < Depth::Causes || !self.collector.is_due(now_ns, hurry) {
            return Ok(Vec::new());
        }
        // A kernel without drop reasons is judged by where it drops.
        self.kernel.symbols.wait();
        let names = DropNames {
            reasons: &self.kernel.reasons,
            symbols: self.kernel.symbols.get(),
        };
        let mut diagnoses = self.collector.diagnose(now_ns, hurry, names);
        self.count_stopped();
        if self.losses_only {
            for diagnosis in &mut diagnoses {
                diagnosis.certainty = Certainty::Likely;
                diagnosis.missing.push(LOW_COST.into());
            }
        }
        for diagnosis in &diagnoses {
            self.printer.diagnosis(diagnosis)?;
        }
        Ok(diagnoses)
    }

    /// Counts the journeys that failed.
    fn count_drops(&mut self, ended: &[Journey], met: &mut impl FnMut(&Journey, &Names<'_>)) {
        let Some(meter) = self.meter.clone() else {
            return;
        };
        if ended.iter().any(Journey::failed) {
            self.kernel.symbols.wait();
        }
        let names = self.names();
        for (journey, loss) in ended
            .iter()
            .filter_map(|journey| Some((journey, journey.loss()?)))
        {
            met(journey, &names);
            let who = match (journey.first_tuple(), journey.last_tuple()) {
                (Some(first), Some(last)) => Who::of(names.cluster, names.facts, first, last),
                _ => Who::default(),
            };
            meter.dropped(names.loss(loss), who);
        }
    }

    /// Counts the connections that causes stopped.
    fn count_stopped(&mut self) {
        let stopped = self.collector.take_stopped();
        let Some(meter) = &self.meter else {
            return;
        };
        let names = self.names();
        for stopped in stopped {
            let who = Who::of(names.cluster, names.facts, stopped.client, stopped.client);
            meter.stopped(stopped.code, who);
        }
    }

    /// The journeys that ended by now, neither told nor judged.
    pub fn take_ended(&mut self, now_ns: u64) -> Vec<Journey> {
        self.collector.expire(now_ns, &mut self.ended);
        self.tell_refused();
        std::mem::take(&mut self.ended)
    }

    /// Ends every journey; they are neither told nor judged.
    pub fn take_all(&mut self) -> Vec<Journey> {
        self.collector.finish(&mut self.ended);
        self.tell_refused();
        std::mem::take(&mut self.ended)
    }

    /// Judges journeys that were taken, and prints what caused their losses.
    ///
    /// # Errors
    /// When printing fails.
    pub fn judge(&mut self, journeys: Vec<Journey>, now_ns: u64) -> anyhow::Result<Vec<Diagnosis>> {
        self.collector.know_rules(&journeys, now_ns);
        self.collector.keep(journeys, now_ns);
        self.diagnose(now_ns, true)
    }

    /// Journeys as they are shown.
    pub fn views(&mut self, journeys: &[Journey], now_ns: u64) -> Vec<JourneyView> {
        self.collector.know_rules(journeys, now_ns);
        self.collector.name_namespaces(now_ns);
        self.kernel.symbols.wait();
        let names = self.names();
        let verbose = self.printer.is_verbose();
        journeys
            .iter()
            .filter_map(|journey| view(journey, &names, verbose))
            .collect()
    }

    /// Ends every journey and tells them.
    ///
    /// # Errors
    /// When printing fails.
    pub fn finish(
        &mut self,
        now_ns: u64,
        met: impl FnMut(&Journey, &Names<'_>),
    ) -> anyhow::Result<()> {
        self.collector.finish(&mut self.ended);
        self.tell_refused();
        self.settle(now_ns, met)?;
        Ok(())
    }

    /// Finds the datagrams that sockets refused, on a kernel that gives no reasons.
    fn tell_refused(&mut self) {
        if !self.kernel.reasons.is_empty() {
            return;
        }
        for journey in &mut self.ended {
            let Some(location) = journey.freed_at_socket() else {
                continue;
            };
            self.kernel.symbols.wait();
            let place = self.kernel.symbols.get().function(location);
            if place.is_some_and(|place| REFUSE_DATAGRAMS.contains(&place)) {
                journey.ending = Ending::Dropped {
                    location,
                    reason: None,
                };
            }
        }
    }

    /// Tells the journeys that ended; false when there were none.
    fn settle(
        &mut self,
        now_ns: u64,
        mut met: impl FnMut(&Journey, &Names<'_>),
    ) -> anyhow::Result<bool> {
        let mut ended = std::mem::take(&mut self.ended);
        let facts = self.collector.facts();
        let name_of = |netns, ifindex| {
            let link = facts.namespace(NetnsId(netns))?.link(ifindex)?;
            Some(link.name.clone())
        };
        self.only.pick(&mut ended, now_ns, &name_of);
        if self.name_all {
            self.collector.name_namespaces(now_ns);
        }
        if ended.is_empty() {
            return Ok(false);
        }
        self.collector.know_rules(&ended, now_ns);
        self.count_drops(&ended, &mut met);
        if ended.iter().any(|journey| self.printer.wants(journey)) {
            self.collector.name_namespaces(now_ns);
            let dropped = |journey: &Journey| matches!(journey.ending, Ending::Dropped { .. });
            if ended.iter().any(dropped) {
                self.kernel.symbols.wait();
            }
            // The printer is changed while the rest is looked at.
            let names = Names {
                facts: self.collector.facts(),
                reasons: &self.kernel.reasons,
                symbols: self.kernel.symbols.get(),
                clock: self.kernel.clock,
                cluster: self.collector.cluster().map(Arc::as_ref),
            };
            for journey in &ended {
                if !self.printer.wants(journey) {
                    continue;
                }
                met(journey, &names);
                if self.printer.is_silent() {
                    continue;
                }
                if let Some(view) = view(journey, &names, self.printer.is_verbose()) {
                    self.printer.journey(&view)?;
                }
            }
        }
        if self.depth >= Depth::Flows {
            self.collector.keep(ended, now_ns);
        }
        Ok(true)
    }

    /// Names of what is known now.
    pub fn names(&self) -> Names<'_> {
        Names {
            facts: self.collector.facts(),
            reasons: &self.kernel.reasons,
            symbols: self.kernel.symbols.get(),
            clock: self.kernel.clock,
            cluster: self.collector.cluster().map(Arc::as_ref),
        }
    }

    /// What the events came to; what only a live trace knows is left out.
    pub fn summary(&mut self, now_ns: u64) -> SummaryView {
        self.collector.name_namespaces(now_ns);
        self.kernel.symbols.wait();
        let names = self.names();
        let counts = self.collector.counts();
        let mut drops = BTreeMap::<String, u64>::new();
        for (&loss, &count) in &counts.losses {
            *drops.entry(names.loss(loss)).or_default() += count;
        }
        let mut drops: Vec<_> = drops.into_iter().collect();
        drops.sort_by_key(|&(_, count)| std::cmp::Reverse(count));
        let devices = counts
            .devices
            .iter()
            .map(|(&(netns, ifindex), traffic)| DeviceCount {
                device: format!(
                    "{}/{}",
                    names.namespace(netns),
                    names.device(Some(netns), ifindex)
                ),
                received: traffic.received,
                sent: traffic.sent,
            })
            .collect();
        let causes = self.collector.extents();
        SummaryView {
            causes: causes.into_iter().map(CauseCount::from).collect(),
            events: counts.events,
            packets: counts.packets,
            failed: counts.failed,
            hooks: counts
                .hooks()
                .map(|(hook, count)| (hook.name(), count))
                .collect(),
            devices,
            drops,
            ..SummaryView::default()
        }
    }
}

impl From<Extent> for CauseCount {
    fn from(extent: Extent) -> Self {
        Self {
            cause: extent.code.into(),
            subject: extent.subject,
            failed_connections: extent.failed,
            connections: extent.total,
        }
    }
}

/// A kernel of which nothing is known.
impl Default for Kernel {
    fn default() -> Self {
        Self {
            reasons: Arc::default(),
            symbols: Table::Read(Arc::new(Symbols::default())),
            clock: Clock::recorded(std::time::SystemTime::UNIX_EPOCH, 0),
        }
    }
}

fn view(journey: &Journey, names: &Names<'_>, verbose: bool) -> Option<JourneyView> {
    let view = JourneyView::new(journey, names)?;
    Some(if verbose {
        view.with_events(journey, names)
    } else {
        view
    })
}

#[cfg(test)]
mod tests {
    use tracer_ebpf::hook::HookId;

    use super::*;
    use crate::event::{Detail, Packet, Transport, tcp_flag};
    use crate::journey::constructed::{event, journey, packet};
    use crate::printer::{Format, Show};

    #[test]
    fn a_cause_is_given_once_and_its_counts_go_on() {
        let printer = Printer::new(Format::Silent, Show::Nothing);
        let mut analysis = Analysis::new(Source::recorded(), Kernel::default(), printer);
        let mut found = |id| {
            let client = format!("192.0.2.1:{}", 4000 + id);
            let syn = Packet {
                transport: Transport::tcp(1, tcp_flag::SYN),
                ..packet(6, (&client, "192.0.2.2:80"))
            };
            let events = [HookId::TcpReceive, HookId::TcpReset].map(|hook| Event {
                packet: Some(syn.clone()),
                ..event(hook, id, id, 0)
            });
            let refused = Journey {
                id,
                events: events.to_vec(),
                ..Journey::default()
            };
            let new = analysis.judge(vec![refused], 50).expect("it is judged");
            let causes = analysis.causes();
            (new.len(), causes.len(), causes[0].flows.len())
        };
        assert_eq!(found(1), (1, 1, 1));
        assert_eq!(found(2), (0, 1, 2));
        // What is forgotten for the next phase was counted.
        for expected in [vec![2], vec![2]] {
            let summary = analysis.summary(50);
            let counts = summary.causes.iter().map(|cause| cause.failed_connections);
            assert_eq!(counts.collect::<Vec<_>>(), expected);
            analysis.collector().forget();
        }
    }

    #[test]
    fn a_kernel_without_reasons_tells_by_the_place_what_a_socket_refused() {
        let mut symbols = Symbols::default();
        symbols.insert(0x1000, "udp_queue_rcv_one_skb.isra.0");
        symbols.insert(0x2000, "skb_consume_udp");
        let kernel = Kernel {
            symbols: Table::Read(Arc::new(symbols)),
            ..Kernel::default()
        };
        let printer = Printer::new(Format::Silent, Show::Nothing);
        let mut analysis = Analysis::new(Source::recorded(), kernel, printer);
        for location in [0x1010, 0x2010] {
            let mut ended = journey(1, 17, &[("192.0.2.1:4000", "192.0.2.2:53")]);
            let detail = Detail::Drop {
                location,
                reason: None,
            };
            ended.events.push(Event {
                detail,
                packet: ended.events[0].packet.clone(),
                ..event(HookId::Drop, 1, 2, 0)
            });
            ended.ending = Ending::Delivered;
            analysis.ended.push(ended);
        }
        analysis.tell_refused();
        let failed: Vec<bool> = analysis.ended.iter().map(Journey::failed).collect();
        assert_eq!(failed, [true, false]);
    }
}
