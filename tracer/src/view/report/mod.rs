//! A capture as one page: what is wrong first, with a picture of the way, then everything that was seen.
//!
//! Map: `notes` takes down what a replay shows while it can still be named, and gives a [`Report`];
//! `losses` counts what was lost over time. `page` writes the report as HTML, with `verdict` and
//! `timeline` for its parts, `picture` for ways and `chart` for times as SVG. `markup` is what may be
//! written of text.
//!
//! Invariants:
//! - It says what the other views say, and judges nothing.
//! - Every name and text comes from a file that anyone may have made: it is escaped by its type, cut to
//!   a length and freed of what changes the direction of text.
//! - The page loads nothing and runs nothing but its own script, by its Content-Security-Policy.
//! - It is bounded: what it leaves out it says.

use std::time::SystemTime;

use super::model::{DiagnosisView, JourneyView, SummaryView};
use super::table::{FlowKey, FlowRow};
use crate::flow::Direction;
use crate::hook::Area;

mod chart;
mod losses;
mod markup;
mod notes;
mod page;
mod picture;
#[cfg(test)]
mod tests;
mod timeline;
mod verdict;

pub use losses::Losses;
pub use notes::Notes;
pub use page::page;

/// Most verdicts on a page.
const MOST_VERDICTS: usize = 100;
/// Most flows on a page; those with a loss come first.
const MOST_FLOWS: usize = 200;
/// Most kernel events on a page, all journeys together.
const MOST_EVENTS: usize = 8_000;

/// Everything that a page shows.
#[derive(Default, Debug)]
pub struct Report {
    /// Where it comes from.
    pub about: About,
    /// What the trace came to.
    pub summary: SummaryView,
    /// Causes, in the order in which they were found.
    pub verdicts: Vec<Verdict>,
    /// Flows by the time of their first packet.
    pub flows: Vec<FlowView>,
    /// What was lost, when.
    pub losses: Losses,
    /// What there was no room for.
    pub left_out: LeftOut,
}

impl Report {
    /// How many causes were named, those that there was no room for with them.
    const fn causes(&self) -> usize {
        self.verdicts.len() + self.left_out.verdicts
    }
}

/// Where a report comes from.
#[derive(Clone, Default, Debug)]
pub struct About {
    /// Name of the file.
    pub file: String,
    /// Machine that was traced, its kernel, and the version of the tracer; empty where another program
    /// made the file.
    pub node: String,
    /// Its kernel's release.
    pub kernel: String,
    /// Version of the tracer that wrote the file.
    pub tool: String,
    /// Filter of the trace and of the report, where there was one.
    pub filters: Vec<String>,
    /// What could not be seen, and why.
    pub not_seen: Vec<String>,
    /// When the trace began.
    pub begin: Option<SystemTime>,
    /// Why the file could not be read to its end.
    pub damage: Option<String>,
}

/// A cause with the ways that show it.
#[derive(Debug)]
pub struct Verdict {
    /// What is said of it.
    pub diagnosis: DiagnosisView,
    /// A packet that it stopped.
    pub failing: Option<Way>,
    /// The packet most like it that arrived.
    pub healthy: Option<Way>,
    /// Flows that it stopped.
    pub flows: Vec<FlowKey>,
}

/// A packet's way with what a picture adds to the words.
#[derive(Clone, Debug)]
pub struct Way {
    /// In words.
    pub journey: JourneyView,
    /// Of each stage of the path.
    pub marks: Vec<Mark>,
}

/// What a picture adds to a stage.
#[derive(Clone, Copy, Debug)]
pub struct Mark {
    /// Part of the stack.
    pub area: Area,
    /// Since the first sight of the packet, nanoseconds.
    pub after_ns: u64,
}

impl FlowKey {
    /// Its place on the page.
    fn anchor(self) -> String {
        format!("flow-{}-{}", self.phase, self.id)
    }
}

/// A flow with its packets.
#[derive(Debug)]
pub struct FlowView {
    /// Its number, addresses and counts.
    pub row: FlowRow,
    /// Its kept packets, in order.
    pub packets: Vec<PacketView>,
}

/// A packet of a flow.
#[derive(Debug)]
pub struct PacketView {
    /// Which way it went.
    pub direction: Direction,
    /// First sight, nanoseconds since 1970.
    pub start_ns: u64,
    /// What happened to it.
    pub journey: JourneyView,
}

/// What there was no room for.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct LeftOut {
    /// Causes.
    pub verdicts: usize,
    /// Flows.
    pub flows: usize,
    /// Packets of the flows that are there.
    pub packets: u64,
}
