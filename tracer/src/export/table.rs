//! The tables: every column with its meaning and its value.

use super::column::{Column, Kind, Value};
use crate::cause::Diagnosis;
use crate::event::{Event, Tuple, protocol};
use crate::flow::{Direction, Flow};
use crate::journey::Journey;
use crate::view::model::{JourneyView, Names};
use crate::view::table::EventRow;

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

/// A diagnosis, and the nanoseconds since 1970 when it was reached.
pub struct Reached<'a> {
    /// The diagnosis.
    pub diagnosis: &'a Diagnosis,
    /// When.
    pub time_ns: u64,
}

/// How a table's rows get a value.
type Of<T> = for<'a> fn(Row<'a, T>) -> Value;
type OfJourney = for<'a, 'b> fn(Row<'a, Told<'b>>) -> Value;
type OfEvent = for<'a, 'b> fn(Row<'a, Seen<'b>>) -> Value;
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

/// Between stages, as in the text view.
const STEP: &str = " ▸ ";

use Kind::{Flag, Number, Text, Time};

/// One row for each packet.
pub const JOURNEYS: &[Column<OfJourney>] = &[
    column("node", Text, "", "machine that captured it", |row| {
        row.node.into()
    }),
    column(
        "journey",
        Number,
        "",
        "number of the packet in the capture; joins events",
        |row| row.of.journey.id.into(),
    ),
    column("time", Time, "ns since 1970, UTC", "first sight", |row| {
        row.names.clock.wall_ns(row.of.journey.start_ns()).into()
    }),
    column("duration_ns", Number, "ns", "first to last sight", |row| {
        row.of.journey.duration_ns().into()
    }),
    column(
        "protocol",
        Text,
        "",
        "transport protocol: tcp, udp, icmp …",
        |row| {
            first(row)
                .map(|tuple| protocol::name(tuple.protocol))
                .into()
        },
    ),
    column(
        "packet",
        Text,
        "",
        "protocol and what is special about the packet: tcp SYN",
        |row| row.of.view.protocol.as_str().into(),
    ),
    column("source_address", Text, "", "source as first seen", |row| {
        first(row).map(|tuple| tuple.source.ip().to_string()).into()
    }),
    column(
        "source_port",
        Number,
        "",
        "its port; null where the protocol has none",
        |row| {
            first(row)
                .and_then(|tuple| port(tuple.source.port()))
                .into()
        },
    ),
    column(
        "source_name",
        Text,
        "",
        "its name in the cluster: p/namespace/pod, n/node",
        |row| row.of.view.source_name.clone().into(),
    ),
    column(
        "destination_address",
        Text,
        "",
        "destination as first seen",
        |row| {
            first(row)
                .map(|tuple| tuple.destination.ip().to_string())
                .into()
        },
    ),
    column(
        "destination_port",
        Number,
        "",
        "its port; null where the protocol has none",
        |row| {
            first(row)
                .and_then(|tuple| port(tuple.destination.port()))
                .into()
        },
    ),
    column(
        "destination_name",
        Text,
        "",
        "its name in the cluster: s/namespace/service:port",
        |row| row.of.view.destination_name.clone().into(),
    ),
    column(
        "real_address",
        Text,
        "",
        "destination after NAT, where that is another",
        |row| {
            changed(row)
                .map(|tuple| tuple.destination.ip().to_string())
                .into()
        },
    ),
    column("real_port", Number, "", "its port", |row| {
        changed(row)
            .and_then(|tuple| port(tuple.destination.port()))
            .into()
    }),
    column("real_name", Text, "", "its name in the cluster", |row| {
        row.of.view.real_destination_name.clone().into()
    }),
    column(
        "arrived",
        Flag,
        "",
        "a socket took it; false: lost or refused; null: not known",
        |row| row.of.view.arrived.into(),
    ),
    column("ending", Text, "", "how it ended, in words", |row| {
        row.of.view.ending.as_str().into()
    }),
    column("events", Number, "", "events of it", |row| {
        row.of.journey.events.len().into()
    }),
    column(
        "gap",
        Flag,
        "",
        "events were lost while it was under way",
        |row| row.of.journey.gap.into(),
    ),
    column(
        "path",
        Text,
        "",
        "its way in words: stages with ▸ between, namespaces in brackets",
        |row| path(row.of.view).into(),
    ),
];

