//! What is taken down while a capture is replayed: a journey can be named only while its facts and flow
//! are at hand.

use std::collections::HashSet;

use super::losses::Losses;
use super::{
    About, FlowKey, FlowView, LeftOut, MOST_FLOWS, MOST_VERDICTS, Mark, PacketView, Report,
    Verdict, Way,
};
use crate::cause::Diagnosis;
use crate::event::Tuple;
use crate::flow::{Direction, Flow, Flows};
use crate::journey::{Ending, Journey};
use crate::view::model::{JourneyView, SummaryView};
use crate::view::names::Names;
use crate::view::table::FlowRow;

/// Most flows of one diagnosis that are looked at.
const MOST_STOPPED: usize = 10_000;

/// Numbers of the flows that a cause is known to have stopped, by its code.
type Stopped<'a> = &'a dyn Fn(&str) -> Vec<u64>;

/// Notes of a replay.
#[derive(Default)]
pub struct Notes {
    /// Phases that are over.
    phases: usize,
    verdicts: Vec<Noted>,
    flows: Vec<FlowView>,
    losses: Losses,
    /// Numbers of lost journeys whose cause is known.
    explained: HashSet<u64>,
    left_out: LeftOut,
}

/// A verdict before all is known.
struct Noted {
    /// When it was found.
    phase: usize,
    verdict: Verdict,
    /// What a healthy packet must be like.
    like: Option<Like>,
}

/// The packet that failed.
#[derive(Clone, Copy)]
struct Like {
    client: Tuple,
    direction: Direction,
    opens: bool,
}

impl Like {
    /// How alike another flow is; 0 where the two ways have nothing to tell each other.
    fn resembles(&self, client: Tuple) -> u32 {
        let (ours, theirs) = (self.client.destination, client.destination);
        let (port, address) = (ours.port() == theirs.port(), ours.ip() == theirs.ip());
        if self.client.protocol != client.protocol || !(port || address) {
            return 0;
        }
        let from = self.client.source.ip() == client.source.ip();
        1 + 4 * u32::from(port) + 2 * u32::from(address) + 4 * u32::from(from)
    }
}

impl Notes {
    /// A journey that ended.
    pub fn journey(&mut self, journey: &Journey, names: &Names<'_>) {
        if let Some(loss) = journey.loss() {
            let time_ns = names.clock.wall_ns(journey.start_ns());
            self.losses.add(time_ns, &names.loss(loss));
        }
    }

    /// A cause that was found; the last word on the same subject counts.
    pub fn diagnosis(&mut self, diagnosis: &Diagnosis, flows: &Flows, names: &Names<'_>) {
        let phase = self.phases + 1;
        let stopped = || diagnosis.flows.iter().take(MOST_STOPPED);
        let failing = stopped()
            .filter_map(|&id| flows.get(id))
            .find_map(|flow| Some((flow, failing(flow)?)));
        let noted = Noted {
            phase,
            verdict: Verdict {
                diagnosis: diagnosis.into(),
                failing: failing.and_then(|(_, (_, journey))| Way::new(journey, names)),
                healthy: None,
                flows: stopped().map(|&id| FlowKey { phase, id }).collect(),
            },
            like: failing.map(|(flow, (direction, journey))| Like {
                client: flow.client,
                direction,
                opens: opens(journey),
            }),
        };
        let room = self.verdicts.len() < MOST_VERDICTS;
        match self.known(diagnosis) {
            Some(known) => *known = noted,
            None if room => self.verdicts.push(noted),
            None => self.left_out.verdicts += 1,
        }
    }

    /// What is noted of a diagnosis of this phase.
    fn known(&mut self, diagnosis: &Diagnosis) -> Option<&mut Noted> {
        let phase = self.phases + 1;
        self.verdicts.iter_mut().find(|noted| {
            let known = &noted.verdict.diagnosis;
            noted.phase == phase
                && known.cause == diagnosis.code
                && known.subject == diagnosis.subject
        })
    }

    /// More connections were stopped since a cause was found.
    pub fn recount(&mut self, diagnosis: &Diagnosis) {
        let phase = self.phases + 1;
        let flows = diagnosis.flows.iter().take(MOST_STOPPED);
        let flows = flows.map(|&id| FlowKey { phase, id }).collect();
        if let Some(Noted { verdict, .. }) = self.known(diagnosis) {
            verdict.diagnosis.failed_connections = diagnosis.failed;
            verdict.diagnosis.connections = diagnosis.total;
            verdict.flows = flows;
        }
    }

    /// Losses of this phase that a cause explains are counted under it; where several do, under the one
    /// that was named first.
    fn explain(&mut self, flows: &Flows, stopped: Stopped<'_>, names: &Names<'_>) {
        for noted in &self.verdicts {
            let code = &noted.verdict.diagnosis.cause;
            for flow in stopped(code).into_iter().filter_map(|id| flows.get(id)) {
                let lost = flow
                    .kept()
                    .filter_map(|(_, journey)| Some((journey, journey.loss()?)));
                for (journey, loss) in lost {
                    if self.explained.insert(journey.id) {
                        let time_ns = names.clock.wall_ns(journey.start_ns());
                        let kind = names.loss(loss);
                        self.losses.rename(time_ns, &kind, code);
                    }
                }
            }
        }
    }

