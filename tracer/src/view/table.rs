//! Journeys, flows and events as rows of tables: one line each, for many of them.

use std::fmt;
use std::io::{self, Write};

use serde::Serialize;

use super::model::{JourneyView, detail};
use super::names::{Names, named};
use crate::event::{Detail, Event, protocol};
use crate::flow::{Direction, Flow};

/// A flow's number. A capture of a reproduction has phases, and each begins to count again.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize)]
pub struct FlowKey {
    /// From 1.
    pub phase: usize,
    /// Number in the phase.
    pub id: u64,
}

impl fmt::Display for FlowKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { phase, id } = self;
        if *phase > 1 {
            write!(formatter, "{phase}·")?;
        }
        write!(formatter, "{id}")
    }
}

/// A flow as shown.
#[derive(Clone, Debug, Serialize)]
pub struct FlowRow {
    /// Number.
    #[serde(flatten)]
    pub key: FlowKey,
    /// Protocol.
    pub protocol: String,
    /// Who began.
    pub source: String,
    /// Whom it asked.
    pub destination: String,
    /// Who answers after NAT, where that is another.
    pub real_destination: Option<String>,
    /// Packets both ways.
    pub packets: u64,
    /// Of the kept packets, those that did not arrive.
    pub failed: usize,
    /// A packet came back.
    pub answered: bool,
}

impl FlowRow {
    /// Shows a flow of a phase.
    pub fn new(phase: usize, flow: &Flow, names: &Names<'_>) -> Self {
        let client = flow.client;
        let real = flow
            .of(Direction::Request)
            .filter_map(|journey| journey.last_tuple())
            .map(|tuple| tuple.destination)
            .find(|destination| *destination != client.destination);
        Self {
            key: FlowKey { phase, id: flow.id },
            protocol: protocol::name(client.protocol),
            source: names.named(client.protocol, client.source),
            destination: names.named(client.protocol, client.destination),
            real_destination: real.map(|real| names.named(client.protocol, real)),
            packets: flow.requests + flow.replies,
            failed: flow.kept().filter(|(_, journey)| journey.failed()).count(),
            answered: flow.of(Direction::Reply).next().is_some(),
        }
    }
}

/// An event as shown.
#[derive(Clone, Debug, Serialize)]
pub struct EventRow<'a> {
    /// Number of the journey.
    pub journey: Option<u64>,
    /// Nanoseconds since 1970.
    pub time_ns: u64,
    /// Namespace and device.
    pub interface: &'a str,
    /// Kernel function or tracepoint.
    pub place: &'static str,
    /// Addresses.
    pub packet: Option<(String, String)>,
    /// Their names in the cluster, for a person: [`EventRow::with_names`].
    #[serde(skip)]
    pub names: (Option<String>, Option<String>),
    /// What the hook adds.
    pub detail: String,
}

impl<'a> EventRow<'a> {
    /// Shows an event.
    pub fn new(
        event: &Event,
        journey: Option<u64>,
        interface: Option<&'a str>,
        names: &Names<'_>,
    ) -> Self {
        let words = if event.detail == Detail::None {
            String::new()
        } else {
            detail(&event.detail, event.netns, names)
        };
        let tuple = event.packet.as_ref().map(|packet| packet.tuple);
        Self {
            names: (None, None),
            journey,
            time_ns: names.clock.wall_ns(event.time_ns),
            interface: interface.unwrap_or("-"),
            place: crate::hook::of(event.hook).place.symbol(),
            packet: tuple.map(|tuple| (tuple.source.to_string(), tuple.destination.to_string())),
            detail: words,
        }
    }

    /// Adds the names of its addresses, which objects and tables do without.
    #[must_use]
    pub fn with_names(self, event: &Event, names: &Names<'_>) -> Self {
        let tuple = event.packet.as_ref().map(|packet| packet.tuple);
        let name = |address| names.endpoint(tuple?.protocol, address);
        Self {
            names: (
                tuple.and_then(|tuple| name(tuple.source)),
                tuple.and_then(|tuple| name(tuple.destination)),
            ),
            ..self
        }
    }
}