/// One row for each event.
pub const EVENTS: &[Column<OfEvent>] = &[
    column("node", Text, "", "machine that captured it", |row| {
        row.node.into()
    }),
    column(
        "journey",
        Number,
        "",
        "number of the packet; null for an event without one",
        |row| row.of.row.journey.into(),
    ),
    column("time", Time, "ns since 1970, UTC", "when", |row| {
        row.of.row.time_ns.into()
    }),
    column("hook", Text, "", "kernel function or tracepoint", |row| {
        row.of.row.place.into()
    }),
    column(
        "area",
        Text,
        "",
        "part of the network stack: device, netfilter, ipvs, drop …",
        |row| row.of.event.role().area().name().into(),
    ),
    column(
        "netns",
        Number,
        "inode number",
        "network namespace",
        |row| row.of.event.netns.into(),
    ),
    column("namespace", Text, "", "its name", |row| {
        row.of
            .event
            .netns
            .map(|netns| row.names.namespace(netns))
            .into()
    }),
    column(
        "ifindex",
        Number,
        "",
        "index of the device in its namespace",
        |row| row.of.event.ifindex.into(),
    ),
    column("device", Text, "", "its name", |row| {
        let event = row.of.event;
        event
            .ifindex
            .map(|index| row.names.device(event.netns, index))
            .into()
    }),
    column(
        "length",
        Number,
        "bytes",
        "the packet, as the skb counts it",
        |row| row.of.event.length.into(),
    ),
    column("mark", Number, "", "firewall mark", |row| {
        row.of.event.mark.into()
    }),
    column("protocol", Text, "", "transport protocol", |row| {
        header(row)
            .map(|tuple| protocol::name(tuple.protocol))
            .into()
    }),
    column("source_address", Text, "", "source here", |row| {
        header(row)
            .map(|tuple| tuple.source.ip().to_string())
            .into()
    }),
    column(
        "source_port",
        Number,
        "",
        "its port; null where the protocol has none",
        |row| {
            header(row)
                .and_then(|tuple| port(tuple.source.port()))
                .into()
        },
    ),
    column("destination_address", Text, "", "destination here", |row| {
        header(row)
            .map(|tuple| tuple.destination.ip().to_string())
            .into()
    }),
    column(
        "destination_port",
        Number,
        "",
        "its port; null where the protocol has none",
        |row| {
            header(row)
                .and_then(|tuple| port(tuple.destination.port()))
                .into()
        },
    ),
    column("detail", Text, "", "what the hook adds, in words", |row| {
        Some(row.of.row.detail.as_str())
            .filter(|text| !text.is_empty())
            .into()
    }),
];

/// One row for each connection, or what a datagram protocol has in place of one.
pub const FLOWS: &[Column<Of<Flow>>] = &[
    column("node", Text, "", "machine that captured it", |row| {
        row.node.into()
    }),
    column("flow", Number, "", "number in the capture", |row| {
        row.of.id.into()
    }),
    column(
        "first_time",
        Time,
        "ns since 1970, UTC",
        "start of its first packet",
        |row| row.names.clock.wall_ns(row.of.first_ns).into(),
    ),
    column(
        "last_time",
        Time,
        "ns since 1970, UTC",
        "start of its last packet",
        |row| row.names.clock.wall_ns(row.of.last_ns).into(),
    ),
    column("protocol", Text, "", "transport protocol", |row| {
        protocol::name(row.of.client.protocol).into()
    }),
    column("client_address", Text, "", "who began", |row| {
        row.of.client.source.ip().to_string().into()
    }),
    column("client_port", Number, "", "its port", |row| {
        port(row.of.client.source.port()).into()
    }),
    column("client_name", Text, "", "its name in the cluster", |row| {
        row.names
            .endpoint(row.of.client.protocol, row.of.client.source)
            .into()
    }),
    column(
        "server_address",
        Text,
        "",
        "whom it asked, before NAT",
        |row| row.of.client.destination.ip().to_string().into(),
    ),
    column("server_port", Number, "", "its port", |row| {
        port(row.of.client.destination.port()).into()
    }),
    column("server_name", Text, "", "its name in the cluster", |row| {
        row.names
            .endpoint(row.of.client.protocol, row.of.client.destination)
            .into()
    }),
    column(
        "requests",
        Number,
        "packets",
        "from the one who began",
        |row| row.of.requests.into(),
    ),
    column("replies", Number, "packets", "back", |row| {
        row.of.replies.into()
    }),
    column(
        "suspicious",
        Number,
        "packets",
        "did not arrive, or met no virtual server",
        |row| row.of.suspicious.into(),
    ),
    column(
        "failed",
        Number,
        "packets",
        "did not arrive, of those that are kept: the first and last 8",
        |row| {
            row.of
                .kept()
                .filter(|(_, journey)| journey.failed())
                .count()
                .into()
        },
    ),
    column("answered", Flag, "", "a packet came back", |row| {
        (row.of.replies > 0 || row.of.of(Direction::Reply).next().is_some()).into()
    }),
];

