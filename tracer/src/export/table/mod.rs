//! The tables: every column with its meaning and its value. `packets` has those of journeys and events,
//! `answers` those of flows and diagnoses.

mod answers;
mod packets;

pub use answers::{DIAGNOSES, FLOWS};
pub use packets::{EVENTS, JOURNEYS};

use super::column::{Column, Kind, Value};
use crate::cause::Diagnosis;
use crate::event::Event;
use crate::flow::Flow;
use crate::journey::Journey;
use crate::view::model::JourneyView;
use crate::view::names::Names;
use crate::view::table::{EventRow, FlowRow};

/// What a row of a table is made of.
pub struct Row<'a, T> {
    /// The thing itself.
    pub of: &'a T,
    /// Its name and those of everything else.
    pub names: &'a Names<'a>,
    /// The machine.
    pub node: &'a str,
}

impl<T> Clone for Row<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Row<'_, T> {}

/// A packet's way, with the words that it is shown with.
pub struct Told<'a> {
    /// The journey.
    pub journey: &'a Journey,
    /// The same as shown.
    pub view: &'a JourneyView,
}

/// An event, with the words that it is shown with.
pub struct Seen<'a> {
    /// The event.
    pub event: &'a Event,
    /// The same as shown.
    pub row: &'a EventRow<'a>,
}

/// A flow, as it is shown.
pub struct Kept<'a> {
    /// The flow.
    pub flow: &'a Flow,
    /// The same as shown.
    pub row: &'a FlowRow,
}

/// A diagnosis, and the nanoseconds since 1970 when it was first reached.
pub struct Reached<'a> {
    /// The diagnosis.
    pub diagnosis: &'a Diagnosis,
    /// When.
    pub time_ns: u64,
}

/// How a table's rows get a value.
type OfJourney = for<'a, 'b> fn(Row<'a, Told<'b>>) -> Value;
type OfEvent = for<'a, 'b> fn(Row<'a, Seen<'b>>) -> Value;
type OfFlow = for<'a, 'b> fn(Row<'a, Kept<'b>>) -> Value;
type OfDiagnosis = for<'a, 'b> fn(Row<'a, Reached<'b>>) -> Value;

const fn column<F>(
    name: &'static str,
    kind: Kind,
    unit: &'static str,
    about: &'static str,
    value: F,
) -> Column<F> {
    Column {
        name,
        kind,
        unit,
        about,
        value,
    }
}

/// A port; zero says that the protocol has none.
const fn port(number: u16) -> Option<u16> {
    match number {
        0 => None,
        number => Some(number),
    }
}

/// What a person is told of the tables: a heading for each, and a line for each column.
pub fn describe() -> String {
    let mut text = String::new();
    lines(
        &mut text,
        "journeys",
        "a packet from first sight to its end",
        JOURNEYS,
    );
    lines(
        &mut text,
        "events",
        "what happened to packets at each hook",
        EVENTS,
    );
    lines(
        &mut text,
        "flows",
        "connections, of each phase at most the million heard of last",
        FLOWS,
    );
    lines(&mut text, "diagnoses", "causes that were found", DIAGNOSES);
    text
}

fn lines<F>(text: &mut String, name: &str, about: &str, columns: &[Column<F>]) {
    let gap = if text.is_empty() { "" } else { "\n" };
    *text += &format!("{gap}{name}.parquet: {about}\n");
    for column in columns {
        let unit = if column.unit.is_empty() {
            String::new()
        } else {
            format!(" ({})", column.unit)
        };
        *text += &format!(
            "  {:<20} {:<13} {}{unit}\n",
            column.name,
            column.kind.name(),
            column.about
        );
    }
}