    /// The flows so far are complete, and will be forgotten.
    pub fn phase_ends(&mut self, flows: &Flows, stopped: Stopped<'_>, names: &Names<'_>) {
        self.phases += 1;
        if flows.is_empty() {
            return;
        }
        self.explain(flows, stopped, names);
        for noted in &mut self.verdicts {
            noted.compare(flows, names);
        }
        // Those with a loss first, and first come first.
        let order = |flow: &&Flow| (flow.suspicious == 0, flow.id);
        let mut sorted: Vec<&Flow> = flows.iter().collect();
        sorted.sort_unstable_by_key(order);
        self.left_out.flows += sorted.len().saturating_sub(MOST_FLOWS);
        let phase = self.phases;
        let views = sorted
            .into_iter()
            .take(MOST_FLOWS)
            .map(|flow| FlowView::new(phase, flow, names));
        self.flows.extend(views);
        self.flows.sort_by_key(|flow| flow.row.failed == 0);
        self.left_out.flows += self.flows.len().saturating_sub(MOST_FLOWS);
        self.flows.truncate(MOST_FLOWS);
    }

    /// Everything is known.
    pub fn report(self, about: About, summary: SummaryView) -> Report {
        let mut flows = self.flows;
        flows.sort_by_key(|flow| flow.packets.first().map(|packet| packet.start_ns));
        let kept = |flow: &FlowView| flow.row.packets.saturating_sub(flow.packets.len() as u64);
        Report {
            about,
            summary,
            verdicts: self
                .verdicts
                .into_iter()
                .map(|noted| noted.verdict)
                .collect(),
            left_out: LeftOut {
                packets: flows.iter().map(kept).sum(),
                ..self.left_out
            },
            flows,
            losses: self.losses,
        }
    }
}

impl Noted {
    /// Looks for a packet like the failing one that arrived; one of the same phase is as good as any
    /// later one.
    fn compare(&mut self, flows: &Flows, names: &Names<'_>) {
        let Some(like) = self.like.filter(|_| self.verdict.healthy.is_none()) else {
            return;
        };
        let mut best = 0;
        for flow in flows.iter() {
            let alike = like.resembles(flow.client);
            if alike <= best {
                continue;
            }
            let arrived = |journey: &&Journey| {
                journey.ending == Ending::Delivered
                    && !is_suspicious(journey)
                    && opens(journey) == like.opens
            };
            let way = flow.of(like.direction).find(arrived);
            if let Some(way) = way.and_then(|journey| Way::new(journey, names)) {
                best = alike;
                self.verdict.healthy = Some(way);
            }
        }
    }
}

impl Way {
    fn new(journey: &Journey, names: &Names<'_>) -> Option<Self> {
        let view = JourneyView::new(journey, names)?;
        let start_ns = journey.start_ns();
        let mark = |index: usize| {
            let event = journey.events.get(index)?;
            Some(Mark {
                area: event.role().area(),
                after_ns: event.time_ns.saturating_sub(start_ns),
            })
        };
        let marks = view.path.iter().map_while(|stage| mark(stage.event));
        Some(Self {
            marks: marks.collect(),
            journey: view,
        })
    }
}

impl FlowView {
    fn new(phase: usize, flow: &Flow, names: &Names<'_>) -> Self {
        let packets = flow.kept().filter_map(|(direction, journey)| {
            Some(PacketView {
                direction,
                start_ns: names.clock.wall_ns(journey.start_ns()),
                journey: JourneyView::new(journey, names)?.with_events(journey, names),
            })
        });
        Self {
            packets: packets.collect(),
            row: FlowRow::new(phase, flow, names),
        }
    }
}

/// The packet that shows best what stopped a flow: lost or refused, else unserved, else sent again and again, else the
/// first.
fn failing(flow: &Flow) -> Option<(Direction, &Journey)> {
    let first = |wanted: fn(&Journey) -> bool| flow.kept().find(|(_, journey)| wanted(journey));
    let repeated = || {
        let repeated = flow.repeated()?;
        Some((repeated.direction, *repeated.copies.first()?))
    };
    first(Journey::failed)
        .or_else(|| first(is_suspicious))
        .or_else(repeated)
        .or_else(|| first(|_| true))
}

/// Lost, or for a virtual server that does not exist.
fn is_suspicious(journey: &Journey) -> bool {
    journey.failed() || journey.ipvs_miss().is_some()
}

fn opens(journey: &Journey) -> bool {
    journey
        .first_packet()
        .is_some_and(crate::event::Packet::opens)
}