/// One row for each diagnosis.
pub const DIAGNOSES: &[Column<OfDiagnosis>] = &[
    column("node", Text, "", "machine that captured it", |row| {
        row.node.into()
    }),
    column(
        "time",
        Time,
        "ns since 1970, UTC",
        "when it was reached",
        |row| row.of.time_ns.into(),
    ),
    column(
        "cause",
        Text,
        "",
        "code of the cause: tracer why CODE explains it",
        |row| row.of.diagnosis.code.into(),
    ),
    column("certainty", Text, "", "certain or likely", |row| {
        row.of.diagnosis.certainty.name().into()
    }),
    column(
        "subject",
        Text,
        "",
        "what it is about: protocol, address and port",
        |row| row.of.diagnosis.subject.as_str().into(),
    ),
    column(
        "failed_connections",
        Number,
        "",
        "connections that it stopped",
        |row| row.of.diagnosis.failed.into(),
    ),
    column(
        "connections",
        Number,
        "",
        "connections to the subject in all",
        |row| row.of.diagnosis.total.into(),
    ),
    column("summary", Text, "", "in words", |row| {
        row.of.diagnosis.summary.as_str().into()
    }),
    column(
        "evidence",
        Text,
        "",
        "what proves it, a line each: source, tab, text",
        |row| {
            let lines = row.of.diagnosis.evidence.iter();
            lines
                .map(|proof| format!("{}\t{}", proof.source, proof.text))
                .collect::<Vec<_>>()
                .join("\n")
                .into()
        },
    ),
    column(
        "missing",
        Text,
        "",
        "what is missing to be certain, a line each",
        |row| {
            let missing = &row.of.diagnosis.missing;
            (!missing.is_empty()).then(|| missing.join("\n")).into()
        },
    ),
    column("fix", Text, "", "the best fix: lines to paste", |row| {
        row.of
            .diagnosis
            .fixes
            .first()
            .map(|fix| fix.lines.join("\n"))
            .into()
    }),
    column(
        "check_command",
        Text,
        "",
        "command that shows whether the fix worked",
        |row| {
            Some(row.of.diagnosis.check.as_str())
                .filter(|check| !check.is_empty())
                .into()
        },
    ),
];

fn first(row: Row<'_, Told<'_>>) -> Option<Tuple> {
    row.of.journey.first_tuple()
}

/// The packet after NAT, where that changed its destination.
fn changed(row: Row<'_, Told<'_>>) -> Option<Tuple> {
    let last = row.of.journey.last_tuple()?;
    (first(row)?.destination != last.destination).then_some(last)
}

fn header(row: Row<'_, Seen<'_>>) -> Option<Tuple> {
    row.of.event.packet.as_ref().map(|packet| packet.tuple)
}

const fn port(number: u16) -> Option<u16> {
    match number {
        0 => None,
        number => Some(number),
    }
}

fn path(view: &JourneyView) -> String {
    let stages = view.path.iter().map(|stage| {
        let mark = if stage.lost { "✗ " } else { "" };
        match &stage.namespace {
            Some(namespace) => format!("[{namespace}] {mark}{}", stage.text),
            None => format!("{mark}{}", stage.text),
        }
    });
    stages.collect::<Vec<_>>().join(STEP)
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
        "connections, at most the million heard of last",
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