/// A journey in one line.
///
/// # Errors
/// When writing fails.
pub fn journey(out: &mut impl Write, view: &JourneyView) -> io::Result<()> {
    let mark = match view.arrived {
        Some(true) => '✓',
        Some(false) => '✗',
        None => ' ',
    };
    writeln!(
        out,
        "{:>8} {} {mark} {:<12} {}  {} µs  {}",
        view.id,
        view.time,
        view.protocol,
        view.ends(),
        view.duration_us,
        view.ending
    )
}

/// A flow in one line.
///
/// # Errors
/// When writing fails.
pub fn flow(out: &mut impl Write, row: &FlowRow) -> io::Result<()> {
    let mark = if row.failed > 0 {
        '✗'
    } else if row.answered {
        '✓'
    } else {
        ' '
    };
    write!(
        out,
        "{:>8} {mark} {:<6} {} → {}",
        row.key.to_string(),
        row.protocol,
        row.source,
        row.destination
    )?;
    if let Some(real) = &row.real_destination {
        write!(out, " ⇒ {real}")?;
    }
    writeln!(out, "  {} packets, {} failed", row.packets, row.failed)
}

/// An event in one line.
///
/// # Errors
/// When writing fails.
pub fn event(out: &mut impl Write, row: &EventRow<'_>) -> io::Result<()> {
    let seconds = row.time_ns / 1_000_000_000 % 86_400;
    write!(
        out,
        "{:02}:{:02}:{:02}.{:09} ",
        seconds / 3600,
        seconds / 60 % 60,
        seconds % 60,
        row.time_ns % 1_000_000_000
    )?;
    match row.journey {
        Some(journey) => write!(out, "{journey:>8}")?,
        None => write!(out, "{:>8}", "-")?,
    }
    write!(out, " {:<24} {:<24}", row.interface, row.place)?;
    if let Some((source, destination)) = &row.packet {
        let (from, to) = &row.names;
        write!(
            out,
            " {} → {}",
            named(from.as_deref(), source),
            named(to.as_deref(), destination)
        )?;
    }
    if row.detail.is_empty() {
        writeln!(out)
    } else {
        writeln!(out, "  {}", row.detail)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POD: &str = "p/default/client 10.244.1.2:4000";
    const SERVICE: &str = "s/default/web:http 10.96.0.7:80";

    fn printed(write: impl FnOnce(&mut Vec<u8>) -> io::Result<()>) -> String {
        let mut text = Vec::new();
        write(&mut text).expect("room");
        String::from_utf8(text).expect("text")
    }

    #[test]
    fn names_stand_before_the_addresses_of_a_journey() {
        let view: JourneyView = serde_json::from_value(serde_json::json!({
            "id": 7,
            "time": "14:02:11.482913",
            "protocol": "tcp SYN",
            "source": "10.244.1.2:4000",
            "source_name": "p/default/client",
            "destination": "10.96.0.7:80",
            "destination_name": "s/default/web:http",
            "real_destination": "10.244.1.9:8080",
            "real_destination_name": "p/default/web",
            "arrived": true,
            "duration_us": 88,
            "ending": "delivered",
            "path": [],
        }))
        .expect("a journey");
        let line = printed(|out| journey(out, &view));
        let ends = format!("{POD} → {SERVICE} ⇒ p/default/web 10.244.1.9:8080");
        assert!(line.contains(&ends), "{line}");
    }

    #[test]
    fn names_stand_before_the_addresses_of_an_event() {
        let mut row = EventRow {
            journey: Some(7),
            time_ns: 0,
            interface: "node/eth0",
            place: "tcp_v4_rcv",
            packet: Some(("10.244.1.2:4000".into(), "10.96.0.7:80".into())),
            names: (
                Some("p/default/client".into()),
                Some("s/default/web:http".into()),
            ),
            detail: String::new(),
        };
        let line = printed(|out| event(out, &row));
        assert!(line.contains(&format!(" {POD} → {SERVICE}")), "{line}");
        row.names = (None, None);
        let line = printed(|out| event(out, &row));
        assert!(line.contains(" 10.244.1.2:4000 → 10.96.0.7:80"), "{line}");
    }

    #[test]
    fn flows_of_later_phases_have_numbers_of_their_own() {
        let key = |phase| FlowKey { phase, id: 1 }.to_string();
        assert_eq!([key(1), key(2)], ["1", "2·1"]);
    }
}
